"""What loaders share that decode every image once, beforehand, and keep it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from loaders.errors import cause
from loaders.loader import Loader, LoaderConfig
from loaders.ops.decode import load_pixels
from loaders.sampling.plan import Plan
from loaders.sources.base import Source


class KeptLoader(Loader):
    """Decodes images once; samples found bad then are known before any batch is made."""

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._gone: set[int] = set()
        """Samples that have gone bad since they were indexed."""

    def planned(self, start: int) -> Iterator[tuple[NDArray[np.int64], Plan]]:
        for ids, plan in super().planned(start):
            self._replace_gone(self._gone, ids, plan)
            yield ids, plan

    def _decode_once(self, index: int) -> NDArray[np.uint8] | None:
        """One image's pixels, `[H, W, 3]`; None for a bad one, of which it takes note where the index did not."""
        if index in self.source.bad:
            return None
        try:
            pixels = load_pixels(self.source.images, index, size=tuple(self.source.stored_sizes[index].tolist()))
        except (OSError, ValueError) as error:
            self._gone.add(index)
            self._report_bad(index, cause(error))
            return None
        return pixels
