"""Damaged indexes, pixel caches, .beton files and checkpoints are built anew or refused in a sentence.

Never a traceback, and never other pixels: a run that ends has the outcome of an undisturbed one.
"""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders.sources.index import _checksum
from tests.attack.runs import FULL, Attack, Run, Setting

Damage = Callable[[Path, random.Random], None]

STREAMED, FFCV = Setting("streamed", "feature"), Setting("ffcv", "feature")


def truncated(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data))])


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def random_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def longer(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(100))


def flipped_header(path: Path, rng: random.Random) -> None:
    """Bits flipped among the first bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[rng.randrange(min(100, len(data)))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flipped_bit(path: Path, rng: random.Random) -> None:
    """One bit, of a byte that is not 0: formats fill up with zeros, which nothing reads."""
    _flip(path, rng, 1)


def flipped_bits(path: Path, rng: random.Random) -> None:
    _flip(path, rng, 200)


def _flip(path: Path, rng: random.Random, count: int) -> None:
    data = bytearray(path.read_bytes())
    for place in rng.choices([place for place, byte in enumerate(data) if byte], k=count):
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def removed(path: Path, _: random.Random) -> None:
    path.unlink()


def deep_json(path: Path, _: random.Random) -> None:
    path.write_text("[" * 100_000)


def other_version(path: Path, _: random.Random) -> None:
    """A manifest or an index as another version would write it."""
    text = path.read_text()
    if path.name == "manifest.json":
        path.write_text(json.dumps(json.loads(text) | {"format": 99, "content": "0" * 16}))
    else:
        path.write_text("0" * 16 + text[text.index("\n") :])


def json_with(**changes: object) -> Damage:
    """Valid JSON of another shape: some values replaced, those that are None left out."""

    def damage(path: Path, _: random.Random) -> None:
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def index_of(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A valid index of another shape, with the right checksum."""

    def damage(path: Path, _: random.Random) -> None:
        body = json.dumps(change(json.loads(path.read_text().partition("\n")[2])))
        path.write_text(f"{_checksum(body)}\n{body}")

    return damage


def checkpoint_with(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A valid checkpoint of another shape."""

    def damage(path: Path, _: random.Random) -> None:
        file = io.BytesIO()
        torch.save(change(torch.load(path, weights_only=True)), file)
        path.write_bytes(file.getvalue())

    return damage


def another_array(path: Path, _: random.Random) -> None:
    np.save(path, np.arange(5.0))


def cases(pattern: str, *damages: Damage, faults: dict[str, str] | None = None, **named: Damage) -> list[Any]:
    """Parameters: each damage to the files that match the pattern. `faults`: what fails today, and why."""
    every = {damage.__name__: damage for damage in damages} | named
    return [
        pytest.param(
            pattern,
            damage,
            id=f"{pattern.rpartition('/')[2]}-{name}",
            marks=[pytest.mark.xfail(strict=False, reason=faults[name])] if faults and name in faults else [],
        )
        for name, damage in every.items()
    ]


ANY_FILE = (truncated, empty, random_bytes, longer, flipped_header, flipped_bit, flipped_bits, removed)
INDEX = cases(
    "index/*.json",
    *ANY_FILE,
    deep_json,
    other_version,
    a_list=index_of(lambda _: [1]),
    short_verdicts=index_of(lambda verdicts: {key: verdict[:3] for key, verdict in verdicts.items()}),
    text_for_numbers=index_of(lambda verdicts: {key: ["x", *verdict[1:]] for key, verdict in verdicts.items()}),
)
MANIFEST = cases(
    "pixels/*/manifest.json",
    *ANY_FILE,
    deep_json,
    other_version,
    no_unreadable=json_with(gone=None),
    unreadable_as_list=json_with(gone=[1]),
    unreadable_beyond_the_end=json_with(gone={"99999": "x"}),
    unreadable_not_numbered=json_with(gone={"x": "x"}),
)  # fmt: skip
PIXELS = cases("pixels/*/pixels.npy", *ANY_FILE, another_array)
ARRAYS = [
    case for name in ("offsets", "sizes", "labels") for case in cases(f"pixels/*/{name}.npy", random_bytes, removed)
]
BETON = cases("ffcv/*.beton", *ANY_FILE, faults={"flipped_bit": "a .beton file has no checksums yet"})


def damaged_run(attack: Attack, setting: Setting, name: str) -> Run:
    """A run that is to begin, with the caches of the undisturbed one."""
    run = Run(attack, setting, attack.folder / f"damaged-{name}")
    shutil.copytree(attack.reference(setting).folder / "cache", run.cache)
    return run


def must_refuse_or_be_the_same(run: Run, code: int) -> None:
    """Fails where a run on damaged files ends in any way but these: a refusal in a sentence, or the usual outcome."""
    assert code in (0, 2), f"exit code {code}\n{run.text}"
    if code == 2:
        run.refusal()
    else:
        assert "Traceback" not in run.text, run.text
        run.must_equal_reference()


def seeds(request: pytest.FixtureRequest) -> list[random.Random]:
    """One in the suite, ten at full size; each test has its own."""
    return [random.Random(f"{request.node.name} {number}") for number in range(10 if FULL else 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("pattern", "damage"), [*INDEX, *MANIFEST, *PIXELS, *ARRAYS])
def test_a_damaged_cache_is_built_anew_or_refused(
    attack: Attack, pattern: str, damage: Damage, request: pytest.FixtureRequest
) -> None:
    damage_and_run(attack, STREAMED, pattern, damage, request)


@pytest.mark.needs_ffcv
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("pattern", "damage"), BETON)
def test_a_damaged_beton_file_is_written_anew_or_refused(
    attack: Attack, pattern: str, damage: Damage, request: pytest.FixtureRequest
) -> None:
    damage_and_run(attack, FFCV, pattern, damage, request)


def damage_and_run(
    attack: Attack, setting: Setting, pattern: str, damage: Damage, request: pytest.FixtureRequest
) -> None:
    for rng in seeds(request):
        run = damaged_run(attack, setting, "cache")
        paths = sorted(run.cache.glob(pattern))
        assert paths, f"no {pattern} in {run.cache}"
        for path in paths:
            damage(path, rng)
        must_refuse_or_be_the_same(run, run.go_on())


PROGRESS = {
    "no images done": {"done": None},
    "more images done than there are": {"done": 10**9},
    "images done as text": {"done": "x"},
    "unreadable as list": {"gone": [1]},
    "no unreadable": {"gone": None},
}


@pytest.mark.parametrize(
    "name",
    [
        *PROGRESS,
    ],
)
def test_damaged_progress_of_a_cache_is_built_anew_or_refused(attack: Attack, name: str) -> None:
    run = damaged_run(attack, STREAMED, "progress")
    for manifest in sorted(run.cache.glob("pixels/*/manifest.json")):
        content = json.loads(manifest.read_text())
        progress = {"content": content["content"], "root": content["root"], "images": content["images"], "done": 0}
        changed = progress | {"gone": {}} | PROGRESS[name]
        text = json.dumps({key: value for key, value in changed.items() if value is not None})
        manifest.with_name("progress.json").write_text(text)
        manifest.unlink()
    must_refuse_or_be_the_same(run, run.go_on())


@pytest.mark.parametrize(
    "damage",
    [truncated, empty, random_bytes, deep_json],
    ids=lambda damage: damage.__name__,
)
def test_progress_of_random_content_is_no_progress(attack: Attack, damage: Damage) -> None:
    run = damaged_run(attack, STREAMED, "progress")
    for manifest in sorted(run.cache.glob("pixels/*/manifest.json")):
        progress = manifest.rename(manifest.with_name("progress.json"))
        damage(progress, random.Random(1))
    must_refuse_or_be_the_same(run, run.go_on())


CHECKPOINT = cases(
    "last.pt",
    truncated,
    empty,
    random_bytes,
    flipped_header,
    flipped_bit,
    flipped_bits,
    deep_json,
    a_list=checkpoint_with(lambda _: [1]),
    nothing=checkpoint_with(lambda _: {}),
    no_learner=checkpoint_with(lambda content: content | {"learner": {}}),
    no_loader=checkpoint_with(lambda content: {key: value for key, value in content.items() if key != "loader"}),
    rows_as_text=checkpoint_with(lambda content: content | {"rows": "x"}),
    identity_as_list=checkpoint_with(lambda content: content | {"identity": [1]}),
    other_data=checkpoint_with(lambda content: content | {"identity": content["identity"] | {"steps": 1}}),
)


@pytest.mark.parametrize(("name", "damage"), CHECKPOINT)
def test_a_damaged_checkpoint_is_refused(
    attack: Attack, name: str, damage: Damage, request: pytest.FixtureRequest
) -> None:
    for rng in seeds(request):
        run = damaged_run(attack, STREAMED, "checkpoint")
        shutil.copytree(attack.reference(STREAMED).folder / "out", run.out)
        for result in ("model.safetensors", "summary.json"):  # the run is written as far as the last epoch
            (run.out / result).unlink()
        damage(run.out / name, rng)
        must_refuse_or_be_the_same(run, run.go_on())


def test_a_run_with_undamaged_files_is_the_same(attack: Attack) -> None:
    run = damaged_run(attack, STREAMED, "nothing")
    shutil.copytree(attack.reference(STREAMED).folder / "out", run.out)
    run.must_end(run.go_on())
    run.must_equal_reference()
