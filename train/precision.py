"""Which arithmetic a run uses."""

from dataclasses import dataclass
from typing import Literal

import torch

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """The dtype of images and of what autocast lowers; fp16 needs a scaled loss."""

    name: Literal["bf16", "fp16", "fp32"]

    @property
    def dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.name]

    @property
    def lowered(self) -> bool:
        return self.name != "fp32"

    @property
    def scales_loss(self) -> bool:
        return self.name == "fp16"

    def __str__(self) -> str:
        return f"{self.name} autocast" + (" with a scaled loss" if self.scales_loss else "") if self.lowered else "fp32"


def choose_precision(asked: PrecisionName, device: torch.device) -> Precision:
    """bf16 where the hardware computes in it, else fp16 on a GPU and fp32 on a CPU; or what was asked for."""
    if asked != "auto":
        return Precision(asked)
    if device.type == "cuda":
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    # Emulated bf16 is slower than fp32; on a processor that has it, a ResNet18 step is twice as fast as in fp32.
    abilities = torch.cpu.get_capabilities()
    return Precision("bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32")
