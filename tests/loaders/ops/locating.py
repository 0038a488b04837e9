"""Finds out by how many pixels a read displaces what it reads, from ramps and from checkerboards."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

FRAME = 144
"""The side of the test images in pixels."""
SLOPE = (1 + 5**0.5) / 2
"""The slope of the ramps in gray levels per pixel; it is irrational, so that rounding averages out."""
CELL = 8
"""The side of a checkerboard's cell in pixels."""


@dataclass(frozen=True)
class Read:
    """A read of a FRAME × FRAME image, and where in the image each pixel of its result belongs."""

    run: Callable[[Tensor], Tensor]
    """Takes an image, uint8 `[3, FRAME, FRAME]`, and returns what it reads, `[3, S, S]`."""
    y: Floats
    """`[S, S]`, in pixels; 0 is the center of the first pixel."""
    x: Floats


def positions(start: int, length: int, size: int) -> Floats:
    """The positions of `size` pixels that share `length` pixels from `start` on; 0 is the center of the first pixel."""
    return start - 0.5 + length * (np.arange(size) + 0.5) / size


def locate_ramp(read: Read, right: float, down: float) -> tuple[float, float]:
    """By how many pixels of the image a ramp displaced by `right` and `down` seems to be displaced."""
    # Rising and falling, as ATen's rounding of uint8 brightens by up to 0.2 gray levels: no shift, but like one.
    rising, falling = (_ramp_error(read, slope, right, down) for slope in (SLOPE, -SLOPE))
    x, y = (falling - rising) / (2 * SLOPE)
    return float(x), float(y)


def _ramp_error(read: Read, slope: float, right: float, down: float) -> Floats:
    """Gray levels by which ramps to the right and downwards, displaced by so many pixels, differ from others."""
    places = np.arange(FRAME) - FRAME / 2
    red = np.tile(slope * (places - right) + 128, (FRAME, 1))
    green = np.tile(slope * (places - down) + 128, (FRAME, 1)).T
    result = read.run(torch.from_numpy(np.rint([red, green, 0 * red]).astype(np.uint8)))
    errors = result[:2].double().numpy() - 128 - slope * (np.stack([read.x, read.y]) - FRAME / 2)
    return errors[:, 5:-5, 5:-5].mean(axis=(1, 2))  # at the edge of a box there is less to average


def locate_checkerboard(read: Read, right: float, down: float) -> tuple[float, float]:
    """By how many pixels of the image a checkerboard displaced by `right` and `down` seems to be displaced."""
    rising, falling = checkerboard_waves(read, right, down)
    both, difference = -np.angle(-rising) * CELL / np.pi, -np.angle(falling) * CELL / np.pi
    return float(both + difference) / 2, float(both - difference) / 2


def checkerboard_waves(read: Read, right: float, down: float) -> tuple[complex, complex]:
    """Amplitudes, under a Hann window, of the two diagonal waves that make a displaced checkerboard of 27 and 227."""

    def wave(offset: float) -> Floats:
        edges = (np.arange(FRAME + 1) - offset) % (2 * CELL)
        return np.diff(CELL - abs(edges - CELL))  # a square wave's mean over each pixel

    board = np.rint(127 + 100 * np.outer(wave(down), wave(right))).astype(np.uint8)
    values = read.run(torch.from_numpy(np.stack([board] * 3)))[0].double().numpy() - 127
    window = np.outer(*[np.hanning(len(values) + 2)[1:-1]] * 2)
    x, y = ((place + 0.5) * np.pi / CELL for place in (read.x, read.y))
    rising, falling = (np.average(values * np.exp(-1j * (x + sign * y)), weights=window) for sign in (1, -1))
    return complex(rising), complex(falling)
