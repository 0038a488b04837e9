"""What was measured, for people and for programs."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """A line per row, a block per group, fastest last."""
    widest = max(len(row["name"]) for row in rows)
    lines = [f"{'':{widest}}  images/s      (from     to)  × baseline  CPU s/1000"]
    by_group = sorted(rows, key=lambda row: (row["group"], row["images_per_second"]))
    for group, members in groupby(by_group, key=lambda row: str(row["group"])):
        lines += ["", group]
        lines += [
            f"{row['name']:{widest}}  {row['images_per_second']:8,.0f}  ({row['low']:7,.0f} {row['high']:7,.0f})"
            f"  {row['times_baseline']:8.2f} ×  {row['cpu_seconds_per_1000']:10.2f}{'  noisy' if row['noisy'] else ''}"
            for row in members
        ]
    return "\n".join(lines)


def write(report: dict[str, Any], folder: Path) -> Path:
    """`bench.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "bench.json"
    file.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return file
