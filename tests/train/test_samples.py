"""A run goes on with the samples that it was begun with, when files have changed in between."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import smooth_image
from tests.train.test_run import arguments, rows, send_signal_at_step, without_times
from train.__main__ import main

pytestmark = pytest.mark.usefixtures("small_runs")

Change = Callable[[Path], None]


def garbage(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def begin(data: Path, out: Path, *more: str) -> list[str]:
    """Trains up to the middle of the second epoch; returns the arguments to go on."""
    given = arguments(data, out, "--on-bad-image", "skip", *more)
    with pytest.MonkeyPatch.context() as patch:
        send_signal_at_step(patch, 9, signal.SIGTERM)  # of 6 an epoch
        assert main(given) == 128 + signal.SIGTERM
    return [*given, "--resume"]


@pytest.mark.parametrize("loader", ["torchvision", "streamed", "resident"])
@pytest.mark.parametrize("change", [garbage, truncated, Path.unlink])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_became_unreadable_is_skipped_when_the_run_goes_on(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, loader: str, split: str
) -> None:
    resume = begin(image_folder, tmp_path / "run", "--loader", loader, "--cache-size", "48")
    change(image_folder / split / "ash" / "03.jpg")
    capsys.readouterr()
    assert main(resume) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "images have become unreadable; they are skipped (1): ash/03.jpg (" in said
    assert len(rows(tmp_path / "run")) == 2
    assert rows(tmp_path / "run")[1]["val_seen"] in ((10,) if split == "train" else (9, 10))  # 10 from a pixel cache


def test_it_goes_on_as_a_run_that_was_not_interrupted(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = image_folder / "train" / "ash" / "03.jpg"
    whole = broken.read_bytes()
    given = arguments(image_folder, tmp_path / "whole", "--on-bad-image", "skip")
    with monkeypatch.context() as patch:
        patch.setattr("train.loop.epoch_line", lambda *_: garbage(broken) or "")  # after the first epoch
        assert main(given) == 0
    broken.write_bytes(whole)
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        send_signal_at_step(patch, 6, signal.SIGTERM)
        assert main(arguments(image_folder, out, "--on-bad-image", "skip")) == 128 + signal.SIGTERM
    garbage(broken)
    for _ in range(2):  # what the run records when it goes on is what it was begun with
        with monkeypatch.context() as patch:
            send_signal_at_step(patch, 3, signal.SIGTERM)
            assert main([*arguments(image_folder, out, "--on-bad-image", "skip"), "--resume"]) in (0, 143)
    assert main([*arguments(image_folder, out, "--on-bad-image", "skip"), "--resume"]) == 0
    assert without_times(rows(out)) == without_times(rows(tmp_path / "whole"))


@pytest.mark.parametrize("more", [(), ("--train-limit", "22")])
def test_files_that_were_added_are_ignored(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole", "--on-bad-image", "skip", *more)) == 0
    with pytest.MonkeyPatch.context() as patch:
        send_signal_at_step(patch, 8, signal.SIGTERM)
        assert main(arguments(image_folder, tmp_path / "run", *more)) == 128 + signal.SIGTERM
    shutil.copy(image_folder / "train" / "ash" / "03.jpg", image_folder / "train" / "ash" / "00-new.jpg")
    (image_folder / "train" / "oak" / "bad.jpg").write_bytes(b"none of the run's images")
    capsys.readouterr()
    assert main([*arguments(image_folder, tmp_path / "run", *more), "--resume"]) == 0
    if not more:
        assert "images have been added; it goes on without them (2)" in capsys.readouterr().out.replace("\n", " ")
    assert without_times(rows(tmp_path / "run")) == without_times(rows(tmp_path / "whole"))


def test_a_folder_whose_split_is_drawn_goes_on_with_the_split_it_had(image_folder: Path, tmp_path: Path) -> None:
    data = image_folder / "train"
    assert main(arguments(data, tmp_path / "whole", "--on-bad-image", "skip")) == 0
    resume = begin(data, tmp_path / "run")
    for number in range(9):  # another fifth would be held out
        Image.fromarray(smooth_image(50, 60, number)).save(data / "ash" / f"00-{number}.jpg")
    assert main(resume) == 0
    assert without_times(rows(tmp_path / "run")) == without_times(rows(tmp_path / "whole"))


def test_a_bad_image_that_was_repaired_is_left_out_as_before(image_folder: Path, tmp_path: Path) -> None:
    broken = image_folder / "train" / "ash" / "03.jpg"
    whole = broken.read_bytes()
    garbage(broken)
    assert main(arguments(image_folder, tmp_path / "whole", "--on-bad-image", "skip")) == 0
    resume = begin(image_folder, tmp_path / "run")
    broken.write_bytes(whole)
    assert main(resume) == 0
    assert without_times(rows(tmp_path / "run")) == without_times(rows(tmp_path / "whole"))


def relabel(data: Path) -> None:
    (data / "train" / "ash").rename(data / "aside")
    (data / "train" / "oak").rename(data / "train" / "ash")
    (data / "aside").rename(data / "train" / "oak")


def edit(data: Path) -> None:
    Image.fromarray(smooth_image(33, 44, 5)).save(data / "train" / "ash" / "03.jpg")


def remove(data: Path) -> None:
    for number in (3, 4):
        (data / "train" / "ash" / f"{number:02}.jpg").unlink()


def replace_all(data: Path) -> None:
    for path in data.rglob("*.jpg"):
        path.rename(path.with_stem(f"other-{path.stem}"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit, "1 images are not those that the run began with, but of another size: ash/03.jpg."),
        (remove, "2 of the 24 images that the run was begun with are missing: ash/03.jpg, ash/04.jpg. Give the DATA"),
        (replace_all, "24 of the 24 images that the run was begun with are missing"),
        (relabel, "images are not those that the run began with"),
    ],
)
def test_other_data_are_refused_with_a_remedy(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str
) -> None:
    resume = begin(image_folder, tmp_path / "run")
    change(image_folder)
    assert main(resume) == 2
    assert said in capsys.readouterr().err


def test_other_labels_in_a_csv_file_are_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(labels: list[str]) -> None:
        lines = (f"{path},{label},{path.parts[-3]}" for path, label in zip(files, labels, strict=True))
        table.write_text("path,label,split\n" + "\n".join(lines))

    files, table = sorted(image_folder.rglob("*.jpg")), tmp_path / "labels.csv"
    labels = [path.parent.name for path in files]
    write(labels)
    resume = begin(table, tmp_path / "run")
    write(["oak", *labels[1:]])
    assert main(resume) == 2
    assert "1 images have other labels than when the run began" in capsys.readouterr().err


def test_an_unreadable_image_that_may_not_be_skipped_is_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = begin(image_folder, tmp_path / "run")
    (image_folder / "train" / "ash" / "03.jpg").unlink()
    assert main([argument.replace("skip", "raise") for argument in resume]) == 2
    assert "ash/03.jpg: it is missing\n" in capsys.readouterr().err


def test_a_checkpoint_without_a_record_goes_on_as_before(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = begin(image_folder, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del content["samples"]
    torch.save(content, tmp_path / "run" / "last.pt")
    (tmp_path / "run" / "last.previous.pt").unlink()
    (image_folder / "train" / "ash" / "03.jpg").unlink()
    assert main(resume) == 2
    assert "images to train on was 24, is 23" in capsys.readouterr().err


def test_a_damaged_record_is_named(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = begin(image_folder, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    content["samples"]["train"][40:] = 7
    torch.save(content, tmp_path / "run" / "last.pt")
    assert main(resume) == 2
    assert "record of the run's samples is damaged" in capsys.readouterr().err


@pytest.mark.needs_cifar10
def test_images_that_are_no_files_have_no_record(
    tmp_path: Path, cifar10_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_signal_at_step(monkeypatch, 2, signal.SIGTERM)
    given = arguments(Path("cifar10"), tmp_path / "run", "--root", str(cifar10_root), "--train-limit", "16")
    assert main([*given, "--val-limit", "8"]) == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["samples"] == {}
