"""The names that options choose from. Nothing here imports torch, so that options are parsed without it."""

from typing import Literal

Mode = Literal["feature", "finetune"]
"""`feature` trains a new head on a frozen backbone, `finetune` trains all weights."""

RecipeName = Literal["default", "classic"]

Architecture = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip
"""torchvision's ResNets, by torchvision's names."""

DeviceName = Literal["auto", "cuda", "cpu"]

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]

Resume = Literal["no", "yes", "auto"]
"""Whether to go on with the run in a folder; `auto` does so where there is one, and else begins."""
