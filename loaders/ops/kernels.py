"""The kernels of `fused`, in Triton: weights, first read, second read, colour.

All are to be launched without fused multiply-add (`enable_fp_fusion=False`), whose other rounding would be another
weight here and there.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

import triton
import triton.language as tl

_FIELDS = tl.constexpr(12)
"""Of the geometry, for each sample, int64: start, width; box: top, left, height, width; resized: height, width;
window: top, left; flips: horizontal, vertical."""
_HIGHEST = tl.constexpr(22)
"""ATen's weights have no more bits than this after the binary point, and fit into int16."""


@triton.jit
def _reach(length, resized, places):
    """Center, reciprocal support, first tap and end of the taps of places in the resized box; as ATen has them."""
    scale = length.to(tl.float64) / resized.to(tl.float64)
    support = tl.maximum(scale, 1.0)
    center = scale * (places.to(tl.float64) + 0.5)
    first = tl.maximum((center - support + 0.5).to(tl.int32), 0)
    end = tl.minimum((center + support + 0.5).to(tl.int32), length.to(tl.int32))
    return center, 1.0 / support, first, end


@triton.jit
def _triangle(tap, center, reciprocal, end):
    """The weight of a tap before it is divided by the sum of all: a triangle around the center."""
    distance = tl.abs((tap.to(tl.float64) - center + 0.5) * reciprocal)
    return tl.where(tap < end, tl.maximum(1.0 - distance, 0.0), 0.0)


@triton.jit
def _own_taps(length, resized):
    """The most taps a place of this axis has: `resample.taps`."""
    return (2 * ((length + resized - 1) // resized) + 1).to(tl.int32)


@triton.jit(do_not_specialize=["taps"])
def weigh(geometry, weights, first, shift, side, taps, SPAN: tl.constexpr):
    """One axis of one sample: int16 weights `[taps, side]`, first taps `[side]`, and how many bits these have."""
    row = tl.program_id(0) * 2 + tl.program_id(1)
    fields = geometry + tl.program_id(0) * _FIELDS + tl.program_id(1)
    length, resized, window = tl.load(fields + 4), tl.load(fields + 6), tl.load(fields + 8)
    own = _own_taps(length, resized)
    # The precision hangs on the largest weight of all places, also of those beyond the window.
    largest = tl.full((SPAN,), 0, tl.float64)
    for begin in range(0, resized.to(tl.int32), SPAN):
        places = tl.minimum(begin + tl.arange(0, SPAN), resized.to(tl.int32) - 1)
        center, reciprocal, start, end = _reach(length, resized, places)
        total, most = tl.full((SPAN,), 0, tl.float64), tl.full((SPAN,), 0, tl.float64)
        for tap in range(own):
            weight = _triangle(start + tap, center, reciprocal, end)
            total, most = total + weight, tl.maximum(most, weight)
        largest = tl.maximum(largest, most / total)
    peak = tl.max(largest, 0)
    bits = tl.full((), 0, tl.int32)
    for place in tl.static_range(_HIGHEST):  # up to that at which twice the largest weight does not fit yet
        bits += (0.5 + peak * (2 << place) < 32768).to(tl.int32)
    tl.store(shift + row, bits)
    for begin in range(0, side, SPAN):
        columns = begin + tl.arange(0, SPAN)
        places = tl.minimum(tl.maximum(window.to(tl.int32) + columns, 0), resized.to(tl.int32) - 1)
        center, reciprocal, start, end = _reach(length, resized, places)
        total = tl.full((SPAN,), 0, tl.float64)
        for tap in range(own):
            total += _triangle(start + tap, center, reciprocal, end)
        tl.store(first + row * side + columns, start, columns < side)
        for tap in range(own):
            weight = _triangle(start + tap, center, reciprocal, end) / total
            whole = (0.5 + weight * (1 << bits).to(tl.float64)).to(tl.int16)
            tl.store(weights + (row * taps + tap).to(tl.int64) * side + columns, whole, columns < side)


@triton.jit
def _finished(pixels, channel, f0, f1, f2, o0, o1, o2, NORMALIZES: tl.constexpr):
    """Normalised, where that is wanted; pixels 0–255 of any dtype."""
    if NORMALIZES:
        factor = tl.where(channel == 0, f0, tl.where(channel == 1, f1, f2))
        offset = tl.where(channel == 0, o0, tl.where(channel == 1, o1, o2))
        pixels = tl.fma(pixels.to(tl.float32), factor, offset)
    return pixels


@triton.jit(do_not_specialize=["taps"])
def read(
    pixels, geometry, weights, first, shift, out, side, taps, f0, f1, f2, o0, o1, o2, NORMALIZES: tl.constexpr,
    LINES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """A tile of one sample's first read: along the rows, rounded to uint8, then along the columns, as ATen does."""
    sample = tl.program_id(2)
    fields = geometry + sample * _FIELDS
    start, width = tl.load(fields), tl.load(fields + 1)
    top, left, tall, wide = tl.load(fields + 2), tl.load(fields + 3), tl.load(fields + 4), tl.load(fields + 5)
    high, broad, y, x = tl.load(fields + 6), tl.load(fields + 7), tl.load(fields + 8), tl.load(fields + 9)
    mirrored, inverted = tl.load(fields + 10) != 0, tl.load(fields + 11) != 0
    # Across: which taps of a row make up each value, and with which weights.
    value = (tl.program_id(0) * VALUES + tl.arange(0, VALUES))[None, :]
    channel, column = value % 3, tl.minimum(value // 3, side - 1)
    column = tl.where(mirrored, side - 1 - column, column)
    across = tl.load(first + (2 * sample + 1) * side + column)
    weights_across = weights + (2 * sample + 1).to(tl.int64) * taps * side
    taps_across, bits_across = _own_taps(wide, broad), tl.load(shift + 2 * sample + 1)
    # Down: which rows of the box the lines of this tile are made of.
    line = (tl.program_id(1) * LINES + tl.arange(0, LINES))[:, None]
    row = tl.minimum(line, side - 1)
    row = tl.where(inverted, side - 1 - row, row)
    down = tl.load(first + 2 * sample * side + row)
    weights_down = weights + (2 * sample).to(tl.int64) * taps * side
    taps_down, bits_down = _own_taps(tall, high), tl.load(shift + 2 * sample)
    top_line = tl.program_id(1) * LINES
    bottom_line = tl.minimum(top_line + LINES, side) - 1
    highest = tl.where(inverted, side - 1 - bottom_line, top_line)
    lowest = tl.where(inverted, side - 1 - top_line, bottom_line)
    begin = tl.load(first + 2 * sample * side + highest)
    end = tl.minimum(tl.load(first + 2 * sample * side + lowest) + taps_down, tall.to(tl.int32))
    box = pixels + (start + top * width + left) * 3
    stride = width.to(tl.int32)
    total = tl.full((LINES, VALUES), 0, tl.int32)
    for source in range(begin, end):
        blended = tl.full((1, VALUES), 0, tl.int32)
        for tap in range(taps_across):  # beyond the box the weight is 0, and any place will do
            place = tl.minimum(across + tap, wide.to(tl.int32) - 1)
            pixel = tl.load(box + ((source * stride + place) * 3 + channel)).to(tl.int32)
            blended += pixel * tl.load(weights_across + (tap * side + column)).to(tl.int32)
        blended = _to_pixel(blended, bits_across)
        tap_down = source - down
        belongs = (tap_down >= 0) & (tap_down < taps_down)
        total += blended * tl.load(weights_down + (tap_down * side + row), belongs, 0).to(tl.int32)
    inside = (y + row >= 0) & (y + row < high) & (x + column >= 0) & (x + column < broad)
    total = tl.where(inside, _to_pixel(total, bits_down), 0)
    finished = _finished(total, channel, f0, f1, f2, o0, o1, o2, NORMALIZES)
    square = out + sample.to(tl.int64) * side * side * 3
    tl.store(square + (line * side * 3 + value), finished.to(out.dtype.element_ty), (line < side) & (value < 3 * side))


@triton.jit
def _to_pixel(total, bits):
    """A weighted sum, rounded to 0–255."""
    return tl.minimum(tl.maximum((total + (1 << (bits - 1))) >> bits, 0), 255)


@triton.jit
def turn(
    squares, x, y, to_frame, flip, out, side, size, f0, f1, f2, o0, o1, o2, NORMALIZES: tl.constexpr,
    LINES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """A tile of one sample's second read, with the arithmetic of `torch.nn.functional.grid_sample`."""
    sample, count = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    value = (tl.program_id(0) * VALUES + tl.arange(0, VALUES))[None, :]
    line = (tl.program_id(1) * LINES + tl.arange(0, LINES))[:, None]
    channel, column, row = value % 3, tl.minimum(value // 3, size - 1), tl.minimum(line, size - 1)
    column = tl.where(tl.load(flip + 2 * sample) != 0, size - 1 - column, column)
    row = tl.where(tl.load(flip + 2 * sample + 1) != 0, size - 1 - row, row)
    across, down = tl.load(x + sample * size + column), tl.load(y + sample * size + row)
    cos, sin = tl.load(to_frame + sample), tl.load(to_frame + count + sample)
    at_x = ((across * cos - down * sin + 1) * side - 1) / 2
    at_y = ((across * sin + down * cos + 1) * side - 1) / 2
    left, upper = tl.floor(at_x), tl.floor(at_y)
    right_share, lower_share = at_x - left, at_y - upper
    square = squares + sample * side * side * 3
    total = tl.full((LINES, VALUES), 0, tl.float32)
    for corner in tl.static_range(4):
        place_x, place_y = left.to(tl.int32) + corner % 2, upper.to(tl.int32) + corner // 2
        inside = (place_x >= 0) & (place_x < side) & (place_y >= 0) & (place_y < side)
        share = (right_share if corner % 2 else left + 1 - at_x) * (lower_share if corner // 2 else upper + 1 - at_y)
        total += tl.load(square + ((place_y * side + place_x) * 3 + channel), inside, 0).to(tl.float32) * share
    rounded = tl.minimum(tl.maximum(_rounded(total), 0.0), 255.0)
    finished = _finished(rounded, channel, f0, f1, f2, o0, o1, o2, NORMALIZES)
    square = out + sample * size * size * 3
    tl.store(square + (line * size * 3 + value), finished.to(out.dtype.element_ty), (line < size) & (value < 3 * size))


@triton.jit
def _rounded(values):
    """To the nearest, ties to the even, as torch rounds: beyond 2 ** 23 float32 holds whole numbers only."""
    return (values + 12582912.0) - 12582912.0


@triton.jit
def color(
    squares, factors, order, sums, out, pixels, f0, f1, f2, o0, o1, o2, NORMALIZES: tl.constexpr,
    MEASURES: tl.constexpr, PARTS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Some pixels of one sample, with the arithmetic of `finish.jitter_color`; launched twice.

    First to measure (`MEASURES`): the sum of their grey when contrast's turn has come goes to `sums`. Then, as the
    sums tell the mean of the whole image, to write the result.
    """
    part, parts, sample = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    place = part * SPAN + tl.arange(0, SPAN)
    inside = place < pixels
    values = squares + sample * pixels * 3 + place * 3
    red = tl.load(values, inside, 0).to(tl.float32) / 255
    green = tl.load(values + 1, inside, 0).to(tl.float32) / 255
    blue = tl.load(values + 2, inside, 0).to(tl.float32) / 255
    mean = tl.full((), 0, tl.float32)
    if not MEASURES:
        each = tl.arange(0, PARTS)
        mean = tl.sum(tl.load(sums + sample * parts + each, each < parts, 0.0), 0) / pixels
    for step in tl.static_range(4):
        which = tl.load(order + sample * 4 + step)
        factor = tl.load(factors + sample * 4 + which)
        grey = 0.2989 * red + 0.587 * green + 0.114 * blue
        if which == 0:
            red, green, blue = _unit(red * factor), _unit(green * factor), _unit(blue * factor)
        elif which == 1:
            if MEASURES:
                tl.store(sums + sample * parts + part, tl.sum(tl.where(inside, grey, 0.0), 0))
            red, green, blue = _blended(mean, red, factor), _blended(mean, green, factor), _blended(mean, blue, factor)
        elif which == 2:
            red, green, blue = _blended(grey, red, factor), _blended(grey, green, factor), _blended(grey, blue, factor)
        else:
            value, low = tl.maximum(red, tl.maximum(green, blue)), tl.minimum(red, tl.minimum(green, blue))
            chroma = value - low
            safe = tl.where(chroma > 0, chroma, 1.0)
            sixths = (
                tl.where(
                    value == red,
                    (green - blue) / safe,
                    tl.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
                )
                + 6 * factor
            )
            red, green, blue = (
                _from_hue(5 + sixths, value, chroma),
                _from_hue(3 + sixths, value, chroma),
                _from_hue(1 + sixths, value, chroma),
            )
    if not MEASURES:
        _put(red, 0, sample * pixels + place, inside, out, f0, o0, NORMALIZES)
        _put(green, 1, sample * pixels + place, inside, out, f1, o1, NORMALIZES)
        _put(blue, 2, sample * pixels + place, inside, out, f2, o2, NORMALIZES)


@triton.jit
def _unit(values):
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def _blended(start, end, factor):
    """`torch.lerp`, which begins at the nearer of the two, kept within 0–1."""
    apart = end - start
    return _unit(tl.where(tl.abs(factor) < 0.5, start + factor * apart, end - apart * (1 - factor)))


@triton.jit
def _from_hue(sixths, value, chroma):
    """A channel: it falls from `value` by `chroma` along a trapezoid of the hue."""
    k = sixths - tl.floor(sixths / 6) * 6
    return value - chroma * _unit(tl.minimum(k, 4 - k))


@triton.jit
def _put(values, channel, place, inside, out, factor, offset, NORMALIZES: tl.constexpr):
    """One channel of some pixels, 0–1: normalised, or as whole levels."""
    levels = values * 255
    levels = tl.fma(levels, factor, offset) if NORMALIZES else _rounded(levels)
    tl.store(out + place * 3 + channel, levels.to(out.dtype.element_ty), inside)
