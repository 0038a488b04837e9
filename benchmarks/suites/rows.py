"""Names of groups and rows, which scripts outside the project read, and how rows are compared. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.harness.rates import speedup
from benchmarks.harness.result import Row
from train.option_values import Mode

UINT8 = "uint8 batches, normalising left to the device"
FINISHED = "finished batches"
CACHED = "; pixels decoded beforehand"
"""Added to the name of a group where others decode in every epoch."""
BASELINE = "baseline: PIL, DataLoader, no workers"
UINT8_BASELINE = "PIL, no workers, uint8"
TUNED = "tuned baseline: the same, "
UINT8_TUNED = "PIL, uint8, "
"""Names of tuned baselines begin so; the number of workers follows."""
PARTS = "one part alone"
"""The group of the parts of a loader that are measured alone."""
CEILING = "ceiling"
END_TO_END = "end to end"
ALONE = "loader alone"
AUGMENT = "device augmentation alone"
FED_BY = "fed by "
"""Rows of a loader that feeds the step begin so; the loader's name follows."""
MODE_TITLES: dict[Mode, str] = {"finetune": "fine-tuning", "feature": "feature extraction"}


def compare_with_ordinary(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, each with its speedup over the ordinary loader that does the same work, as it is and tuned: None where
    there is none, or where that one was not measured."""
    return tuple(
        replace(
            row,
            times_baseline=_speedup_over(row, rows, {FINISHED: BASELINE, UINT8: UINT8_BASELINE}),
            times_tuned=_speedup_over(row, rows, {FINISHED: TUNED, UINT8: UINT8_TUNED}),
            keys=tuple(dict.fromkeys((*row.keys, "times_baseline", "times_tuned"))),
        )
        for row in rows
    )


def _speedup_over(row: Row, rows: Sequence[Row], beginnings: Mapping[str, str]) -> float | None:
    beginning = beginnings.get(row.group.removesuffix(CACHED))
    theirs = [other for other in rows if beginning is not None and other.name.startswith(beginning)]
    return speedup(row.windows, theirs[0].windows) if theirs else None
