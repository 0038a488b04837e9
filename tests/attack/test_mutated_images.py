"""Mutated image files: nothing crashes or hangs, and what the index calls good is the same for every backend."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loaders.sources.image_folder import EXTENSIONS
from loaders.sources.index import Verdict, examine
from tests.attack.mutated_images import mutated, valid_images
from tests.attack.runs import times
from tests.attack.warm_process import CHECKOUT

FILES = times(suite=300, full=4000)
FILES_AT_ONCE = 50
SECONDS_PER_STEP = 60.0
"""No one thing that the process does may take longer: the whole batch by one backend, FFCV compiling included."""


class DecodingProcess:
    """The other end of `decoding_process`."""

    def __init__(self, cache: Path) -> None:
        self._errors = (cache / "stderr").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.decoding_process"],
            cwd=CHECKOUT,
            env={**os.environ, "SATURATE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._buffer = b""

    def examine(self, folder: Path, names: list[str], facts: list[Verdict]) -> dict[str, Any]:
        """The process's answer; where it has none, `died` says what it did last, and how it ended."""
        assert self._process.stdin is not None
        request = {"folder": str(folder), "names": names, "facts": facts}
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        doing = "it started"
        while True:
            line = self._line()
            if line is None:
                return {"died": f"{self._end()} when {doing}"}
            answer: dict[str, Any] = json.loads(line)
            if "doing" not in answer:
                return answer
            doing = answer["doing"]

    def _line(self) -> bytes | None:
        """The next line; None where the process has ended, or is silent for too long."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], SECONDS_PER_STEP)[0]:
                return None
            if not (more := os.read(self._process.stdout.fileno(), 1 << 16)):
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"it hung for {SECONDS_PER_STEP:.0f} s"
        self._errors.seek(0)
        return f"it ended with {code} ({self._errors.read()[-2000:]})"

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def test_every_accepted_format_is_mutated() -> None:
    assert {Path(name).suffix for name in valid_images()} == set(EXTENSIONS)


@pytest.mark.parametrize(
    ("number", "report"),
    [(signal.SIGSEGV, "it ended with -11"), (signal.SIGSTOP, "it hung for")],
    ids=["dies", "hangs"],
)
def test_a_process_that_dies_or_hangs_is_reported(
    number: signal.Signals, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.attack.test_mutated_images.SECONDS_PER_STEP", 0.2)
    process = DecodingProcess(tmp_path)
    process.send_signal(number)
    assert report in process.examine(tmp_path, [], [])["died"]
    process.close()


@pytest.mark.timeout(7200)
def test_every_backend_agrees_on_mutated_images(tmp_path: Path) -> None:
    files, folder, cache = valid_images(), tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    cache.mkdir()
    facts = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        facts[name] = examine(folder / name)
        assert not facts[name].reason, f"{name}: {facts[name].reason}"
    names = [*files]
    origins = {name: name for name in files}
    for number in range(FILES):
        name, data = mutated(number, files)
        (folder / name).write_bytes(data)
        names.append(name)
        origins[name] = list(files)[number % len(files)]
    findings: dict[str, list[str]] = {}
    good = 0
    process = DecodingProcess(cache)
    for first in range(0, len(names), FILES_AT_ONCE):
        some = names[first : first + FILES_AT_ONCE]
        answer = process.examine(folder, some, [facts[origins[name]] for name in some])
        if "died" in answer:
            process.close()
            findings |= examine_singly(folder, cache, some, [facts[origins[name]] for name in some], answer["died"])
            process = DecodingProcess(cache)
        findings |= answer.get("findings", {})
        good += answer.get("good", 0)
    process.close()
    print(f"{FILES} mutated files: {good - len(files)} readable")
    assert not findings, f"{len(findings)} files, named by the number that they are mutated by:\n" + "\n".join(
        f"{name}: {'; '.join(found)}" for name, found in sorted(findings.items())
    )
    assert len(files) < good < len(names)


def examine_singly(
    folder: Path, cache: Path, names: list[str], facts: list[Verdict], together: str
) -> dict[str, list[str]]:
    """Findings of files that ended the process, each examined in a process of its own to name it."""
    findings: dict[str, list[str]] = {}
    died = False
    for name, fact in zip(names, facts, strict=True):
        process = DecodingProcess(cache)
        answer = process.examine(folder, [name], [fact])
        process.close()
        if "died" in answer:
            died = True
            findings[name] = [answer["died"]]
        findings |= answer.get("findings", {})
    return findings if died else findings | {f"only together: {', '.join(names)}": [together]}
