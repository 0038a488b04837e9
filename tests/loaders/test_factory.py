"""Which loader is taken: arithmetic that is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import Choice, InputError, Source, auto, choose_loader, open_data
from loaders.__main__ import main
from loaders.backends import BACKENDS
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Preprocessing
from tests.loaders.test_loader import numbered

GPU = torch.device("cuda", 0)


@pytest.fixture
def photos(image_folder: Path) -> list[Source]:
    """Training and validation images in files: 34 of 0.1 megapixels."""
    sources = open_data(str(image_folder), root=image_folder)
    return [replace(source, sizes=np.full((len(source), 2), (250, 400), np.int32)) for source in sources]


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, missing: str | None) -> None:
    """That a backend misses something, or nothing."""
    monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], missing=lambda: missing))


def free(monkeypatch: pytest.MonkeyPatch, bytes: float) -> None:
    monkeypatch.setattr(auto, "free_memory", lambda _: int(bytes))


@pytest.mark.parametrize(
    ("workers", "told"), [(2, "2 threads decode and resize"), (1, "one thread decodes and resizes")]
)
def test_without_a_gpu_the_cpu_does_it(workers: int, told: str) -> None:
    chosen = choose_loader("auto", [numbered(9)], device=torch.device("cpu"), workers=workers)
    assert chosen == Choice("torchvision", f"auto: there is no GPU to store images on; {told}")


def test_pixels_that_fit_live_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(1000)  # of 576 bytes
    free(monkeypatch, 1e6)
    chosen = choose_loader("auto", [source], device=GPU)
    assert chosen.name == "resident"
    assert chosen.reason == (
        "auto: 1,000 images are 576 kB decoded, cuda:0 has 1.0 MB free, and there is nothing to decode"
    )


def test_what_leaves_too_little_for_the_model_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(1000)
    for share, name in ((0.59, "streamed"), (0.61, "resident")):
        monkeypatch.setattr(auto, "RESIDENT_SHARE", share)
        free(monkeypatch, 576_000 / 0.6)
        chosen = choose_loader("auto", [source], device=GPU, workers=4)
        assert chosen.name == name
        assert ("of which 59% may go to images; they come from memory" in chosen.reason) == (name == "streamed")


def test_all_sources_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 576_000 / 0.6 * 1.5)
    assert choose_loader("auto", [numbered(1000)], device=GPU).name == "resident"
    assert choose_loader("auto", [numbered(1000), numbered(1000)], device=GPU).name == "streamed"


@pytest.mark.parametrize(("epochs", "name"), [(1, "torchvision"), (2, "resident"), (None, "resident")])
def test_files_wanted_once_are_not_kept(
    photos: list[Source], epochs: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1e9)
    chosen = choose_loader("auto", photos, device=GPU, epochs=epochs, workers=2)
    assert chosen.name == name
    assert "34 images are 10 MB decoded" in chosen.reason
    assert {1: "needed only once", 2: "instead of 2 times", None: "instead of in every epoch"}[epochs] in chosen.reason


def test_pixels_kept_by_scaled_decoding_count_only_for_that(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1e9)
    photos = open_data(str(image_folder), root=image_folder)
    for source in photos:
        with_pixel_cache(source, Preprocessing(), report=lambda *_: pytest.fail("none is bad"))
    assert "in the pixel cache already" in choose_loader("auto", photos, device=GPU).reason
    assert "decoded once" in choose_loader("auto", photos, device=GPU, scaled_decoding=True).reason


def test_copies_on_several_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1e9)
    assert "each of 4 GPUs holds a copy" in choose_loader("auto", [numbered(9)], device=GPU, world_size=4).reason
    asked = choose_loader("resident", [numbered(1000)], device=GPU, world_size=4)
    assert asked == Choice("resident", "chosen by name; each of 4 ranks holds 576 kB")


def test_what_was_asked_for_is_taken() -> None:
    for name in BACKENDS:
        if BACKENDS[name].missing() is None:
            assert choose_loader(name, [numbered(9)], device=torch.device("cpu")) == Choice(name, "chosen by name")


def test_what_cannot_be_used_here_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "resident", "it needs a crane")
    with pytest.raises(InputError, match="`loader=resident` cannot be used here: it needs a crane"):
        choose_loader("resident", [numbered(9)], device=GPU)


def test_the_list_has_every_loader_and_what_would_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "resident", "it needs a crane")
    pretend(monkeypatch, "torchvision", None)
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and not line.startswith((" ", "LOADER"))] == list(BACKENDS)
    usable = {line.split()[0]: line.split()[1] for line in lines if line and not line.startswith((" ", "LOADER"))}
    assert (usable["torchvision"], usable["resident"]) == ("yes", "no")
    assert lines[list(usable).index("resident") + 1].strip() == "it needs a crane"
