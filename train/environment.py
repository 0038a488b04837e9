"""The environment of a run or measurement: command, commit, versions, hardware."""

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
import torch
import torchvision

from loaders.system.machine import usable_cores

_VERSION_ONLY = ("simplejpeg", "triton", "ffcv", "numba", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""Distributions that are not imported for their version: some take seconds to import, or change torch's threads."""


def describe_environment() -> dict[str, Any]:
    """The software and hardware that the numbers of a run may depend on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()} | {
        module.__name__: module.__version__ for module in (torch, torchvision, np, PIL, matplotlib)
    }
    for name in _VERSION_ONLY:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "command": _command(),
        "commit": _commit(),
        "versions": versions | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "usable_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _command() -> str:
    """The command line that repeats this program in the checkout, with torchrun where there are several processes."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    program = ["-m", spec.parent] if spec else sys.argv[:1]
    return shlex.join(["python", *launcher, *program, *sys.argv[1:]])


def _commit() -> str | None:
    """The checkout's commit, followed by "+" where files differ from it; None without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head
