"""The picture of a run: how loss and accuracy change from epoch to epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and accuracy of training and validation over the epochs, in two panels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, quantity, title in zip(
        figure.subplots(1, 2), ("loss", "top1"), ("cross-entropy", "top-1 accuracy"), strict=True
    ):
        for split, style in (("train", "--"), ("val", "-")):
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in rows], style, marker=".", label=split)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
