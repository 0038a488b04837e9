"""Parts of a loader alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suites import loader_parts
from benchmarks.suites.loader_parts import GATHER, part_candidates
from loaders import open_data
from loaders.backends import torchvision
from loaders.ops import cpu_read
from tests.benchmarks.suites.test_candidates import task
from tests.loaders.test_loader import numbered


def test_each_part_does_only_its_own_work(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    done: list[str] = []
    for module, name in ((torchvision, "load_pixels"), (cpu_read, "resize_antialiased")):
        monkeypatch.setattr(module, name, noting(done, name, getattr(module, name)))
    expected = {"decode": {"load_pixels"}, "resize": {"resize_antialiased"}, "copy": set()}
    candidates = part_candidates(task(source))[:3]
    assert [candidate.name.split()[0] for candidate in candidates] == list(expected)
    for candidate in candidates:
        done.clear()
        batches = iter(candidate.batches())
        assert [len(next(batches)[1]) for _ in range(3)] == [8] * 3
        del batches  # its threads end
        assert set(done) == expected[candidate.name.split()[0]]
    assert [candidate.name.split()[0] for candidate in part_candidates(task(numbered(16)))] == ["resize", "copy"]


def test_one_part_decodes_whole_images(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    shapes: list[tuple[int, ...]] = []
    load = loader_parts.load_pixels

    def noted(*given: Any) -> Any:
        shapes.append((pixels := load(*given)).shape[:2])
        return pixels

    monkeypatch.setattr(loader_parts, "load_pixels", noted)
    (candidate,) = [
        candidate for candidate in part_candidates(task(source)) if candidate.name.startswith("decode whole")
    ]
    next(iter(candidate.batches()))
    assert set(shapes) <= set(map(tuple, source.sizes.tolist()))


def noting(done: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        done.append(name)
        return function(*given, **named)

    return noted


def test_parts_of_the_pixel_cache_are_measured_too(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    candidates = {candidate.name: candidate for candidate in part_candidates(task(source))}
    for name in (GATHER, "copy as many bytes as lie there, one thread"):
        assert len(next(iter(candidates[name].batches()))[1]) == 8
    assert len(next(iter(candidates["build the pixel cache, 2 threads"].batches()))[1]) == 64
