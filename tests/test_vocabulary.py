"""Identifiers use the field's words: those that the glossary replaced do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    "arm": "candidate",
    "gone": "unreadable",
    "kept": "cached",
    "lost": "skipped",
    "making": "pending",
    "moving": "in flight",
    "pace": "rate",
    "riddance": "cleanup",
    "score": "metrics",
    "situation": "estimate",
    "slot": "staging buffer",
    "tally": "accumulator",
    "told": "formatted, described",
    "wanted": "expected, requested",
    "watching": "poller",
    "world": "process group",
}
ALLOWED = {"world_size"}
"""torch's own name, which people know."""

FILES = sorted(path for package in ("loaders", "train", "benchmarks") for path in (ROOT / package).rglob("*.py"))


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that the code defines or assigns, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def words(identifier: str) -> list[str]:
    """The words of a name in snake case or camel case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def test_names_are_split_into_words() -> None:
    assert words("_format_bytes") == ["format", "bytes"]
    assert words("PendingBatch") == ["pending", "batch"]
    assert words("FFCVExecutor") == ["ffcv", "executor"]
    assert words("MAX_BAD_SHARE") == ["max", "bad", "share"]


def retired_names(tree: ast.AST) -> dict[str, int]:
    """The identifiers that have a retired word, and their lines."""
    return {
        name: line
        for name, line in identifiers(tree)
        if name.strip("_") not in ALLOWED and RETIRED.keys() & set(words(name))
    }


def test_a_retired_word_is_found_wherever_a_name_is_defined() -> None:
    program = """
class ScoreBoard:
    def told_bytes(self, arm):
        kept = self.lost = charm = self._world_size = 1
"""
    assert retired_names(ast.parse(program)) == {"ScoreBoard": 2, "told_bytes": 3, "arm": 3, "kept": 4, "lost": 4}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_use_the_glossary(path: Path) -> None:
    for name, line in retired_names(ast.parse(path.read_text())).items():
        better = ", ".join(RETIRED[word] for word in words(name) if word in RETIRED)
        pytest.fail(f"{path.relative_to(ROOT)}:{line}: {name}: say {better}")


def test_there_is_code_to_look_at() -> None:
    assert len(FILES) > 80
