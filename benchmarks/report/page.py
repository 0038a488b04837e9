"""`report.html`: a result as a page, one file that needs no network; drawn from `bench.json` alone.

Bars are plain elements whose width is a percentage, the timeline is SVG; there is no script. Colors follow the reader's
preference, light or dark.
"""

from collections.abc import Sequence
from html import escape as escape_markup
from typing import Any

from benchmarks.harness.rates import NOISY
from benchmarks.harness.result import Environment, Result, Row
from benchmarks.harness.result_json import to_json
from benchmarks.report.columns import (
    PASS_MARK,
    attained,
    by_group,
    cell,
    number,
    percent,
    range_of,
    rate_of,
    rated,
    shown,
)
from loaders.errors import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fff; --line: #dfe4ea; --bar: #2a6fb0;
  --faint: #9db7cf; --mark: #b04a2a; --box: #f4f6f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b5; --paper: #14181d; --line: #2c343d;
  --bar: #5aa2e0; --faint: #41586e; --mark: #e08a63; --box: #1c2229; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.2rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; }
.said { border-left: 4px solid var(--mark); background: var(--box); padding: .7rem 1rem; color: var(--ink);
  font-size: 1.05rem; }
.bar { display: grid; grid-template-columns: minmax(8rem, 20rem) 1fr 7.5rem; gap: 0 .8rem; align-items: center;
  margin: .25rem 0; font-size: .9rem; }
.bar > span { overflow-wrap: anywhere; }
.track { position: relative; height: 1.35rem; background: var(--box); }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--bar); } .noisy .fill { background: var(--faint); }
.range { position: absolute; top: 50%; height: 2px; background: var(--ink); }
.mark { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--mark); }
.value { font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td:first-child { white-space: normal; min-width: 9rem; }
th { color: var(--soft); font-weight: 600; } tr.group td { font-weight: 600; padding-top: .8rem; }
svg { width: 100%; min-width: 40rem; height: auto; display: block; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
.legend span { display: inline-block; margin-right: 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; vertical-align: -1px; }
details { margin: .6rem 0; } pre { overflow-x: auto; background: var(--box); padding: .7rem; font-size: .8rem; }
@media (max-width: 36rem) { body { padding: .8rem; } .bar { grid-template-columns: 1fr 6.5rem; }
  .bar > :first-child { grid-column: 1 / -1; } }
"""

COLORS = {
    "plan": "#8d99a6", "read": "#c9a227", "decode": "#c8553d", "resize": "#e08e45", "copy": "#7d5ba6",
    "augment": "#3f9c8f", "forward": "#2a6fb0", "backward": "#5a8fc4", "optimizer": "#89b4dc", "wait": "#d0d5da",
}  # fmt: skip
"""Stage → its color in timeline and legend."""


def page(result: Result) -> str:
    """The whole page."""
    sections = [
        _head(result),
        *_diagnosis(result),
        *_saturation(result.rows),
        *(_rates(group, members) for group, members in by_group(rated(result.rows)).items()),
        *_stages(result),
        *_timeline(result),
        _table(result.rows),
        _environment(result),
    ]
    title = escape(_title(result))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def escape(text: str) -> str:
    """Any text as text of the page, or as an attribute's value; control characters as escapes that people can read."""
    return escape_markup(printable(text))


def _title(result: Result) -> str:
    words = (result.theme, result.options.get("mode"), result.options.get("data"))
    return " · ".join(str(word) for word in words if word)


def machine(environment: Environment) -> str:
    """GPU or processor, in a few words."""
    usable = "?" if environment.usable_cores is None else environment.usable_cores
    cores = f"{usable} cores of {environment.processor or 'a CPU'}"
    if not environment.gpus:
        return f"{cores}, no GPU"
    count = f" × {len(environment.gpus)}" if len(environment.gpus) > 1 else ""
    return f"{environment.gpus[0]}{count}, {cores}"


def checkout(commit: str | None) -> str:
    """A commit in short, and whether files differed from it."""
    if not commit:
        return "unknown"
    return f"{commit[:10]}-changed" if commit.endswith("+") else commit[:10]


def _head(result: Result) -> str:
    environment = result.environment or Environment()
    torch = environment.versions.get("torch")
    facts = [
        machine(environment),
        f"torch {torch}" if torch else "",
        f"commit {checkout(environment.commit)}",
        result.date or "",
    ]
    return f"<h1>{escape(_title(result))}</h1><p>{escape(' · '.join(filter(None, facts)))}</p>"


def _diagnosis(result: Result) -> list[str]:
    return [f'<p class="said">{escape(result.diagnosis.sentence)}</p>'] if result.diagnosis else []


def _rates(group: str, rows: Sequence[Row]) -> str:
    most = max(range_of(row)[1] for row in rows) or 1
    bars = "".join(_rate(row, most) for row in reversed(rows))
    return f"<h2>{escape(group)}</h2><p>images/s, median; the line spans the windows</p>{bars}"


def _rate(row: Row, most: float) -> str:
    low, high = (100 * rate / most for rate in range_of(row))
    inside = (
        f'<div class="fill" style="width:{100 * rate_of(row) / most:.2f}%"></div>'
        f'<div class="range" style="left:{low:.2f}%;width:{max(0.2, high - low):.2f}%"></div>'
    )
    return _bar(row.name, inside, number(rate_of(row)), noisy=row.noisy)


def _saturation(rows: Sequence[Row]) -> list[str]:
    saturated = sorted(((row.saturation, row) for row in rows if row.saturation is not None), key=lambda pair: -pair[0])
    if not saturated:
        return []
    most = max(1.0, saturated[0][0])
    bars = "".join(
        _bar(
            row.name,
            f'<div class="fill" style="width:{100 * saturation / most:.2f}%"></div>'
            f'<div class="mark" style="left:{100 * PASS_MARK / most:.2f}%"></div>',
            attained(saturation),
            noisy=row.noisy,
        )
        for saturation, row in saturated
    )
    return [f"<h2>Saturation</h2><p>end to end ÷ ceiling, whole epochs; the mark is {percent(PASS_MARK)}</p>{bars}"]


def _bar(name: str, inside: str, value: str, *, noisy: bool = False) -> str:
    marked, remark = (" noisy", " (noisy)") if noisy else ("", "")
    return (
        f'<div class="bar{marked}"><span>{escape(name)}</span><div class="track">{inside}</div>'
        f'<span class="value">{escape(value)}{remark}</span></div>'
    )


def _stages(result: Result) -> list[str]:
    """Time by stage: microseconds for an image, beside the step's own."""
    if not result.stages:
        return []
    most = max(stage.microseconds_per_image for stage in result.stages) or 1
    bars = "".join(
        _bar(
            f"{stage.stage} ({stage.where})",
            f'<div class="fill" style="width:{100 * stage.microseconds_per_image / most:.2f}%;'
            f'background:{COLORS.get(stage.stage, "#888")}"></div>',
            f"{number(stage.microseconds_per_image)} µs",
        )
        for stage in result.stages
    )
    return [f"<h2>Time by stage</h2><p>microseconds for each image, over all threads</p>{bars}"]


def _timeline(result: Result) -> list[str]:
    """A few steps, a lane for each thread."""
    spans = result.timeline
    if not spans:
        return []
    end = max(span.end for span in spans)
    lanes = list(dict.fromkeys(span.thread for span in spans))
    wide, tall, left = 1000, 26, 90
    scale = (wide - left) / end
    drawn = [
        f'<text x="0" y="{place * tall + 17}">{escape(lane)}</text>'
        f'<line class="axis" x1="{left}" x2="{wide}" y1="{(place + 1) * tall}" y2="{(place + 1) * tall}"/>'
        for place, lane in enumerate(lanes)
    ]
    for span in spans:
        y = lanes.index(span.thread) * tall + 4
        x = left + span.begin * scale
        seconds = span.end - span.begin
        drawn.append(
            f'<rect x="{x:.2f}" y="{y}" width="{max(0.4, seconds * scale):.2f}" height="18" '
            f'fill="{COLORS.get(span.stage, "#888")}">'
            f"<title>{escape(f'{span.stage}: {1000 * seconds:.2f} ms')}</title></rect>"
        )
    foot = len(lanes) * tall + 16
    drawn += [
        f'<text x="{left + share * (wide - left):.0f}" y="{foot}" text-anchor="{anchor}">'
        f"{1000 * share * end:.0f} ms</text>"
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    stages = [stage for stage in COLORS if any(span.stage == stage for span in spans)]
    legend = "".join(f'<span><i style="background:{COLORS[stage]}"></i>{stage}</span>' for stage in stages)
    return [
        f'<h2>A few steps</h2><p class="legend">{legend}</p><div class="scroll">'
        f'<svg viewBox="0 0 {wide} {foot + 4}" role="img" aria-label="timeline of a few steps">'
        f"{''.join(drawn)}</svg></div>"
    ]


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = shown(rows)
    head = "".join(f'<th title="{escape(column.explained)}">{escape(column.title)}</th>' for column in columns)
    body = ""
    for group, members in by_group(rows).items():
        body += f'<tr class="group"><td colspan="{len(columns) + 1}">{escape(group)}</td></tr>'
        for row in members:
            cells = "".join(f"<td>{escape(cell(row, column))}</td>" for column in columns)
            body += f"<tr><td>{escape(row.name)}{' (noisy)' if row.noisy else ''}</td>{cells}</tr>"
    explained = "; ".join(f"{column.title}: {column.explained}" for column in columns)
    legend = f"{explained}. Noisy: the windows differ by more than {percent(NOISY)}."
    return (
        f'<h2>All figures</h2><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><p>{escape(legend)}</p>"
    )


def _environment(result: Result) -> str:
    content = to_json(result)
    sections = {
        "Environment": content.get("environment", {}),
        "Options": content.get("options", {}),
        **{
            name.replace("_", " ").capitalize(): content[name]
            for name in ("demand", "tuning", "modes", "notes", "nsys", "trace")
            if content.get(name)
        },
    }
    return "<h2>How it was measured</h2>" + "".join(
        f"<details><summary>{escape(name)}</summary><pre>{_lines(section)}</pre></details>"
        for name, section in sections.items()
    )


def _lines(content: Any, indent: str = "") -> str:
    """Nested names and values, a line each, as text of the page."""
    if not isinstance(content, dict):
        return escape(f"{indent}{content}")
    return "\n".join(
        escape(f"{indent}{name}:") + "\n" + _lines(value, indent + "  ")
        if isinstance(value, dict)
        else escape(f"{indent}{name}: {value}")
        for name, value in content.items()
    )
