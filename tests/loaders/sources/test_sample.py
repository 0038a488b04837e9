"""The embedded sample: the same bytes always, only complete folders, and classes that color does not reveal."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.sources import sample
from loaders.sources.sample import CLASSES, SPLITS, prepare_sample, render


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set large enough for its statistics."""
    return prepare_sample(tmp_path_factory.mktemp("whole"), train=300, val=200)


@pytest.mark.parametrize("workers", [1, 5])
def test_bytes_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, workers: int):
    monkeypatch.setattr(sample, "usable_cores", lambda: workers)
    built = contents(prepare_sample(tmp_path, train=20, val=10))
    assert len(built) == 30
    large = contents(whole)  # image k of a class is the same image, however many there are
    assert all(large[name] == jpeg for name, jpeg in built.items())


def test_images_differ_by_seed_split_class_and_number():
    images = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "val", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    assert len({render(*image).tobytes() for image in images}) == len(images)


def test_layout_and_balance(whole: Path):
    assert tuple(sorted(CLASSES)) == CLASSES
    assert len(CLASSES) == 10
    count = Counter(path.parent.relative_to(whole).as_posix() for path in whole.rglob("*.jpg"))
    expected = dict(zip(SPLITS, (30, 20), strict=True))
    assert count == {f"{split}/{name}": n for split, n in expected.items() for name in CLASSES}


def test_uneven_counts_are_shared_out(tmp_path: Path):
    folder = prepare_sample(tmp_path, train=23, val=11)
    for split, total in (("train", 23), ("val", 11)):
        counts = [len(list((folder / split / name).iterdir())) for name in CLASSES]
        assert sum(counts) == total
        assert max(counts) - min(counts) <= 1


def test_every_class_fills_its_disk_and_no_more():
    """Otherwise a shape would be cut off at the edge of the patch it is drawn in."""
    axis = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for name, distance in sample.SHAPES.items():
        reach = np.hypot(u, v)[distance(u, v) < 0].max()
        assert 0.7 < reach < 1.02, name


def test_sizes_are_those_of_photographs(whole: Path):
    jpegs = list(contents(whole).values())
    sizes = np.array([Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs])
    assert 100_000 < np.mean([len(jpeg) for jpeg in jpegs]) < 120_000
    assert 490 < sizes.max(axis=1).mean() < 510
    assert 365 < sizes.min(axis=1).mean() < 385
    assert 0.15 < np.mean(sizes[:, 1] > sizes[:, 0]) < 0.35
    assert len({tuple(size) for size in sizes}) > 20


def mean_colors(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean RGB of each image [N, 3], and its label [N]."""
    rows = []
    for label, name in enumerate(CLASSES):
        for path in sorted((folder / split / name).iterdir()):
            with Image.open(path) as image:
                image.draft("RGB", (1, 1))  # decode an eighth of the size, whose mean is the same
                rows.append((*np.asarray(image).mean(axis=(0, 1)), label))
    table = np.array(rows)
    return table[:, :3], table[:, 3].astype(int)


def probe(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]) -> float:
    """Top-1 on `val` of least squares from colors to classes, fitted on `train`."""

    def inputs(colors: np.ndarray) -> np.ndarray:
        return np.c_[colors / 255, np.ones(len(colors))]

    weights = np.linalg.lstsq(inputs(train[0]), np.eye(len(CLASSES))[train[1]], rcond=None)[0]
    return float(np.mean((inputs(val[0]) @ weights).argmax(axis=1) == val[1]))


def test_mean_color_does_not_reveal_the_class(whole: Path):
    train, val = mean_colors(whole, "train"), mean_colors(whole, "val")
    assert probe(train, val) < 0.20
    # The probe does find color where it depends on the class: a tint per class, no stronger than the
    # spread of the backgrounds.
    tint = np.random.default_rng(0).uniform(-40, 40, (len(CLASSES), 3))
    assert probe(*((colors + tint[labels], labels) for colors, labels in (train, val))) > 0.30


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(seed: int, split: str, label: int, number: int) -> np.ndarray:
        if (split, label, number) == ("val", 3, 0):
            raise MemoryError("no room for this one")
        return render(seed, split, label, number)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "render", broken)
        with pytest.raises(MemoryError, match="no room"):
            prepare_sample(tmp_path, train=10, val=10)
    assert [path.name for path in tmp_path.iterdir()] == [".sample.lock"]
    assert len(contents(prepare_sample(tmp_path, train=10, val=10))) == 20


def test_an_interrupt_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        if done == 3 < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_sample(tmp_path, train=100, val=10, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".sample.lock"]


BUILD = """
import sys, time
from pathlib import Path
from loaders.sources.sample import prepare_sample

def progress(done, total):
    print(done, flush=True)
    if sys.argv[3:]:
        time.sleep(600)  # it is killed here

print(prepare_sample(Path(sys.argv[1]), train=int(sys.argv[2]), val=10, progress=progress).name)
"""


def build(root: Path, train: int, *stopping: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(root), str(train), *stopping]
    repository = Path(sample.__file__).parents[2]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(repository)}
    )


def test_a_killed_build_is_not_taken_for_complete(tmp_path: Path):
    with build(tmp_path, 60, "after the first image") as process:
        assert process.stdout is not None
        process.stdout.readline()  # one image is there, and it waits
        process.kill()
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".part"]
    folder = prepare_sample(tmp_path, train=60, val=10)
    assert len(contents(folder)) == 70
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_two_processes_at_once_build_one_folder(tmp_path: Path):
    with build(tmp_path, train=20) as one, build(tmp_path, train=20) as other:
        printed = [process.communicate()[0].split() for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0]
    assert printed[0][-1] == printed[1][-1]
    folder = tmp_path / printed[0][-1]
    assert len(contents(folder)) == 30
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_side_by_side_builds_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the file system has no locks, the second to finish keeps the first one's folder."""

    def no_locks(*_: object) -> None:
        raise OSError("locks are not supported here")

    monkeypatch.setattr(sample.fcntl, "flock", no_locks)
    inner: list[Path] = []

    def rival(done: int, total: int) -> None:
        if done == total:
            inner.append(prepare_sample(tmp_path, train=10, val=10))

    outer = prepare_sample(tmp_path, train=10, val=10, progress=rival)
    assert inner == [outer]
    assert len(contents(outer)) == 20
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [outer]


def test_a_complete_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    folder = prepare_sample(tmp_path, train=10, val=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 20) for done in range(1, 21)]
    monkeypatch.setattr(sample, "render", None)  # nothing is drawn again
    assert prepare_sample(tmp_path, train=10, val=10) == folder


@pytest.mark.parametrize("wrong", [{"train": 9}, {"val": 0}, {"seed": -1}])
def test_what_cannot_be_built_is_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(ValueError, match=r"at least 10 images.* not seed="):
        prepare_sample(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
