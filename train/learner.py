"""The step (forward, backward, update) and evaluation. Nothing here knows where batches come from."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.models import ResNet

from loaders import NO_LABEL
from loaders.system.instrument import stage
from train.batches import FeatureBatch, TrainingBatch
from train.models import folded_backbone, freeze_backbone, set_training_mode
from train.option_values import Mode
from train.precision import Precision
from train.process_group import ProcessGroup
from train.recipes import Recipe

_WARM_UP = 0.1  # share of the steps in which the one-cycle learning rate rises


class MetricAccumulator:
    """Loss and correct predictions summed over many batches, on the device. Counts are exact."""

    def __init__(self, device: torch.device) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # correct, seen

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: the sum of its losses, its logits `[B, C]`, its labels `[B]` (`NO_LABEL` is not counted)."""
        self._loss_sum += loss_sum
        self._counts += torch.stack([(logits.argmax(1) == labels).sum(), (labels != NO_LABEL).sum()])

    def result(self, process_group: ProcessGroup) -> "Metrics":
        """The metrics over all processes. Waits for the device."""
        correct, seen = process_group.sum(self._counts.clone()).tolist()
        return Metrics(process_group.sum(self._loss_sum.clone()).item(), correct, seen)

    def add_metrics(self, metrics: "Metrics") -> None:
        """Adds the result of an earlier accumulator."""
        self._loss_sum += metrics.loss_sum
        self._counts += torch.tensor([metrics.correct, metrics.seen], device=self._counts.device)

    def host_copy(self) -> "MetricCopy":
        """A copy of the present sums of this process. Does not wait for the device."""
        return MetricCopy(self._loss_sum, self._counts)


class MetricCopy:
    """Sums of a `MetricAccumulator` on their way to the host."""

    def __init__(self, loss_sum: Tensor, counts: Tensor) -> None:
        self._loss_sum, self._counts = _host_copy(loss_sum), _host_copy(counts)
        self._arrival = torch.cuda.Event() if loss_sum.is_cuda else None
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(loss_sum.device))

    @property
    def in_flight(self) -> bool:
        """Whether the copy has not arrived yet."""
        return self._arrival is not None and not self._arrival.query()

    def metrics(self) -> "Metrics":
        """The sums, once they have arrived."""
        loss_sum, (correct, seen) = self._loss_sum.item(), self._counts.tolist()
        return Metrics(loss_sum, correct, seen)


def _host_copy(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class Metrics:
    """The result of a `MetricAccumulator`."""

    loss_sum: float
    correct: int
    seen: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.loss_sum / max(1, self.seen)

    @property
    def top1(self) -> float:
        """Share predicted correctly, 0 to 1."""
        return self.correct / max(1, self.seen)


class Average:
    """An exponential moving average of a model's weights and BatchNorm statistics.

    The arithmetic is torch's (`get_ema_multi_avg_fn`). torch's `AveragedModel` is not used: it sends a counter to the
    device twice a step, for which the host waits.
    """

    def __init__(self, model: ResNet, horizon: float) -> None:
        """`horizon`: about how many steps the average reaches back. The first update is a copy."""
        self.module = copy.deepcopy(model)
        self._blend = get_ema_multi_avg_fn(1 - 1 / max(1.0, horizon))
        self._begun = False
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._currents = (list(side) for side in zip(*floating, strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Adds the model's present state to the average."""
        if self._begun:
            self._blend(self._averages, self._currents, None)
        else:
            torch._foreach_copy_(self._averages, self._currents)
            self._begun = True

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begun = state["begun"]
        self.module.load_state_dict(state["module"])


class Learner:
    """A model, its optimizer and schedule, and the average of its weights where the recipe has one."""

    def __init__(
        self,
        model: ResNet,
        *,
        mode: Mode,
        recipe: Recipe,
        steps: int,
        device: torch.device,
        precision: Precision,
        process_group: ProcessGroup,
        compiled: bool = False,
    ) -> None:
        """Moves `model` to the device.

        Args:
            steps: updates of the whole run, over which the learning rate's schedule extends.
            compiled: whether to compile the networks.
        """
        self.device = device
        self.precision = precision
        self.process_group = process_group
        self.steps = steps
        self.compiled = compiled
        self._recipe = recipe
        self._head_only = mode == "feature"
        if self._head_only:
            freeze_backbone(model)
        self.model: ResNet = model.to(device, memory_format=torch.channels_last)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(trained, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scales_loss)
        self._average = Average(self.model, recipe.ema_horizon * steps) if recipe.ema_horizon else None
        self._backbone = None
        if self._head_only and not recipe.norm_in_train_mode:
            self._backbone = folded_backbone(self.model)
        if compiled:
            self._compile()
        self._trained: nn.Module = self.model if self._backbone is None else self.model.fc
        if process_group.size > 1:
            device_ids = [device] if device.type == "cuda" else None
            self._trained = DistributedDataParallel(self._trained, device_ids=device_ids, gradient_as_bucket_view=True)

    @property
    def evaluated(self) -> ResNet:
        """The model that is validated and exported: the averaged one where there is one."""
        return self.model if self._average is None else self._average.module

    def start_epoch(self) -> None:
        """Puts every layer into the mode it is trained in, which evaluation has changed."""
        set_training_mode(self.model, head_only=self._head_only, norm_in_train_mode=self._recipe.norm_in_train_mode)

    def step(self, batch: TrainingBatch, metrics: MetricAccumulator) -> None:
        """Updates the model once and adds the batch to `metrics`. Nothing here waits for the device.

        A `FeatureBatch` needs a frozen backbone: its features are what `extract` has computed.
        """
        with stage("forward"):
            logits = self._logits(self._trained, batch)
            loss = functional.cross_entropy(logits, batch.labels, label_smoothing=self._recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        with stage("backward"):
            self.scaler.scale(loss).backward()
        with stage("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            if self._average is not None:
                self._average.update()
        logits = logits.detach()
        metrics.add(functional.cross_entropy(logits, batch.labels, reduction="sum"), logits, batch.labels)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images, in the compute dtype, by the frozen backbone: the input of the head."""
        assert self._backbone is not None
        with self._autocast():
            features: Tensor = self._backbone(images)
        return features

    # Not in inference mode: for its tensors the backbone would be compiled once more.
    @torch.no_grad()
    def evaluate(self, batches: Iterable[TrainingBatch]) -> Metrics:
        """Loss and accuracy over `batches` of all processes; padding is not counted."""
        model = self.evaluated.eval()
        # BatchNorm's statistics differ between processes; all evaluate the model that the main process saves.
        self.process_group.broadcast(list(model.buffers()))
        network = model if self._backbone is None else model.fc
        metrics = MetricAccumulator(self.device)
        for batch in batches:
            logits = self._logits(network, batch)
            loss_sum = functional.cross_entropy(logits, batch.labels, ignore_index=NO_LABEL, reduction="sum")
            metrics.add(loss_sum, logits, batch.labels)
        return metrics.result(self.process_group)

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Whether all weights, BatchNorm statistics and averages are finite numbers. Waits for the device."""
        models = {id(model): model for model in (self.model, self.evaluated)}.values()
        values = [tensor for model in models for tensor in model.state_dict().values() if tensor.is_floating_point()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in values]).all())

    @torch.no_grad()
    def loss(self, batch: TrainingBatch, *, lowered: bool) -> float:
        """The mean loss of a batch with the present weights, in the run's precision or in fp32. Waits for the device.

        Nothing is compiled for it. It may change BatchNorm's statistics, and is meant for a run that cannot go on.
        """
        inputs = batch.features if isinstance(batch, FeatureBatch) else batch.images
        network = self.model.fc if isinstance(batch, FeatureBatch) else self.model
        with torch.compiler.set_stance("force_eager"):
            if lowered:
                with self._autocast():
                    logits = network(inputs)
            else:
                logits = network(inputs.float())
        return functional.cross_entropy(logits.float(), batch.labels).item()

    def _logits(self, network: nn.Module, batch: TrainingBatch) -> Tensor:
        """Logits `[B, C]`, float32. `network` is the whole model, or the head where there is a frozen backbone."""
        inputs = self._inputs(batch)
        with self._autocast():
            logits: Tensor = network(inputs)
        return logits.float()

    def _inputs(self, batch: TrainingBatch) -> Tensor:
        """What is trained on: images, or their features where there is a frozen backbone."""
        if isinstance(batch, FeatureBatch):
            return batch.features
        # `baseline` delivers another memory format, for which a compiled network would be compiled once more.
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return images if self._backbone is None else self.extract(images)

    def _compile(self) -> None:
        """Compiles in place, so that the names in the state dict stay as they are."""
        if self._backbone is not None:
            self._backbone.compile()
            return
        self.model.compile()
        if self.evaluated is not self.model:
            self.evaluated.compile()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision.dtype, enabled=self.precision.lowered)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, in plain containers and tensors."""
        return {
            "model": self.model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    @property
    def checkpoint_bytes(self) -> int:
        """About what a run's checkpoints take: `last.pt` and its successor, `best.pt`, and the weights."""
        model: int = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        trained: int = sum(parameter.nbytes for group in self.optimizer.param_groups for parameter in group["params"])
        moments = 2 if self._recipe.optimizer == "adamw" else 1
        last = model * (2 if self._average is None else 3) + moments * trained  # with the best model
        return 2 * last + 2 * model

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self._backbone is not None:
            self._backbone.load_state_dict(folded_backbone(self.model).state_dict())
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])


def _optimizer(trained: list[nn.Parameter], recipe: Recipe) -> Optimizer:
    if recipe.optimizer == "adamw":
        return AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    optimizer = SGD(
        trained,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )
    # Fused SGD (torch 2.11 to 2.15) allocates its buffers on the first step without clearing them. Where a scaled loss
    # overflows in that step, it does not fill them either: they hold garbage, and later NaN.
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _scheduler(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """A schedule that advances with every step.

    One cycle (Smith and Topin, arXiv 1708.07120) is torch's: the rate rises, then falls along a cosine.
    """
    if recipe.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    # A tenth of a short run is less than a step: then the rate is highest in the second, and the run still ends low.
    rise = min(1.0, max(_WARM_UP, 2 / (steps + 1)))
    return OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1, pct_start=rise, cycle_momentum=False)
