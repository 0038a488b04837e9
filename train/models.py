"""Models: torchvision's ResNets, their weights, and which of their parameters are trained."""

import copy
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models
from torchvision.models import ResNet

from loaders import InputError
from train.option_values import Architecture

_HEAD = "fc."
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)*")  # before names: DistributedDataParallel's, torch.compile's
_DOWNLOAD_TIMEOUT = 20.0  # seconds; without a limit a closed network takes minutes to fail


def build_model(architecture: Architecture, classes: int) -> ResNet:
    """A ResNet with random weights (from torch's generator) and a head for `classes` classes."""
    model: ResNet = models.get_model(architecture, weights=None, num_classes=classes)
    return model


def freeze_backbone(model: ResNet) -> None:
    """Leaves only the head to be trained."""
    model.requires_grad_(False)
    model.fc.requires_grad_(True)


def set_training_mode(model: ResNet, *, head_only: bool, norm_in_train_mode: bool) -> None:
    """Puts the model into train mode.

    A frozen backbone (`head_only`) is put into it only where its BatchNorm uses each batch's statistics.
    """
    model.train(not head_only or norm_in_train_mode)
    model.fc.train()


def folded_backbone(model: ResNet) -> ResNet:
    """A copy of a frozen model that returns features `[B, F]` instead of logits.

    Each BatchNorm is folded into the convolution before it, which leaves a third less to read and write. The copy is
    in evaluation mode, and equals the model in that mode up to rounding. The names of its parameters differ from the
    model's, so its state must not be saved.
    """
    backbone = copy.deepcopy(model).eval().requires_grad_(False)
    backbone.fc = nn.Identity()
    for module in backbone.modules():
        for before, after in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):  # "0", "1": downsample
            conv, norm = getattr(module, before, None), getattr(module, after, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return backbone.to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


# --- weights ------------------------------------------------------------------------------------


class WeightsUnavailableError(InputError):
    """The ImageNet weights are neither cached, nor can they be downloaded."""


def load_weights(model: ResNet, weights: str, architecture: Architecture) -> str:
    """Loads weights into `model`, in place, and returns their name for people.

    Args:
        weights: "imagenet" (torchvision's, from its cache or downloaded), "none", or a file with a
            state dict (`.pth`, `.pt` or `.safetensors`). A head of another size is left out.

    Raises:
        WeightsUnavailableError: when torchvision's are neither cached nor can be downloaded.
        InputError: when a file cannot be read or does not fit; the message names the keys.
    """
    if weights == "none":
        return "random"
    if weights == "imagenet":
        enum = models.get_model_weights(architecture).DEFAULT
        fit_state(model, _imagenet(architecture), str(enum))
        return f"ImageNet ({enum})"
    fit_state(model, read_state(Path(weights).expanduser()), weights)
    return weights


def imagenet_file(architecture: Architecture) -> Path:
    """Where torchvision keeps its weights once they have been downloaded."""
    url: str = models.get_model_weights(architecture).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _imagenet(architecture: Architecture) -> Mapping[str, Tensor]:
    """The ImageNet state dict, from torchvision's cache or downloaded to it."""
    weights, file = models.get_model_weights(architecture).DEFAULT, imagenet_file(architecture)
    if file.exists():
        return read_state(file)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged download
        raise WeightsUnavailableError(
            f"the ImageNet weights are not in {file} and could not be downloaded ({error}).",
            f"Fetch {weights.url} elsewhere and put it there, give another file with WEIGHTS=FILE, "
            "or insist on random weights with WEIGHTS=none.",
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def read_state(file: Path) -> Mapping[str, Tensor]:
    """The state dict in a file. It may also lie under "model" or "state_dict", beside other things.

    Raises:
        InputError: when the file is missing, damaged, or holds no state dict.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"WEIGHTS: there is no file {file} (nor weights of that name: imagenet, none)") from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"WEIGHTS: {file} cannot be read as weights: {error}") from error
    except Exception as error:  # of a pickle: what torch.load then says is about its own arguments, or a bare number
        refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        found = f"holds objects besides tensors ({refused[1]})" if refused else "is no file of weights"
        raise InputError(
            f"WEIGHTS: {file} {found}: expected is what torch.save(model.state_dict(), ...) writes"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError(f"WEIGHTS: {file} holds no state dict (names → tensors)")
    return {_WRAPPERS.sub("", name): tensor for name, tensor in content.items()}


def fit_state(model: ResNet, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads `state` into `model`. A head of another size is left out.

    Raises:
        InputError: when another tensor is missing, unknown or of another shape; the message names it.
    """
    own: dict[str, Any] = model.state_dict()
    new = dict(state)
    if any(name in new and new[name].shape != own[name].shape for name in own if name.startswith(_HEAD)):
        new = {name: tensor for name, tensor in new.items() if not name.startswith(_HEAD)}
    complaints = {
        "missing": [n for n in own if n not in new and not n.startswith(_HEAD) and "num_batches_tracked" not in n],
        "unknown": [n for n in new if n not in own],
        "of another shape": [n for n in new if n in own and new[n].shape != own[n].shape],
    }
    if found := "; ".join(f"{what}: {_some(names)}" for what, names in complaints.items() if names):
        raise InputError(f"WEIGHTS: {origin} does not fit the {type(model).__name__} that --model names: {found}")
    model.load_state_dict(new, strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
