"""The header of a JPEG file, read without decoding it (ITU-T T.81, annex B)."""

from typing import NamedTuple

# Markers, after 0xFF: table B.1.
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # coded by Huffman: SOF0, SOF1
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOFn
_SCAN = 0xDA  # SOS
_OTHERS_BEFORE = frozenset({0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})  # DHT, DAC, DQT, DRI, APPn, COM


class Frame(NamedTuple):
    """What the frame header of a JPEG says."""

    at: int
    """The place of its marker in the file."""
    is_sequential: bool
    """Whether the image is coded by Huffman and not progressively."""
    height: int
    width: int


def find_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG; None where its header has anything but one segment after the other.

    A decoder skips what lies between segments. Where this function returns a frame, every decoder finds the same one.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    frame, at, last = None, 2, len(data) - 10
    while at < last and data[at] == 0xFF:  # a segment: marker, length (its own two bytes too), content
        marker = data[at + 1]
        if marker == _SCAN:
            return frame
        if marker in _FRAMES:
            if frame is not None:
                return None
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            frame = Frame(at, marker in _SEQUENTIAL_FRAMES, height, width)
        elif marker not in _OTHERS_BEFORE:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None
