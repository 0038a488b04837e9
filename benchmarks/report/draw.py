"""`report.html` and `bench.png`, drawn from a result."""

from pathlib import Path

from benchmarks.harness.result import Result
from benchmarks.report.chart import chart
from benchmarks.report.page import page
from loaders.system.files import write_whole

REPORT, CHART = "report.html", "bench.png"


def draw(result: Result, folder: Path) -> None:
    """Writes page and chart to `folder`; a result without rows has no chart."""
    write_whole(folder / REPORT, lambda part: part.write_text(page(result)))
    if result.rows:
        write_whole(folder / CHART, lambda part: chart(result).savefig(part, format="png", dpi=144))
