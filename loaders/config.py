"""What a loader is to do, independent of the backend that does it."""

from dataclasses import dataclass, field

import torch

from loaders.bad_images import OnBadImage
from loaders.errors import InputError
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, PlanSpec


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a loader does; the same for every backend.

    Raises:
        InputError: when a value is impossible.
    """

    spec: PlanSpec
    """Crop, rotation, flips, color."""
    training: bool
    """Shuffled, with an incomplete last batch dropped (`baseline` keeps it); otherwise each sample once, in order."""
    batch_size: int = 64
    """Images per batch and rank."""
    seed: int = 0
    """Seed of the order and the plans."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Dtype of the images; uint8 leaves normalizing to whoever receives the pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Mean and standard deviation per channel, of pixel values scaled to 0–1."""
    rank: int = 0
    world_size: int = 1
    workers: int | None = None
    """Threads that decode and resize. None: one per usable core; ranks on one machine should share the cores."""
    on_bad_image: OnBadImage = "raise"
    views: int | None = None
    """Plans repeat after this many epochs, while the order of the samples does not. None: they never repeat."""
    scaled_decoding: bool = False
    """Decode JPEGs at n/8 of their size where the crop keeps the pixels it needs: faster, and not quite the same."""
    cache_size: int = 256
    """Shorter side of the images in a pixel cache, in pixels; smaller images stay as they are."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "world_size", "workers", "views", "cache_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}={value}`: expected 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"`rank={self.rank}`: expected 0 to world_size - 1 = {self.world_size - 1}")
