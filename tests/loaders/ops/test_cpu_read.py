"""The first read on a CPU; more of it is in test_torchvision.py and test_parity.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import PaddedRandomCrop, PlanSpec, RandomResizedCrop
from loaders.ops import cpu_read, reference
from loaders.ops.cpu_read import carry_out, prepare_read, read_geometry, resize_antialiased
from loaders.sampling.plan import draw
from tests.conftest import smooth_image

CHECKOUT = Path(__file__).parents[3]


def read(spec: PlanSpec) -> torch.Tensor:
    images = [smooth_image(40, 60, seed) for seed in range(6)]
    plan = draw(spec, seed=0, epoch=0, ids=np.arange(6), sizes=np.full((6, 2), (40, 60)))
    squares = torch.full((6, plan.read_size, plan.read_size, 3), 7, dtype=torch.uint8).permute(0, 3, 1, 2)
    geometry = read_geometry(plan, flips=False)
    reads = [
        prepare_read(image, plan.box[row].tolist(), geometry[row], plan.read_size, squares[row : row + 1])
        for row, image in enumerate(images)
    ]
    carry_out(reads)
    assert reads == []
    expected = [
        reference.first_read(torch.from_numpy(image.copy()).permute(2, 0, 1), plan, row)
        for row, image in enumerate(images)
    ]
    assert torch.equal(squares, torch.stack(expected))
    return squares


SPECS = [PlanSpec(RandomResizedCrop(17)), PlanSpec(PaddedRandomCrop(20, 24, 5))]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
def test_it_reads_as_the_reference_does(spec: PlanSpec) -> None:
    read(spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
def test_where_torch_renames_its_function_the_public_one_gives_the_same(
    spec: PlanSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_read, "_aten_resize", lambda: None)
    read(spec)
    image = torch.from_numpy(smooth_image(9, 7, 0).copy()).permute(2, 0, 1)[None]
    out = torch.zeros((1, 3, 5, 4), dtype=torch.uint8)
    assert resize_antialiased(image, [5, 4], out) is out
    assert torch.equal(out, resize_antialiased(image, [5, 4]))


def test_a_renamed_function_does_not_keep_the_loaders_from_being_imported() -> None:
    program = "import torch; del torch._C._nn._upsample_bilinear2d_aa; import loaders.backends, loaders.cache.build"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
