"""A process that has imported everything and forks for each run, so that an attack needs no seconds per run to begin.

    python -m tests.attack.warm_process

It reads one request per line, JSON with the fields of `Request`, and answers with a line each: the exit code, the
negative number of the signal that ended the run, or `HANG`. A run is the `main` of `python -m train` with the same
arguments, in a process of its own that can be killed at any moment. It differs from the command in three ways: its
network is a `TinyResNet`, its curves are an empty picture, and it saves after every step, so that kills meet saves.
"""

import errno
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
HANG = -1000
"""Answered for a run that did not end within its time; the log then has the stack of every thread."""

FAULTS = ("kill before", "kill after", "error before")
"""What can happen at an `os.replace`: SIGKILL before or after it, or an OSError (a full disk) in its place."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run."""

    arguments: list[str]
    """Of `python -m train`."""
    log: str
    """The file that the run's output is added to."""
    cache: str
    """The folder for SATURATE_CACHE."""
    kill_after: float | None = None
    """Seconds from the fork to SIGKILL; None: the run may end."""
    time_limit: float = 90.0
    """Seconds after which the run counts as hanging."""
    fault: str | None = None
    """One of `FAULTS`, or "count"; none unless given."""
    fault_at: int = 0
    """At which `os.replace` of a file in `fault_folders` the fault happens; the first is 1."""
    fault_folders: list[str] = field(default_factory=list)
    count_file: str | None = None
    """Where to write how many files in `fault_folders` have been replaced."""


class WarmProcess:
    """The other end: starts the process and asks it for runs, one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.warm_process"],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, request: Request) -> int:
        """The exit code of a run, the negative number of the signal that ended it, or `HANG`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the warm process ended: {self._process.wait()}"
        return int(answer)

    def close(self) -> None:
        self._process.communicate()  # closes its input, which ends it


def serve() -> None:
    """Answers requests until the input ends."""
    import torch

    import train.run  # noqa: F401
    from loaders.backends import BACKENDS, ffcv
    from tests.conftest import TinyResNet  # noqa: F401

    if BACKENDS["ffcv"].missing() is None:
        ffcv._libraries()
    if BACKENDS["dali"].missing() is None:
        import nvidia.dali  # noqa: F401
    assert torch.get_num_threads() == 1  # threads of OpenMP would not outlive a fork
    for line in sys.stdin:
        print(_forked(Request(**json.loads(line))), flush=True)


def _forked(request: Request) -> int:
    """Carries out a request in a process of its own, and waits for its end."""
    pid = os.fork()
    if not pid:
        _become_run(request)
    ended = os.pidfd_open(pid)
    limit = request.time_limit if request.kill_after is None else request.kill_after
    in_time = bool(select.select([ended], [], [], limit)[0])
    if not in_time:
        os.kill(pid, signal.SIGKILL if request.kill_after is not None else signal.SIGABRT)
    _, status = os.waitpid(pid, 0)
    os.close(ended)
    hang = not in_time and request.kill_after is None
    return HANG if hang else os.waitstatus_to_exitcode(status)


def _become_run(request: Request) -> None:
    """Trains with the request's arguments and ends this process with the exit code."""
    code = 1
    try:
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.enable()
        os.environ["SATURATE_CACHE"] = request.cache
        make_small()
        if request.fault is not None:
            os.replace = _faulty_replace(request)
        from train.__main__ import main

        code = main(request.arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def make_small() -> None:
    """Trains a small network, draws nothing, and saves after every step."""
    from matplotlib.figure import Figure

    import train.checkpoints
    import train.prepare
    import train.run_folder
    from tests.conftest import TinyResNet

    _replace_attribute(train.prepare, "build_model", lambda _, classes: TinyResNet(classes))
    _replace_attribute(train.run_folder, "draw_curves", lambda _: Figure(figsize=(1, 1)))
    _replace_attribute(train.checkpoints, "_SECONDS_BETWEEN_SAVES", 0.0)
    _replace_attribute(train.checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", 0.0)


def _replace_attribute(module: Any, name: str, value: object) -> None:
    assert hasattr(module, name), f"{module.__name__} has no {name}"
    setattr(module, name, value)


def _faulty_replace(request: Request) -> Callable[..., None]:
    """`os.replace`, at the n-th call of which something happens."""
    replace, calls = os.replace, 0

    def faulty(source: Any, target: Any, **named: Any) -> None:
        nonlocal calls
        if not any(Path(target).is_relative_to(folder) for folder in request.fault_folders):
            return replace(source, target, **named)
        calls += 1
        if request.count_file is not None:
            Path(request.count_file).write_text(str(calls))
        happens = calls == request.fault_at
        if happens and request.fault == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if happens and request.fault == "error before":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target, **named)
        if happens and request.fault == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    return faulty


if __name__ == "__main__":
    serve()
