"""`bench.png`: a result as bars, for a README."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.columns import PASS_MARK, attained, by_group, measured, number, percent
from benchmarks.options import Result

_COLOUR, _NOISY = "#2a6fb0", "#9db7cf"


def picture(result: Result) -> Figure:
    """Rates by group, with the range of the windows; saturation beside them where it was measured."""
    groups = by_group(measured(result["rows"]))
    saturated = [row for row in result["rows"] if row.get("saturation") is not None]
    panels = len(groups) + bool(saturated)
    heights = [len(members) + 1.5 for members in groups.values()] + ([len(saturated) + 1.5] if saturated else [])
    figure = Figure(figsize=(9, max(2.0, 0.32 * sum(heights))), layout="constrained")
    axes = figure.subplots(panels, 1, height_ratios=heights, squeeze=False)[:, 0]
    for place, (group, members) in zip(axes, groups.items(), strict=False):
        rates(place, group, members)
    if saturated:
        saturation(axes[-1], saturated)
    return figure


def rates(axes: Axes, group: str, rows: list[dict[str, Any]]) -> None:
    """A bar for each row, its windows' range as a line."""
    values = [row["images_per_second"] for row in rows]
    below = [row["images_per_second"] - row["low"] for row in rows]
    above = [row["high"] - row["images_per_second"] for row in rows]
    colours = [_NOISY if row.get("noisy") else _COLOUR for row in rows]
    bars = axes.barh(range(len(rows)), values, xerr=(below, above), color=colours, error_kw={"lw": 1, "ecolor": "#666"})
    axes.bar_label(bars, [f"  {number(value)}" for value in values], padding=4, fontsize=8)
    _finish(axes, rows, f"{group}: images/s")
    axes.margins(x=0.12)


def saturation(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Shares of the ceiling, with the mark that is to be passed."""
    values = [row["saturation"] for row in rows]
    bars = axes.barh(range(len(rows)), values, color=_COLOUR)
    axes.bar_label(bars, [f"  {attained(value)}" for value in values], padding=4, fontsize=8)
    axes.axvline(PASS_MARK, color="#b04a2a", lw=1, ls="--")
    axes.set_xlim(0, max(1.15, *values))
    _finish(axes, rows, f"saturation (to pass: {percent(PASS_MARK)})")


def _finish(axes: Axes, rows: list[dict[str, Any]], title: str) -> None:
    axes.set_yticks(range(len(rows)), [row["name"] + (" (noisy)" if row.get("noisy") else "") for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
