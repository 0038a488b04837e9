"""Using a trained model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.models import ResNet

from loaders import InputError
from loaders.sources.guarded import most_bytes, read_file
from loaders.sources.index import MAX_PIXELS
from loaders.sources.pillow import as_rgb, open_image, require_shape
from train.models import build_model
from train.run_folder import CONFIG, WEIGHTS


@dataclass(frozen=True)
class Classifier:
    """A trained model with its preprocessing and its labels. Call it with an image, or use its parts."""

    model: ResNet
    """In evaluation mode."""
    preprocess: Callable[[Image.Image], Tensor]
    """Pillow image → `[3, S, S]`, as in validation."""
    labels: tuple[str, ...]

    @torch.inference_mode()
    def __call__(self, image: Image.Image | Path | str) -> dict[str, float]:
        """The probability of each label, the most likely first.

        Raises:
            OSError: when a file cannot be read, or is of none of the formats that are opened.
            ValueError: when the image is far longer than wide, or a file is too long or no regular file.
        """
        if not isinstance(image, Image.Image):
            with open_image(read_file(str(image), at_most=most_bytes(MAX_PIXELS))) as opened:
                return self(opened)
        require_shape(image)
        device = next(self.model.parameters()).device
        rgb = Image.fromarray(as_rgb(ImageOps.exif_transpose(image)))  # does nothing to an upright image
        logits: Tensor = self.model(self.preprocess(rgb)[None].to(device))
        probabilities = logits.softmax(1)[0].tolist()
        ranked = sorted(zip(self.labels, probabilities, strict=True), key=lambda pair: -pair[1])
        return dict(ranked)


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """The classifier that a finished run has left in its folder.

    Raises:
        InputError: when the folder holds no finished run.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / CONFIG).read_text())["model"]
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no finished run: {CONFIG} or {WEIGHTS} is missing") from error
    model = build_model(described["architecture"], described["num_classes"])
    model.load_state_dict(state)
    preprocess = transforms.Compose(
        [
            transforms.Resize(described["resize"]),
            transforms.CenterCrop(described["size"]),
            transforms.ToTensor(),
            transforms.Normalize(described["mean"], described["std"]),
        ]
    )
    return Classifier(model.eval().to(device), preprocess, tuple(described["label_names"]))
