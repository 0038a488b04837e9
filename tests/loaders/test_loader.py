"""What every loader promises (`baseline` apart): epochs, resume points, bad images, options that make no sense."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders import (
    NO_LABEL,
    BadImage,
    BadImageError,
    Batch,
    InputError,
    Loader,
    LoaderConfig,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    available_loaders,
    build_loader,
    choose_loader,
    open_data,
)
from loaders.bad_images import require_good
from loaders.sampling import order
from loaders.sources import PixelArray
from tests.conftest import PROMISING, as_to_a_gpu, smooth_image

SPEC = PlanSpec(RandomResizedCrop(8), horizontal_flip=0.5)

Build = Callable[..., Loader]


@pytest.fixture(params=[*PROMISING, "streamed as to a GPU"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds the loader under test: 4 images per batch of a training epoch, unless told otherwise."""
    if request.param.endswith("GPU"):
        as_to_a_gpu(monkeypatch)

    def built(source: Source, **options: Any) -> Loader:
        config = LoaderConfig(**{"spec": SPEC, "training": True, "batch_size": 4, "workers": 2, **options})
        return build_loader(source, config, loader=request.param.split()[0])

    return built


def numbered(count: int, bad: Iterable[int] = ()) -> Source:
    """Images of 12 × 16 pixels, each a class of its own, so that its label tells which one it is."""
    pixels = np.stack([smooth_image(12, 16, seed) for seed in range(count)])
    classes, sizes = tuple(map(str, range(count))), np.full((count, 2), (12, 16), np.int32)
    verdicts = dict.fromkeys(bad, "it is broken")
    return Source("numbered", classes, np.arange(count), sizes, PixelArray(pixels), f"count {count}", verdicts)


def same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> bool:
    """Whether two runs delivered the same, bit for bit."""
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True)
    )


def labels(batches: Iterable[Batch]) -> list[int]:
    return [label for _, row in batches for label in row.tolist() if label != NO_LABEL]


def by_label(batches: Iterable[Batch]) -> dict[int, torch.Tensor]:
    return {int(label): image for images, row in batches for image, label in zip(images, row, strict=True)}


# --- epochs --------------------------------------------------------------------------------------


def epoch(loader: Loader, number: int) -> list[Batch]:
    loader.set_epoch(number)
    return list(loader)


def test_a_training_epoch_has_every_sample_once(build: Build) -> None:
    assert sorted(labels(build(numbered(24)))) == list(range(24))


def test_another_epoch_has_another_order_and_other_crops(build: Build) -> None:
    loader = build(numbered(24))
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert labels(first) != labels(second)
    images, others = by_label(first), by_label(second)
    assert sum(torch.equal(images[label], others[label]) for label in range(24)) == 0


def test_another_seed_has_another_order_and_other_crops(build: Build) -> None:
    first, second = list(build(numbered(24))), list(build(numbered(24), seed=1))
    assert labels(first) != labels(second)
    images, others = by_label(first), by_label(second)
    assert sum(torch.equal(images[label], others[label]) for label in range(24)) == 0


def test_the_same_epoch_repeats_exactly(build: Build) -> None:
    loader = build(numbered(24))
    wanted = epoch(loader, 3)
    epoch(loader, 4)
    assert same(epoch(loader, 3), wanted)
    assert same(loader, wanted)  # iterated once more
    assert same(epoch(build(numbered(24)), 3), wanted)


def test_an_evaluation_is_in_order_in_every_epoch(build: Build) -> None:
    loader = build(numbered(22), training=False, spec=PlanSpec(ResizeCenterCrop(10, 8)))
    assert labels(epoch(loader, 0)) == list(range(22))
    assert same(epoch(loader, 1), epoch(loader, 0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_divide_between_them_the_batches_of_a_single_one(build: Build, training: bool, world_size: int) -> None:
    alone = list(build(numbered(26), training=training, batch_size=2 * world_size))
    ranks = [
        build(numbered(26), training=training, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    together = [
        Batch(*(torch.cat(column) for column in zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)
    ]
    assert same(together, alone)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [8, 9, 15, 16, 17])
@pytest.mark.parametrize("world_size", [1, 2])
def test_its_length_is_the_number_of_its_batches(build: Build, training: bool, count: int, world_size: int) -> None:
    loader = build(numbered(count), training=training, world_size=world_size)
    together = 4 * world_size
    assert len(loader) == len(list(loader)) == (count // together if training else -(-count // together))


def test_set_epoch_amid_an_iteration_ends_it_cleanly(build: Build) -> None:
    loader = build(numbered(24))
    seen = 0
    for _ in loader:
        seen += 1
        if seen == 2:
            loader.set_epoch(1)
    assert seen == 2
    assert loader.state_dict()["delivered"] == 0
    assert same(loader, epoch(build(numbered(24)), 1))


def test_setting_the_epoch_it_is_in_changes_nothing(build: Build) -> None:
    loader = build(numbered(24))
    batches = []
    for batch in loader:
        loader.set_epoch(0)
        batches.append(batch)
    assert same(batches, build(numbered(24)))


def test_a_second_iteration_ends_the_first_and_starts_anew(build: Build) -> None:
    loader = build(numbered(24))
    first = iter(loader)
    next(first)
    next(first)
    batches = iter(loader)
    second = [next(batches)]
    assert loader.state_dict()["delivered"] == 4
    assert list(first) == []
    assert same([*second, *batches], build(numbered(24)))


# --- resume points -------------------------------------------------------------------------------


@pytest.mark.parametrize(("training", "count"), [(True, 24), (True, 27), (False, 24), (False, 27)])
def test_from_every_state_the_rest_is_that_of_the_uninterrupted_run(build: Build, training: bool, count: int) -> None:
    loader = build(numbered(count), training=training)
    loader.set_epoch(5)
    states, batches = [loader.state_dict()], []
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    for place, state in enumerate(states):
        resumed = build(numbered(count), training=training)
        resumed.load_state_dict(state)
        assert resumed.epoch == 5
        assert resumed.state_dict() == state
        assert len(resumed) == len(batches) - place
        tail, tail_states = [], []
        for batch in resumed:
            tail.append(batch)
            tail_states.append(resumed.state_dict())
        assert same(tail, batches[place:])
        assert tail_states == states[place + 1 :]


def test_after_a_resumed_epoch_the_next_is_whole(build: Build) -> None:
    loader = build(numbered(24))
    for _ in zip(range(4), loader, strict=False):
        state = loader.state_dict()
    resumed = build(numbered(24))
    resumed.load_state_dict(state)
    resumed.set_epoch(0)  # what a training loop does next
    assert len(list(resumed)) == 2
    assert len(resumed) == len(list(resumed)) == 6  # the same epoch once more, and all of it
    assert len(epoch(resumed, 1)) == 6
    assert same(resumed, epoch(loader, 1))


@pytest.mark.parametrize("training", [True, False])
def test_a_finished_epoch_restored_is_over_and_the_next_is_whole(build: Build, training: bool) -> None:
    loader = build(numbered(26), training=training)
    list(loader)
    resumed = build(numbered(26), training=training)
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed) == 0
    assert list(resumed) == []
    assert same(epoch(resumed, 1), epoch(loader, 1))


@pytest.mark.parametrize(("training", "count"), [(True, 24), (False, 23)])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)])
def test_under_another_world_size_exactly_the_remaining_samples_come(
    build: Build, training: bool, count: int, before: int, after: int
) -> None:
    def ranks(world_size: int) -> list[Loader]:
        options = {"training": training, "batch_size": 2, "world_size": world_size}
        return [build(numbered(count), rank=rank, **options) for rank in range(world_size)]

    delivered = []
    for loader in ranks(before):
        delivered += [batch for _, batch in zip(range(6 // before), loader, strict=False)]
        state = loader.state_dict()
    for loader in ranks(after):
        loader.load_state_dict(state)
        delivered += list(loader)
    assert sorted(labels(delivered)) == list(range(count))
    wanted = by_label(build(numbered(count), training=training))
    images = by_label(delivered)
    assert all(torch.equal(images[label], wanted[label]) for label in range(count) if label in wanted)


def test_under_another_batch_size_exactly_the_remaining_samples_come(build: Build) -> None:
    loader = build(numbered(24), batch_size=3)
    head = [batch for _, batch in zip(range(4), loader, strict=False)]
    resumed = build(numbered(24), batch_size=6)
    resumed.load_state_dict(loader.state_dict())
    assert sorted(labels(head) + labels(resumed)) == list(range(24))


OTHER_RUNS: dict[str, tuple[Callable[[Build], Loader], str]] = {
    "other data of the same name": (
        lambda build: build(replace(numbered(24), fingerprint="other")),
        "data was .*, is ",
    ),
    "another seed": (lambda build: build(numbered(24), seed=1), "seed was 0, is 1"),
    "other crops": (lambda build: build(numbered(24), spec=PlanSpec(RandomResizedCrop(9))), "plan was .*, is "),
    "other flips": (lambda build: build(numbered(24), spec=replace(SPEC, horizontal_flip=0.25)), "plan was .*, is "),
    "views that come again": (lambda build: build(numbered(24), views=2), "plan was .*, is .*, 2 views"),
    "an evaluation": (lambda build: build(numbered(24), training=False), "training was True, is False"),
    "fewer samples": (lambda build: build(numbered(24).take(20)), "samples was 24, is 20"),
    "a sample skipped": (lambda build: build(numbered(24, bad=[3]), on_bad_image="skip"), "samples was 24, is 23"),
}


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_a_state_of_another_run_is_refused_by_naming_the_difference(build: Build, other: str) -> None:
    make, message = OTHER_RUNS[other]
    loader = build(numbered(24))
    next(iter(loader))
    stranger = make(build)
    with pytest.raises(InputError, match=message) as caught:
        stranger.load_state_dict(loader.state_dict())
    if "samples" not in message:
        assert str(caught.value).count(" was ") == 1  # and nothing else
    assert same(stranger, make(build))  # none the worse for it


def test_a_state_fits_a_copy_of_the_data_under_another_name(build: Build, image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "scratch" / "job-4711")
    ours, theirs = (build(open_data(str(root), root=root)[0]) for root in (image_folder, copy))
    batches = iter(ours)
    next(batches)
    theirs.load_state_dict(ours.state_dict())
    assert same(theirs, batches)


def test_a_state_is_plain(build: Build) -> None:
    loader = build(numbered(24))
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state
    assert {type(value) for value in state.values()} <= {int, str, bool}
    resumed = build(numbered(24))
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert same(resumed, batches)


# --- bad images the index knows of ---------------------------------------------------------------


@pytest.fixture
def damaged(image_folder: Path) -> Source:
    """24 files, one of them damaged: `ash/07.jpg`."""
    path = image_folder / "train" / "ash" / "07.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    return open_data(str(image_folder), root=image_folder)[0]


def test_a_bad_image_is_named_with_its_reason(build: Build, damaged: Source) -> None:
    with pytest.raises(BadImageError, match=r"1 of 24 images .*\n.*train/ash/07\.jpg: .*truncated.*\n.*skip") as caught:
        build(damaged)
    [bad] = caught.value.bad
    assert Path(bad.path).is_file()


@pytest.mark.parametrize("training", [True, False])
def test_a_skipped_image_is_left_out_and_counted(build: Build, damaged: Source, training: bool) -> None:
    loader = build(damaged, training=training, batch_size=1, on_bad_image="skip")
    assert len(loader) == 23
    assert len(labels(loader)) == 23
    assert loader.bad_images == [BadImage(damaged.images.describe(7), damaged.bad[7])]
    assert loader.bad_images[0].path.endswith("train/ash/07.jpg")


def test_the_others_are_as_if_the_skipped_image_were_not_there(build: Build) -> None:
    loader = build(numbered(24, bad=[3]), batch_size=1, on_bad_image="skip")
    assert sorted(labels(loader)) == [label for label in range(24) if label != 3]
    images, wanted = by_label(loader), by_label(build(numbered(24), batch_size=1))
    assert all(torch.equal(images[label], wanted[label]) for label in images)


def test_bad_images_of_several_sources_are_named_at_once() -> None:
    sources = [numbered(24, bad=[3]), numbered(30), numbered(20, bad=[5, 6])]
    with pytest.raises(BadImageError, match=r"3 of 44 images .*\n  image 3: .*\n  image 5: .*\n  image 6: .*\n.*skip"):
        require_good(sources, "raise")
    with pytest.raises(BadImageError, match=r"2 of 20 images .*\n.*\n.*\nThat is more than 1%"):  # one of 24 may be
        require_good(sources, "skip")
    require_good(sources[:2], "skip")
    require_good(sources[1:2], "raise")


def test_substitutes_follow_in_the_order_which_is_drawn_once_an_epoch(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[int] = []

    def counted(*given: Any, **options: Any) -> np.ndarray:
        draws.append(options["epoch"])
        return shuffled(*given, **options)

    shuffled = order.shuffled
    monkeypatch.setattr(order, "shuffled", counted)
    loader = build(numbered(24))
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        list(loader)
        sequence = loader.cursor.sequence
        for place in (0, 7, 23):
            rotated = np.roll(sequence, -place).tolist()
            for failed in (1, 2, 23):
                ids, unreadable = np.array(rotated[:1]), rotated[:failed]
                assert order.replace_unreadable(ids, unreadable, sequence).tolist() == [rotated[failed]]
    assert draws == [0, 1]


def test_up_to_one_percent_may_be_skipped(build: Build) -> None:
    loader = build(numbered(300, bad=[5, 100, 299]), on_bad_image="skip")
    assert [bad.path for bad in loader.bad_images] == ["image 5", "image 100", "image 299"]


@pytest.mark.parametrize("count", [300, 20])
def test_more_than_one_percent_is_an_error(build: Build, count: int) -> None:
    with pytest.raises(BadImageError, match=r"4 of \d+ images .*\n(.*\n)*That is more than 1%"):
        build(numbered(count, bad=[1, 2, 3, 4]), on_bad_image="skip")


def test_of_very_many_bad_images_the_first_hundred_are_listed(build: Build) -> None:
    with pytest.raises(BadImageError, match=r"109 of 124 images .*\n(.*broken\n){100}  and 9 more\n") as caught:
        build(numbered(124, bad=range(109)))
    assert len(caught.value.bad) == 109


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"batch_size": 25}, {"batch_size": 13, "world_size": 2}])
def test_a_batch_larger_than_the_set_is_refused(build: Build, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"numbered: 24 images are fewer than one batch .*smaller `batch_size`"):
        build(numbered(24), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
        {"world_size": 0},
        {"workers": 0},
        {"views": 0},
    ],
    ids=str,
)
def test_impossible_options_are_refused_when_the_loader_is_built(build: Build, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", ".")):
        build(numbered(24), **options)


@pytest.mark.parametrize("name", ["dataloader", "", "Torchvision"])
def test_an_unknown_loader_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(InputError, match=f"`loader={name}`: ") as caught:
        build_loader(numbered(24), LoaderConfig(spec=SPEC, training=True), loader=name)
    for known in ("auto", *available_loaders()):
        assert known in str(caught.value)


def test_auto_stands_for_a_loader_that_is_here() -> None:
    name, why, _ = choose_loader("auto", [numbered(24)], device=torch.device("cpu"))
    assert name in available_loaders()
    assert name != "baseline"
    assert why
    assert build_loader(numbered(24), LoaderConfig(spec=SPEC, training=True, batch_size=4)).name == name


@pytest.mark.parametrize("name", available_loaders())
def test_a_loader_is_built_by_its_name(name: str) -> None:
    assert choose_loader(name, [numbered(24)], device=torch.device("cpu"))[:2] == (name, "chosen by name")
    assert build_loader(numbered(24), LoaderConfig(spec=SPEC, training=True, batch_size=4), loader=name).name == name


# --- how things print ------------------------------------------------------------------------------


def test_sources_loaders_and_plans_print_in_a_line() -> None:
    source = numbered(1000)
    loader = build_loader(source, LoaderConfig(spec=SPEC, training=True, batch_size=8), loader="torchvision")
    request = next(loader.requests())
    assert repr(source) == "Source('numbered', 1,000 images, 1,000 classes)"
    assert repr(loader) == f"Loader('torchvision', {source!r}, training, 125 batches of 8)"
    assert repr(request) == "BatchRequest(8 samples, 8 px)"
    assert repr(request.plan) == "Plan(8 samples, 8 px)"


def test_ids_and_plans_cannot_be_changed() -> None:
    loader = build_loader(numbered(22), LoaderConfig(spec=SPEC, training=False, batch_size=4), loader="torchvision")
    for request in loader.requests():
        for array in (request.ids, request.padded, request.plan.box, request.plan.flip):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[1]
    for array in (loader.ids, loader.cursor.sequence, loader.cursor.batch_ids()[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


class Yielding(torch.utils.data.IterableDataset[Batch]):
    """A loader, given to torch's DataLoader."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def test_a_loader_inside_the_workers_of_a_data_loader_is_refused() -> None:
    """Each of them would deliver every image."""
    config = LoaderConfig(spec=SPEC, training=True, batch_size=4, workers=1)
    loader = build_loader(numbered(8), config, loader="torchvision")
    assert len(list(torch.utils.data.DataLoader(Yielding(loader), batch_size=None))) == 2
    with pytest.raises(InputError, match=r"by the 2 workers of torch's DataLoader .* or with num_workers=0"):
        list(torch.utils.data.DataLoader(Yielding(loader), batch_size=None, num_workers=2))
