"""What all tests share: real data where it is laid out, capabilities that may be missing, small image folders."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

# Without a GPU, Triton's kernels are interpreted; it decides so when it is imported, its own functions' kind
# included: hence before our own packages.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

# torch looks for it once, at the first product by cuBLAS: when the deterministic run sets it, others have had theirs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from loaders.backends import BACKENDS, streamed
from loaders.backends.streamed import StagedExecutor

# More threads win nothing on images this small, and where other processes want the cores too, torch's threads
# wait for each other: small operations then took up to 300 times as long.
torch.set_num_threads(1)

# The same examples each time: one that fails is a finding of whoever changes the code, not of the next run of CI.
settings.register_profile("saturate", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("saturate")

DATA = Path(os.environ.get("SATURATE_TEST_DATA", "data"))

CAPABILITIES: dict[str, tuple[Callable[[], bool], str]] = {
    "cuda": (torch.cuda.is_available, "no CUDA GPU"),
    "cifar10": (lambda: (DATA / "cifar-10-batches-bin").is_dir(), f"no cifar-10-batches-bin in {DATA.absolute()}"),
    "photos": (lambda: (DATA / "hymenoptera").is_dir(), f"no hymenoptera in {DATA.absolute()}"),
    "dali": (lambda: BACKENDS["dali"].missing() is None, str(BACKENDS["dali"].missing())),
    "ffcv": (lambda: BACKENDS["ffcv"].missing() is None, str(BACKENDS["ffcv"].missing())),
}

OPTIONAL = ("dali", "ffcv")
PROMISING = [
    pytest.param(name, marks=getattr(pytest.mark, f"needs_{name}")) if name in OPTIONAL else name
    for name in BACKENDS
    if name != "baseline"
]
"""Parameters: the names of all loaders that make promises."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason; `FAIL_WITHOUT_X=1` lets it fail instead."""
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(pytest.mark.timeout(400))  # many compile a network, or several
    for name, (present, reason) in CAPABILITIES.items():
        if present() or os.environ.get(f"FAIL_WITHOUT_{name.upper()}") == "1":
            continue
        for item in items:
            if item.get_closest_marker(f"needs_{name}"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("SATURATE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _compiled_as_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of a GPU compile what a process of their own would.

    After networks of other sizes torch would compile for any size, and after eight of them no more at all.
    """
    yield
    if request.node.get_closest_marker("needs_cuda"):
        torch.compiler.reset()


class TinyResNet(ResNet):
    """A ResNet in all but its size: 64 features and 70,000 parameters."""

    FEATURES = 64

    def __init__(self, classes: int) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], classes)
        self.fc = nn.Linear(self.FEATURES, classes)

    def _make_layer(self, block: type[BasicBlock], planes: int, *rest: int, **named: int) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *rest, **named)


@pytest.fixture
def real_runs() -> None:
    """For tests that `small_runs` is to leave alone."""


@pytest.fixture
def small_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process train a `TinyResNet` and draw an empty picture.

    A ResNet18 that is trained for two epochs on a few images writes half a gigabyte of checkpoints; and the curves take
    longer than all else.
    """
    if "real_runs" not in request.fixturenames:
        for module in ("train.prepare", "train.classifier"):
            monkeypatch.setattr(f"{module}.build_model", lambda _, classes: TinyResNet(classes))
        monkeypatch.setattr("train.run_folder.draw_curves", lambda _: Figure(figsize=(1, 1)))


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    return DATA


@pytest.fixture(scope="session")
def photos() -> Path:
    return DATA / "hymenoptera"


def smooth_image(height: int, width: int, seed: int) -> np.ndarray:
    """Something like a photograph: smooth random colours, uint8 `[height, width, 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> object:
    """Of a command: tyro before 1.0.16 leaves it to the command to refuse values, later ones end the program."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def as_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `streamed` execute plans as on a GPU: by staging buffers, with the whole batch resampled at once."""
    monkeypatch.setattr(streamed, "executor_of_pixels", StagedExecutor)


def run_where_importing_raises(
    program: str, module: str, error: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`python -m program` in the checkout, where importing a module raises an error."""
    code = f"""
import runpy, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise {error}
sys.meta_path.insert(0, Finder())
runpy.run_module({program!r}, run_name='__main__', alter_sys=True)
"""
    checkout = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


@contextmanager
def host_may_not_wait() -> Iterator[None]:
    """Within it, what would let the host wait for the GPU raises."""
    with warnings.catch_warnings():  # it warns of being a prototype: as an error, that would leave the mode set
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """`train/` (2 × 12) and `val/` (2 × 5) with JPEGs of several sizes in the classes `ash` and `oak`."""
    root = tmp_path / "trees"
    for split, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("ash", "oak")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = number + 100 * label + 1000 * (split == "val")
                pixels = smooth_image(60 + 7 * number, 90 - 3 * number, seed)
                Image.fromarray(pixels).save(folder / f"{number:02}.jpg", quality=90)
    return root
