"""What is computed from the rates of several turns."""

from collections.abc import Sequence
from statistics import median

NOISY = 0.15
"""Spread of a row's windows, as a share of their median, above which it is marked."""


def is_noisy(rates: Sequence[float], middle: float) -> bool:
    """Whether the rates of a row spread too widely around its own."""
    return (max(rates) - min(rates)) / middle > NOISY


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast `ours` is, as the median over the turns."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))
