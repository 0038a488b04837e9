"""CUDA events, by which a GPU's own time is measured."""

import torch


def record_event() -> torch.cuda.Event:
    """An event that the current stream reaches after all that has been submitted to it so far."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
