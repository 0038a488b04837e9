"""By which arithmetic "auto" decides, and what it tells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, auto, choose_loader, factory, open_data
from loaders.auto import LoadEstimate, decide

GB = 10**9
PHOTOS = LoadEstimate(
    device="cuda:0",
    images=100_000,
    decoded=60 * GB,
    cached=26 * GB,
    in_memory=False,
    cache_exists=False,
    free_on_device=75 * GB,
    free_on_disk=500 * GB,
    free_in_memory=100 * GB,
    cores=16,
    epochs=10,
)
MANY = replace(PHOTOS, images=1_000_000, decoded=600 * GB, cached=260 * GB)


@pytest.mark.parametrize(
    ("estimate", "name", "from_cache"),
    [
        (replace(PHOTOS, images=1000, decoded=GB, cached=GB // 2), "resident", False),
        (PHOTOS, "resident", True),
        (replace(PHOTOS, cache_exists=True, decoded=GB, cached=GB // 2), "resident", True),
        (replace(PHOTOS, free_on_disk=GB), "torchvision", False),
        (replace(PHOTOS, free_on_disk=GB, cache_exists=True), "resident", True),
        (replace(PHOTOS, epochs=None), "resident", True),
        (replace(PHOTOS, epochs=1), "torchvision", False),
        (replace(PHOTOS, epochs=1, cache_exists=True), "resident", True),
        (MANY, "streamed", False),
        (replace(MANY, epochs=1), "torchvision", False),
        (replace(MANY, epochs=1, cache_exists=True), "streamed", False),
        (replace(MANY, free_on_disk=200 * GB), "torchvision", False),
        (replace(MANY, in_memory=True), "streamed", False),
        (replace(PHOTOS, in_memory=True, decoded=GB), "resident", False),
    ],
)
def test_images_are_kept_where_they_fit_if_that_pays(estimate: LoadEstimate, name: str, from_cache: bool) -> None:
    choice = decide(estimate)
    assert (choice.name, choice.from_cache) == (name, from_cache)


def test_the_sizes_and_times_are_told() -> None:
    reason = decide(PHOTOS).reason
    # 60 GB are 20 gigapixels: 133 s for one core at 150 megapixels/s, 8 s for 16.
    for figure in ("100,000 images", "60 GB decoded", "75 GB free", "26 GB", "about 8 s", "instead of 10 times"):
        assert figure in reason


def test_what_a_set_larger_than_memory_asks_of_the_disk_is_told() -> None:
    assert "at 260 kB an image, 3,846 images/s for each GB/s" in decide(MANY).reason
    assert "GB/s" not in decide(replace(MANY, free_in_memory=300 * GB)).reason


def test_a_cache_that_is_there_counts(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be on a GPU whose memory is small."""
    seen: list[LoadEstimate] = []

    def seen_and_decided(estimate: LoadEstimate) -> object:
        seen.append(estimate)
        return decide(estimate)

    monkeypatch.setattr(auto, "free_memory", lambda _: 100_000)
    monkeypatch.setattr(factory, "decide", seen_and_decided)
    sources = open_data(str(image_folder), root=image_folder)
    gpu = torch.device("cuda")
    choose_loader("auto", sources, device=gpu, cache_size=40)
    for source in sources:
        config = LoaderConfig(spec=PlanSpec(RandomResizedCrop(32)), training=True, batch_size=4, cache_size=40)
        factory.build_loader(source, config, loader="streamed").prepare()
    name, _, _ = choose_loader("auto", sources, device=gpu, cache_size=40)
    assert name == "streamed"
    assert [estimate.cache_exists for estimate in seen] == [False, True]
    sizes = np.concatenate([source.sizes for source in sources]).astype(int)
    assert seen[0].decoded == 3 * sizes.prod(axis=1).sum() > seen[0].cached > 3 * 34 * 40 * 40
    assert seen[0].images == 34
