"""Atomic writing: files are complete, or as they were before."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders import InputError
from loaders.system.files import preserve, replacing, write_whole
from tests.power_cut import power_cuts


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("durable", [False, True])
def test_a_file_changes_at_the_end_of_the_block_and_not_where_that_fails(
    tmp_path: Path, shared: bool, durable: bool
) -> None:
    file = tmp_path / "file.txt"
    for content in ("first", "second"):
        with replacing(file, shared=shared, durable=durable) as part:
            part.write_text(content)
            assert part.parent == tmp_path
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == content

    def interrupted() -> None:
        with replacing(file, shared=shared, durable=durable) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "second"
    assert list(tmp_path.iterdir()) == [file]


def disk_is_full(_: Path) -> None:
    raise OSError(28, "No space left on device")


def disk_is_full_in_torch(part: Path) -> None:
    try:
        disk_is_full(part)
    except OSError:
        raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch.save does it


@pytest.mark.parametrize("write", [disk_is_full, disk_is_full_in_torch])
def test_the_error_says_why_a_file_cannot_be_written(tmp_path: Path, write: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}/new/file cannot be written: No space left on device$"):
        write_whole(tmp_path / "new" / "file", write)


def test_a_file_written_whole_survives_a_power_cut_at_every_step(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    file = root / "new" / "folder" / "file"
    for before in (None, "first"):
        if before is not None:
            write_whole(file, lambda part: part.write_text("first"))
        found = set()
        for cut in power_cuts(root):
            with cut:
                write_whole(file, lambda part: part.write_text("second"))
            found.add(file.read_text() if file.exists() else None)
            assert cut.happened or file.read_text() == "second"
        assert found == {before, "second"}


def test_a_file_stays_under_another_name_until_it_is_replaced_twice(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    file, previous = root / "file", root / "previous"
    preserve(file, previous)  # there is none yet
    assert not previous.exists()
    for content in ("first", "second"):
        for _ in range(2):  # the first one may have been interrupted afterwards
            preserve(file, previous)
        write_whole(file, lambda part, content=content: part.write_text(content))  # type: ignore[misc]
    assert (file.read_text(), previous.read_text()) == ("second", "first")
    assert {path.name for path in root.iterdir()} == {"file", "previous"}
    for cut in power_cuts(root):
        with cut:
            preserve(file, previous)
            write_whole(file, lambda part: part.write_text("third"))
        found = file.read_text(), previous.read_text()
        assert found in {("second", "first"), ("second", "second"), ("third", "second")}
        assert cut.happened or found == ("third", "second")


def test_where_there_are_no_hard_links_a_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "file").write_text("first")
    preserve(tmp_path / "file", tmp_path / "previous")
    assert (tmp_path / "previous").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["previous"]
