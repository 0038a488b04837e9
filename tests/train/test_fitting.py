"""Training from Python."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loaders import BadImageError, InputError
from train import FittedModel, fit
from train.fitting import name_fields
from train.loop import TrainingLoop

pytestmark = pytest.mark.usefixtures("small_runs")

SMALL: dict[str, Any] = {"weights": "none", "size": 32, "batch_size": 4, "precision": "fp32", "device": "cpu"}


def test_a_run_returns_what_its_folder_holds(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit(image_folder, mode="finetune", epochs=2, out=tmp_path / "run", **SMALL)
    assert result.folder == tmp_path / "run"
    assert result.summary == json.loads((result.folder / "summary.json").read_text())
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert list(result.rows) == [json.loads(line) for line in lines]
    assert [row["epoch"] for row in result.rows] == [1, 2]
    assert set(result.classifier(image_folder / "val" / "ash" / "00.jpg")) == {"ash", "oak"}
    assert result.classifier is result.classifier
    output = capsys.readouterr().out
    assert "epoch 2/2  train loss" in output
    assert "\x1b" not in output


def test_on_a_terminal_progress_is_text_too(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    fit(image_folder, mode="feature", epochs=1, out=tmp_path / "run", **SMALL)
    output = capsys.readouterr().out
    assert 'warning: the features of a random backbone tell little: `mode="finetune"` trains that too\n' in output
    assert "\x1b" not in output


def in_a_thread(work: Callable[[], object]) -> object:
    """What `work` returns or raises in another thread."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_it_runs_in_a_thread_and_leaves_signals_alone(image_folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = in_a_thread(lambda: fit(image_folder, epochs=1, out=tmp_path / "run", **SMALL))
    assert isinstance(result, FittedModel), result
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ctrl_c_saves_and_the_same_call_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SMALL | {"epochs": 2, "out": tmp_path / "run"}
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_save_if_due", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            fit(image_folder, **given)
    result = fit(image_folder, **given, resume=True)
    assert [row["epoch"] for row in result.rows] == [1, 2]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("epoch", "did you mean 'epochs'?"),
        ("batchsize", "did you mean 'batch_size'?"),
        ("learning_speed_of_all", "there are mode, data, root, "),
    ],
)
def test_an_unknown_option_is_a_type_error_that_names_the_nearest(name: str, advice: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument") as caught:
        fit("photos", **{name: 3})
    assert f"{name!r}; {advice}" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "fine"}, '`mode="fine"`: expected feature, finetune'),
        ({"mode": None}, "`mode=None`: expected feature, finetune"),
        ({"precision": 16}, "`precision=16`: expected auto, bf16, fp16, fp32"),
        ({"epochs": "3"}, '`epochs="3"`: expected a whole number or None'),
        ({"epochs": 2.5}, "`epochs=2.5`: expected a whole number or None"),
        ({"epochs": True}, "`epochs=True`: expected a whole number or None"),
        ({"epochs": 0}, "`epochs=0`: expected more than 0"),
        ({"lr": "fast"}, '`lr="fast"`: expected a number or None'),
        ({"lr": float("nan")}, "`lr=nan`: expected more than 0"),
        ({"root": 3}, "`root=3`: expected a path"),
        ({"data": None}, "`data=None`: expected text"),
        ({"deterministic": 1}, "`deterministic=1`: expected True or False"),
        ({"size": 16}, "`size=16`: a ResNet needs 32 pixels or more"),
        ({"views": 2}, '`views`: features can be cached only where the backbone stays as it is: `mode="feature"`'),
        ({"resume": True}, '`resume`: name the run\'s folder with `out` (`out="..."`)'),
        ({"data": "nowhere"}, "`data`: there is no folder or CSV file nowhere"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_field(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        fit(**given)
    assert str(caught.value).startswith(message)


def test_weights_that_are_not_there_are_named(image_folder: Path) -> None:
    with pytest.raises(InputError, match=r"^`weights`: there is no file x\.pt \(nor weights of that name"):
        fit(image_folder, **SMALL | {"weights": "x.pt"})


def test_bad_images_stay_an_error_of_their_own(image_folder: Path) -> None:
    (image_folder / "train" / "ash" / "03.jpg").write_bytes(b"")
    with pytest.raises(BadImageError, match='leave them out by `on_bad_image="skip"`') as caught:
        fit(image_folder, **SMALL)
    assert [Path(image.path).name for image in caught.value.bad] == ["03.jpg"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Choose a smaller --lr, or --precision fp32.", 'Choose a smaller `lr`, or `precision="fp32"`.'),
        ("--batch-size 1: at 32 px; choose 2", "`batch_size=1`: at 32 px; choose 2"),
        ("  --views was 2, is 3", "  `views` was 2, is 3"),
        ("the ResNet that --model names: x", "the ResNet that `model` names: x"),
        ("pixels: --cache-size 288 keeps them", "pixels: `cache_size=288` keeps them"),
        ("begin anew with another OUT", "begin anew with another `out`"),
        ("--views: LOADER=baseline draws", '`views`: `loader="baseline"` draws'),
        ("give WEIGHTS=FILE, or WEIGHTS=none.", 'give `weights="FILE"`, or `weights="none"`.'),
        ("--max-minutes 0.5: stopping", "`max_minutes=0.5`: stopping"),
        ("/photos/DATA/x, NCCL_SHM_DISABLE=1, --shm-size=1g", "/photos/DATA/x, NCCL_SHM_DISABLE=1, --shm-size=1g"),
        ("`on_bad_image=\"skip\"` stays", "`on_bad_image=\"skip\"` stays"),
    ],
)  # fmt: skip
def test_options_are_named_as_fields(message: str, expected: str) -> None:
    assert name_fields(message) == expected


def test_importing_train_and_a_mistake_take_no_torch() -> None:
    program = """
import sys
import train
from train import fit
for wrong in ({"epoch": 3}, {"mode": "fine"}):
    try:
        fit("photos", **wrong)
    except (TypeError, ValueError):
        pass
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
