"""The precision in which a run computes."""

from dataclasses import dataclass
from typing import Literal

import torch

from train.option_values import PrecisionName


@dataclass(frozen=True)
class Precision:
    """The dtype of the images and of the operations that autocast lowers. fp16 needs a scaled loss."""

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
        if not self.lowered:
            return "fp32"
        return f"{self.name} autocast with a scaled loss" if self.scales_loss else f"{self.name} autocast"


def choose_precision(requested: PrecisionName, device: torch.device) -> Precision:
    """The requested precision.

    "auto" is bf16 where the hardware computes in it, else fp16 on a GPU and fp32 on a CPU.
    """
    if requested != "auto":
        return Precision(requested)
    if device.type == "cuda":
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    # Emulated bf16 is slower than fp32; on a processor that has it, a ResNet18 step is twice as fast as in fp32.
    capabilities = torch.cpu.get_capabilities()
    return Precision("bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32")
