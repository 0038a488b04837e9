"""A result as a page."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from benchmarks.harness.result_json import from_json
from benchmarks.report.chart import chart
from benchmarks.report.page import page
from benchmarks.report.terminal import sentences, table
from loaders.errors import printable
from loaders.system.console import open_console, print_lines

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


def test_no_text_of_a_result_becomes_markup_or_controls_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b]0;pwned\x07\n\u202e"
    shown = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\\x1b]0;pwned\\x07\\n\\u202e"
    hostile = result(
        row(evil, 1, group=evil, noisy=True, saturation=0.5),
        theme=evil,
        environment={
            "commit": evil, "processor": evil, "usable_cores": 2, "gpus": [evil],
            "versions": {"torch": evil, evil: evil},
        },
        options={"mode": evil, "data": evil, evil: evil},
        diagnosis={"sentence": evil},
        stages=[{"stage": evil, "where": evil, "seconds": 1.0, "microseconds_per_image": 1.0}],
        timeline=[{"stage": evil, "thread": evil, "begin": 0.0, "end": 1.0}],
        notes=[evil],
        nsys=evil,
        trace=evil,
    )  # fmt: skip
    text = page(from_json(hostile))
    parsed = Balanced()
    parsed.feed(text)
    assert not parsed.open
    assert not parsed.links
    assert "<script" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert parsed.text.count(shown) > 10
    print_lines(open_console(), *table(from_json(hostile).rows), *sentences(from_json(hostile)))
    lines = capsys.readouterr().out.splitlines()
    assert [shown in line for line in lines] == [False, False, True, True, True, True]


@pytest.mark.parametrize("name", ["$x_{", "$\\frac{1}{", "a$b$c", "x\x1b[31m\n"])
def test_a_chart_shows_any_name(name: str) -> None:
    figure = chart(from_json(result(row(name, 1, group=name, saturation=0.5))))
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [printable(name)]
    assert figure.axes[0].get_title(loc="left") == f"{printable(name)}: images/s"


def test_a_result_without_rows_has_a_page_too() -> None:
    parsed = Balanced()
    parsed.feed(page(from_json(result())))
    assert not parsed.open
