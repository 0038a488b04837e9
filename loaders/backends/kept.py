"""What loaders share that decode every image once, beforehand, and keep it."""

import numpy as np
from numpy.typing import NDArray

from loaders.backends.decode import load_pixels, require_size
from loaders.errors import BadImageError
from loaders.loader import Loader, LoaderConfig
from loaders.order import PADDING
from loaders.plan import Plan
from loaders.sources.base import Source


class KeptLoader(Loader):
    """Decodes images once; samples found bad then are known before any batch is made."""

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._gone: set[int] = set()
        """Samples that have gone bad since they were indexed."""

    def _decode_once(self, index: int) -> NDArray[np.uint8] | None:
        """One image's pixels, `[H, W, 3]`; None for a bad one, of which it takes note where the index did not."""
        if index in self.source.bad:
            return None
        try:
            pixels = load_pixels(self.source.images, index)
            require_size(pixels, *self.source.sizes[index].tolist())
        except (OSError, ValueError) as error:
            self._gone.add(index)
            self._report_bad(index, getattr(error, "strerror", None) or str(error))
            return None
        return pixels

    def _replace_gone(self, ids: NDArray[np.int64], plan: Plan) -> None:
        """Puts others in the place of samples that have gone bad; in an evaluation none, so that none counts twice."""
        for place in np.flatnonzero(np.isin(ids, list(self._gone))).tolist() if self._gone else ():
            wanted = int(ids[place])
            if not self.config.training:
                self.lost.add(wanted)
                ids[place] = PADDING
                continue
            ids[place] = next((i for i in self._substitutes(wanted) if i not in self._gone), PADDING)
            if ids[place] == PADDING:
                raise BadImageError(self.bad_images, len(self.source), "None is left to take their place.")
            plan.overwrite(place, self.draw(ids[place : place + 1]))
