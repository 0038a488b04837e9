"""Which images of a source cannot be decoded, and what is done about them."""

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loaders.errors import BadImage, BadImageError
from loaders.sampling.order import PADDING, replace_unreadable
from loaders.sources.base import Source

OnBadImage: TypeAlias = Literal["raise", "skip"]

MAX_BAD_SHARE = 0.01
"""Share of bad images above which even `on_bad_image="skip"` is an error: it is not an accident then."""


class BadImages:
    """The images of a source that cannot be decoded: those the index names, and those reported since.

    Raises:
        BadImageError: when there are bad images that may not be skipped.
    """

    def __init__(self, source: Source, on_bad_image: OnBadImage) -> None:
        self._source, self._on_bad_image = source, on_bad_image
        self._reasons = dict(source.bad)
        self.never_readable: frozenset[int] = frozenset()
        """Samples that the executor cannot read, as it found out when it was prepared."""
        self.skipped: set[int] = set()
        """Samples that the current evaluation leaves out, because they became unreadable after they were indexed."""
        self._judge()

    def report(self, index: int, reason: str) -> None:
        """Notes that an image which was good when it was indexed is unreadable now.

        Raises:
            BadImageError: when it may not be skipped.
        """
        self._reasons[index] = f"{reason} (it was good when indexed)"
        self._judge()

    def listed(self) -> list[BadImage]:
        """All bad images, with the reason of each."""
        return [self._source.bad_image(index, reason) for index, reason in list(self._reasons.items())]

    def replace(
        self, ids: NDArray[np.int64], sequence: NDArray[np.int64] | None, failed: Collection[int] = ()
    ) -> NDArray[np.int64]:
        """`ids` with other samples in the place of those that cannot be read; see `order.replace_unreadable`.

        Args:
            ids: int64, of any shape.
            sequence: the epoch's order, in training. None in an evaluation: unreadable samples become padding, and are
                added to `skipped`.
            failed: samples that cannot be read besides those known when the executor was prepared.

        Raises:
            BadImageError: when no readable sample is left to train on.
        """
        replaced = replace_unreadable(ids, self.never_readable.union(failed), sequence)
        if replaced is ids:
            return ids
        padded = (replaced == PADDING) & (ids != PADDING)
        if sequence is None:
            self.skipped.update(ids[padded].tolist())
        elif padded.any():
            raise self._error("None is left to take their place.")
        return replaced

    def _judge(self) -> None:
        if remedy := _remedy(len(self._reasons), len(self._source), self._on_bad_image):
            raise self._error(remedy)

    def _error(self, remedy: str) -> BadImageError:
        return BadImageError(self.listed(), len(self._source), remedy)


def require_good(sources: Sequence[Source], on_bad_image: OnBadImage) -> None:
    """Raises BadImageError where bad images may not be skipped; it names those of all sources at once.

    A loader does so for its own source only, when the loaders of the others may be hours of decoding away.
    """
    remedies = [_remedy(len(source.bad), len(source), on_bad_image) for source in sources]
    refused = [source for source, remedy in zip(sources, remedies, strict=True) if remedy]
    if remedy := next(filter(None, remedies), None):
        bad = [source.bad_image(index, reason) for source in refused for index, reason in source.bad.items()]
        raise BadImageError(bad, sum(map(len, refused)), remedy)


def _remedy(bad: int, total: int, on_bad_image: OnBadImage) -> str | None:
    """What to do about so many bad images; None where they may be skipped."""
    if not bad:
        return None
    if on_bad_image == "raise":
        return 'Repair or remove them, or leave them out by `on_bad_image="skip"`.'
    if bad > max(1, MAX_BAD_SHARE * total):
        return f"That is more than {MAX_BAD_SHARE:.0%}, too many to skip: repair or remove them."
    return None
