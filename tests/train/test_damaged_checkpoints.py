"""Checkpoints that load and hold something else: they are refused with a sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loaders import InputError
from train.console import Reporter
from train.options import Options
from train.prepare import prepare
from train.process_group import ProcessGroup
from train.session import Session
from train.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("small_runs")

WRONG: list[Any] = [[], "", None, 1, {}, float("nan"), 10**30, [[1]], {"x": None}, torch.zeros(3)]


def wrong_checkpoints(saved: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What is no checkpoint, and a checkpoint of which each value is missing or wrong, two levels deep."""
    yield from (("all", wrong) for wrong in WRONG)
    for key, value in saved.items():
        yield key, {name: other for name, other in saved.items() if name != key}
        yield from ((key, saved | {key: wrong}) for wrong in WRONG)
        for inner in list(value)[:4] if isinstance(value, dict) else ():
            yield f"{key} {inner}", saved | {key: {name: other for name, other in value.items() if name != inner}}
            yield from ((f"{key} {inner}", saved | {key: value | {inner: wrong}}) for wrong in WRONG[::2])
    rows = saved["rows"]
    for name in rows[0]:
        yield from ((f"rows {name}", saved | {"rows": [rows[0] | {name: wrong}]}) for wrong in ("", None, []))


def a_session(data: Path, out: Path) -> Session:
    options = Options(
        mode="finetune",
        data=str(data),
        out=out,
        weights="none",
        size=32,
        batch_size=4,
        precision="fp32",
        epochs=2,
        device="cpu",
    )
    return prepare(options, ProcessGroup(), Reporter(quiet=True), StopRequest(None))


def test_a_checkpoint_of_another_shape_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with a_session(image_folder, tmp_path / "out") as session:
        checkpoints, state = session.checkpoints, session.state
        assert checkpoints.folder is not None
        row = dict.fromkeys(
            ("train_loss", "train_top1", "seconds", "images_per_second", "data_wait", "learning_rate"), 0.5
        )
        state.rows.append({"epoch": 1, **row, "val_loss": float("nan"), "val_top1": 0.5, "val_seen": 10})
        session.train_loader.set_epoch(1)
        checkpoints.record_epoch(ends=True)
        saved = torch.load(checkpoints.folder.path / "last.pt", weights_only=True)
        checkpoints.resume(checkpoints.folder)
        accepted = set[str]()
        for name, wrong in wrong_checkpoints(saved):
            torch.save(wrong, checkpoints.folder.path / "last.pt")
            try:
                checkpoints.resume(checkpoints.folder)
            except InputError as error:
                if not re.search("last.pt is damaged|trained otherwise|another run|no position", str(error)):
                    raise
            else:
                accepted.add(name)
                state.rows = []
    assert accepted.isdisjoint(
        ["all", "learner", "loader", *(f"rows {name}" for name in saved["rows"][0])]
    )  # one value may fit


def test_without_space_for_the_checkpoints_nothing_is_begun(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk was noticed when the first epoch was over."""
    monkeypatch.setattr("train.run_folder.free_on_disk", lambda _: 1000)
    with pytest.raises(InputError, match=r"OUT: .*the checkpoints take [\d.]+ MB, 1 kB are free; choose another OUT"):
        a_session(image_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_space_for_checkpoints_is_about_what_they_take(image_folder: Path, tmp_path: Path) -> None:
    with a_session(image_folder, tmp_path / "out") as session:
        session.checkpoints.save()
        last = (tmp_path / "out" / "last.pt").stat().st_size
        assert last < session.learner.checkpoint_bytes < 6 * last
