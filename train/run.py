"""A run, from its options to its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.console import Reporter
from train.divergence import DivergedError
from train.loop import TrainingLoop
from train.options import Options
from train.prepare import prepare
from train.process_group import ProcessGroup, joined_process_group
from train.run_state import EpochRow
from train.session import Session
from train.stopping import StopRequest
from train.summary import result_message, summarize


@dataclass(frozen=True)
class FinishedRun:
    """What a run comes to."""

    summary: dict[str, Any]
    """The content of `summary.json`."""
    rows: Sequence[EpochRow]
    """The lines of `metrics.jsonl`."""
    folder: Path | None
    """The run's folder; None on processes that write nothing."""


def run_in_process_group(options: Options, stop: StopRequest) -> dict[str, Any]:
    """The same as `run`, together with the other processes that torchrun has started, if any."""
    with joined_process_group(use_cuda=options.device != "cpu" and torch.cuda.is_available()) as process_group:
        return run(options, process_group, stop)


def run(options: Options, process_group: ProcessGroup, stop: StopRequest | None = None) -> dict[str, Any]:
    """The same as `run_to_end`, printed by the main process; returns the content of `summary.json`."""
    return run_to_end(options, process_group, Reporter(quiet=not process_group.is_main), stop).summary


def run_to_end(
    options: Options, process_group: ProcessGroup, reporter: Reporter, stop: StopRequest | None = None
) -> FinishedRun:
    """Trains according to the options.

    Args:
        stop: the request that the caller listens for already, if it does.

    Raises:
        InputError: when something the user gave cannot be used.
        DivergedError: when the loss became no number; the best epoch before has been exported.
        InterruptedStartError: when a signal stopped the run before its first step.
        StalledProcessError: when another process has not answered for minutes.
        InterruptedRunError: when a signal stopped the run later; `last.pt` then holds its state.
    """
    stop = stop or StopRequest(options.max_minutes)
    with stop.listening(), prepare(options, process_group, reporter, stop) as session:
        loop = TrainingLoop(
            learner=session.learner,
            train_loader=session.train_loader,
            val_loader=session.val_loader,
            epochs=session.recipe.epochs,
            state=session.state,
            checkpoints=session.checkpoints,
            stop=stop,
            reporter=reporter,
            process_group=process_group,
        )
        stop.begin_training()
        with process_group.reporting_stalls():  # in here, while the threads of the loaders are still there
            try:
                loop.run()
            except DivergedError:
                if session.state.rows:
                    session.checkpoints.save_best()
                    _conclude(session)  # the best epoch before is a result all the same
                raise
            folder = session.checkpoints.folder
            return FinishedRun(_conclude(session), session.state.rows, folder.path if folder is not None else None)


def _conclude(session: Session) -> dict[str, Any]:
    """Writes the result and prints it."""
    summary = summarize(session)
    folder, best = session.checkpoints.folder, session.state.best
    if folder is not None and best is not None:
        folder.save_model(best["model"])
        folder.write_json("summary.json", summary)
        folder.remove_previous()
        session.reporter.say(*result_message(summary, folder.path, len(session.train_loader.source.classes)))
    return summary
