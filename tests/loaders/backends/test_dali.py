"""The loader `dali`: what DALI does itself, and what becomes of what it cannot do."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from loaders import (
    InputError,
    Loader,
    LoaderConfig,
    PaddedRandomCrop,
    PlanSpec,
    RandomResizedCrop,
    Source,
    build_loader,
    choose_loader,
    open_data,
)
from loaders.backends import dali
from loaders.backends.dali import DaliExecutor
from tests.conftest import smooth_image

SPEC = PlanSpec(RandomResizedCrop(32), horizontal_flip=0.5)


def build(source: Source, loader: str = "dali", **options: Any) -> Loader:
    config = LoaderConfig(**{"spec": SPEC, "training": True, "batch_size": 4, "workers": 2, **options})
    return build_loader(source, config, loader=loader)


@pytest.fixture
def jpegs(image_folder: Path) -> Source:
    """24 of them."""
    return open_data(str(image_folder), root=image_folder)[0]


@pytest.mark.needs_dali
def test_ordinary_files_are_all_left_to_dali(image_folder: Path) -> None:
    Image.fromarray(smooth_image(40, 50, 1)).save(image_folder / "train" / "oak" / "some.png")
    source = open_data(str(image_folder), root=image_folder)[0]
    loader = build(source, batch_size=5)
    assert len(list(loader)) == 5
    assert loader.executor.decoded_by_fallback == 0


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.needs_dali
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        PlanSpec(PaddedRandomCrop(40, 32, padding=8), vertical_flip=0.5),
        PlanSpec(RandomResizedCrop(40), rotation=20, second_crop=RandomResizedCrop(32), horizontal_flip=0.5),
    ],
    ids=["one read", "window", "two reads"],
)
def test_images_are_turned_as_pillow_says(tmp_path: Path, spec: PlanSpec) -> None:
    for orientation in range(1, 9):
        folder = tmp_path / "turned" / "ab"[orientation % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image, exif = Image.fromarray(smooth_image(60, 90, orientation)), Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(folder / f"{orientation}.jpg", quality=95, exif=exif)
        image.save(folder / f"{orientation}.png", exif=exif)
        image.save(folder / f"{orientation} by XMP.jpg", quality=95, xmp=XMP % orientation)  # unknown to DALI
    source = open_data(str(tmp_path / "turned"), root=tmp_path)[0]
    loader, torchvision = (build(source, name, spec=spec, dtype=torch.uint8) for name in ("dali", "torchvision"))
    for (images, _), (wanted, _) in zip(loader, torchvision, strict=True):
        assert (images.float() - wanted.float()).abs().mean(dim=(1, 2, 3)).max() < 1
    assert loader.executor.decoded_by_fallback == 0


@pytest.mark.needs_dali
@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp"), ("RGB", "tif")]
)
def test_what_is_beyond_dali_is_taken_on_by_another_decoder(image_folder: Path, mode: str, suffix: str) -> None:
    path = image_folder / "train" / "oak" / f"odd.{suffix}"
    Image.fromarray(smooth_image(40, 50, 1)).convert(mode).save(path)
    source = open_data(str(image_folder), root=image_folder)[0]
    loader = build(source, batch_size=5)
    place = next(i for i in range(len(source)) if source.images.describe(i) == str(path))
    images, wanted = (
        torch.cat([images for images, _ in its]) for its in (loader, build(source, "torchvision", batch_size=5))
    )
    assert loader.executor.decoded_by_fallback == 1
    at = loader.cursor.batch_ids().ravel().tolist().index(place)
    assert torch.equal(images[at], wanted[at])


def garbage(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Lets DALI be given for these samples what only looks like a file it can decode."""
    image = DaliExecutor._input

    def spoilt(executor: DaliExecutor, index: int, padded: bool) -> Any:
        given = image(executor, index, padded)
        return np.frombuffer(b"garbage", np.uint8) if index in broken else given

    monkeypatch.setattr(DaliExecutor, "_input", spoilt)


@pytest.mark.needs_dali
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_that_dali_fails_on_is_made_by_the_fallback_and_the_others_by_dali(
    jpegs: Source, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, by_torchvision = (list(build(jpegs, name, training=training)) for name in ("dali", "torchvision"))
    loader = build(jpegs, training=training)
    failing = {1, 2, 5}  # two in a row, and the last
    garbage(monkeypatch, {int(loader.cursor.batch_ids()[batch, 2]) for batch in failing})
    with pytest.warns(
        RuntimeWarning, match="DALI failed on a batch, which another decoder takes over: nvImageCodec.*4.$"
    ) as told:
        batches = list(loader)
    assert len(told) == 1
    for place, (images, labels) in enumerate(batches):
        wanted = by_torchvision[place] if place in failing else usual[place]
        assert torch.equal(images, wanted.images)
        assert torch.equal(labels, wanted.labels)
    assert loader.executor.decoded_by_fallback == 4 * len(failing)
    assert len(batches) == 6


@pytest.mark.needs_dali
def test_after_an_early_break_behind_a_failure_the_next_epoch_is_whole(
    jpegs: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(build(jpegs))
    loader = build(jpegs)
    with monkeypatch.context() as patch:
        garbage(patch, {int(row[0]) for row in loader.cursor.batch_ids()[:3]})
        with pytest.warns(RuntimeWarning, match="DALI failed"):
            next(iter(loader))
    batches = list(loader)
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(batches, wanted, strict=True))


@pytest.mark.needs_dali
def test_where_dali_builds_no_pipeline_it_is_said(jpegs: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import Pipeline

    def build_fails(_: Pipeline) -> None:
        raise RuntimeError("CUDA driver version is insufficient\nCurrent pipeline object is no longer valid.")

    monkeypatch.setattr(Pipeline, "build", build_fails)
    told = '^`loader="dali"`: DALI cannot build its pipeline here: CUDA driver version is insufficient$'
    with pytest.raises(InputError, match=told):
        next(iter(build(jpegs)))


@pytest.mark.needs_dali
def test_a_window_beyond_the_image_is_black_just_there(jpegs: Source) -> None:
    spec = PlanSpec(PaddedRandomCrop(32, 32, 12))
    ours, theirs = (
        torch.cat([images for images, _ in build(jpegs, name, spec=spec, dtype=torch.uint8)])
        for name in ("dali", "torchvision")
    )
    assert torch.equal(ours.amax(1) == 0, theirs.amax(1) == 0)
    assert (ours == 0).float().mean() > 0.1


@pytest.mark.needs_dali
@pytest.mark.parametrize("ahead", [1, 2, 6])
def test_how_many_batches_are_ahead_changes_nothing(jpegs: Source, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(build(jpegs))
    monkeypatch.setattr(dali, "AHEAD", ahead)
    loader = build(jpegs)
    for _ in range(2):
        assert all(torch.equal(a.images, b.images) for a, b in zip(loader, wanted, strict=True))


@pytest.mark.parametrize(
    ("cuda", "wheel"), [("12.8", "nvidia-dali-cuda120"), ("13.0", "nvidia-dali-cuda130"), (None, "nvidia-dali-cuda130")]
)
def test_without_dali_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, cuda: str | None, wheel: str) -> None:
    monkeypatch.setattr(dali, "find_spec", lambda name: None if "dali" in name else importlib.util.find_spec(name))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError, match=f"`loader=dali` cannot be used here: .*pip install {wheel}$"):
        choose_loader("dali", [], device=torch.device("cpu"))


def test_a_jpeg_cut_short_or_of_another_size_is_not_left_to_dali(image_folder: Path) -> None:
    data = (image_folder / "train" / "ash" / "00.jpg").read_bytes()
    assert dali._is_intact(data, 60, 90)
    assert dali._is_intact(data + bytes(500), 60, 90)  # some cameras write something behind it
    assert not dali._is_intact(data[:-60], 60, 90)
    assert not dali._is_intact(data, 90, 60)
    assert not dali._is_intact(b"", 60, 90)


def test_a_png_cut_short_or_of_another_size_or_depth_is_not_left_to_dali(tmp_path: Path) -> None:
    Image.fromarray(smooth_image(60, 90, 0)).save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    assert dali._is_intact(data, 60, 90)
    assert not dali._is_intact(data[:-20], 60, 90)
    assert not dali._is_intact(data, 90, 60)
    Image.fromarray(np.zeros((60, 90), np.uint16)).save(tmp_path / "deep.png")
    assert not dali._is_intact((tmp_path / "deep.png").read_bytes(), 60, 90)


@pytest.mark.needs_cuda
@pytest.mark.needs_dali
def test_on_a_gpu_batches_are_near_those_of_the_cpu(jpegs: Source) -> None:
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    gpu = build(jpegs, device=torch.device("cuda"), **levels)
    for (images, labels), (sent, sent_labels) in zip(build(jpegs, **levels), gpu, strict=True):
        assert (sent.device.type, sent_labels.device.type) == ("cuda", "cuda")
        assert torch.equal(labels, sent_labels.cpu())
        assert (images - sent.cpu()).abs().mean() < 2
    assert gpu.by_fallback == 0
