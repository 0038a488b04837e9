"""Files that leave the page cache."""

from pathlib import Path

import pytest

from benchmarks.harness.cold_cache import cached_share, evict
from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, build_loader, open_data
from tests.loaders.test_loader import numbered


@pytest.mark.parametrize("cached", [False, True])
def test_files_leave_the_page_cache(image_folder: Path, cached: bool) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    spec = PlanSpec(RandomResizedCrop(16))
    config = LoaderConfig(spec=spec, training=True, batch_size=4)
    with build_loader(source, config, loader="streamed" if cached else "torchvision") as loader:
        list(loader)
        files = loader.executor.files()
        assert len(files) == (1 if cached else 24)
        if not evict(files):
            pytest.skip("this file system keeps its files in memory")
        evicted = next(file for file in files if cached_share(file) < 0.5)
        evicted.read_bytes()
        assert cached_share(evicted) == 1
        loader.set_epoch(1)
        assert len(list(loader)) == 6
    in_memory = build_loader(numbered(4), config, loader="torchvision")
    assert in_memory.executor.files() == []
