"""Atomic writing: files are complete, or as they were before."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loaders import InputError
from loaders.system.files import replacing, write_whole


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
