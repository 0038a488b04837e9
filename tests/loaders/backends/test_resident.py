"""The loader `resident`: the pixels of the loader `torchvision`, decoded once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders import Batch, Choice, InputError, Loader, LoaderConfig, PlanSpec, Source, build_loader, open_data
from loaders.backends import resident
from loaders.ops.decode import load_pixels
from tests.conftest import host_may_not_wait
from tests.loaders.backends.test_torchvision import EVERYTHING, SMALL, SPECS, files, numbered, same

__all__ = ["files"]


def build(source: Source, spec: PlanSpec = SMALL, loader: str = "resident", **options: Any) -> Loader:
    config = LoaderConfig(**{"spec": spec, "training": True, "batch_size": 8, "workers": 2, **options})
    return build_loader(source, config, loader=loader)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("as_on_a_gpu", [True, False])
def test_batches_are_those_of_the_torchvision_loader_to_the_bit(
    files: Source, spec: PlanSpec, training: bool, as_on_a_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_on_a_gpu:
        monkeypatch.setattr(resident, "executor_of_pixels", lambda _, *given: resident.DeviceExecutor(*given))
    options = {"training": training, "dtype": torch.bfloat16, "batch_size": 12}
    ours, theirs = (build(files, spec, loader, **options) for loader in ("resident", "torchvision"))
    for epoch in (0, 3):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert same(ours, theirs)


def test_pixels_in_memory_are_taken_as_they_are() -> None:
    assert same(build(numbered(32), EVERYTHING), build(numbered(32), EVERYTHING, "torchvision"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_every_dtype_is_served(dtype: torch.dtype) -> None:
    ours, theirs = (build(numbered(16), loader=name, dtype=dtype) for name in ("resident", "torchvision"))
    assert same(ours, theirs)
    assert next(iter(ours)).images.dtype == dtype


def test_each_image_is_decoded_once_whatever_the_number_of_epochs(
    files: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(images: Any, index: int, **options: Any) -> np.ndarray:
        decoded.append(index)
        return load_pixels(images, index, **options)

    monkeypatch.setattr(resident, "load_pixels", counted)
    loader = build(files)
    told: list[tuple[int, int]] = []
    loader.prepare(lambda done, total: told.append((done, total)))
    assert sorted(decoded) == list(range(len(files)))
    assert told[-1] == (len(files), len(files))
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert len(list(loader)) == 4
    assert len(decoded) == len(files)


def test_a_portion_holds_one_image_at_least(files: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(build(files))
    for staged in (1, 30_000):
        monkeypatch.setattr(resident, "_STAGED_BYTES", staged)
        assert same(build(files), wanted)


def test_no_thread_is_left_after_decoding(files: Source) -> None:
    before = threading.active_count()
    build(files).prepare()
    assert threading.active_count() == before


@pytest.mark.parametrize("training", [True, False])
def test_files_gone_bad_since_they_were_indexed_are_replaced_as_elsewhere(
    image_folder: Path, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loaders.bad_images.MAX_BAD_SHARE", 0.5)
    source, _ = open_data(str(image_folder), root=image_folder)
    (image_folder / "train" / "oak" / "03.jpg").write_bytes(b"no image")
    (image_folder / "train" / "ash" / "05.jpg").unlink()
    ours, theirs = (
        build(source, loader=name, training=training, on_bad_image="skip") for name in ("resident", "torchvision")
    )
    assert same(ours, theirs)
    assert ours.skipped == theirs.skipped
    assert {image.path for image in ours.bad_images} == {image.path for image in theirs.bad_images}
    assert len(ours.bad_images) == 2


@pytest.mark.parametrize(("world_size", "told"), [(1, "123 kB decoded, and cpu"), (2, "123 kB decoded × 2 ranks, and")])
def test_a_set_larger_than_the_memory_is_refused_and_ranks_on_a_cpu_count(
    world_size: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 32 * 32 * 40 * 3
    monkeypatch.setattr(resident, "free_memory", lambda _: world_size * needed - 1)
    with pytest.raises(InputError, match=rf"`loader=.resident.`: numbered is {told} .* choose `loader=.torchvision.`"):
        build(numbered(32), world_size=world_size)
    monkeypatch.setattr(resident, "free_memory", lambda _: world_size * needed)
    build(numbered(32), world_size=world_size)


def test_what_failed_to_move_to_the_device_is_moved_by_the_next_try(
    files: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixel cache is there by then."""
    config = LoaderConfig(spec=SMALL, training=True, batch_size=8, cache_size=40)
    loader = build_loader(files, config, loader=Choice("resident", "it is small", from_cache=True))
    with monkeypatch.context() as patch:
        patch.setattr(resident, "decode_to_device", lambda *_: (_ for _ in ()).throw(MemoryError("out of memory")))
        with pytest.raises(MemoryError):
            list(loader)
    assert len(list(loader)) == 4


@pytest.mark.needs_cuda
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_on_a_gpu_squares_are_those_of_the_cpu(files: Source, spec: PlanSpec) -> None:
    one_read = spec if not spec.reads_twice and spec.color_jitter is None else SMALL
    on_gpu = build(files, one_read, device=torch.device("cuda"), dtype=torch.uint8)
    assert same([Batch(i.cpu(), k.cpu()) for i, k in on_gpu], build(files, one_read, dtype=torch.uint8))


@pytest.mark.needs_cuda
def test_the_host_never_waits_for_the_gpu(files: Source) -> None:
    loader = build(files, EVERYTHING, device=torch.device("cuda"))
    loader.prepare()
    list(loader)
    with host_may_not_wait():
        list(loader)
