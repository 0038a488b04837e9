"""The Makefile: how it passes its variables on, which interpreter it chooses, and what it reports when none is fit."""

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


def dry_run(*given: str) -> subprocess.CompletedProcess[str]:
    """Runs `make` so that it prints its commands and carries none out."""
    return subprocess.run(
        ["make", "--dry-run", "PYTHON=python3", *given],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["train", "bench", "profile"])
def test_any_name_of_a_folder_arrives_as_it_is(target: str) -> None:
    words = shlex.split(dry_run(target, "DATA=Ann's own/photos", "OUT=it's here").stdout)
    assert words[words.index("--data") + 1] == "Ann's own/photos"
    assert words[words.index("--out") + 1] == "it's here"


@pytest.mark.parametrize("count", ["0", "two", "2x", ""])
def test_a_number_of_gpus_that_is_none_is_named(count: str) -> None:
    refused = dry_run("train", f"NGPU={count}")
    assert refused.returncode == 2
    assert f"NGPU={count}: expected a number of GPUs, 1 or more" in refused.stderr


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
