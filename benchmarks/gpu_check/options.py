"""Options of `gpu-check`. This module is imported before torch is."""

from dataclasses import dataclass
from pathlib import Path

from train.options import OptionalFloat, OptionalPath, OptionalStr


@dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """On a GPU node: saturation, whole runs, the blog's loop, steps, GPU tests, profiles, loaders. No network."""

    minutes: OptionalFloat = None
    """Stop after so many minutes; the most telling parts come first. As long as it takes, unless given."""
    root: Path = Path("data")
    """Where CIFAR-10 lies, if it is there; else the sample is drawn here."""
    weights: OptionalStr = None
    """As for training; torchvision's where they lie in its cache, else none. Rates do not depend on them."""
    cpu: bool = False
    """Go through it all without a GPU, as little of each as there can be, to see that it works."""
    out: OptionalPath = None
    """The folder; runs/gpu-check-TIME, unless given. A check that was begun there is continued."""
