"""A kill before or after each `os.replace` of a run, and a full disk in its place: the run goes on to the same end."""

import random
import signal
from pathlib import Path

import pytest

from tests.attack.runs import FULL, Attack, Run, Setting
from tests.attack.warm_process import FAULTS
from tests.conftest import OPTIONAL

IN_SUITE = 2
"""Places that are tried of each setting and fault; at full size, all of them."""
SETTINGS = [
    pytest.param(
        setting,
        id=str(setting),
        marks=[getattr(pytest.mark, f"needs_{setting.loader}")] if setting.loader in OPTIONAL else [],
    )
    for setting in (Setting("streamed", "finetune"), Setting("ffcv", "feature"))
]
"""`streamed` also replaces the files of two pixel caches, `ffcv` two .beton files."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fault_while_a_file_is_replaced_costs_no_more_than_a_restart(
    attack: Attack, setting: Setting, fault: str
) -> None:
    places = list(range(1, attack.reference(setting).replacements + 1))
    if not FULL:
        places = sorted(random.Random(f"{setting} {fault}").sample(places, IN_SUITE))
    for place in places:
        run = Run(attack, setting, attack.folder / f"{fault.replace(' ', '-')}-{place}-{setting}")
        code = run.go_on(fault=fault, fault_at=place, fault_folders=[str(run.folder)])
        if fault == "error before":  # without the index a run goes on, and says so
            assert code == 2 or (code == 0 and "cannot be written" in run.text), f"{place}: {code}\n{run.text}"
            assert "Traceback" not in run.text, run.text
        else:
            assert code == -signal.SIGKILL, f"{place}: {code}\n{run.text}"
        if code != 0:
            run.must_end(run.go_on())
        left = unfinished_files(run.folder) if fault == "error before" else []
        assert not left, f"{place}: {left}"
        run.must_equal_reference()


def unfinished_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.part"))
