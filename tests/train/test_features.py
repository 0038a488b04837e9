"""Features computed once: what is trained on them is what is trained on the images."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders import (
    NO_LABEL,
    InputError,
    Loader,
    LoaderConfig,
    PlanSpec,
    RandomResizedCrop,
    Source,
    build_loader,
    open_data,
)
from tests.conftest import TinyResNet, exit_code
from tests.train.test_run import arguments, read, rows, without_times
from train import features
from train import prepare as preparing
from train.__main__ import main
from train.batches import FeatureBatch
from train.features import FeatureLoader
from train.learner import Learner
from train.precision import Precision
from train.process_group import ProcessGroup
from train.recipes import Setting, default

pytestmark = pytest.mark.usefixtures("small_runs")

VIEWS = ["--views", "2", "--epochs", "5"]


def run(data: Path, out: Path, *more: str) -> list[dict[str, float]]:
    assert main(arguments(data, out, *VIEWS, *more, mode="feature")) == 0
    return without_times(rows(out))


def weights(out: Path) -> Any:
    return torch.load(out / "last.pt", weights_only=True)["learner"]["model"]


def computed_anew(images: Loader, config: Any, learner: Learner) -> Loader:
    """In place of `FeatureLoader`: the images themselves, with the same order and plans."""
    del learner
    return build_loader(images.source, config, loader=images.name)


@pytest.mark.parametrize(("loader", "precision"), [("torchvision", "fp32"), ("resident", "fp32"), ("resident", "bf16")])
def test_cached_features_train_what_images_train_to_the_bit(
    image_folder: Path, tmp_path: Path, loader: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--loader", loader, "--precision", precision]
    cached = run(image_folder, tmp_path / "cached", *given)
    monkeypatch.setattr(preparing, "FeatureLoader", computed_anew)
    assert run(image_folder, tmp_path / "anew", *given) == cached
    ours, theirs = weights(tmp_path / "cached"), weights(tmp_path / "anew")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    summary = read(tmp_path / "cached", "summary.json")
    assert (summary["views"], summary["loader"]) == (2, loader)


def test_each_view_is_computed_once(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    extract = Learner.extract

    def counted(self: Learner, images: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(images)
        return extract(self, images)

    monkeypatch.setattr(Learner, "extract", counted)
    run(image_folder, tmp_path / "run")
    assert seen == 2 * 24 + 12  # 24 images in two views, and 10 to validate in batches of 4


def test_a_run_interrupted_goes_on_bit_for_bit(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(image_folder, tmp_path / "whole")
    steps, step = 0, Learner.step

    def killed(self: Learner, *given: Any) -> None:
        nonlocal steps
        step(self, *given)
        steps += 1
        if steps == 21:  # of 6 an epoch: in the fourth
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Learner, "step", killed)
    out = tmp_path / "parts"
    assert main(arguments(image_folder, out, *VIEWS, mode="feature")) == 128 + signal.SIGTERM
    assert run(image_folder, out, "--resume") == whole
    assert torch.equal(weights(out)["fc.weight"], weights(tmp_path / "whole")["fc.weight"])


def test_other_views_are_another_run(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(image_folder, tmp_path / "run")
    given = arguments(image_folder, tmp_path / "run", "--views", "3", "--epochs", "5", "--resume", mode="feature")
    assert main(given) == 2
    assert "--views was 2, is 3" in capsys.readouterr().err


def test_plans_repeat_and_the_order_does_not(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    config = LoaderConfig(spec=PlanSpec(RandomResizedCrop(8)), training=True, batch_size=24, views=3)
    loader = build_loader(source, config)
    found = {}
    for epoch in (1, 2, 4):
        loader.set_epoch(epoch)
        found[epoch] = loader.cursor.sequence, loader.draw(np.arange(24)).box
    assert not np.array_equal(found[1][0], found[4][0])
    np.testing.assert_array_equal(found[1][1], found[4][1])
    assert not np.array_equal(found[1][1], found[2][1])


@pytest.mark.parametrize("training", [True, False])
def test_files_that_become_unreadable_are_replaced_as_elsewhere(
    image_folder: Path, tmp_path: Path, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways by one loader whose files become unreadable after they were indexed."""
    monkeypatch.setattr("loaders.bad_images.MAX_BAD_SHARE", 0.5)
    prepare = preparing.prepare

    def prepare_and_remove(*given: Any) -> Any:
        session = prepare(*given)
        (image_folder / ("train" if training else "val") / "oak" / "03.jpg").unlink(missing_ok=True)
        return session

    skipping = ["--on-bad-image", "skip", "--loader", "torchvision"]
    monkeypatch.setattr("train.run.prepare", prepare_and_remove)
    oak = image_folder / ("train" if training else "val") / "oak" / "03.jpg"
    content = oak.read_bytes()
    cached = run(image_folder, tmp_path / "cached", *skipping)
    oak.write_bytes(content)
    monkeypatch.setattr(preparing, "FeatureLoader", computed_anew)
    assert run(image_folder, tmp_path / "anew", *skipping) == cached
    summaries = [read(tmp_path / name, "summary.json") for name in ("cached", "anew")]
    assert [(s["bad_images"], s["val_seen"]) for s in summaries] == [(1, 10 if training else 9)] * 2


def feature_loader(source: Source, *, training: bool = True, seed: int = 0) -> FeatureLoader:
    """Of a tiny network, with two views where it is for training."""
    torch.manual_seed(0)
    recipe = default(Setting(mode="feature", images=24, size=32, pretrained=True))
    learner = Learner(
        TinyResNet(2),
        mode="feature",
        recipe=recipe,
        steps=10,
        device=torch.device("cpu"),
        precision=Precision("fp32"),
        process_group=ProcessGroup(),
    )
    config = LoaderConfig(spec=recipe.train_spec, training=False, batch_size=4, seed=seed, views=2 if training else 1)
    return FeatureLoader(build_loader(source, config), replace(config, training=training), learner)


def test_features_come_in_batches_of_their_own_type_and_in_the_order_of_the_images(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    loader = feature_loader(source)
    images = build_loader(source, loader.config)
    for epoch in (0, 3):
        loader.set_epoch(epoch)
        images.set_epoch(epoch)
        for ours, theirs in zip(loader, images, strict=True):
            assert isinstance(ours, FeatureBatch)
            assert ours.features.shape == (4, TinyResNet.FEATURES)
            assert torch.equal(ours.labels, theirs.labels)


def test_an_evaluation_pads_its_last_batch(image_folder: Path) -> None:
    _, source = open_data(str(image_folder), root=image_folder)
    labels = torch.cat([batch.labels for batch in feature_loader(source, training=False)])
    assert labels.tolist() == [*source.labels.tolist(), NO_LABEL, NO_LABEL]


def test_a_state_is_that_of_the_images_and_is_loaded_at_any_batch(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    loader = feature_loader(source)
    images = build_loader(source, loader.config)
    for each in (loader, images):
        each.set_epoch(3)
        for _ in zip(range(2), each, strict=False):
            pass
    state = loader.state_dict()
    assert (list(state), state) == (list(images.state_dict()), images.state_dict())
    assert (loader.remaining(), len(loader)) == (4, 6)
    resumed = feature_loader(source)
    resumed.load_state_dict(state)
    assert (resumed.epoch, len(resumed), resumed.remaining()) == (3, 4, 4)
    rest = [batch.labels for batch in resumed]
    loader.set_epoch(0)
    loader.set_epoch(3)
    whole = [batch.labels for batch in loader]
    assert torch.equal(torch.stack(rest), torch.stack(whole[2:]))


def test_a_state_of_other_data_or_plans_is_refused_by_name(image_folder: Path) -> None:
    train, val = open_data(str(image_folder), root=image_folder)
    loader = feature_loader(train)
    with pytest.raises(InputError, match="another run: seed was 5, is 0"):
        loader.load_state_dict(feature_loader(train, seed=5).state_dict())
    with pytest.raises(InputError, match=r"another run: .*samples was 10, is 24"):
        loader.load_state_dict(feature_loader(val).state_dict())
    with pytest.raises(InputError, match="another run: training was False, is True"):
        loader.load_state_dict(loader.images.state_dict())
    without_views = build_loader(train, replace(loader.config, views=None))
    with pytest.raises(InputError, match=r"another run: plan was PlanSpec.* 2 views"):
        loader.load_state_dict(without_views.state_dict())


def test_fewer_images_than_one_batch_are_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(image_folder, tmp_path / "run", *VIEWS, "--batch-size", "25", mode="feature")
    assert main(given) == 2
    assert "24 images are fewer than one batch of 25 × 1: choose a smaller --batch-size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_more_than_the_memory_holds_is_refused_beforehand(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = (2 * 24 + 10) * TinyResNet.FEATURES * 4
    monkeypatch.setattr(features, "free_memory", lambda _: needed - 1)
    given = arguments(image_folder, tmp_path / "run", *VIEWS, "--loader", "torchvision", mode="feature")
    assert main(given) == 2
    assert "--views 2: the features are 15 kB, and cpu has 15 kB free: choose fewer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(features, "free_memory", lambda _: needed)
    assert main(given) == 0


@pytest.mark.parametrize(
    ("mode", "more", "said"),
    [
        ("finetune", [], "MODE=feature"),
        ("feature", ["--recipe", "classic"], "--recipe classic"),
        ("feature", ["--loader", "baseline"], "LOADER=baseline"),
        ("feature", ["--views", "0"], "--views 0"),
    ],
)
def test_where_features_would_not_stay_true_views_are_refused(
    mode: str, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, [mode, "--views", "2", *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())  # it may come in a box, in lines as wide as the terminal


def test_features_lie_in_the_compute_dtype(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FeatureLoader] = []
    init = FeatureLoader.__init__

    def noted(self: FeatureLoader, *given: Any) -> None:
        init(self, *given)
        made.append(self)

    monkeypatch.setattr(FeatureLoader, "__init__", noted)
    run(image_folder, tmp_path / "run", "--precision", "bf16")
    assert [loader.cache.features.dtype for loader in made] == [torch.bfloat16] * 2
    assert [tuple(loader.cache.features.shape) for loader in made] == [(2, 24, 64), (1, 10, 64)]


@pytest.mark.usefixtures("real_runs")
def test_two_processes_share_the_computing_and_train_as_one(image_folder: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    done = subprocess.run(
        [*launch, *arguments(image_folder, tmp_path / "two", *VIEWS, mode="feature")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = run(image_folder, tmp_path / "one", "--batch-size", "8", "--lr", str(read_rate(tmp_path / "two")))
    together = without_times(rows(tmp_path / "two"))
    assert [row["val_seen"] for row in together] == [10] * 5
    for name in ("train_loss", "val_loss"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in alone], rel=1e-4)


def read_rate(out: Path) -> float:
    """The recipe's highest learning rate in a run."""
    recipe: Any = read(out, "config.json")["recipe"]
    return float(recipe["learning_rate"])


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_cached_features_train_what_images_train_within_a_thousandth(
    image_folder: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels may be chosen anew for each run, and add up in another order."""
    on_gpu = ["--device", "cuda", "--precision", precision, "--loader", "resident"]
    cached = run(image_folder, tmp_path / "cached", *on_gpu)
    monkeypatch.setattr(preparing, "FeatureLoader", computed_anew)
    anew = run(image_folder, tmp_path / "anew", *on_gpu)
    for name in ("train_loss", "val_loss"):
        assert [row[name] for row in cached] == pytest.approx([row[name] for row in anew], rel=1e-3)
