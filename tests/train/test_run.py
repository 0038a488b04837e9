"""Whole runs through the command line, on small folders of images."""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from loaders import InputError
from tests.conftest import exit_code
from train import checkpoints, load_classifier
from train.__main__ import main
from train.learner import Learner
from train.loop import TrainingLoop
from train.options import Options
from train.prepare import prepare
from train.run_folder import RunFolder
from train.session import Session
from train.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("small_runs")

FILES = {
    "config.json", "environment.json", "metrics.jsonl", "summary.json", "last.pt", "best.pt",
    "model.safetensors", "curves.png",
}  # fmt: skip


def arguments(data: Path, out: Path, *more: str, mode: str = "finetune", weights: str = "none") -> list[str]:
    small = ["--size", "32", "--batch-size", "4", "--precision", "fp32", "--epochs", "2", "--device", "cpu"]
    return [mode, "--data", str(data), "--out", str(out), "--weights", weights, *small, *more]


def read(out: Path, name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((out / name).read_text())
    return content


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def require_agreement(out: Path, data: Path) -> None:
    """The exported classifier is right as often as validation says, doubtful images apart.

    It resizes by Pillow, and so to pixels a grey level away here and there: where two classes are as likely, that may
    decide.
    """
    classify = load_classifier(out)
    predictions = {path: classify(path) for path in sorted((data / "val").rglob("*.jpg"))}
    right = sum(next(iter(likely)) == path.parent.name for path, likely in predictions.items())
    doubtful = sum(max(likely.values()) < 0.51 for likely in predictions.values())
    assert abs(right - read(out, "summary.json")["val_top1"] * len(predictions)) <= doubtful + 1e-6  # type: ignore[operator]
    assert doubtful < len(predictions) / 2


def send_signal_at_step(monkeypatch: pytest.MonkeyPatch, at: int, number: signal.Signals) -> list[None]:
    """From now on, the process is sent a signal after its step number `at`. The returned list grows with each step."""
    steps: list[None] = []
    step = Learner.step

    def counted(self: Learner, *given: Any) -> None:
        step(self, *given)
        steps.append(None)
        if len(steps) == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Learner, "step", counted)
    return steps


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "data_wait")} for row in rows]


@pytest.mark.usefixtures("real_runs")
@pytest.mark.parametrize(("mode", "recipe"), [("feature", "classic"), ("finetune", "default")])
def test_a_run_leaves_what_it_promises(image_folder: Path, tmp_path: Path, mode: str, recipe: str) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--recipe", recipe, mode=mode)) == 0
    assert {path.name for path in out.iterdir()} == FILES
    summary = read(out, "summary.json")
    expected = {"mode": mode, "model": "resnet18", "data": "trees", "loader": "torchvision", "epochs": 2}
    assert expected.items() <= summary.items()
    assert summary["val_seen"] == 10
    assert 0 <= summary["data_wait"] <= 1  # type: ignore[operator]
    assert summary["parameters_trainable"] == (1026 if mode == "feature" else 11_177_538)
    assert [row["epoch"] for row in rows(out)] == [1, 2]
    assert max(row["val_top1"] for row in rows(out)) == summary["val_top1"]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(image_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert main(arguments(image_folder, tmp_path / name, "--seed", seed)) == 0
    a, b, c = (without_times(rows(tmp_path / name)) for name in "abc")
    assert a == b
    assert a != c
    weights = [torch.load(tmp_path / name / "last.pt", weights_only=True)["learner"]["model"] for name in "ab"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("loader", ["torchvision", "streamed"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    chosen = ("--loader", loader, "--cache-size", "48")
    assert main(arguments(image_folder, tmp_path / "whole", *chosen)) == 0
    steps = send_signal_at_step(monkeypatch, 9, signal.SIGTERM)  # of 6 an epoch: in the middle of the second
    assert main(arguments(image_folder, tmp_path / "parts", *chosen)) == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert main(arguments(image_folder, tmp_path / "parts", *chosen, "--resume")) == 0
    assert len(steps) == 12
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(tmp_path / "parts"))
    whole, parts = (torch.load(tmp_path / n / "last.pt", weights_only=True)["learner"] for n in ("whole", "parts"))
    for a, b in ((whole["model"], parts["model"]), (whole["average"]["module"], parts["average"]["module"])):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("more", [("finetune",), ("feature", "--views", "2")])
def test_a_folder_written_by_the_first_versions_is_resumed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Their checkpoint is written out here, key by key; only tensors and numbers come from the present version."""
    mode, *options = more
    assert main(arguments(image_folder, tmp_path / "whole", *options, mode=mode)) == 0
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        send_signal_at_step(patch, 9, signal.SIGTERM)
        assert main(arguments(image_folder, out, *options, mode=mode)) == 128 + signal.SIGTERM
    now = torch.load(out / "last.pt", weights_only=True)
    loader = {key: now["loader"][key] for key in ("data", "samples", "seed", "plan")}
    old = {
        "learner": {key: now["learner"][key] for key in ("model", "average", "optimizer", "scheduler", "scaler")},
        "loader": {**loader, "training": True, "epoch": 1, "delivered": 12},
        "tally": {key: now["tally"][key] for key in ("loss_sum", "correct", "seen")},
        "rows": now["rows"],
        "best": {key: now["best"][key] for key in ("model", "epoch", "val_top1", "before")},
        "seconds": now["seconds"],
        "identity": now["identity"],
    }
    assert list(now["identity"]) == [
        "mode", "--views", "--model", "precision", "NGPU", "images to train on", "steps", "images to validate",
        "--size", "epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "momentum", "nesterov",
        "schedule", "label_smoothing", "ema_horizon", "norm_in_train_mode", "train_spec", "eval_spec",
    ]  # fmt: skip
    torch.save(old, out / "last.pt")
    assert [*old, "samples"] == list(now)
    assert list(now["rows"][0]) == [
        "epoch", "train_loss", "train_top1", "seconds", "images_per_second", "data_wait", "learning_rate",
        "val_loss", "val_top1", "val_seen",
    ]  # fmt: skip
    assert main(arguments(image_folder, out, *options, "--resume", mode=mode)) == 0
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(out))


def test_a_run_killed_amid_an_epoch_goes_on_from_what_it_saved_there(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    steps = 0
    step = Learner.step

    def killed_at_the_ninth(self: Learner, *given: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 9:  # of 6 an epoch
            raise MemoryError
        step(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", killed_at_the_ninth)
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", -1e9)
    with pytest.raises(MemoryError):
        main(arguments(image_folder, tmp_path / "parts"))
    assert main(arguments(image_folder, tmp_path / "parts", "--resume")) == 0
    assert steps == 9 + 4  # two steps of the second epoch were saved
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(tmp_path / "parts"))


def test_a_process_that_does_not_write_knows_when_the_run_was_saved(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[bool] = []

    def save_without_writing(self: TrainingLoop) -> None:
        self.checkpoints.folder.close()
        self.checkpoints.folder = None  # as on every process but the main one
        for _ in range(2):
            before = self.state.saved_at
            self._save_if_due(1, 1)
            saved.append(self.state.saved_at > before)

    monkeypatch.setattr(TrainingLoop, "run", save_without_writing)
    monkeypatch.setattr("train.run._conclude", lambda _: {})
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", 0.0)
    assert main(arguments(image_folder, tmp_path / "first")) == 0
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", 600.0)
    assert main(arguments(image_folder, tmp_path / "second")) == 0
    assert saved == [True, True, False, False]


@pytest.mark.parametrize("at", [3, 9])
def test_the_baseline_interrupted_amid_an_epoch_says_what_is_left(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    steps = send_signal_at_step(monkeypatch, at, signal.SIGINT)  # of 6 an epoch
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", -1e9)
    options = arguments(image_folder, tmp_path / "run", "--loader", "baseline")
    assert main(options) == 128 + signal.SIGINT
    output = capsys.readouterr().out
    assert "LOADER=baseline cannot go on inside an epoch, this one begins again" in output
    assert ("--resume" in output) == (at == 9)  # after the first epoch, which was saved
    if at == 9:
        assert main([*options, "--resume"]) == 0
        assert len(steps) == 9 + 6  # the second epoch again
    else:
        assert main(options) == 0
        assert len(steps) == 3 + 2 * 6


def test_bad_images_of_both_splits_are_named_at_once(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (image_folder / split / "ash" / "03.jpg").write_bytes(b"")
    assert main(arguments(image_folder, tmp_path / "run")) == 2
    output = capsys.readouterr().err
    assert all(f"{split}/ash/03.jpg" in output for split in ("train", "val"))


def test_a_signal_during_validation_costs_nothing(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    validate = TrainingLoop._validate

    def interrupted(self: TrainingLoop, title: str) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return validate(self, title)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_validate", interrupted)
        assert main(arguments(image_folder, tmp_path / "parts")) == 128 + signal.SIGINT
    assert main(arguments(image_folder, tmp_path / "parts", "--resume")) == 0
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(tmp_path / "parts"))


def test_one_command_begins_a_run_goes_on_with_it_and_leaves_it_once_it_is_finished(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    command = arguments(image_folder, tmp_path / "parts", "--resume", "auto")
    steps = send_signal_at_step(monkeypatch, 9, signal.SIGTERM)  # of 6 an epoch
    assert main(command) == 128 + signal.SIGTERM
    assert main(command) == 0
    assert main(command) == 0
    assert len(steps) == 12
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(tmp_path / "parts"))


def test_a_finished_run_resumed_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out)) == 0
    before = rows(out)
    assert main(arguments(image_folder, out, "--resume")) == 0
    assert rows(out) == before


@pytest.mark.parametrize(("pause", "saved"), [(1e9, [1, 3]), (-1e9, [1, 2, 3])])
def test_saving_holds_up_no_run_and_ends_with_its_last_epoch(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, saved: list[int]
) -> None:
    epochs: dict[str, list[int]] = {"last.pt": [], "curves.png": []}
    save = RunFolder.save

    def noted(self: RunFolder, name: str, content: Any) -> None:
        save(self, name, content)
        if name == "last.pt":
            epochs[name].append(len(content["rows"]))

    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES", pause)
    monkeypatch.setattr(RunFolder, "save", noted)
    monkeypatch.setattr(RunFolder, "draw_curves", lambda _, rows: epochs["curves.png"].append(len(rows)))
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--epochs", "3", mode="feature")) == 0
    assert epochs == {"last.pt": saved, "curves.png": saved}
    best = torch.load(out / "best.pt", weights_only=True)
    assert (best["epoch"], best["val_top1"]) == tuple(read(out, "summary.json")[k] for k in ("best_epoch", "val_top1"))
    exported = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(best["model"][name], exported[name]) for name in exported)


def test_handlers_of_signals_are_put_back(image_folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(arguments(image_folder, tmp_path / "run")) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_garbage_is_collected_between_epochs_only(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    step = Learner.step

    def counted(self: Learner, *given: Any) -> None:
        seen.append(gc.isenabled())
        step(self, *given)

    monkeypatch.setattr(Learner, "step", counted)
    assert main(arguments(image_folder, tmp_path / "run")) == 0
    assert seen == [False] * 12
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert main(arguments(image_folder, tmp_path / "diverged", "--lr", "1e20")) == 2
    assert gc.isenabled()


def test_out_of_time_ends_in_order(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--max-minutes", "0.0001", "--epochs", "50")) == 0
    assert read(out, "summary.json")["epochs"] == 1
    assert {path.name for path in out.iterdir()} == FILES


def test_an_epoch_that_ran_out_of_time_is_finished_by_resuming(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "out_of_time", property(lambda _: True))
        assert main(arguments(image_folder, out, "--max-minutes", "60")) == 0
    assert len(rows(out)) == 1
    assert main(arguments(image_folder, out, "--resume")) == 0
    assert without_times(rows(out)) == without_times(rows(tmp_path / "whole"))


def test_an_unfinished_epoch_takes_no_best_weights_away_from_the_run_that_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is best when it runs out of time, and no longer so when it is finished."""
    out = tmp_path / "run"
    correct, steps = iter([6, 9, 5]), 0
    validate, step = TrainingLoop._validate, Learner.step

    def counted(self: Learner, *given: Any) -> None:
        nonlocal steps
        step(self, *given)
        steps += 1

    monkeypatch.setattr(TrainingLoop, "_validate", lambda *given: replace(validate(*given), correct=next(correct)))
    monkeypatch.setattr(Learner, "step", counted)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "out_of_time", property(lambda _: steps >= 8))  # of 6 an epoch
        assert main(arguments(image_folder, out, "--max-minutes", "60")) == 0
    unfinished = torch.load(out / "best.pt", weights_only=True)
    assert (unfinished["epoch"], unfinished["val_top1"], read(out, "summary.json")["val_top1"]) == (2, 0.9, 0.9)
    assert main(arguments(image_folder, out, "--resume")) == 0
    best = torch.load(out / "best.pt", weights_only=True)
    assert (best["epoch"], best["val_top1"], read(out, "summary.json")["val_top1"]) == (1, 0.6, 0.6)
    exported = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(best["model"][name], exported[name]) for name in exported)
    assert not torch.equal(best["model"]["fc.weight"], unfinished["model"]["fc.weight"])


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_run_killed_before_it_saved_its_best_does_so_when_it_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """After the first epoch, and after the last; each is the best so far."""
    validate = TrainingLoop._validate
    monkeypatch.setattr(
        TrainingLoop, "_validate", lambda self, title: replace(validate(self, title), correct=5 + len(self.state.rows))
    )
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    save, saved = RunFolder.save, 0

    def killed(self: RunFolder, name: str, content: Any) -> None:
        nonlocal saved
        saved += name == "best.pt"
        if saved == kill_at:
            raise KeyboardInterrupt
        save(self, name, content)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        assert main(arguments(image_folder, out)) == 130
    assert main(arguments(image_folder, out, "--resume")) == 0
    whole, parts = (torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["epoch"] == parts["epoch"] == 2
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


def test_validation_that_saw_too_few_is_not_believed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Learner.evaluate
    monkeypatch.setattr(Learner, "evaluate", lambda self, batches: evaluate(self, list(batches)[1:]))
    with pytest.raises(AssertionError, match="validated 6 images instead of 10"):
        main(arguments(image_folder, tmp_path / "run"))


def test_an_image_removed_after_indexing_does_not_stop_a_run_that_skips(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loaders.bad_images.MAX_BAD_SHARE", 0.5)

    def prepare_and_remove(options: Options, *given: Any) -> Session:
        session = prepare(options, *given)
        (image_folder / "val" / "oak" / "03.jpg").unlink()
        return session

    monkeypatch.setattr("train.run.prepare", prepare_and_remove)
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--on-bad-image", "skip")) == 0
    assert (read(out, "summary.json")["val_seen"], read(out, "summary.json")["bad_images"]) == (9, 1)


def test_a_run_that_saved_nothing_may_be_begun_again(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--lr", "1e20")) == 2
    assert main(arguments(image_folder, out)) == 0


def test_limits_take_a_mixed_share(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--train-limit", "9", "--val-limit", "7", "--epochs", "1")) == 0
    assert read(out, "summary.json")["val_seen"] == 7


def test_the_baseline_loader_trains_too(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--loader", "baseline", "--epochs", "1")) == 0
    assert read(out, "summary.json")["loader"] == "baseline"


def test_two_colors_are_distinguished(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 10)):
        for name, color in (("blue", (30, 40, 200)), ("red", (200, 40, 30))):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number).integers(-30, 30, (40, 48, 3))
                pixels = np.clip(noise + color, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    out = tmp_path / "run"
    # So many that BatchNorm's statistics settle: after four epochs in batches of 4 it hung on the number of threads.
    assert main(arguments(tmp_path / "data", out, "--epochs", "10", "--batch-size", "16")) == 0
    assert read(out, "summary.json")["val_top1"] == 1.0
    classify = load_classifier(out)
    probabilities = classify(tmp_path / "data" / "val" / "red" / "3.png")
    assert next(iter(probabilities)) == "red"
    assert sum(probabilities.values()) == pytest.approx(1)


def test_the_exported_classifier_agrees_with_validation(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out)) == 0
    require_agreement(out, image_folder)


@pytest.mark.parametrize("finished", ["", "config.json"])
def test_a_folder_without_a_finished_run_is_named(tmp_path: Path, finished: str) -> None:
    (tmp_path / (finished or "file")).write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"holds no finished run: config\.json or model\.safetensors is missing"):
        load_classifier(tmp_path if finished else tmp_path / "file")


def test_best_weights_of_one_run_start_another(image_folder: Path, tmp_path: Path) -> None:
    assert main(arguments(image_folder, tmp_path / "a")) == 0
    for weights in ("best.pt", "model.safetensors"):
        out = tmp_path / f"from-{weights}"
        assert main(arguments(image_folder, out, "--epochs", "1", weights=str(tmp_path / "a" / weights))) == 0


def test_a_bad_image_is_named_or_skipped(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(150):  # so that one is less than a hundredth
        source = image_folder / "train" / "oak" / "00.jpg"
        (image_folder / "train" / "oak" / f"copy{number}.jpg").write_bytes(source.read_bytes())
    (image_folder / "train" / "ash" / "99.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    assert main(arguments(image_folder, tmp_path / "a")) == 2
    assert "99.jpg" in capsys.readouterr().err
    assert main(arguments(image_folder, tmp_path / "b", "--on-bad-image", "skip", "--epochs", "1")) == 0
    assert "99.jpg" in capsys.readouterr().out
    assert read(tmp_path / "b", "summary.json")["bad_images"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--loader", "warp"], "LOADER=warp"),
        (["--batch-size", "100"], "smaller --batch-size"),
        (["--batch-size", "1"], "--batch-size 1: at 32 px"),
        (["--weights", "/no/weights.pth"], "/no/weights.pth"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    if more[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(arguments(image_folder, tmp_path / "run", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["fintune"], "finetune"),
        (["finetune", "--epoch", "3"], "--epochs"),
        (["feature", "--size", "wide"], "--size"),
        (["feature", "--loader"], "--loader"),
        (["feature", "--epochs", "0"], "--epochs 0"),
        (["feature", "--lr", "-1"], "--lr -1"),
        (["feature", "--size", "16"], "--size 16"),
        (["feature", "--seed", str(2**64)], "--seed 18446744073709551616"),
        (["feature", "--resume"], "--out"),
    ],
)
def test_a_mistaken_option_ends_with_code_2_and_says_which(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, wrong) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_holds_another_run_is_left_alone(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(image_folder, tmp_path / "run", "--epochs", "1")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert main(arguments(image_folder, tmp_path / "run")) == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("different", "named"),
    [
        (["--lr", "0.5"], "otherwise; give the options it had:\n  learning_rate was 0.003125, is 0.5\n"),
        (["--seed", "9"], "seed was 0, is 9"),
        (["--precision", "bf16"], "precision was fp32, is bf16"),
        (["--model", "resnet34"], "--model was resnet18, is resnet34"),
        (["--train-limit", "9"], "otherwise; give the options it had:\n  images to train on was 24, is 9\n"),
        (["--val-limit", "3"], "images to validate was 10 "),
    ],
)
def test_resuming_with_other_options_is_refused_by_name(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], different: list[str], named: str
) -> None:
    assert main(arguments(image_folder, tmp_path / "run", "--epochs", "2")) == 0
    assert main(arguments(image_folder, tmp_path / "run", "--resume", *different)) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["finetune", "feature"])
def test_a_run_goes_on_with_other_processes_if_together_they_take_as_many_images_a_step(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """What two processes with half the batch each have saved is what one saves, apart from the two numbers."""
    assert main(arguments(image_folder, tmp_path / "whole", mode=mode)) == 0
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        send_signal_at_step(patch, 9, signal.SIGTERM)
        assert main(arguments(image_folder, out, mode=mode)) == 128 + signal.SIGTERM
    saved = torch.load(out / "last.pt", weights_only=True)
    saved["identity"] |= {"NGPU": 2, "batch_size": "2"}
    torch.save(saved, out / "last.pt")
    assert main(arguments(image_folder, out, "--resume", mode=mode)) == 0
    assert without_times(rows(tmp_path / "whole")) == without_times(rows(out))


@pytest.mark.parametrize(
    ("processes", "advice"),
    [
        (3, "\nWith NGPU=1 its 12 images a step are --batch-size 12\n"),
        (1, "learning_rate was 1, is 0.003125\n"),  # the batch size is not what differs
    ],
)
def test_other_processes_with_another_batch_are_told_which_would_fit(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], processes: int, advice: str
) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out, "--epochs", "1")) == 0
    saved = torch.load(out / "last.pt", weights_only=True)
    saved["identity"] |= {"NGPU": processes, "learning_rate": "1"}
    torch.save(saved, out / "last.pt")
    assert main(arguments(image_folder, out, "--epochs", "1", "--resume")) == 2
    assert capsys.readouterr().err.endswith(advice)


def test_images_that_the_processes_cannot_share_evenly_are_said() -> None:
    [said] = checkpoints._advice_on_shares({"NGPU": 2, "batch_size": "5"}, {"NGPU": 4})
    assert said.endswith("10 images a step cannot be shared by 4 GPUs: choose an NGPU that divides 10")
    assert checkpoints._advice_on_shares({}, {"NGPU": 4}) == []


@pytest.mark.parametrize("share", [0, 10, 3])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, share: int) -> None:
    folder = RunFolder(tmp_path, resume=False)
    folder.save("last.pt", {"weights": torch.zeros(9)})
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) * share // 12] or b"broken\n")
    with pytest.raises(InputError, match=r"last\.pt is damaged or unreadable; begin anew with another OUT"):
        folder.load("last.pt")


def test_a_checkpoint_that_ends_half_way_is_reported_with_its_cause(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"last\.pt cannot be written: File too large"):
            folder.save("last.pt", {"weights": torch.zeros(1_000_000), "more": torch.zeros(9)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "last.pt", "best.pt", "metrics.jsonl", "curves.png", "summary.json"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setattr(RunFolder, "_remove_parts", lambda _: None)
    (out / f"{name}.{os.getpid()}.part").symlink_to("/dev/full")  # where every byte is one too many
    assert main(arguments(image_folder, out, "--epochs", "1")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {out / name} cannot be written: No space left on device")
    assert not list(out.glob("*.part"))
    assert not (out / name).exists()


def test_resident_and_torchvision_learn_the_same(image_folder: Path, tmp_path: Path) -> None:
    for loader in ("resident", "torchvision"):
        assert main(arguments(image_folder, tmp_path / loader, "--loader", loader, "--recipe", "classic")) == 0
    ours, theirs = (rows(tmp_path / loader) for loader in ("resident", "torchvision"))
    assert without_times(ours) == without_times(theirs)
    assert read(tmp_path / "resident", "summary.json")["loader"] == "resident"


def test_two_processes_that_stream_build_one_cache(image_folder: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    done = subprocess.run(
        [*launch, *arguments(image_folder, tmp_path / "run", "--loader", "streamed", "--epochs", "1")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run", "summary.json")["val_seen"] == 10
    caches = list((Path(os.environ["SATURATE_CACHE"]) / "pixels").iterdir())
    assert [(folder / "manifest.json").is_file() for folder in caches] == [True, True]  # to train on, to validate


def test_cached_pixels_smaller_than_the_images_are_warned_of(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(image_folder, tmp_path / "run", "--epochs", "1", "--loader", "streamed", "--cache-size", "24")
    assert main(given) == 0
    assert "cached at 24 px for images of 32 px: --cache-size 37 keeps them sharp" in capsys.readouterr().out


def test_what_is_passed_over_is_said(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "train" / "oak" / "raw.heic").write_bytes(b"")
    assert main(arguments(image_folder, tmp_path / "run", "--epochs", "1")) == 0
    assert "passed over, being no images: 1 × .heic" in capsys.readouterr().out


def test_a_csv_file_of_labels_trains_and_its_classes_are_recorded(image_folder: Path, tmp_path: Path) -> None:
    files = sorted(image_folder.rglob("*.jpg"))
    lines = [f"{path},tree {path.parent.name},{path.parts[-3]}" for path in files]
    (tmp_path / "labels.csv").write_text("path,label,split\n" + "\n".join(lines))
    assert main(arguments(tmp_path / "labels.csv", tmp_path / "run", "--epochs", "1")) == 0
    assert read(tmp_path / "run", "summary.json")["val_seen"] == 10
    config: Any = read(tmp_path / "run", "config.json")
    assert config["model"]["label_names"] == ["tree ash", "tree oak"]
    assert set(load_classifier(tmp_path / "run")(files[0])) == {"tree ash", "tree oak"}


def test_images_of_too_many_pixels_are_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(image_folder, tmp_path / "run", "--max-pixels", "5400")) == 2  # the largest have more
    assert "more than 5,400 (--max-pixels)" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(image_folder, tmp_path / "run", "--lr", "1e20")) == 2
    assert re.search(r"the training loss is (nan|inf): it diverged", capsys.readouterr().err)
    one_step = ("--epochs", "1", "--train-limit", "4")
    assert main(arguments(image_folder, tmp_path / "last-step", "--lr", "1e20", *one_step)) == 2
    assert re.search(r"the validation loss is (nan|inf): it diverged", capsys.readouterr().err)
    assert not (tmp_path / "last-step" / "best.pt").exists()


def test_without_network_other_data_stop_and_name_the_way_out(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert main(arguments(image_folder, tmp_path / "run", weights="imagenet")) == 2
    assert "WEIGHTS=none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("real_runs")
def test_two_processes_train_as_one(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    done = subprocess.run(
        [*launch, *arguments(image_folder, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert read(out, "summary.json")["val_seen"] == 10
    assert {path.name for path in out.iterdir()} == FILES
    # Judged by all processes was what the main one saved, with its BatchNorm statistics.
    require_agreement(out, image_folder)


@pytest.mark.usefixtures("real_runs")
@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", ["feature", "finetune"])
@pytest.mark.parametrize("more", [["--precision", "bf16"], ["--precision", "fp16"], ["--deterministic"]])
def test_a_run_on_a_gpu(image_folder: Path, tmp_path: Path, mode: str, more: list[str]) -> None:
    out = tmp_path / "run"
    small = ["--size", "32", "--batch-size", "4", "--epochs", "2"]
    given = [mode, "--data", str(image_folder), "--out", str(out), "--weights", "none", *small, *more]
    try:
        assert main(given) == 0
    finally:
        torch.use_deterministic_algorithms(False)  # it holds for the whole process
    assert read(out, "summary.json")["val_seen"] == 10
