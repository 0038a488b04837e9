"""Candidates: what each delivers, and which are chosen."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness.data import repeat_to
from benchmarks.suites import candidates
from benchmarks.suites.candidates import (
    Task,
    ordinary_candidates,
    prefetched_batches,
    project_candidates,
    tuning_candidates,
)
from benchmarks.suites.competitors import TorchvisionDataset, competitor_candidates, torchvision_v2
from benchmarks.suites.loader_rates import choose
from benchmarks.suites.rows import FINISHED, UINT8
from loaders import LoaderConfig, Source, build_loader, open_data
from loaders.system.instrument import Recorder, recording
from tests.conftest import smooth_image
from tests.loaders.test_loader import numbered


def task(source: Source) -> Task:
    return Task(repeat_to(source, 64), 24, 8, torch.device("cpu"), torch.bfloat16, 2)


def test_what_is_requested_comes_with_what_it_is_compared_with() -> None:
    ordinary, others = ordinary_candidates(task(numbered(4)), 1), project_candidates(task(numbered(4)))
    requested = {candidate.name for candidate in choose(ordinary, others, "torchvision")}
    assert {candidate.name for candidate in ordinary} < requested
    finished = [candidate for candidate in others if candidate.group == FINISHED]
    names = [candidate.name for candidate in choose(ordinary, finished, "torchvision")]
    assert names == [ordinary[0].name, ordinary[2].name, "torchvision"]


@pytest.mark.parametrize("name", ["torchvision", "streamed", "resident", "baseline"])
def test_no_more_batches_lie_ready_than_is_said(name: str) -> None:
    given = task(numbered(16))
    config = LoaderConfig(spec=given.spec, training=True, batch_size=given.batch_size, workers=given.workers)
    with recording(Recorder()) as recorder:
        assert len(list(build_loader(given.source, config, loader=name))) == 8
    assert max((under_way for _, under_way in recorder.queue), default=0) == prefetched_batches(name, given)


def test_every_candidate_delivers_what_its_group_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task(numbered(16))
    dtypes = {UINT8: {torch.uint8}, FINISHED: {torch.bfloat16, torch.float32}}
    every = [*ordinary_candidates(given, 2), *torchvision_v2(given), *project_candidates(given)]
    assert len({candidate.name for candidate in every}) == len(every) >= 8
    for group in (FINISHED, UINT8):
        assert [candidate.group for candidate in ordinary_candidates(given, 2)].count(group) == 2  # as it is, and tuned
    assert set(tuning_candidates(given)) == {1, 2, 4}
    assert tuning_candidates(given)[2].name in {candidate.name for candidate in every}
    batches_ready = 2 * 8 * 3 * 24 * 24 * 4  # of a worker, in /dev/shm
    for room, counts in ((10, {1, 2, 3}), (3, {1}), (1, {0})):
        monkeypatch.setattr(candidates, "free_on_disk", lambda _, room=room: room * batches_ready)
        assert set(tuning_candidates(given)) == counts
        assert sum(tuning_candidates(replace(given, workers=64))) <= room  # they are alive together
    every += tuning_candidates(given).values()
    for candidate in every:
        batches = iter(candidate.batches())
        for _ in range(2):
            images, labels = next(batches)
            assert images.shape == (8, 3, 24, 24)
            assert images.dtype in dtypes[candidate.group]
            assert set(labels.tolist()) <= set(range(16))
        del batches


def test_torchvisions_candidate_serves_every_kind_of_file(image_folder: Path) -> None:
    from PIL import Image

    Image.fromarray(smooth_image(20, 30, 0)).convert("L").save(image_folder / "train" / "oak" / "grey.jpg")
    Image.fromarray(smooth_image(20, 30, 0)).convert("P").save(image_folder / "train" / "oak" / "palette.png")
    source, _ = open_data(str(image_folder), root=image_folder)
    dataset = TorchvisionDataset(task(source))
    assert {tuple(dataset[place][0].shape) for place in range(len(source))} == {(3, 24, 24)}


@pytest.mark.needs_ffcv
@pytest.mark.needs_dali
@pytest.mark.filterwarnings("ignore")  # of FFCV's and DALI's own
def test_competitors_deliver_uint8_batches_of_their_own(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.pipeline.compiler import Compiler

    source, _ = open_data(str(image_folder), root=image_folder)
    names = [candidate.name for candidate in competitor_candidates(task(source))]
    assert {"FFCV, its own way", "FFCV, its own way, raw at 256 px", "DALI, its own way"} < set(names)
    for given, compiles in ((task(source), False), (task(numbered(16)), True)):  # all compiled takes a minute
        monkeypatch.setattr(Compiler, "is_enabled", compiles)
        for candidate in competitor_candidates(given):
            images, labels = next(iter(candidate.batches()))
            assert images.shape == (8, 3, 24, 24)
            assert images.dtype == torch.uint8
            assert labels.numel() == 8
