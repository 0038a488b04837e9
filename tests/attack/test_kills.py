"""Runs that are killed at random moments and resumed end as undisturbed ones do, bit for bit."""

import random
import signal
import time

import pytest

from tests.attack.runs import Attack, Run, Setting, times
from tests.conftest import OPTIONAL

LOADERS = ("torchvision", "resident", "streamed", "dali", "ffcv")
SETTINGS = [
    pytest.param(
        Setting(loader, mode, views),
        id=str(Setting(loader, mode, views)),
        marks=[getattr(pytest.mark, f"needs_{loader}")] if loader in OPTIONAL else [],
    )
    for loader in LOADERS
    for mode, views in (("finetune", None), ("feature", None), ("feature", 2))
]
KILLS = times(suite=1, full=7)
"""For each setting."""
MOST_PER_RUN = 3
MOST_DRAWS = 20
"""A run may end before its kill; the moment is then drawn again for another run, this often."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_killed_run_is_resumed_to_the_same_end(attack: Attack, setting: Setting) -> None:
    rng = random.Random(str(setting))
    seconds = attack.reference(setting).seconds
    kills = 0
    for number in range(MOST_DRAWS):
        run = Run(attack, setting, attack.folder / f"killed-{setting}-{number}")
        began = time.monotonic()
        killed = kill_until_it_ends(run, rng, seconds, min(KILLS - kills, MOST_PER_RUN))
        if not killed:  # the reference may have compiled something, and took longer
            seconds = min(seconds, time.monotonic() - began)
        kills += killed
        run.must_equal_reference()
        if kills == KILLS:
            return
    pytest.fail(f"{setting}: {MOST_DRAWS} runs were killed {kills} times only, as they ended before")


def kill_until_it_ends(run: Run, rng: random.Random, seconds: float, most: int) -> int:
    """Kills a run at random moments of `seconds`, `most` times, and resumes it until it ends; returns how often."""
    for kills in range(most):
        code = run.go_on(kill_after=rng.uniform(0, seconds))
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"exit code {code}\n{run.text}"
    run.must_end(run.go_on())
    return most
