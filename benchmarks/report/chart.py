"""`bench.png`: a result as bars, for a README."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.result import Result, Row
from benchmarks.report.columns import PASS_MARK, attained, by_group, number, percent, range_of, rate_of, rated
from loaders.errors import printable

_COLOR, _NOISY_COLOR = "#2a6fb0", "#9db7cf"


def chart(result: Result) -> Figure:
    """Rates by group, with the range of the windows; saturation below them where it was measured."""
    groups = by_group(rated(result.rows))
    saturated = [row for row in result.rows if row.saturation is not None]
    heights = [len(members) + 1.5 for members in groups.values()] + ([len(saturated) + 1.5] if saturated else [])
    figure = Figure(figsize=(9, max(2.0, 0.32 * sum(heights))), layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (group, members) in zip(panels, groups.items(), strict=False):
        draw_rates(axes, group, members)
    if saturated:
        draw_saturation(panels[-1], saturated)
    return figure


def draw_rates(axes: Axes, group: str, rows: Sequence[Row]) -> None:
    """A bar for each row, its windows' range as a line."""
    rates = [rate_of(row) for row in rows]
    below = [rate_of(row) - range_of(row)[0] for row in rows]
    above = [range_of(row)[1] - rate_of(row) for row in rows]
    colors = [_NOISY_COLOR if row.noisy else _COLOR for row in rows]
    bars = axes.barh(range(len(rows)), rates, xerr=(below, above), color=colors, error_kw={"lw": 1, "ecolor": "#666"})
    axes.bar_label(bars, [f"  {number(rate)}" for rate in rates], padding=4, fontsize=8)
    _finish(axes, rows, f"{group}: images/s")
    axes.margins(x=0.12)


def draw_saturation(axes: Axes, rows: Sequence[Row]) -> None:
    """Shares of the ceiling, with the mark that is to be passed."""
    shares = [row.saturation for row in rows if row.saturation is not None]
    bars = axes.barh(range(len(rows)), shares, color=_COLOR)
    axes.bar_label(bars, [f"  {attained(share)}" for share in shares], padding=4, fontsize=8)
    axes.axvline(PASS_MARK, color="#b04a2a", lw=1, ls="--")
    axes.set_xlim(0, max(1.15, *shares))
    _finish(axes, rows, f"saturation (to pass: {percent(PASS_MARK)})")


def _finish(axes: Axes, rows: Sequence[Row], title: str) -> None:
    names = [printable(f"{row.name} (noisy)" if row.noisy else row.name) for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)  # a "$" in a name begins no formula
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_title(printable(title), parse_math=False, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
