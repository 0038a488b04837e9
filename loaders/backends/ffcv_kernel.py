"""The first read out of a .beton file, compiled by numba: no interpreter's lock is held, nothing allocated per pixel.

The exact resampling is ATen's fixed-point arithmetic (see `loaders.ops.resample`), so that it gives what the
reference gives, to the bit; so does the decoding: FFCV's own takes libjpeg-turbo's fast inverse DCT, which
is up to a few levels off, and is left to FFCV's own resampling.

What the kernel is to read comes as arguments. A plan in a closure would be frozen into the compiled code, and
epoch 2 would see epoch 1's crops; and each loader would be compiled anew.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import ctypes
import threading
from functools import wraps
from typing import Any

import ffcv.libffcv
import llvmlite.binding
import numpy as np
from numba import njit, types

# By name, not by address: or numba could not keep the compiled code for the next process.
_NAMES = ("tjInitDecompress", "tjDecompress2", "tjDestroy", "imdecode", "resize")
for _name in _NAMES:
    _address = ctypes.cast(getattr(ffcv.libffcv.lib, _name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"saturate_ffcv_{_name}", _address)


def _external(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(f"saturate_ffcv_{name}", result(*arguments))


_pointer, _int, _word, _long = types.intp, types.int32, types.uint32, types.int64
_new_decoder = _external("tjInitDecompress", _pointer)
_free_decoder = _external("tjDestroy", _int, _pointer)
_decode = _external("tjDecompress2", _int, _pointer, _pointer, types.uint64, _pointer, _int, _int, _int, _int, _int)
_ffcv_decode = _external(
    "imdecode",
    *(_int, _pointer, types.uint64, _word, _word, _pointer),
    *(_word, _word, _word, _word, _word, _word, types.boolean, types.boolean),
)
_ffcv_resize = _external("resize", types.void, *[_long] * 11)

_compiled = njit(nogil=True, cache=True, error_model="numpy")
_compiling = threading.Lock()


def _first_call_alone(kernel):
    """Holds the other threads back during the first call, which compiles.

    Numba compiles in the threads that call first. In one of several runs that ended in a KeyError inside numba, as two
    threads compiled functions that share others.
    """
    is_compiled = threading.Event()

    @wraps(kernel.py_func)
    def call(*arguments):
        if is_compiled.is_set():
            return kernel(*arguments)
        with _compiling:
            result = kernel(*arguments)
        is_compiled.set()
        return result

    return call


JPEG, RAW = 0, 1
"""How an image lies in the file, by FFCV's numbers."""


@_first_call_alone
@_compiled
def read_squares(file, images, ids, box, resized, window, flip, exact, scratch, squares):
    """The first read of B samples.

    Args:
        file: uint8, the whole file.
        images: int64 `[N, 5]`: of each sample the place in the file, length in bytes, mode, height and width.
        ids: int64 `[B]`; black where negative.
        box, resized, window, flip: of the samples' plans, `[B, …]`.
        exact: as the reference does it; else as FFCV does.
        scratch: uint8, room for the largest of the images, decoded.
        squares: uint8 `[B, S1, S1, 3]`, to be written.

    Returns:
        The place of the first sample that could not be decoded, -1 if there is none.
    """
    failed = -1
    for place in range(len(ids)):
        if ids[place] < 0:
            squares[place] = 0
            continue
        start, length, mode, height, width = images[ids[place]]
        pixels = file[start : start + length]
        if mode == JPEG:
            pixels = scratch[: height * width * 3]
            if _decoded(file[start : start + length], pixels, height, width, exact) != 0:
                failed = place
                break
        image = pixels.reshape((height, width, 3))
        part = image[box[place, 0] : box[place, 0] + box[place, 2], box[place, 1] : box[place, 1] + box[place, 3]]
        if exact:
            _resample(part, resized[place], window[place], flip[place], squares[place])
        else:
            _resample_as_ffcv(image, box[place], resized[place], window[place], flip[place], squares[place])
    return failed


def decodes_to(data, pixels):
    """Whether a JPEG's bytes (uint8) become just these pixels (uint8 `[H, W, 3]`) here."""
    decoded = np.empty(pixels.size, np.uint8)
    return _decodes(data, decoded, *pixels.shape[:2]) and np.array_equal(decoded, pixels.reshape(-1))


@_first_call_alone
@_compiled
def _decodes(data, pixels, height, width):
    return _decoded(data, pixels, height, width, True) == 0


@_compiled
def _decoded(data, pixels, height, width, exact):
    """Decodes a JPEG to RGB; 0 if it went well.

    Each image has a decoder of its own, at less than a microsecond: a decoder remembers Huffman tables, and would take
    those of the image before for a JPEG that relies on the standard's. FFCV's own decoder is one per thread, and does.
    """
    if exact:
        decoder = _new_decoder()
        result = _decode(decoder, data.ctypes.data, data.size, pixels.ctypes.data, width, 0, height, 0, 0)
        _free_decoder(decoder)
        return result
    return _ffcv_decode(
        data.ctypes.data, data.size, height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False
    )


@_compiled
def _resample_as_ffcv(image, box, resized, window, flip, square):
    """OpenCV's INTER_AREA by FFCV's binding, cut to the window, flipped."""
    y0, y1, x0, x1 = _inside(square, resized, window)
    side = len(square)
    direct = y1 - y0 == resized[0] == side and x1 - x0 == resized[1] == side
    whole = square if direct else np.empty((resized[0], resized[1], 3), np.uint8)
    top, left, height, width = box
    _ffcv_resize(
        0, image.ctypes.data, image.shape[0], image.shape[1],
        top, top + height, left, left + width, whole.ctypes.data, whole.shape[0], whole.shape[1],
    )  # fmt: skip
    if not direct:
        square[y0:y1, x0:x1] = whole[y0 + window[0] : y1 + window[0], x0 + window[1] : x1 + window[1]]
    if flip[0]:
        _mirror(square)
    if flip[1]:
        _mirror(square.transpose(1, 0, 2))


@_compiled
def _mirror(square):
    """Left and right of `[H, W, 3]` change places; value by value, as numba is slow at copying three at a time."""
    side = square.shape[1]
    for y in range(len(square)):
        for x in range(side // 2):
            for c in range(3):
                square[y, x, c], square[y, side - 1 - x, c] = square[y, side - 1 - x, c], square[y, x, c]


@_compiled
def _inside(square, resized, window):
    """Rows y0 to y1 and columns x0 to x1 of the window that lie in the resized box; the rest is made black."""
    side = len(square)
    y0, y1 = max(0, -window[0]), min(side, resized[0] - window[0])
    x0, x1 = max(0, -window[1]), min(side, resized[1] - window[1])
    if y1 - y0 < side or x1 - x0 < side:
        square[:] = 0
    return y0, y1, x0, x1


@_compiled
def _resample(part, resized, window, flip, square):
    """ATen's uint8 resampling of a box, cut to the window, flipped."""
    y0, y1, x0, x1 = _inside(square, resized, window)
    side = len(square)
    if y1 <= y0 or x1 <= x0:
        return
    first, count, weights, precision = _triangles(part.shape[0], resized[0])
    begin = first[y0 + window[0]]
    end = first[y1 - 1 + window[0]] + count[y1 - 1 + window[0]]
    rows = _across(part[begin:end], resized[1], x0 + window[1], x1 + window[1], flip[0])
    to_left = (side - x1 if flip[0] else x0) * 3
    sums = np.empty(rows.shape[1], np.int32)
    for y in range(y0, y1):
        place = y + window[0]
        sums[:] = 1 << (precision - 1)
        for tap in range(count[place]):
            row, weight = rows[first[place] - begin + tap], weights[place, tap]
            for i in range(len(sums)):
                sums[i] += np.int32(row[i]) * weight
        out = square[side - 1 - y if flip[1] else y].reshape(-1)[to_left : to_left + len(sums)]
        for i in range(len(sums)):
            out[i] = min(max(sums[i] >> precision, 0), 255)


@_compiled
def _across(part, resized, x0, x1, mirrored):
    """Places `x0` to `x1` of each row of `part` resized to `resized` pixels, rounded: uint8 `[H, (x1 - x0) * 3]`."""
    first, count, weights, precision = _triangles(part.shape[1], resized)
    rows = np.empty((part.shape[0], (x1 - x0) * 3), np.uint8)
    half = np.int32(1 << (precision - 1))
    for y in range(part.shape[0]):
        for x in range(x0, x1):
            red, green, blue = half, half, half
            for tap in range(count[x]):
                weight, column = weights[x, tap], first[x] + tap
                red += np.int32(part[y, column, 0]) * weight
                green += np.int32(part[y, column, 1]) * weight
                blue += np.int32(part[y, column, 2]) * weight
            to = 3 * (x1 - 1 - x if mirrored else x - x0)
            rows[y, to] = min(max(red >> precision, 0), 255)
            rows[y, to + 1] = min(max(green >> precision, 0), 255)
            rows[y, to + 2] = min(max(blue >> precision, 0), 255)
    return rows


@_compiled
def _triangles(length, resized):
    """How each of `resized` places is made of `length` pixels: first pixel, number of them, weights, their precision.

    The weights are int32 in units of 2 ** -precision. The precision hangs on the largest of all, also of those
    beyond the window.
    """
    scale = length / resized
    support = max(scale, 1.0)
    first, count = np.empty(resized, np.int64), np.empty(resized, np.int64)
    shares = np.zeros((resized, 2 * int(np.ceil(support)) + 1))
    for place in range(resized):
        center = scale * (place + 0.5)
        first[place] = max(int(center - support + 0.5), 0)
        count[place] = min(int(center + support + 0.5), length) - first[place]
        for tap in range(count[place]):
            shares[place, tap] = max(1 - abs((first[place] + tap - center + 0.5) * (1 / support)), 0.0)
        shares[place] /= shares[place].sum()
    largest, precision = shares.max(), 0
    while precision < 22 and int(0.5 + largest * (2 << precision)) < 1 << 15:
        precision += 1
    return first, count, (0.5 + shares * (1 << precision)).astype(np.int32), precision
