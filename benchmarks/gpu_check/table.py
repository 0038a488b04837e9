"""What `gpu-check` found, as one table: from each part's result, what it comes to and what to know of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from benchmarks.gpu_check.record import Check
from benchmarks.harness.result import Result, Row, RunSummary
from benchmarks.harness.result_json import from_json, summary_from_json
from benchmarks.report.columns import attained, number, percent, rate_of, rated, seconds, tenths, times
from benchmarks.report.page import checkout, machine
from benchmarks.suites.rows import CEILING, FED_BY, FINISHED, MODE_TITLES
from train.option_values import Mode

Results = Mapping[str, Any]
"""Name of a program → what it wrote: the JSON of a benchmark's result or of a run's summary, or the last line of its
log. It may be incomplete, and is only understood where a line is made of it."""

Known = TypeVar("Known")


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


def machine_line(check: Check) -> Line:
    """The machine that all this was found on."""
    commits = dict.fromkeys(checkout(part.commit) for part in check.parts)  # a later sitting may have another
    note = f"torch {check.environment.versions['torch']}, commit {' and '.join(commits)}, data {check.options['data']}"
    if check.options["cpu"]:
        note += "; as little as there can be of everything, to see that it works: no figure means anything"
    return Line("machine", machine(check.environment), note)


def _result(name: str, results: Results) -> Result:
    """The result that a benchmark wrote."""
    return from_json(results[name])


def _summary(name: str, results: Results) -> RunSummary | None:
    """The summary that a training run wrote; None where there is none."""
    return summary_from_json(results[name]) if results.get(name) else None


def _known(value: Known | None, what: str) -> Known:
    if value is None:
        raise ValueError(f"there is no {what}")
    return value


# --- the lines of each program -------------------------------------------------------------------


def log_lines(name: str, what: str, results: Results) -> list[Line]:
    """The last line that a program printed."""
    return [Line(what, results[name].strip("= "), "")]


def saturation_lines(name: str, mode: Mode, results: Results) -> list[Line]:
    """Ceiling with its shares, the best loader end to end, each loader's saturation, the augmentation's share."""
    result = _result(name, results)
    measured = _known(result.modes, "mode")[mode]
    rows = {row.name: row for row in result.rows}
    title, prefix = MODE_TITLES[mode], f"{mode}: {FED_BY}"
    fed = {row_name.removeprefix(prefix): row for row_name, row in rows.items() if row_name.startswith(prefix)}
    ranked = sorted(fed, key=lambda loader: -rate_of(fed[loader]))
    peaks = [
        f"{percent(share)} of the GPU's {what}"
        for share, what in ((measured.arithmetic_share, "arithmetic"), (measured.memory_share, "memory bandwidth"))
        if share is not None
    ]
    setting = f"{measured.size} px, batches of {measured.batch_size}, {measured.precision}"
    best = fed[ranked[0]]
    return [
        Line(f"{title}: ceiling", _rate(rows[f"{mode}: {CEILING}"]), "; ".join([*peaks, setting])),
        Line(f"{title}: end to end", _rate(best), f"{ranked[0]}, the fastest here; no features kept"),
        *(_saturation_line(title, loader, fed[loader]) for loader in ranked),
        Line(f"{title}: augmentation on the device", tenths(measured.augmentation_share), "of the time of a step"),
    ]


def _saturation_line(title: str, loader: str, row: Row) -> Line:
    saturation, low, high = (
        attained(_known(share, "saturation")) for share in (row.saturation, row.saturation_low, row.saturation_high)
    )
    return Line(f"{title}: saturation, {loader}", saturation, f"{_rate(row)}; turns from {low} to {high}")


def _rate(row: Row) -> str:
    return _images_per_second(rate_of(row))


def _images_per_second(rate: float) -> str:
    return f"{number(rate)} images/s"


def cold_lines(mode: Mode, results: Results) -> list[Line]:
    """An epoch for which everything had to be compiled."""
    cold = _known(_summary(f"{mode}-cold", results), "run")
    return [Line(f"{_run(mode, cold)}, compile cache empty", seconds(cold.seconds), "with its evaluation")]


def warm_lines(mode: Mode, results: Results) -> list[Line]:
    """The same with a filled compile cache, and what compiling takes by that."""
    warm = _known(_summary(f"{mode}-warm", results), "run")
    compiling = _compiling(mode, results)
    note = "by itself: the run before, which was to compile all, has no result"
    if compiling is not None:
        note = f"so compiling takes {seconds(compiling)}"
    return [Line(f"{_run(mode, warm)}, the same command again", seconds(warm.seconds), note)]


def run_lines(mode: Mode, weights: str, results: Results) -> list[Line]:
    """A whole run: time with and without compiling, accuracy."""
    run = _known(_summary(mode, results), "run")
    title, compiling = _run(mode, run), _compiling(mode, results)
    rate = f"{run.loader}, {_images_per_second(run.images_per_second)}, waiting {percent(run.data_wait)}"
    lines = [Line(f"{title}, with evaluation", seconds(run.seconds), f"compile cache filled; {rate}")]
    if compiling is not None:
        origin = f"by reckoning: {seconds(run.seconds)} and {seconds(compiling)} of compiling"
        lines.append(Line(f"{title}, compile cache empty", seconds(run.seconds + compiling), origin))
    last = tenths(_known(run.last_val_top1, "accuracy of the last epoch"))
    evaluated = f"of {_known(run.val_seen, 'count of images'):,} images, epoch {run.best_epoch}"
    note = f"{evaluated}; the last epoch's {last}; weights: {weights}"
    return [*lines, Line(f"{title}, top-1", tenths(run.val_top1), note)]


def _compiling(mode: Mode, results: Results) -> float | None:
    """Seconds by which a run exceeds the same with a filled compile cache; None where one of the two is missing."""
    cold, warm = (_summary(f"{mode}-{state}", results) for state in ("cold", "warm"))
    return cold.seconds - warm.seconds if cold and warm else None


def _run(mode: Mode, run: RunSummary) -> str:
    epochs = _known(run.epochs, "number of epochs")
    title = f"{MODE_TITLES[mode]}, {epochs} epoch" if epochs == 1 else f"{MODE_TITLES[mode]}, {epochs} epochs"
    return f"{title}, {run.views} views kept" if run.views else title


def blog_lines(mode: Mode, results: Results) -> list[Line]:
    """The blog's loop: its rate, and by that its time for as many epochs as ours had."""
    blog, run = _known(_summary(f"blog-{mode}", results), "run"), _summary(mode, results)
    what = f"the blog's loop, {MODE_TITLES[mode]}"
    rate = _known(blog.last_images_per_second, "rate of the last epoch")
    seen = f"the last epoch, of {_known(blog.train_images, 'count of images'):,} images"
    how = f"{seen}: {blog.loader}, {blog.recipe}, {blog.precision}"
    lines = [Line(what, _images_per_second(rate), f"{how}, not compiled")]
    if run is None:
        return lines
    epochs, images = _known(run.epochs, "number of epochs"), _known(run.train_images, "count of images")
    theirs = extrapolated(epochs, images, rate)
    origin = f"extrapolated: {epochs} × {images:,} images at {_images_per_second(rate)}; evaluation left out"
    ratio = f"{seconds(theirs)} without evaluation ÷ {seconds(run.seconds)} with it"
    return [
        *lines,
        Line(f"{what}, {epochs} epochs", seconds(theirs), origin),
        Line(f"{_run(mode, run)}, against the blog's loop", times(theirs / run.seconds), ratio),
    ]


def extrapolated(epochs: int, images: int, rate: float) -> float:
    """Seconds that so many epochs of so many images take at `rate` images/s."""
    return epochs * images / rate


def steps_lines(results: Results) -> list[Line]:
    """Each rung that could be measured."""
    return [
        Line(f"{row.group}, step: {row.name}", _rate(row), _gained(row))
        for row in rated(_result("steps", results).rows)
    ]


def _gained(row: Row) -> str:
    """What a rung is worth, and what turns it on."""
    if row.times_before is None:
        return str(row.switch)
    before = "the compiled one" if row.beside else "the rung before"
    return f"{times(row.times_before)} {before}; {row.switch}"


def profile_lines(mode: Mode, results: Results) -> list[Line]:
    """What limits the loop."""
    result = _result(f"profile-{mode}", results)
    sentence = _known(result.diagnosis, "diagnosis").sentence
    return [Line(f"{MODE_TITLES[mode]}, profiled", _rate(result.rows[0]), sentence)]


def loaders_lines(results: Results) -> list[Line]:
    """Loaders that hand over finished batches."""
    rows = [row for row in rated(_result("loaders", results).rows) if row.group.startswith(FINISHED)]
    return [
        Line(
            f"loader alone: {row.name}",
            _rate(row),
            f"{times(_known(row.times_baseline, 'baseline'))} the baseline",
        )
        for row in sorted(rows, key=rate_of)
    ]
