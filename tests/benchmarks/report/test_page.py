"""A result as a page."""

import re
from html.parser import HTMLParser
from typing import Any

from benchmarks.harness.result_json import from_json
from benchmarks.report.page import page

HARMLESS = {"meta", "br", "rect", "line"}


def row(name: str, rate: float, spread: float = 0.0, **more: Any) -> dict[str, Any]:
    low, high = rate * (1 - spread), rate * (1 + spread)
    windows = {"windows": [low, rate, high]}
    return {"group": "g", "name": name, "images_per_second": rate, "low": low, "high": high} | windows | more


def result(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    environment = {"commit": "0123456789abcdef", "processor": "a CPU", "usable_cores": 2, "gpus": []}
    options = {"data": "<b>sample</b>"}
    return {"theme": "loaders", "environment": environment, "options": options, "rows": list(rows), **more}


FULL = result(
    row("fast & <new>", 200, 0.3, noisy=True, saturation=0.98, times_baseline=2.0),
    row("slow", 100, 0.02, times_baseline=1.0),
    diagnosis={"sentence": "decoding limits: <all> cores busy."},
    stages=[{"stage": "decode", "where": "other threads", "seconds": 1.0, "microseconds_per_image": 812.0}],
    timeline=[
        {"stage": "wait", "thread": "step", "begin": 0.0, "end": 0.01},
        {"stage": "decode", "thread": "thread 1", "begin": 0.002, "end": 0.008},
    ],
)


class Balanced(HTMLParser):
    """Notes text, and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in HARMLESS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in HARMLESS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_and_says_it_all() -> None:
    text = page(from_json(FULL))
    parsed = Balanced()
    parsed.feed(text)
    assert not parsed.open
    assert not parsed.links
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for shown in ("fast & <new>", "<b>sample</b>", "decoding limits: <all> cores busy.", "98.0 %", "(noisy)", "812 µs"):
        assert shown in parsed.text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert text.count("<rect") == 2


def test_a_result_without_rows_has_a_page_too() -> None:
    parsed = Balanced()
    parsed.feed(page(from_json(result())))
    assert not parsed.open
