"""The markers of a JPEG file, read without decoding it (ITU-T T.81, annex B)."""

import re
from typing import NamedTuple

MOST_SCANS = 500
"""The largest allowed number of scans, in which a JPEG transmits its image. Real ones have 1 or about 10.

Each scan may cost a pass over the whole image, in a few bytes. libjpeg-turbo's own fuzzers stop at 500, too.
"""

HARMLESS = 10**11
"""Bytes of the file × pixels below which scans are not counted: as many as there can be take about a second."""

_FEW_PIXELS = 100_000  # of which a pass costs no less: each scan has costs of its own

# Markers, after 0xFF: table B.1.
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # coded by Huffman: SOF0, SOF1
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOFn
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA  # SOI, EOI, SOS
_OTHERS_BEFORE = frozenset({0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})  # DHT, DAC, DQT, DRI, APPn, COM
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # without RSTn, which stand in the data of a scan


class Frame(NamedTuple):
    """What the headers of a JPEG's frame and first scan say."""

    at: int
    """The place of the frame's marker in the file."""
    is_sequential: bool
    """Whether the image is coded by Huffman and not progressively."""
    has_several_scans: bool
    height: int
    width: int


def find_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG; None where its header has anything but one segment after the other.

    A decoder skips what lies between segments. Where this function returns a frame, every decoder finds the same one.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    frame, at, last = 0, 2, len(data) - 10
    while at < last and data[at] == 0xFF:  # a segment: marker, length (its own two bytes too), content
        marker = data[at + 1]
        if marker == _SCAN:
            return _frame(data, frame, at) if frame else None
        if marker in _FRAMES:
            if frame:
                return None
            frame = at
        elif marker not in _OTHERS_BEFORE:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _frame(data: bytes, at: int, scan: int) -> Frame:
    """The frame at a place, by its first scan at another; the scan holds all components unless there are several."""
    is_sequential = data[at + 1] in _SEQUENTIAL_FRAMES
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    return Frame(at, is_sequential, not is_sequential or data[scan + 4] < data[at + 9], height, width)


def require_few_scans(data: bytes, frame: Frame | None) -> None:
    """Raises ValueError where a JPEG has so many scans that decoding it would take long.

    Args:
        data: the file.
        frame: what `find_frame` finds in it.
    """
    if frame is not None and (
        not frame.has_several_scans or len(data) * max(frame.height * frame.width, _FEW_PIXELS) < HARMLESS
    ):
        return
    if data.count(b"\xff\xda") > MOST_SCANS and (scans := count_scans(data)) > MOST_SCANS:
        raise ValueError(f"its {scans:,} scans are more than {MOST_SCANS:,}: save it anew")


def count_scans(data: bytes) -> int:
    """The number of scans of a JPEG; what looks like one in metadata or behind the image does not count."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None:
        at, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            break
        scans += marker == _SCAN
        at += 2 if marker == _START else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans
