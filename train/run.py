"""A run from options to result."""

from typing import Any

from train.console import Reporter
from train.options import Options
from train.prepare import prepare
from train.stopping import StopRequest
from train.world import ProcessGroup


def run(options: Options, world: ProcessGroup) -> dict[str, Any]:
    """Trains as the options say and returns the summary.

    Raises:
        InputError: when something the user gave cannot be used.
        InterruptedRunError: when a signal asked to stop; `last.pt` then holds where the run stands.
    """
    reporter = Reporter(quiet=not world.is_main)
    stop = StopRequest(options.max_minutes)
    session = prepare(options, world, reporter, stop)
    with session.train_loader, session.val_loader:
        with stop.listening():
            session.train()
        return session.conclude()
