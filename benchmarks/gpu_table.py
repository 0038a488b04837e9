"""What `gpu-check` found, as one table: from each part's result, what it comes to and what to know of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.arms import FINISHED
from benchmarks.columns import attained, measured, number, percent, seconds, tenths, times
from benchmarks.options import Result
from benchmarks.page import checkout, machine
from benchmarks.saturation import CEILING
from benchmarks.steps import GROUPS
from train.option_values import Mode

Results = Mapping[str, Any]
"""Name of a part → what it wrote: a benchmark's result, a run's summary, or the last line of its log."""

_FED = "fed by "


class Line(NamedTuple):
    """A line of the table."""

    what: str
    figure: str
    note: str


def markdown(lines: Sequence[Line]) -> str:
    """The table, aligned, as Markdown has it."""
    head = [Line("what", "figure", "note"), *lines]
    wide, figures = (max(len(line[place]) for line in head) for place in range(2))
    rows = [f"| {what:{wide}} | {figure:>{figures}} | {note} |" for what, figure, note in head]
    return "\n".join([rows[0], f"| {'-' * wide} | {'-' * (figures - 1)}: | --- |", *rows[1:]]) + "\n"


def machine_line(check: Result) -> Line:
    """On what all this was found."""
    environment = check["environment"]
    commits = dict.fromkeys(checkout(part["commit"]) for part in check["parts"])  # a later sitting may have another
    tiny = "; as little as there can be of everything, to see that it works: no figure means anything"
    note = f"torch {environment['versions']['torch']}, commit {' and '.join(commits)}, data {check['options']['data']}"
    return Line("machine", machine(environment), note + tiny * check["options"]["cpu"])


# --- what each part says -------------------------------------------------------------------------


def log_lines(name: str, what: str, results: Results) -> list[Line]:
    """The last line that a part printed."""
    return [Line(what, results[name].strip("= "), "")]


def saturation_lines(name: str, mode: Mode, results: Results) -> list[Line]:
    """Ceiling with its shares, the best loader end to end, each loader's saturation, the augmentation's share."""
    told, rows = results[name]["modes"][mode], {row["name"]: row for row in results[name]["rows"]}
    title, prefix = GROUPS[mode], f"{mode}: {_FED}"
    fed = {row_name.removeprefix(prefix): row for row_name, row in rows.items() if row_name.startswith(prefix)}
    ranked = sorted(fed, key=lambda loader: -fed[loader]["images_per_second"])
    setting = f"{told['size']} px, batches of {told['batch_size']}, {told['precision']}"
    peaks = [
        f"{percent(told[key])} of the GPU's {what}"
        for key, what in (("arithmetic_share", "arithmetic"), ("memory_share", "memory bandwidth"))
        if told[key] is not None
    ]
    best = fed[ranked[0]]
    return [
        Line(f"{title}: ceiling", _rate(rows[f"{mode}: {CEILING}"]), "; ".join([*peaks, setting])),
        Line(f"{title}: end to end", _rate(best), f"{ranked[0]}, the fastest here; no features kept"),
        *(
            Line(f"{title}: saturation, {loader}", attained(fed[loader]["saturation"]), _fed(fed[loader]))
            for loader in ranked
        ),
        Line(f"{title}: augmentation on the device", tenths(told["augmentation_share"]), "of the time of a step"),
    ]


def _fed(row: dict[str, Any]) -> str:
    return f"{_rate(row)}; turns from {attained(row['saturation_low'])} to {attained(row['saturation_high'])}"


def _rate(row: dict[str, Any]) -> str:
    return f"{number(row['images_per_second'])} images/s"


def cold_lines(mode: Mode, results: Results) -> list[Line]:
    """An epoch for which all had to be compiled."""
    cold = results[f"{mode}-cold"]
    return [Line(f"{_run(mode, cold)}, compile cache empty", seconds(cold["seconds"]), "with its evaluation")]


def warm_lines(mode: Mode, results: Results) -> list[Line]:
    """The same for which all was there, and what compiling takes by that."""
    warm = results[f"{mode}-warm"]
    compiling = _compiling(mode, results)
    note = "by itself: the run before, which was to compile all, has no result"
    if compiling is not None:
        note = f"so compiling takes {seconds(compiling)}"
    return [Line(f"{_run(mode, warm)}, the same command again", seconds(warm["seconds"]), note)]


def run_lines(mode: Mode, weights: str, results: Results) -> list[Line]:
    """A whole run: time with and without compiling, accuracy."""
    ours = results[mode]
    title, compiling = _run(mode, ours), _compiling(mode, results)
    rate = f"{ours['loader']}, {_rate(ours)}, waiting {percent(ours['data_wait'])}"
    lines = [Line(f"{title}, with evaluation", seconds(ours["seconds"]), f"compile cache filled; {rate}")]
    if compiling is not None:
        told = f"by reckoning: {seconds(ours['seconds'])} and {seconds(compiling)} of compiling"
        lines.append(Line(f"{title}, compile cache empty", seconds(ours["seconds"] + compiling), told))
    seen = (
        f"of {ours['val_seen']:,} images, epoch {ours['best_epoch']}; the last epoch's {tenths(ours['last_val_top1'])}"
    )
    return [*lines, Line(f"{title}, top-1", tenths(ours["val_top1"]), f"{seen}; weights: {weights}")]


def _compiling(mode: Mode, results: Results) -> float | None:
    """Seconds by which a run exceeds the same with a filled compile cache; None where one of the two is missing."""
    both = [results.get(f"{mode}-{state}") for state in ("cold", "warm")]
    return both[0]["seconds"] - both[1]["seconds"] if both[0] and both[1] else None


def _run(mode: Mode, summary: Result) -> str:
    epochs, views = summary["epochs"], summary["views"]
    return f"{GROUPS[mode]}, {epochs} epoch{'s' * (epochs > 1)}" + (f", {views} views kept" if views else "")


def blog_lines(mode: Mode, results: Results) -> list[Line]:
    """The blog's loop: its rate, and by that its time for as many epochs as ours had."""
    blog, ours = results[f"blog-{mode}"], results.get(mode)
    what = f"the blog's loop, {GROUPS[mode]}"
    rate = {"images_per_second": blog["last_images_per_second"]}
    how = f"the last epoch, of {blog['train_images']:,} images: {blog['loader']}, {blog['recipe']}, {blog['precision']}"
    lines = [Line(what, _rate(rate), f"{how}, not compiled")]
    if ours is None:
        return lines
    epochs, images = ours["epochs"], ours["train_images"]
    theirs = extrapolated(epochs, images, blog["last_images_per_second"])
    reckoned = f"extrapolated: {epochs} × {images:,} images at {_rate(rate)}; evaluation left out"
    ratio = f"{seconds(theirs)} without evaluation ÷ {seconds(ours['seconds'])} with it"
    return [
        *lines,
        Line(f"{what}, {epochs} epochs", seconds(theirs), reckoned),
        Line(f"{_run(mode, ours)}, against the blog's loop", times(theirs / ours["seconds"]), ratio),
    ]


def extrapolated(epochs: int, images: int, rate: float) -> float:
    """Seconds that so many epochs of so many images take at so many images/s."""
    return epochs * images / rate


def steps_lines(results: Results) -> list[Line]:
    """Each rung that could be measured."""
    return [
        Line(f"{row['group']}, step: {row['name']}", _rate(row), _gained(row))
        for row in measured(results["steps"]["rows"])
    ]


def _gained(row: dict[str, Any]) -> str:
    """What a rung is worth, and what turns it on."""
    if row["times_before"] is None:
        return str(row["switch"])
    before = "the compiled one" if row["beside"] else "the rung before"
    return f"{times(row['times_before'])} {before}; {row['switch']}"


def profile_lines(mode: Mode, results: Results) -> list[Line]:
    """What limits the loop."""
    result = results[f"profile-{mode}"]
    return [Line(f"{GROUPS[mode]}, profiled", _rate(result["rows"][0]), result["diagnosis"]["sentence"])]


def loaders_lines(results: Results) -> list[Line]:
    """Loaders that hand over finished batches."""
    rows = [row for row in measured(results["loaders"]["rows"]) if row["group"].startswith(FINISHED)]
    return [
        Line(f"loader alone: {row['name']}", _rate(row), f"{times(row['times_baseline'])} the baseline")
        for row in sorted(rows, key=lambda row: float(row["images_per_second"]))
    ]
