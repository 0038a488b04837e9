"""What a benchmark found: a `Result` of `Row`s. `result_json` reads and writes them.

Names of fields are the keys of `bench.json`, which scripts outside the project read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object with typed fields. A figure that is None was not measured."""

    keys: tuple[str, ...] = ()
    """Keys that its JSON has in any case, in order; fields that differ from their default follow them."""
    others: Mapping[str, object] = field(default_factory=dict)
    """Keys without a field here, as they were read."""


@dataclass(frozen=True, kw_only=True)
class Environment(Record):
    """Machine and software that a result was measured with."""

    commit: str | None = None
    """Of the checkout, followed by "+" where files differed from it."""
    versions: Mapping[str, object] = field(default_factory=dict)
    """Package → version."""
    processor: str | None = None
    usable_cores: int | None = None
    torch_threads: int | None = None
    gpus: tuple[str, ...] = ()
    """Names of the GPUs."""


@dataclass(frozen=True, kw_only=True)
class RunSummary(Record):
    """What the trainer reports of a run: its `summary.json`."""

    seconds: float
    images_per_second: float
    data_wait: float
    """Share of the training time that is spent waiting for data, 0 to 1."""
    val_top1: float
    """Accuracy on all validation images, 0 to 1."""
    mode: str | None = None
    loader: str | None = None
    recipe: str | None = None
    precision: str | None = None
    views: int | None = None
    """Views of each image whose features are cached."""
    epochs: int | None = None
    best_epoch: int | None = None
    train_images: int | None = None
    val_seen: int | None = None
    """Validation images that were evaluated."""
    last_val_top1: float | None = None
    last_images_per_second: float | None = None
    """Rate of the last epoch."""


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """The figures of one candidate."""

    group: str = ""
    """Rows of different groups were given different work, and are not compared."""
    name: str
    images_per_second: float | None = None
    """Median of the windows; of whole runs, the mean over the seeds."""
    low: float | None = None
    """The slowest window, or seed."""
    high: float | None = None
    """The fastest window, or seed."""
    noisy: bool = False
    """Whether the windows spread too widely around the rate."""
    cpu_seconds_per_1000: float | None = None
    """CPU seconds for 1,000 images, of all threads and workers."""
    images_per_core_second: float | None = None
    memory_bytes: int | None = None
    """Rise of the memory in use, until it had warmed up."""
    startup_seconds: float | None = None
    """From nothing to the first batch."""
    device_seconds: tuple[float, ...] | None = None
    """Length of each window by CUDA events."""
    windows: tuple[float, ...] = ()
    """Images/s of each window."""
    saturation: float | None = None
    """Rate end to end ÷ ceiling, whole epochs."""
    saturation_low: float | None = None
    saturation_high: float | None = None
    prep_stall: float | None = None
    """Share of a warm epoch's time that exceeds the ceiling's."""
    fetch_stall: float | None = None
    """Share of a cold epoch's time that exceeds a warm one's."""
    data_wait: float | None = None
    """Share of the time that is spent waiting for data, by the trainer's own clock."""
    supply_per_core: float | None = None
    """Images/s that a core supplies."""
    cores_per_gpu: float | None = None
    """CPU cores needed to supply what a GPU demands."""
    times_baseline: float | None = None
    """Speedup over the baseline."""
    times_tuned: float | None = None
    """Speedup over the tuned baseline."""
    arithmetic_share: float | None = None
    """Share of the GPU's peak arithmetic."""
    memory_share: float | None = None
    """Share of the GPU's memory bandwidth."""
    gpu_utilisation: float | None = None
    """Share of the time in which any kernel ran, by the driver."""
    gpu_watts: float | None = None
    gpu_memory_bytes: float | None = None
    place: int = 0
    """Position among the rows of its group, which are ordered by rate where this is equal."""
    switch: str | None = None
    """What turns on what this rung of the ladder adds, in PyTorch."""
    missing: str | None = None
    """What this rung lacks here."""
    beside: bool = False
    """Whether the rung is an alternative to the compiled step."""
    times_before: float | None = None
    """Speedup over the rung below."""
    val_top1: float | None = None
    """Accuracy on all validation images, 0 to 1: the mean over the seeds."""
    val_top1_low: float | None = None
    val_top1_high: float | None = None
    seeds: tuple[int, ...] = ()
    minutes: float | None = None
    """Length of a whole run, mean over the seeds."""
    summary: RunSummary | None = None
    """Of a run that was entered by hand."""


RATE_KEYS = ("group", "name", "images_per_second", "low", "high", "noisy")
MEASURED_KEYS = (
    *RATE_KEYS, "cpu_seconds_per_1000", "images_per_core_second", "memory_bytes", "startup_seconds", "device_seconds",
    "windows",
)  # fmt: skip
"""Of a row that `measure` has measured; suites append what they add."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Record):
    """What limits a training loop, and what to do."""

    limit: str = ""
    change: str = ""
    """The change that is most likely to help."""
    expected: float | None = None
    """Images/s with that change, about."""
    sentence: str
    """All of it, for people."""


@dataclass(frozen=True, kw_only=True)
class StageTime(Record):
    """The time that one stage takes in one place."""

    stage: str
    where: str
    """The step's thread, other threads, or the device."""
    seconds: float
    microseconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class TimelineSpan(Record):
    """One stay in a stage; seconds from the beginning of the timeline."""

    stage: str
    thread: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Demand(Record):
    """Images/s that a GPU demands, and where that figure comes from."""

    images_per_second: float
    origin: str


MODE_KEYS = (
    "ceiling", "epoch_images", "batch_size", "size", "precision", "arithmetic_share", "memory_share",
    "augmentation_share", "notes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModeSaturation(Record):
    """How a mode was measured for its saturation."""

    ceiling: float | None = None
    """Images/s of the step fed by finished batches that are on the device."""
    epoch_images: Mapping[str, int] = field(default_factory=dict)
    """Loader → length of an epoch."""
    batch_size: int
    size: int
    precision: str
    arithmetic_share: float | None = None
    memory_share: float | None = None
    augmentation_share: float
    """Share of the time of a step that the device takes to finish a batch."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Loader → why it has no fetch stall."""


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """All that a suite found."""

    theme: str
    date: str | None = None
    environment: Environment | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    tuning: Mapping[str, float] | None = None
    """Number of workers → images/s of the baseline with so many."""
    plan_microseconds: float | None = None
    """Cost of order and plan for each image."""
    diagnosis: Diagnosis | None = None
    measured: Mapping[str, object] | None = None
    """Figures that the diagnosis was made from."""
    stages: tuple[StageTime, ...] = ()
    timeline: tuple[TimelineSpan, ...] = ()
    modes: Mapping[str, ModeSaturation] | None = None
    runs: tuple[Mapping[str, object], ...] = ()
    """Summaries of training runs."""
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    nsys: str | None = None
    """Command line of Nsight Systems for the same steps."""
    trace: str | None = None
    """Name of the trace's file, in the folder of the result."""
    demand: Demand | None = None


class WriteResult(Protocol):
    """Writes a result to the folder that the user chose; is called again as more becomes known."""

    folder: Path

    def __call__(self, result: Result) -> None: ...
