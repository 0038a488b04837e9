"""Messages: fields of the Python API, and the options that programs have in their place."""

import pytest

from loaders.errors import BadImage, BadImageError, InputError, cause, listed, name_options, named, printable

OPTIONS = {"batch_size": "--batch-size", "on_bad_image": "--on-bad-image", "data": "DATA", "loader": "LOADER"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`data`: there is no folder", "DATA: there is no folder"),
        ("`batch_size=0`: expected 1 or more", "--batch-size 0: expected 1 or more"),
        ('leave them out by `on_bad_image="skip"`.', "leave them out by --on-bad-image skip."),
        ('`loader="resident"`: choose `loader="streamed"`', "LOADER=resident: choose LOADER=streamed"),
        ('held out by `data="/a b/train"`', "held out by DATA=/a b/train"),
        ("""held out by `data="/a 'b' "c"/train"`""", """held out by DATA=/a 'b' "c"/train"""),
        ("the `timeout` of `rank=3`, not data", "the `timeout` of `rank=3`, not data"),
        ("pip install `some-package`", "pip install `some-package`"),
    ],
)
def test_fields_become_options_and_all_else_stays(message: str, expected: str) -> None:
    assert name_options(message, OPTIONS) == expected


def test_without_options_a_message_stays_as_it_is() -> None:
    message = 'choose `loader="streamed"`'
    assert name_options(message, {}) == message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory", "/photos/1.jpg"), "No such file or directory"),
        (ValueError("it is no regular file"), "it is no regular file"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_cause_is_what_the_error_says_without_the_files_name(error: Exception, expected: str) -> None:
    assert cause(error) == expected


@pytest.mark.parametrize(
    ("total", "last_line", "last_name"),
    [
        (100, "  99.jpg: truncated", "99"),
        (101, "  and 1 more", "and 1 more"),
        (1600, "  and 1500 more", "and 1,500 more"),
    ],
)
def test_a_message_names_the_first_hundred_and_counts_the_rest(total: int, last_line: str, last_name: str) -> None:
    lines = listed([BadImage(f"{number}.jpg", "truncated") for number in range(total)])
    names = named(str(number) for number in range(total)).split(", ")
    assert lines[:100] == [f"  {number}.jpg: truncated" for number in range(100)]
    assert names[:100] == [str(number) for number in range(100)]
    assert (len(lines), len(names)) == (min(total, 101), min(total, 101))
    assert (lines[-1], names[-1]) == (last_line, last_name)


def test_the_error_of_bad_images_names_them_and_the_remedy() -> None:
    bad = [BadImage("a.jpg", "truncated"), BadImage("b.jpg", "it is no regular file")]
    error = BadImageError(bad, 34, "Repair or remove them.")
    assert str(error) == (
        "2 of 34 images cannot be decoded:\n  a.jpg: truncated\n  b.jpg: it is no regular file\nRepair or remove them."
    )
    assert error.bad == bad


def test_an_error_without_lines_says_nothing() -> None:
    assert (InputError().lines, str(InputError())) == ((), "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b]0;pwned\x07.jpg", "a\\x1b]0;pwned\\x07.jpg"),
        ("b\nerror: forged", "b\\nerror: forged"),
        ("\r\t\x00\x7f", "\\r\\t\\x00\\x7f"),
        ("c\u202egpj.exe", "c\\u202egpj.exe"),
        ("\u2066\u2069\u200f\u061c\u2028", "\\u2066\\u2069\\u200f\\u061c\\u2028"),
        ("\x85\x9b31m", "\\x85\\x9b31m"),
        ("caf\udce9", "caf\\udce9"),
        ("Bäume, 木, 🌲, \\x1b", "Bäume, 木, 🌲, \\x1b"),
    ],
)
def test_what_a_terminal_would_carry_out_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
