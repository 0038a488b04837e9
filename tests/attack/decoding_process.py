"""A process that examines image files and decodes them by every backend, as a fault in a C library may end it.

    python -m tests.attack.decoding_process

It reads requests, one per line: JSON with `folder`, `names`, and `facts`, what the index knew of each file before it
was mutated. Before each thing it does, it writes a line `{"doing": ...}`, and at last one with `findings`: what is
wrong, by file, and `good`, how many files the index found readable.
"""

import faulthandler
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_PIXELS = 2_000_000
"""Files that claim more count as bad, so that a mutation does not take gigabytes."""


def say(**content: object) -> None:
    print(json.dumps(content), flush=True)


def serve() -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    sys.stdout = answers
    from loaders import bad_images

    bad_images.MAX_BAD_SHARE = 1.0  # here, all of them may be
    for line in sys.stdin:
        Examination(**json.loads(line)).run()


class Examination:
    """What becomes of some files in the index and in every backend."""

    def __init__(self, folder: str, names: list[str], facts: list[list[Any]]) -> None:
        self.folder, self.names, self.facts = Path(folder), names, facts
        self.findings: dict[str, list[str]] = {}

    def run(self) -> None:
        from loaders.sources.index import Verdict, examine

        verdicts: list[Verdict] = []
        for name in self.names:
            say(doing=f"the index examines {name}")
            verdicts.append(examine(self.folder / name, MAX_PIXELS))
        good = [place for place, verdict in enumerate(verdicts) if not verdict.reason]
        if good:
            self._compare([self.names[i] for i in good], [verdicts[i] for i in good])
        # What was good when it was indexed, and has been changed since.
        changed = [i for i in range(len(verdicts)) if verdicts[i].reason]
        if changed:
            self._decode_changed([self.names[i] for i in changed], [Verdict(*self.facts[i]) for i in changed])
        say(findings=self.findings, good=len(good))

    def _compare(self, names: list[str], verdicts: list[Any]) -> None:
        """Notes where a backend has other pixels than `torchvision`, and where that has others than Pillow."""
        import numpy as np
        from PIL import Image

        from loaders.ops.decode import load_pixels, upright
        from loaders.sources.pillow import as_rgb

        source = self._source(names, verdicts)
        for index, (name, verdict) in enumerate(zip(names, verdicts, strict=True)):
            say(doing=f"Pillow decodes {name}")
            with Image.open(self.folder / name) as image:
                image.load()
                expected = upright(as_rgb(image), verdict.orientation)
            try:
                pixels = load_pixels(source.images, index, size=(verdict.height, verdict.width))
            except (OSError, ValueError) as error:
                self._note(name, f"the index calls it good, and it cannot be decoded: {error}")
                continue
            if not np.array_equal(pixels, expected):
                self._note(name, "it is not decoded as Pillow does")
        for plan in ("evaluation", "crops"):
            expected_pixels = dict(self._decoded("torchvision", plan, names, source))
            for backend in self._backends():
                for name, pixels in self._decoded(backend, plan, names, source):
                    self._compare_one(name, backend, plan, pixels, expected_pixels[name])

    def _compare_one(self, name: str, backend: str, plan: str, pixels: Any, expected: Any) -> None:
        from tests.loaders.test_parity import BOUNDS

        if pixels is None or expected is None:
            if (pixels is None) != (expected is None):
                who = backend if pixels is None else "torchvision"
                self._note(name, f"{plan}: {who} calls it unreadable, and the other of {backend}, torchvision does not")
            return
        difference = int((pixels.int() - expected.int()).abs().max())
        if difference > BOUNDS[backend][2]:
            self._note(name, f"{plan}: {backend} is {difference} grey levels from torchvision")

    def _decode_changed(self, names: list[str], verdicts: list[Any]) -> None:
        """Has every backend decode files that are not what the index says."""
        source = self._source(names, verdicts)
        for backend in ("torchvision", *self._backends()):
            for plan in ("evaluation", "crops"):
                for _ in self._decoded(backend, plan, names, source):
                    pass

    @staticmethod
    def _backends() -> list[str]:
        from loaders import available_loaders

        return [name for name in available_loaders() if name not in ("torchvision", "baseline")]

    def _source(self, names: list[str], verdicts: list[Any]) -> Any:
        import numpy as np

        from loaders.sources import ImageFiles, Source
        from loaders.sources.base import digest

        height, width, formats, modes, orientations, _ = (np.array(column) for column in zip(*verdicts, strict=True))
        stats = [os.stat(self.folder / name) for name in names]
        files = ImageFiles(
            self.folder,
            np.array(names, object),
            formats,
            modes,
            orientations.astype(np.uint8),
            np.array([stat.st_mtime_ns for stat in stats], np.int64),
            np.array([stat.st_size for stat in stats], np.int64),
        )
        sizes = np.array([height, width], np.int32).T.copy()
        fingerprint = digest(repr((names, sizes.tolist())).encode())
        return Source("mutated", ("only",), np.zeros(len(names), np.int64), sizes, files, fingerprint)

    def _decoded(self, backend: str, plan: str, names: list[str], source: Any) -> Iterator[tuple[str, Any]]:
        """Yields each file's name and its pixels by a backend; None where that calls the file unreadable."""
        import torch

        from loaders import InputError, LoaderConfig, PlanSpec, RandomResizedCrop, ResizeCenterCrop, build_loader

        specs = {
            "evaluation": PlanSpec(ResizeCenterCrop(64, 56)),
            "crops": PlanSpec(RandomResizedCrop(56), horizontal_flip=0.5),
        }
        config = LoaderConfig(
            spec=specs[plan],
            training=False,
            batch_size=min(8, len(names)),
            workers=1,
            dtype=torch.uint8,
            on_bad_image="skip",
            cache_size=10_000,
        )
        say(doing=f"{plan}: {backend} decodes {', '.join(names)}")
        try:
            with build_loader(source, config, loader=backend) as loader:
                images = torch.cat([batch.images.clone() for batch in loader])
                unreadable = set(loader.skipped) | set(loader._bad_images.never_readable)
        except InputError as error:
            for name in names:
                self._note(name, f"{plan}: {backend} refuses the whole batch: {error}")
                yield name, None
            return
        for index, name in enumerate(names):
            yield name, None if index in unreadable else images[index]

    def _note(self, name: str, finding: str) -> None:
        self.findings.setdefault(name, []).append(finding)


if __name__ == "__main__":
    serve()
