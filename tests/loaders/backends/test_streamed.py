"""The loader `streamed`: on both of its ways its batches are what the reference makes of the kept pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import (
    NO_LABEL,
    BadImageError,
    Batch,
    Choice,
    ColorJitter,
    Loader,
    LoaderConfig,
    PaddedRandomCrop,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    build_loader,
    open_data,
)
from loaders.backends.staging import StagedReads, StagingBuffer, gather, stage_reads
from loaders.backends.streamed import BUFFERS, InFlightBatch, StagedExecutor
from loaders.ops import reference, resample
from loaders.sampling import order
from loaders.sampling import plan as plans
from loaders.sources import PixelArray
from loaders.sources.base import CachedPixels
from tests.conftest import as_to_a_gpu, host_may_not_wait, smooth_image

SIZE = 40
SPECS = {
    "random resized crop": PlanSpec(RandomResizedCrop(32), horizontal_flip=0.5),
    "centre crop": PlanSpec(ResizeCenterCrop(40, 32)),
    "padded crop": PlanSpec(PaddedRandomCrop(32, 32, 4), horizontal_flip=0.5, vertical_flip=0.5),
    "everything": PlanSpec(
        RandomResizedCrop(48, scale=(0.5, 1.0)),
        rotation=15,
        second_crop=RandomResizedCrop(40),
        horizontal_flip=0.5,
        color_jitter=ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)),
    ),
}
SMALL = SPECS["random resized crop"]


@pytest.fixture(params=["host", "as to a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as to a GPU":
        as_to_a_gpu(monkeypatch)


both_ways = pytest.mark.usefixtures("way")


def build(source: Source, spec: PlanSpec = SMALL, **options: Any) -> Loader:
    config = {"spec": spec, "training": True, "batch_size": 8, "workers": 2, "cache_size": SIZE, **options}
    return build_loader(source, LoaderConfig(**config), loader="streamed")


@pytest.fixture
def source(image_folder: Path) -> Source:
    """24 JPEGs of several sizes, the shorter side 57 to 75 pixels."""
    return open_data(str(image_folder), root=image_folder)[0]


def numbered(count: int) -> Source:
    """Images of 32 × 40 pixels in memory, each a class of its own."""
    pixels = np.stack([np.maximum(smooth_image(32, 40, seed), 1) for seed in range(count)])
    sizes = np.full((count, 2), (32, 40), np.int32)
    return Source("numbered", tuple(map(str, range(count))), np.arange(count), sizes, PixelArray(pixels), "f")


def on_kept_pixels(loader: Loader, ids: np.ndarray, epoch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the reference makes of the kept pixels, by the plans of the original sizes with their boxes scaled."""
    source = loader.source
    assert isinstance(source.images, CachedPixels)
    images = [source.images.pixels_of(index) for index in ids]
    sizes, kept = source.sizes[ids], np.array([image.shape[:2] for image in images])
    drawn = plans.draw(loader.config.spec, seed=0, epoch=epoch, ids=ids, sizes=sizes)
    scaled = replace(drawn, box=plans.scale_boxes(drawn.box, sizes, kept))
    return reference.execute(images, scaled, dtype=dtype)


def same(ours: Iterator[Batch] | Loader, theirs: Iterator[Batch] | Loader) -> bool:
    return all(torch.equal(a, b) for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True))


# --- pixels --------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_a_batch_is_exactly_what_the_reference_makes_of_kept_pixels(
    source: Source, spec: PlanSpec, dtype: torch.dtype
) -> None:
    loader = build(source, spec, dtype=dtype)
    loader.set_epoch(2)
    rows = order.shuffled(np.arange(24), seed=0, epoch=2).reshape(3, 8)
    for ids, (images, labels) in zip(rows, loader, strict=True):
        assert torch.equal(images, on_kept_pixels(loader, ids, 2, dtype))
        assert labels.tolist() == source.labels[ids].tolist()
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_crops_show_the_same_part_of_the_picture_as_without_a_cache(source: Source) -> None:
    """A crop from pixels kept at half the size is blurred, but is not another crop: it moves no colours."""
    spec = PlanSpec(RandomResizedCrop(16, scale=(0.5, 1.0)), horizontal_flip=0.5)
    plain = LoaderConfig(spec=spec, training=True, batch_size=8, dtype=torch.uint8)
    apart, shifted = [], []
    for (ours, labels), (theirs, their_labels) in zip(
        build(source, spec, dtype=torch.uint8), build_loader(source, plain, loader="torchvision"), strict=True
    ):
        assert torch.equal(labels, their_labels)
        apart.append(abs(ours.int() - theirs.int()).float().mean())
        shifted.append(abs(ours[..., 1:].int() - theirs[..., :-1].int()).float().mean())
    assert np.mean(apart) < 4
    assert np.mean(apart) < 0.25 * np.mean(shifted)


@both_ways
def test_where_the_cache_has_all_pixels_it_is_what_decoding_gives(source: Source) -> None:
    plain = LoaderConfig(spec=SMALL, training=True, batch_size=8)
    assert same(build(source, cache_size=500), build_loader(source, plain, loader="torchvision"))


@both_ways
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_images_in_memory_are_streamed_as_they_are(spec: PlanSpec) -> None:
    plain = LoaderConfig(spec=spec, training=True, batch_size=8)
    assert same(build(numbered(32), spec), build_loader(numbered(32), plain, loader="torchvision"))


def test_both_ways_give_the_same_evaluation(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(build(source, SPECS["centre crop"], training=False, batch_size=10))
    as_to_a_gpu(monkeypatch)
    batches = list(build(source, SPECS["centre crop"], training=False, batch_size=10))
    assert same(iter(batches), iter(wanted))
    assert batches[-1].labels.tolist()[4:] == [NO_LABEL] * 6


def test_a_state_of_another_loader_goes_on_with_the_same_samples(source: Source) -> None:
    plain = build_loader(source, LoaderConfig(spec=SMALL, training=True, batch_size=8), loader="torchvision")
    batches = iter(plain)
    next(batches)
    loader = build(source)
    loader.load_state_dict(plain.state_dict())
    assert [labels.tolist() for _, labels in loader] == [labels.tolist() for _, labels in batches]


def test_resident_takes_kept_pixels_where_it_is_told_to(source: Source) -> None:
    config = LoaderConfig(spec=SMALL, training=True, batch_size=8, cache_size=SIZE)
    from_cache = Choice("resident", "it is small", from_cache=True)
    assert same(build_loader(source, config, loader=from_cache), build(source))
    assert not same(build_loader(source, config, loader="resident"), build(source))


# --- files that had gone bad ---------------------------------------------------------------------


@both_ways
def test_in_training_a_good_sample_takes_the_place_of_a_file_gone_bad(source: Source) -> None:
    sequence = order.shuffled(np.arange(24), seed=0, epoch=0)
    gone, substitute = sequence[11:13].tolist()
    Path(source.images.describe(gone)).unlink()
    loader = build(source, on_bad_image="skip")
    batches = list(loader)
    ids = sequence[8:16].copy()
    ids[3] = substitute
    assert torch.equal(batches[1].images, on_kept_pixels(loader, ids, 0))
    assert batches[1].labels.tolist() == source.labels[ids].tolist()
    assert [bad.path for bad in loader.bad_images] == [source.images.describe(gone)]


@both_ways
def test_in_an_evaluation_nothing_takes_the_place_of_a_file_gone_bad(source: Source) -> None:
    Path(source.images.describe(9)).unlink()
    loader = build(source, training=False, on_bad_image="skip", dtype=torch.uint8)
    batches = list(loader)
    assert batches[1].labels.tolist()[1] == NO_LABEL
    assert batches[1].images[1].max() == 0
    assert sum(int((labels != NO_LABEL).sum()) for _, labels in batches) == 23
    assert loader.skipped == {9}


@both_ways
def test_what_an_opened_cache_lacks_is_told_to_another_loader(source: Source) -> None:
    Path(source.images.describe(9)).unlink()
    first = build(source, training=False, on_bad_image="skip")
    first.prepare()
    second = build(first.source, training=False, on_bad_image="skip")
    assert same(second, first)
    assert [bad.path for bad in second.bad_images] == [source.images.describe(9)]


@both_ways
def test_more_than_one_percent_gone_bad_is_an_error(source: Source) -> None:
    for index in (3, 9):
        Path(source.images.describe(index)).unlink()
    with pytest.raises(BadImageError, match=r"2 of 24 images .*\n(.*\n)*That is more than 1%"):
        list(build(source, on_bad_image="skip"))


# --- staging -------------------------------------------------------------------------------------


def drawn(source: Source, count: int, spec: PlanSpec = SMALL) -> plans.Plan:
    return plans.draw(spec, seed=0, epoch=0, ids=np.arange(count), sizes=source.sizes[:count])


def test_only_the_rows_of_the_boxes_are_staged_and_they_suffice(source: Source) -> None:
    flat = np.concatenate([smooth_image(*size, seed).ravel() for seed, size in enumerate(source.sizes)])
    starts = np.concatenate([[0], np.cumsum(3 * source.sizes.astype(np.int64).prod(axis=1))])
    plan = drawn(source, 24)
    staged = stage_reads(plan, starts[:-1], source.sizes)
    assert staged.bytes == int((3 * plan.box[:, 2] * source.sizes[:, 1]).sum()) < starts[-1]
    out = np.zeros(staged.bytes, np.uint8)
    gather(flat, staged, slice(0, 24), out)
    squares = resample.first_reads(
        torch.from_numpy(out).view(-1, 3), staged.places[:-1] // 3, staged.widths, staged.plan
    )
    for row, size in enumerate(source.sizes):
        image = torch.from_numpy(smooth_image(*size, row).copy()).permute(2, 0, 1)
        assert torch.equal(squares[row], reference.first_read(image, plan, row))


@pytest.mark.parametrize("parts", [[slice(0, 5)], [slice(0, 2), slice(2, 5)], [slice(3, 5), slice(0, 1), slice(1, 3)]])
@pytest.mark.parametrize("begins", [[0, 3, 9, 12, 18], [40, 3, 9, 30, 3], [9, 9, 9, 9, 9]], ids=str)
def test_gathering_in_parts_of_any_order_puts_all_bytes_in_their_places(begins: list[int], parts: list[slice]) -> None:
    flat, lengths = np.arange(60, dtype=np.uint8), np.array([3, 6, 3, 6, 9])
    places = np.concatenate([[0], np.cumsum(lengths)])
    staged = StagedReads(np.array(begins), places, np.ones(5, np.int64), drawn(numbered(5), 5))
    out = np.zeros(27, np.uint8)
    for part in parts:
        gather(flat, staged, part, out)
    wanted = np.concatenate([flat[b : b + n] for b, n in zip(begins, lengths, strict=True)])
    np.testing.assert_array_equal(out, wanted)


def test_images_that_adjoin_are_copied_at_once() -> None:
    class Counting(np.ndarray):
        copies = 0

        def __getitem__(self, key: Any) -> Any:
            Counting.copies += 1
            return super().__getitem__(key)

    source = numbered(8)
    plan = drawn(source, 8, SPECS["centre crop"])
    flat, starts = source.images.flat()
    for ids, copies in ((np.arange(8), 1), (np.array([4, 5, 6, 0, 1, 7, 3, 2]), 5)):
        Counting.copies = 0
        staged = stage_reads(plan, starts[ids], source.sizes[ids])
        gather(flat.view(Counting), staged, slice(0, 8), out := np.empty(staged.bytes, np.uint8))
        assert Counting.copies == copies
        np.testing.assert_array_equal(out.reshape(8, 32, 40, 3), source.images.pixels[ids])


def test_memory_for_batches_is_allocated_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    as_to_a_gpu(monkeypatch)
    capacities: list[int] = []
    allocate = StagingBuffer._allocate

    def counted(buffer: StagingBuffer, capacity: int) -> None:
        capacities.append(capacity)
        allocate(buffer, capacity)

    monkeypatch.setattr(StagingBuffer, "_allocate", counted)
    loader = build(source)
    for epoch in range(3):
        loader.set_epoch(epoch)
        list(loader)
    assert isinstance(loader.source.images, CachedPixels)
    largest = np.sort(3 * loader.source.stored_sizes.astype(int).prod(axis=1))[-8:].sum()
    assert capacities == [largest] * BUFFERS


def test_a_batch_of_more_bytes_than_foreseen_has_room_made_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Padding is staged as the first image, here the largest by far."""
    widths = {"train/ash": [41], "train/oak": [41], "val/ash": [900], "val/oak": [41] * 4}
    for folder, images in widths.items():
        (tmp_path / folder).mkdir(parents=True)
        for number, width in enumerate(images):
            Image.fromarray(smooth_image(40, width, number)).save(tmp_path / folder / f"{number}.png")
    wide = open_data(str(tmp_path), root=tmp_path)[1]
    wanted = list(build(wide, SPECS["centre crop"], training=False, batch_size=4))
    as_to_a_gpu(monkeypatch)
    assert same(iter(build(wide, SPECS["centre crop"], training=False, batch_size=4)), iter(wanted))


# --- turns ---------------------------------------------------------------------------------------


class FakeStream:
    device = torch.device("cuda", 1)

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_event(self, event: "FakeEvent") -> None:
        self.log.append(f"{self.name} waits for {event.name}")


class FakeEvent:
    names: Iterator[str]
    log: list[str]

    def __init__(self, blocking: bool = False) -> None:
        self.name, self.sleeps = next(FakeEvent.names), blocking

    def record(self, stream: FakeStream) -> None:
        self.log.append(f"{stream.name} marks {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"thread {'sleeps' if self.sleeps else 'spins'} until {self.name}")


def test_threads_copies_and_reads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever touches a buffer has waited for the mark of the one that had it before."""
    log: list[str] = []
    receiver, copier = FakeStream("receiver", log), FakeStream("copier", log)
    FakeEvent.names, FakeEvent.log = iter(["copied", "read"]), log

    @contextmanager
    def within(_: object) -> Iterator[None]:
        yield

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        log.append(f"thread turns to {device}")
        yield

    class OnOneMachine(StagingBuffer):
        def _allocate(self, capacity: int) -> None:
            self._host, self._landing = (
                torch.zeros(capacity, dtype=torch.uint8),
                torch.zeros(capacity, dtype=torch.uint8),
            )
            self._view = self._host.numpy()
            monkeypatch.setattr(self._landing, "record_stream", lambda _: None, raising=False)

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: receiver)
    buffer = OnOneMachine(27, torch.device("cuda"), copier)  # type: ignore[arg-type]
    staged = StagedReads(np.array([0, 9, 18]), np.array([0, 9, 18, 27]), np.ones(3, np.int64), drawn(numbered(3), 3))
    for first in (0, 100):
        log.clear()
        flat = np.arange(first, first + 27, dtype=np.uint8)
        buffer.gather(flat, staged, slice(0, 3))
        assert log == ["thread turns to cuda:1", "thread sleeps until copied"]
        buffer.send(27)
        assert log[2:] == ["copier waits for read", "copier marks copied"]
        np.testing.assert_array_equal(buffer.on_device(27).numpy(), flat)
        assert log[4:] == ["receiver waits for copied"]
        buffer.release()
        assert log[5:] == ["receiver marks read"]


def test_buffers_can_be_written_to_after_an_iteration_in_inference_mode(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch forbids writing in place to tensors that were made in inference mode."""
    as_to_a_gpu(monkeypatch)
    buffers: list[StagingBuffer] = []
    allocate = StagingBuffer._allocate

    def noted(buffer: StagingBuffer, capacity: int) -> None:
        allocate(buffer, capacity)
        buffers.append(buffer)

    monkeypatch.setattr(StagingBuffer, "_allocate", noted)
    with torch.inference_mode():
        list(build(source))
    assert len(buffers) == BUFFERS
    assert not any(buffer._host.is_inference() for buffer in buffers)


def test_at_least_two_batches_are_under_way_while_one_is_used(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    as_to_a_gpu(monkeypatch)
    begun: list[int] = []
    begin = StagedExecutor._begin

    def counted(executor: StagedExecutor, *given: Any) -> InFlightBatch:
        begun.append(1)
        return begin(executor, *given)

    monkeypatch.setattr(StagedExecutor, "_begin", counted)
    with build(source, batch_size=3) as loader:
        next(iter(loader))
        assert len(begun) - 1 == BUFFERS >= 3


@pytest.mark.needs_cuda
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_batches_are_those_of_the_cpu(source: Source, spec: PlanSpec, training: bool) -> None:
    options = {"training": training, "batch_size": 5, "dtype": torch.uint8}
    loader, wanted = build(source, spec, device=torch.device("cuda"), **options), build(source, spec, **options)
    for epoch in range(5):  # buffers are used again and again
        loader.set_epoch(epoch)
        wanted.set_epoch(epoch)
        received = [Batch(*(tensor.cpu() for tensor in batch)) for batch in loader]
        for (images, labels), (wanted_images, wanted_labels) in zip(received, wanted, strict=True):
            assert torch.equal(labels, wanted_labels)
            apart = abs(images.int() - wanted_images.int()).float()
            exact = not spec.reads_twice and spec.color_jitter is None
            # The second read may be a level away, seldom, and colour make some of it.
            assert apart.max() <= (0 if exact else 6)
            assert apart.mean() < 1e-3


@pytest.mark.needs_cuda
def test_a_slow_receiver_finds_its_batches_whole() -> None:
    """The host runs ahead while the GPU is busy: buffers must not be filled again before they are read."""
    source, busy = numbered(400), torch.randn(4096, 4096, device="cuda")
    wanted = [images.clone() for images, _ in build(source, dtype=torch.uint8)]
    received = []
    for images, _ in build(source, dtype=torch.uint8, device=torch.device("cuda")):
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        received.append(images)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(received, wanted, strict=True))


@pytest.mark.needs_cuda
def test_the_host_never_waits_for_the_gpu(source: Source) -> None:
    loader = build(source, device=torch.device("cuda"))
    list(loader)  # constants are sent once, with the first batch
    loader.set_epoch(1)
    with host_may_not_wait():
        list(loader)
