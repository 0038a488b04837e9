"""`steps`: what each switch is worth to the training step on this machine, one after the other, as a ladder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ResNet

from benchmarks.harness.batches import BATCHES_IN_TURN
from benchmarks.harness.device import chosen_device
from benchmarks.harness.measure import Batches, Candidate, Measurement, measure, rows_against
from benchmarks.harness.options import describe_options
from benchmarks.harness.rates import speedup
from benchmarks.harness.result import MEASURED_KEYS, Result, Row, WriteResult
from benchmarks.harness.result_json import environment_from_json
from benchmarks.suites.options import StepsOptions
from benchmarks.suites.rows import MODE_TITLES
from loaders import PlanSpec, RandomResizedCrop
from loaders.ops import resample
from loaders.ops.device_batch import fused_kernels
from loaders.ops.finish import finish
from loaders.sampling import plan as plans
from loaders.sampling.plan import Plan
from loaders.system.machine import can_compile
from train.console import Reporter
from train.environment import describe_environment
from train.models import build_model, folded_backbone, freeze_backbone
from train.option_values import Architecture, Mode
from train.precision import choose_precision

CLASSES = 10
_COMPILED = "+ compile"
_SIDE, _IMAGES = 256, 512
"""Side and number of the noise images that the last rungs crop from."""

_KEYS = ("theme", "date", "environment", "options", "rows")
_RUNG_KEYS = (*MEASURED_KEYS, "times_baseline", "place", "switch", "missing", "beside", "times_before")


@dataclass(frozen=True)
class Rung:
    """A step with so many switches on."""

    name: str
    switch: str
    """What turns on what this rung adds, in PyTorch."""
    tf32: bool = False
    channels_last: bool = False
    lowered: bool = False
    """Whether it runs under autocast."""
    folded: bool = False
    """Whether BatchNorm is folded into a frozen backbone's convolutions."""
    compiled: bool = False
    compile_mode: str | None = None
    pure: bool = False
    """Whether weights, too, are in the lower precision itself, instead of autocast."""
    beside: bool = False
    """Whether it is an alternative to the compiled step, and compared with that, instead of one rung more."""
    graph: bool = False
    """Whether the whole step, update included, is recorded once and replayed."""
    needs_gpu: bool = False
    augmented: Literal["", "torch", "fused"] = ""
    """What makes random resized crops, flips and normalization inside the step; empty where batches are ready."""

    def missing(self, device: torch.device) -> str | None:
        """What this rung lacks here; None where it can be measured."""
        if self.needs_gpu and device.type != "cuda":
            return "needs a GPU"
        if self.pure and choose_precision("auto", device).dtype != torch.bfloat16:
            return "needs bf16"
        if self.compiled and not can_compile():
            return "needs a C compiler and Python.h (gcc, python3-dev)"
        if self.augmented == "fused" and fused_kernels(device) is None:
            return "needs Triton"
        return None


def ladder(mode: Mode, *, autotune: bool = False) -> list[Rung]:
    """All rungs, each with what the ones before it have; then those beside the compiled step."""
    plain = Rung("eager, contiguous, fp32", "as PyTorch comes, but without TF32")
    tf32 = Rung("+ TF32", "torch.set_float32_matmul_precision('high')", tf32=True, needs_gpu=True)
    last = replace(
        tf32,
        name="+ channels-last",
        switch="model.to(memory_format=torch.channels_last), images too",
        channels_last=True,
        needs_gpu=False,
    )
    lowered = replace(last, name="+ autocast", switch="torch.autocast, images in its precision too", lowered=True)
    folded = replace(lowered, name="+ batch norm folded", switch="torch.nn.utils.fusion.fuse_conv_bn_eval", folded=True)
    best = folded if mode == "feature" else lowered
    compiled = replace(best, name=_COMPILED, switch="model.compile()", compiled=True)
    beside = replace(compiled, beside=True)
    autotuned = replace(
        beside,
        name="compile, autotuned",
        switch="model.compile(mode='max-autotune-no-cudagraphs')",
        compile_mode="max-autotune-no-cudagraphs",
        needs_gpu=True,
    )
    return [
        *(plain, tf32, last, lowered),
        *([folded] if mode == "feature" else []),
        compiled,
        replace(
            compiled,
            name="+ CUDA graph",
            switch="torch.cuda.graph around the whole step",
            graph=True,
            needs_gpu=True,
        ),
        replace(beside, name="compile, pure bf16", switch="model.to(torch.bfloat16), no autocast", pure=True),
        *([autotuned] if autotune else []),
        replace(
            beside,
            name="compile, augmentation in torch",
            switch="loaders.ops.resample, then finish",
            augmented="torch",
        ),
        replace(
            beside,
            name="compile, fused augmentation",
            switch="loaders.ops.fused",
            augmented="fused",
            needs_gpu=True,
        ),
    ]


def bench_steps(options: StepsOptions, reporter: Reporter, write: WriteResult) -> None:
    """All rungs that can be measured here take turns; the others are named with what they lack, their rate null."""
    device = chosen_device(options)
    torch.backends.cudnn.benchmark = True
    rows: list[Row] = []
    for mode in MODE_TITLES if options.mode == "both" else (options.mode,):
        rows += _climb(mode, options, device, reporter)
        write(
            Result(
                keys=_KEYS,
                theme="steps",
                environment=environment_from_json(describe_environment()),
                options=describe_options(
                    options, device=str(device), dtype=str(choose_precision("auto", device).dtype)
                ),
                rows=tuple(rows),
            )
        )


def _climb(mode: Mode, options: StepsOptions, device: torch.device, reporter: Reporter) -> list[Row]:
    """A row for each rung of one mode."""
    rungs = ladder(mode, autotune=options.autotune)
    candidates = [
        Candidate(MODE_TITLES[mode], rung.name, partial(stepping, rung, mode, options, device))
        for rung in rungs
        if rung.missing(device) is None
    ]
    with reporter.progress(f"measuring {MODE_TITLES[mode]}") as show:
        measured = measure(candidates, windows=options.windows, seconds=options.seconds, report_progress=show)
    _set_tf32(True)
    rows = {row.name: row for row in rows_against(candidates, measured, baseline=rungs[0].name)}
    return [
        replace(
            rows.get(rung.name, Row(group=MODE_TITLES[mode], name=rung.name)),
            place=place,
            switch=rung.switch,
            missing=rung.missing(device),
            beside=rung.beside,
            times_before=_gain(rungs, place, measured),
            keys=_RUNG_KEYS,
        )
        for place, rung in enumerate(rungs)
    ]


def _gain(rungs: list[Rung], place: int, measured: dict[str, Measurement]) -> float | None:
    """Speedup of a rung over the last one below it that was measured, as the median over the turns.

    One beside the compiled step is compared with that.
    """
    rung = rungs[place]
    below = [_COMPILED] if rung.beside else [rung.name for rung in rungs[:place]]
    below = [name for name in below if name in measured]
    if rung.name not in measured or not below:
        return None
    return speedup(measured[rung.name].rates, measured[below[-1]].rates)


# --- a rung at work ------------------------------------------------------------------------------


def stepping(rung: Rung, mode: Mode, options: StepsOptions, device: torch.device) -> Batches:
    """Takes a step for each batch that it yields, after that step."""
    step = _Step(rung, mode, options.model, device)
    batches = _batches(rung, options, step, device)
    take_step: Callable[[Tensor, Tensor], None] = step
    _set_tf32(rung.tf32)
    if rung.graph:
        take_step = _recorded(step, *next(batches))
    for images, labels in batches:
        _set_tf32(rung.tf32)  # candidates take turns, and it is global
        take_step(images, labels)
        yield images, labels


def _set_tf32(on: bool) -> None:
    """For matrix products and convolutions; a CPU is left as it is."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if on else "highest")
        torch.backends.cudnn.allow_tf32 = on


class _Step:
    """Forward, backward, update, as a rung has them; SGD in one kernel, as everywhere here."""

    def __init__(self, rung: Rung, mode: Mode, architecture: Architecture, device: torch.device) -> None:
        self.rung = rung
        self.device = device
        self.dtype = choose_precision("auto", device).dtype
        layout = torch.channels_last if rung.channels_last else torch.contiguous_format
        model: ResNet = build_model(architecture, CLASSES).to(device, memory_format=layout)
        if rung.pure:
            model = model.to(self.dtype)
        self._backbone: nn.Module | None = None
        self._trained: nn.Module = model.train()
        if mode == "feature":
            freeze_backbone(model)
            self._backbone = folded_backbone(model) if rung.folded else _headless(model)
            self._trained = model.fc
        if rung.compiled:
            (self._trained if self._backbone is None else self._backbone).compile(mode=rung.compile_mode)
        trained = [parameter for parameter in self._trained.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.SGD(trained, 1e-3, momentum=0.9, fused=True)

    @property
    def input_dtype(self) -> torch.dtype:
        return self.dtype if self.rung.lowered else torch.float32

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        lowered = self.rung.lowered and not self.rung.pure and self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=lowered):
            if self._backbone is not None:
                with torch.no_grad():
                    images = self._backbone(images)
            loss = functional.cross_entropy(self._trained(images).float(), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


def _headless(model: ResNet) -> nn.Module:
    """The frozen backbone as it is: its features, BatchNorm by its own statistics."""
    return nn.Sequential(*[part for name, part in model.named_children() if name != "fc"], nn.Flatten()).eval()


def _recorded(step: _Step, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], None]:
    """The step as a CUDA graph: what it reads stays in one place, into which each batch is copied."""
    static_images, static_labels = images.clone(), labels.clone()
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):  # compiles, chooses algorithms, makes the optimizer's state
        for _ in range(4):
            step(static_images, static_labels)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    # Other threads' calls of the driver meanwhile, such as for the free memory, do not invalidate the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step(static_images, static_labels)

    def replay(images: Tensor, labels: Tensor) -> None:
        static_images.copy_(images)
        static_labels.copy_(labels)
        graph.replay()

    return replay


# --- what it is fed ------------------------------------------------------------------------------


def _batches(rung: Rung, options: StepsOptions, step: _Step, device: torch.device) -> Batches:
    """Noise: ready on the device, or cropped anew for each step."""
    count, generator = options.batch_size, torch.Generator(device).manual_seed(0)
    labels = torch.randint(CLASSES, (BATCHES_IN_TURN, count), generator=generator, device=device)
    if rung.augmented:
        yield from zip(_augmented(rung, options, step.input_dtype, device), cycle(labels), strict=False)
        return
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    shape = (count, 3, options.size, options.size)
    ready = [
        torch.randn(shape, generator=generator, device=device).to(step.input_dtype).contiguous(memory_format=layout)
        for _ in range(BATCHES_IN_TURN)
    ]
    yield from cycle(zip(ready, labels, strict=True))


def _augmented(rung: Rung, options: StepsOptions, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Batches of random resized crops and flips, made on the device, as the loader `resident` makes them."""
    generator = torch.Generator(device).manual_seed(1)
    pixels = torch.randint(256, (_IMAGES * _SIDE**2, 3), generator=generator, device=device, dtype=torch.uint8)
    spec = PlanSpec(RandomResizedCrop(options.size), horizontal_flip=0.5)
    kernels = fused_kernels(device) if rung.augmented == "fused" else None
    for epoch in cycle(range(1 << 16)):
        ids = np.random.default_rng(epoch).integers(0, _IMAGES, options.batch_size)
        sizes = np.full((len(ids), 2), _SIDE)
        plan: Plan = plans.draw(spec, seed=0, epoch=epoch, ids=ids, sizes=sizes)
        starts, widths = ids * _SIDE**2, sizes[:, 0]
        if kernels is None:
            yield finish(resample.first_reads(pixels, starts, widths, plan), plan, dtype=dtype)
        else:
            yield kernels.batches(pixels, starts, widths, plan, dtype=dtype)
