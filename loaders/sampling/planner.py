"""Draws the plans of the next batches, thousands of samples at a time."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loaders.sampling import plan
from loaders.sampling.plan import Plan, PlanSpec

SAMPLES_DRAWN_AT_ONCE = 4096
"""A plan costs 0.2 µs a sample this way, and 4.5 µs when drawn in batches of 64."""


class Planner:
    """Draws plans for the samples of one source. Plans are pure: the same arguments always give the same plans."""

    def __init__(self, spec: PlanSpec, sizes: NDArray[np.int32], *, seed: int = 0, views: int | None = None) -> None:
        """
        Args:
            sizes: `[N, 2]`, height and width of each image in pixels, after EXIF rotation.
            views: plans repeat after this many epochs; they never do if it is None.
        """
        self._spec, self._sizes, self._seed, self._views = spec, sizes, seed, views

    def draw(self, ids: NDArray[np.int64], epoch: int, stored_sizes: NDArray[np.int32] | None = None) -> Plan:
        """The plans of these samples in an epoch.

        Args:
            ids: int64 `[B]`, >= 0.
            stored_sizes: `[N, 2]`, height and width of the pixels that will be read, where these are not the images'
                own. Plans are drawn for the images; their boxes are scaled to show the same part of each.
        """
        if self._views is not None:
            epoch %= self._views
        sizes = self._sizes[ids]
        drawn = plan.draw(self._spec, seed=self._seed, epoch=epoch, ids=ids, sizes=sizes)
        if stored_sizes is None:
            return drawn
        return replace(drawn, box=plan.scale_boxes(drawn.box, sizes, stored_sizes[ids]))

    def batches(
        self, batch_ids: NDArray[np.int64], epoch: int, stored_sizes: NDArray[np.int32] | None = None
    ) -> Iterator[Plan]:
        """The plans of each batch of `batch_ids` (int64 `[K, B]`, >= 0) in turn; drawn as they are needed."""
        batch_size = batch_ids.shape[1]
        batches_at_once = max(1, SAMPLES_DRAWN_AT_ONCE // batch_size)
        for first in range(0, len(batch_ids), batches_at_once):
            ids = batch_ids[first : first + batches_at_once].ravel()
            drawn = self.draw(ids, epoch, stored_sizes)
            for start in range(0, len(ids), batch_size):
                yield drawn[start : start + batch_size]
