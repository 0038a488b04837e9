"""The step against plain PyTorch written out, and evaluation by counting."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet

from loaders import NO_LABEL, Batch
from tests.conftest import TinyResNet, host_may_not_wait
from train.batches import FeatureBatch
from train.learner import Learner, MetricAccumulator
from train.models import build_model, folded_backbone
from train.precision import Precision
from train.process_group import ProcessGroup
from train.recipes import Recipe, Setting, classic, default

CPU = torch.device("cpu")


def learner(
    mode: str = "finetune",
    recipe: Recipe | None = None,
    precision: str = "fp32",
    steps: int = 40,
    *,
    compiled: bool = False,
    device: torch.device = CPU,
    tiny: bool = False,
) -> Learner:
    """Of a ResNet18, or a tiny one: for many steps, and for losses of which none falls so fast that rounding counts."""
    torch.manual_seed(0)
    setting = Setting(mode=mode, images=640, size=32, pretrained=True)  # type: ignore[arg-type]
    return Learner(
        TinyResNet(4) if tiny else build_model("resnet18", 4),
        mode=mode,  # type: ignore[arg-type]
        recipe=recipe or classic(setting),
        steps=steps,
        device=device,
        precision=Precision(precision),  # type: ignore[arg-type]
        process_group=ProcessGroup(),
        compiled=compiled,
    )


def batch(seed: int = 0, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 4, (size,), generator=generator))


def test_classic_steps_are_plain_sgd() -> None:
    ours = learner()
    plain = copy.deepcopy(ours.model).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
    ours.start_epoch()
    for seed in range(3):
        ours.step(batch(seed), MetricAccumulator(CPU))
        optimizer.zero_grad()
        functional.cross_entropy(plain(batch(seed).images), batch(seed).labels).backward()
        optimizer.step()
    for (name, mine), theirs in zip(ours.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("recipe", [classic, default])
def test_feature_mode_changes_nothing_but_the_head(recipe: object) -> None:
    setting = Setting(mode="feature", images=640, size=32, pretrained=True)
    ours = learner("feature", recipe(setting))  # type: ignore[operator]
    before = copy.deepcopy(dict(ours.model.named_parameters()))
    ours.start_epoch()
    ours.step(batch(), MetricAccumulator(CPU))
    changed = {name for name, now in ours.model.named_parameters() if not torch.equal(now, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_the_frozen_backbone_keeps_no_activations_for_autograd() -> None:
    ours = learner("feature")
    seen = []
    ours.model.layer4.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    ours.start_epoch()
    ours.step(batch(), MetricAccumulator(CPU))
    assert seen == [False]


@pytest.mark.parametrize(("recipe", "moves"), [(classic, True), (default, False)])
def test_only_classic_lets_the_frozen_norms_follow_the_data(recipe: object, moves: bool) -> None:
    setting = Setting(mode="feature", images=640, size=32, pretrained=True)
    ours = learner("feature", recipe(setting))  # type: ignore[operator]
    before = ours.model.bn1.running_mean.clone()
    ours.start_epoch()
    ours.step(batch(), MetricAccumulator(CPU))
    assert torch.equal(ours.model.bn1.running_mean, before) is not moves


def test_one_cycle_rises_then_falls_to_nothing() -> None:
    recipe = default(Setting(mode="finetune", images=640, size=32, pretrained=True))
    ours = learner(recipe=recipe, steps=30, tiny=True)
    rates = []
    ours.start_epoch()
    for _ in range(30):
        rates.append(ours.optimizer.param_groups[0]["lr"])
        ours.step(batch(), MetricAccumulator(CPU))
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.05)
    assert 1 <= peak <= 6
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < recipe.learning_rate / 50


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule_too(steps: int) -> None:
    recipe = default(Setting(mode="finetune", images=64, size=32, pretrained=True))
    ours = learner(recipe=recipe, steps=steps, tiny=True)
    ours.start_epoch()
    for _ in range(steps):
        assert 0 < ours.optimizer.param_groups[0]["lr"] <= recipe.learning_rate
        ours.step(batch(), MetricAccumulator(CPU))


@pytest.mark.parametrize("steps", [3, 8, 15, 18])
def test_short_runs_come_down_again_too(steps: int) -> None:
    recipe = default(Setting(mode="finetune", images=245, size=32, pretrained=True))
    ours = learner(recipe=recipe, steps=steps, tiny=True)
    rates = []
    for _ in range(steps):
        rates.append(ours.optimizer.param_groups[0]["lr"] / recipe.learning_rate)
        ours.optimizer.step()
        ours.scheduler.step()
    down = [(1 + math.cos(math.pi * step / (steps - 1))) / 2 for step in range(steps - 1)]
    assert rates == pytest.approx([1 / 25, *down], abs=1e-4)


def test_averaged_weights_follow_the_closed_form() -> None:
    recipe = default(Setting(mode="finetune", images=640, size=32, pretrained=True))
    ours = learner(recipe=recipe, steps=100)
    decay = 1 - 1 / (recipe.ema_horizon * 100)
    ours.start_epoch()
    expected = None
    for seed in range(4):
        ours.step(batch(seed), MetricAccumulator(CPU))
        now = ours.model.fc.weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    torch.testing.assert_close(ours.evaluated.fc.weight, expected)
    assert not torch.equal(ours.evaluated.fc.weight, ours.model.fc.weight)


def test_evaluation_counts_exactly_and_leaves_padding_out() -> None:
    ours = learner()
    images, labels = batch(1, 16)
    padded = labels.clone()
    padded[11:] = NO_LABEL
    metrics = ours.evaluate([Batch(images, labels), Batch(images, padded)])
    with torch.inference_mode():
        logits = ours.model.eval()(images)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    right = logits.argmax(1) == labels
    assert (metrics.correct, metrics.seen) == (int(right.sum() + right[:11].sum()), 27)
    assert metrics.loss == pytest.approx(float(losses.sum() + losses[:11].sum()) / 27, rel=1e-5)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    ours = learner()
    before = copy.deepcopy(ours.model.state_dict())
    ours.evaluate([batch()])
    assert all(torch.equal(before[name], now) for name, now in ours.model.state_dict().items())


def losses(ours: Learner, steps: int) -> list[float]:
    """Of repeated steps on one batch."""
    ours.start_epoch()
    found = []
    for _ in range(steps):
        metrics = MetricAccumulator(CPU)
        ours.step(batch(), metrics)
        found.append(metrics.result(ProcessGroup()).loss)
    return found


def test_bf16_learns_what_fp32_learns() -> None:
    exact, lowered = losses(learner(tiny=True), 3), losses(learner(precision="bf16", tiny=True), 3)
    assert lowered == pytest.approx(exact, rel=0.05)  # measured: 0.5 %, of a loss that falls from 1.3 to 0.7
    assert lowered != exact


def test_fp16_learns_once_its_scale_has_come_down() -> None:
    ours = learner(precision="fp16", tiny=True)
    found = losses(ours, 12)
    assert found[-1] < 0.7 * found[0]
    assert ours.model.fc.weight.dtype == torch.float32


def test_half_precision_scales_its_loss() -> None:
    assert learner(precision="fp16").scaler.is_enabled()
    assert not learner(precision="bf16").scaler.is_enabled()


def test_weights_and_gradients_are_channels_last() -> None:
    ours = learner()
    ours.start_epoch()
    ours.step(batch(), MetricAccumulator(CPU))
    assert ours.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_training_goes_down_on_one_batch() -> None:
    recipe = default(Setting(mode="finetune", images=640, size=32, pretrained=False))
    found = losses(learner(recipe=recipe, steps=20, tiny=True), 20)
    assert found[-1] < 0.5 * found[0]


# --- the backbone folded -----------------------------------------------------------------------------


def feature_recipe(recipe: Any = default) -> Recipe:
    found: Recipe = recipe(Setting(mode="feature", images=640, size=32, pretrained=True))
    return found


def with_statistics(model: ResNet) -> ResNet:
    """Norms that do something, as after training."""
    generator = torch.Generator().manual_seed(7)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_the_folded_backbone_gives_the_models_features_and_has_no_norms(architecture: Any) -> None:
    torch.manual_seed(0)
    model = with_statistics(build_model(architecture, 4)).eval()
    folded = folded_backbone(model)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not folded.conv1.weight.requires_grad
    images = batch(size=2).images
    with torch.no_grad():
        logits = model.fc(folded(images))
        torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)


def test_feature_steps_and_evaluation_go_through_the_folded_backbone() -> None:
    ours = learner("feature", feature_recipe())
    assert ours._backbone is not None
    seen: list[int] = []
    ours._backbone.register_forward_hook(lambda *_: seen.append(1))
    ours.start_epoch()
    ours.step(batch(), MetricAccumulator(CPU))
    ours.evaluate([batch()])
    assert len(seen) == 2
    assert list(ours.state_dict()["model"]) == list(build_model("resnet18", 4).state_dict())


def test_features_train_and_evaluate_as_their_images_do() -> None:
    by_images, by_features = (learner("feature", feature_recipe(), tiny=True) for _ in range(2))
    metrics = [MetricAccumulator(CPU), MetricAccumulator(CPU)]
    for ours in (by_images, by_features):
        ours.start_epoch()
    for seed in range(3):
        given = batch(seed)
        by_images.step(given, metrics[0])
        by_features.step(FeatureBatch(by_features.extract(given.images), given.labels), metrics[1])
    assert torch.equal(by_images.model.fc.weight, by_features.model.fc.weight)
    assert metrics[0].result(ProcessGroup()) == metrics[1].result(ProcessGroup())
    given = batch(7)
    features = FeatureBatch(by_features.extract(given.images), given.labels)
    assert by_features.evaluate([features]) == by_images.evaluate([given])


def test_features_of_four_dimensions_are_no_images() -> None:
    """What a batch holds is decided by its type: a head may take maps as well."""
    ours = learner("feature", feature_recipe(), tiny=True)
    maps = torch.randn(8, 1, 1, TinyResNet.FEATURES)
    assert ours._inputs(FeatureBatch(maps, batch().labels)) is maps


def test_classic_is_not_folded_as_its_norms_follow_the_data() -> None:
    assert learner("feature", feature_recipe(classic))._backbone is None
    assert learner("finetune")._backbone is None


def test_a_loaded_state_is_folded_anew() -> None:
    torch.manual_seed(3)
    other = learner("feature", feature_recipe())
    with_statistics(other.model)
    state = copy.deepcopy(other.state_dict())
    ours = learner("feature", feature_recipe())
    ours.load_state_dict(state)
    with torch.no_grad():
        expected = other.model.eval()(batch().images)
        torch.testing.assert_close(ours.model.fc(ours.extract(batch().images)), expected, rtol=1e-3, atol=1e-4)


# --- compiled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "graphs"), [("feature", 1), ("finetune", 2)])
def test_each_phase_is_one_graph_and_is_compiled_once(mode: str, graphs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen backbone does the same in training and in evaluation: one graph serves both."""
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, _: object) -> Any:
        compiled.append(len(module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile(self, backend=backend, fullgraph=True))
    recipe = (
        feature_recipe()
        if mode == "feature"
        else classic(Setting(mode="finetune", images=640, size=32, pretrained=True))
    )
    ours = learner(mode, recipe, compiled=True)
    padded = Batch(batch(2).images, torch.where(torch.arange(8) < 5, batch(2).labels, NO_LABEL))

    def epoch(first: int) -> None:
        ours.start_epoch()
        for seed in range(first, first + 3):
            ours.step(batch(seed), MetricAccumulator(CPU))
        ours.step(
            Batch(batch(first).images.contiguous(), batch(first).labels), MetricAccumulator(CPU)
        )  # as `baseline` has them
        ours.evaluate([batch(1), padded])

    epoch(0)
    assert len(compiled) == graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        epoch(3)
        epoch(6)
    assert len(compiled) == graphs
    assert min(compiled) > 60  # the whole network in one
    torch._dynamo.reset()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", ["feature", "finetune"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_host_never_waits_for_the_gpu_in_a_step(mode: str, precision: str, compiled: bool) -> None:
    recipe = default(Setting(mode=mode, images=640, size=32, pretrained=True))  # type: ignore[arg-type]
    device = torch.device("cuda")
    ours = learner(mode, recipe, precision, compiled=compiled, device=device)
    images, labels = batch()
    given = Batch(images.to(device, ours.precision.dtype), labels.to(device))
    metrics = MetricAccumulator(device)
    ours.start_epoch()
    for _ in range(3):
        ours.step(given, metrics)
    torch.cuda.synchronize()
    with host_may_not_wait():
        for _ in range(3):
            ours.step(given, metrics)
