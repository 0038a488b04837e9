"""The Makefile: how it passes its variables on, which interpreter it chooses, and what it reports when none is fit."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")

ROOT = Path(__file__).parent.parent

FAKE_PYTHON = """#!{real} -I
# An interpreter that claims to be of another version, and logs what pip is asked to install.
import sys
from pathlib import Path

version, missing = {version!r}, {missing!r}
arguments = sys.argv[1:]
sys.version_info = (*version, 0)
sys.modules.update(dict.fromkeys(missing))
if arguments[0] == "-c":
    exec(arguments[1])
elif arguments[0] == "--version":
    print("Python {{}}.{{}}.0".format(*version))
elif arguments[:2] == ["-m", "venv"]:
    python = Path(arguments[-1], "bin", "python")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(Path(__file__).read_text())
    python.chmod(0o755)
elif arguments[:2] == ["-m", "pip"]:
    with Path("installed").open("a") as log:
        print(*version, *arguments[2:], file=log)
    print("error: command 'g++' failed", file=sys.stderr)
    sys.exit({pip_status})
"""


PRINTING_PYTHON = """#!{real} -I
# An interpreter that runs what follows `-c`, and prints the arguments of all else.
import json
import sys

if sys.argv[1] == "-c":
    code = sys.argv[2]
    sys.argv[:] = ["-c", *sys.argv[3:]]
    exec(code)
else:
    print(json.dumps(sys.argv[1:]))
"""

HOSTILE = [
    "x; touch pwned",
    "x && touch pwned #",
    "$(touch pwned)",
    "$(shell touch pwned)",
    "$(error pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "$HOME",
    "${HOME}",
    "$$",
    "a$b",
    "a$",
    "Ann's own/photos",
    'the "best" ones',
    "two  spaces ",
    "a,b(c)",
    "a#b",
    "a%b=c:=d",
    "back\\slash\\",
    "line\nbreak",
    "x\ntouch pwned\n",
    "-rf",
    "*",
    "~",
    "ж\u202e",
    "bell\x07\x1b]0;x",
]
"""Values that a shell or make would read as more than text. (Make strips white space at their beginning.)"""


def dry_run(*given: str) -> subprocess.CompletedProcess[str]:
    """Runs `make` so that it prints its commands and carries none out."""
    return subprocess.run(
        ["make", "--dry-run", "PYTHON=python3", *given],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip


class Shop:
    """A folder with this Makefile and an interpreter that prints its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        self.python = self.add_python("python")

    def add_python(self, name: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(PRINTING_PYTHON.format(real=sys.executable))
        file.chmod(0o755)
        return file

    def make(self, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "--silent", *given],
            cwd=self.folder, env={"PATH": os.environ["PATH"], "HOME": "/home/nobody", **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def arguments(self, *given: str, **environment: str) -> list[str]:
        """What the interpreter was called with. Nothing else may have run."""
        before = set(self.folder.iterdir())
        made = self.make(*given, **({"PYTHON": str(self.python)} | environment))
        assert made.returncode == 0, made.stderr
        assert set(self.folder.iterdir()) == before
        arguments: list[str] = json.loads(made.stdout)
        return arguments


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("value", HOSTILE)
def test_any_text_arrives_as_it_is(shop: Shop, value: str) -> None:
    expected = ["-m", "train", "finetune", "--data", value, "--root", value, "--loader", "auto"]
    expected += ["--weights", value, "--out", value]
    names = ("DATA", "ROOT", "WEIGHTS", "OUT")
    given = [f"{name}={value}" for name in names]
    assert shop.arguments("train", *given) == expected
    assert shop.arguments("train", **dict.fromkeys(names, value)) == expected


@pytest.mark.parametrize("value", HOSTILE)
def test_any_text_arrives_at_the_other_programs(shop: Shop, value: str) -> None:
    data = ["--data", value, "--root", value]
    given = (f"DATA={value}", f"ROOT={value}", f"OUT={value}")
    assert shop.arguments("bench", *given) == ["-m", "benchmarks", "loaders", *data, "--out", value]
    assert shop.arguments("profile", *given) == [
        *("-m", "benchmarks", "profile", "finetune"), *data, "--loader", "auto", "--out", value
    ]  # fmt: skip
    assert shop.arguments("gpu-check", *given) == ["-m", "benchmarks", "gpu-check", "--root", value, "--out", value]


@pytest.mark.parametrize("value", HOSTILE)
def test_an_interpreter_may_have_any_name(shop: Shop, value: str) -> None:
    if "/" in value:
        shop.folder.joinpath(value).parent.mkdir()
    python = f"./{value}"
    shop.add_python(python)
    assert shop.arguments("readme-tables", f"PYTHON={python}") == ["-m", "benchmarks", "readme-tables"]
    assert shop.arguments("readme-tables", "ARGS=a 'b c'", PYTHON=python)[-2:] == ["a", "b c"]


@pytest.mark.parametrize("value", HOSTILE)
def test_what_is_quoted_in_args_is_one_word(shop: Shop, value: str) -> None:
    assert shop.arguments("train", f"ARGS=--more {shlex.quote(value)}  last")[-3:] == ["--more", value, "last"]


@pytest.mark.parametrize("target", ["train", "bench", "profile", "gpu-check", "readme-tables", "test"])
def test_every_program_receives_the_words_of_args(shop: Shop, target: str) -> None:
    assert shop.arguments(target, "ARGS=--more 'a b'")[-2:] == ["--more", "a b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lr 0.1; touch pwned", ["--lr", "0.1;", "touch", "pwned"]),
        ("$(touch pwned) `touch pwned`", ["$(touch", "pwned)", "`touch", "pwned`"]),
        ("$(shell touch pwned) $HOME", ["$(shell", "touch", "pwned)", "$HOME"]),
        ("> pwned | tee pwned & ~ *", [">", "pwned", "|", "tee", "pwned", "&", "~", "*"]),
        ("a\\ b\n--c=\"d 'e'\" f#g", ["a b", "--c=d 'e'", "f#g"]),
    ],
)
def test_nothing_in_args_is_expanded_or_run(shop: Shop, words: str, expected: list[str]) -> None:
    assert shop.arguments("test", f"ARGS={words}") == ["-m", "pytest", *expected]
    assert shop.arguments("test", ARGS=words) == ["-m", "pytest", *expected]


def test_args_with_an_open_quote_are_refused_in_one_sentence(shop: Shop) -> None:
    made = shop.make("train", "ARGS=--out it's", PYTHON=str(shop.python))
    assert made.returncode == 2
    assert made.stderr.splitlines()[0] == "ARGS: its words are not quoted as in a shell: No closing quotation"


@pytest.mark.parametrize("name", ["MODE", "LOADER"])
@pytest.mark.parametrize("value", [*(value for value in HOSTILE if value != "-rf"), "", "a.b", "a b"])
def test_what_is_no_name_is_refused_before_anything_runs(shop: Shop, name: str, value: str) -> None:
    for target in ("train", "profile"):
        for given, environment in (((f"{name}={value}",), {}), ((), {name: value})):
            made = shop.make(target, *given, PYTHON=str(shop.python), **environment)
            assert made.returncode == 2
            assert f"{name}: expected a name of letters, digits, - and _" in made.stderr
            assert not made.stdout
    assert not (shop.folder / "pwned").exists()


@pytest.mark.parametrize("value", [*HOSTILE, "", "0", "08", "two", "2x", "-1", "1 2", "1.5"])
def test_a_number_of_gpus_that_is_none_is_refused_before_anything_runs(shop: Shop, value: str) -> None:
    for given, environment in (((f"NGPU={value}",), {}), ((), {"NGPU": value})):
        made = shop.make("train", *given, PYTHON=str(shop.python), **environment)
        assert made.returncode == 2
        assert "NGPU: expected a number of GPUs, 1 or more" in made.stderr
        assert not made.stdout
    assert not (shop.folder / "pwned").exists()


def test_a_name_of_another_programs_variable_does_not_concern_other_targets(shop: Shop) -> None:
    assert shop.arguments("test", LOADER="/sbin/loader", MODE="", NGPU="all") == ["-m", "pytest"]


def test_the_environment_counts_and_the_command_line_more(shop: Shop) -> None:
    names = {"MODE": "feature", "LOADER": "my_loader-2", "NGPU": "12", "DATA": "photos", "ARGS": "--lr 1"}
    expected = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=12", "-m", "train"]
    expected += ["feature", "--data", "photos", "--root", "data", "--loader", "my_loader-2", "--weights", "imagenet"]
    assert shop.arguments("train", **names) == [*expected, "--lr", "1"]
    given = [f"{name}={value}" for name, value in names.items()]
    assert shop.arguments("train", *given, **dict.fromkeys(names, "other")) == [*expected, "--lr", "1"]


@pytest.mark.parametrize("value", HOSTILE)
def test_help_shows_any_value_and_runs_none(shop: Shop, value: str) -> None:
    made = shop.make(*(f"{name}={value}" for name in ("MODE", "DATA", "ROOT", "LOADER", "WEIGHTS", "NGPU", "OUT")))
    assert made.returncode == 0
    assert f"MODE={value} DATA={value} ROOT={value}" in made.stdout
    assert not (shop.folder / "pwned").exists()


def test_more_than_one_gpu_starts_torchrun() -> None:
    assert "--nproc-per-node=12 -m train" in dry_run("train", "NGPU=12").stdout
    assert "torch.distributed" not in dry_run("train").stdout


def test_a_gpu_check_can_tell_how_the_gpu_was_doing() -> None:
    assert "nvml" in dry_run("--always-make", ".venv/ready-dev").stdout


# --- the choice of an interpreter ----------------------------------------------------------------------


class Checkout:
    """A folder with this Makefile, and a PATH on which only the given programs are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name in ("cat", "expr", "mktemp", "rm", "sh", "touch"):
            program = shutil.which(name)
            assert program is not None
            (self.programs / name).symlink_to(program)

    def add_program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def add_python(
        self, name: str, version: tuple[int, int], *, missing: tuple[str, ...] = (), pip_status: int = 0
    ) -> None:
        self.add_program(
            name, FAKE_PYTHON.format(real=sys.executable, version=version, missing=missing, pip_status=pip_status)
        )

    def make(self, *given: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which("make")
        assert program is not None
        return subprocess.run(
            [program, *given], cwd=self.folder, env={"PATH": str(self.programs), "TMPDIR": str(self.folder)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def installed(self) -> str:
        """What pip was asked for: version of the interpreter, then pip's arguments."""
        return (self.folder / "installed").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([(3, 11)], (3, 11)),
        ([(3, 11), (3, 12)], (3, 12)),
        ([(3, 11), (3, 13)], (3, 13)),
        ([(3, 11), (3, 12), (3, 13), (3, 14)], (3, 14)),
        ([(3, 10), (3, 12), (3, 15)], (3, 12)),
    ],
)
def test_the_newest_supported_interpreter_is_chosen(
    checkout: Checkout, there: list[tuple[int, int]], chosen: tuple[int, int]
) -> None:
    for version in there:
        checkout.add_python("python{}.{}".format(*version), version)
    made = checkout.make("setup")
    assert made.returncode == 0, made.stderr
    assert "building .venv with Python {}.{}.0".format(*chosen) in made.stdout
    assert checkout.installed.startswith("{} {} install".format(*chosen))


def test_an_interpreter_that_is_only_called_python3_is_found(checkout: Checkout) -> None:
    checkout.add_python("python3", (3, 13))
    made = checkout.make("setup")
    assert "building .venv with Python 3.13.0" in made.stdout


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_an_interpreter_that_cannot_build_environments_is_passed_over(checkout: Checkout, module: str) -> None:
    checkout.add_python("python3.14", (3, 14), missing=(module,))
    checkout.add_python("python3.12", (3, 12))
    assert "building .venv with Python 3.12.0" in checkout.make("setup").stdout


def test_a_command_of_that_name_that_does_not_run_is_passed_over(checkout: Checkout) -> None:
    """As the shims of pyenv do for a version that is installed and not selected."""
    checkout.add_program("python3.14", "#!/bin/sh\necho 'python3.14: command not found' >&2; exit 127\n")
    checkout.add_python("python3.11", (3, 11))
    made = checkout.make("setup")
    assert "building .venv with Python 3.11.0" in made.stdout
    assert "command not found" not in made.stderr


@pytest.mark.parametrize(
    ("version", "found"),
    [(None, "there is no python3"), ((3, 10), "python3 is 3.10"), ((3, 15), "python3 is 3.15")],
)
def test_without_a_supported_interpreter_it_is_said_which_are(
    checkout: Checkout, version: tuple[int, int] | None, found: str
) -> None:
    if version is not None:
        checkout.add_python("python3", version)
    made = checkout.make("setup")
    assert made.returncode == 2
    assert f"no Python 3.11 to 3.14 with venv here ({found}): install one" in made.stderr
    assert not (checkout.folder / ".venv").exists()


def test_an_environment_that_is_there_stays_when_a_newer_interpreter_comes(checkout: Checkout) -> None:
    checkout.add_python("python3.12", (3, 12))
    assert checkout.make("setup").returncode == 0
    checkout.add_python("python3.14", (3, 14))
    os.utime(checkout.folder / "pyproject.toml", (4_000_000_000, 4_000_000_000))
    made = checkout.make("setup")
    assert made.returncode == 0, made.stderr
    assert "building" not in made.stdout
    assert [line.split()[1] for line in checkout.installed.splitlines()] == ["12", "12"]


@pytest.mark.parametrize("state", [{"version": (3, 10)}, {"version": (3, 12), "missing": ("pip",)}])
def test_an_environment_that_cannot_serve_is_built_anew(checkout: Checkout, state: dict[str, Any]) -> None:
    """Of a version that is not supported, or left half built by an interruption."""
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    checkout.add_python("../.venv/bin/python", **state)
    checkout.add_python("python3.14", (3, 14))
    made = checkout.make("setup")
    assert "building .venv with Python 3.14.0" in made.stdout
    assert checkout.installed.startswith("3 14 install")


def test_the_makefile_and_the_package_name_the_same_versions(checkout: Checkout) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = [
        (3, minor) for minor in range(8, 20) if f"Programming Language :: Python :: 3.{minor}" in project["classifiers"]
    ]
    (lowest, highest) = supported[0], supported[-1]
    assert project["requires-python"] == f">=3.{lowest[1]},<3.{highest[1] + 1}"
    for minor in range(lowest[1] - 1, highest[1] + 2):
        checkout.add_python("python3", (3, minor))
        shutil.rmtree(checkout.folder / ".venv", ignore_errors=True)
        assert (checkout.make("setup").returncode == 0) == ((3, minor) in supported)


# --- FFCV ----------------------------------------------------------------------------------------------


def test_where_ffcv_does_not_build_one_sentence_says_so(checkout: Checkout) -> None:
    checkout.add_python("python3", (3, 15), pip_status=1)
    made = checkout.make("setup-ffcv", "PYTHON=python3", "ffcv_headers=true")
    assert made.returncode == 2
    sentence, status = made.stderr.splitlines()
    assert sentence.startswith(
        "FFCV does not build on this machine with Python 3.15 (it does on Linux with Python 3.11 to 3.14"
    )
    assert sentence.endswith("the other loaders work without it")
    assert status.endswith("Error 2")
    log = Path(sentence.split("the log is ")[1].split(")")[0])
    assert "command 'g++' failed" in log.read_text()
