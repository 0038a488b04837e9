"""Models: parameter counts, frozen parts, and weights that fit or are refused by name."""

from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torchvision import models as torchvision_models

from loaders import InputError
from train import models
from train.models import build_model, count_parameters, freeze_backbone, load_weights, set_training_mode


def test_resnet18_with_ten_classes_has_the_blogs_parameters() -> None:
    model = build_model("resnet18", 10)
    assert count_parameters(model) == (11_181_642, 11_181_642)
    freeze_backbone(model)
    assert count_parameters(model) == (11_181_642, 5_130)


@pytest.mark.parametrize(("norm_in_train_mode", "expected"), [(True, True), (False, False)])
def test_a_frozen_backbone_trains_its_norms_only_when_requested(norm_in_train_mode: bool, expected: bool) -> None:
    model = build_model("resnet18", 3)
    set_training_mode(model, head_only=True, norm_in_train_mode=norm_in_train_mode)
    assert model.bn1.training is expected
    assert model.fc.training


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_head_size_keep_all_but_the_head(tmp_path: Path, suffix: str) -> None:
    donor = torchvision_models.resnet18(weights=None)
    file = tmp_path / f"donor{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(donor.state_dict(), file)
    model = build_model("resnet18", 10)
    head = model.fc.weight.clone()
    assert load_weights(model, str(file), "resnet18") == str(file)
    assert torch.equal(model.fc.weight, head)
    for name, tensor in donor.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_fitting_head_is_loaded_too_from_plain_and_wrapped_files(tmp_path: Path, wrap: object) -> None:
    donor = build_model("resnet18", 10)
    torch.save(wrap(donor.state_dict()), tmp_path / "donor.pth")  # type: ignore[operator]
    model = build_model("resnet18", 10)
    load_weights(model, str(tmp_path / "donor.pth"), "resnet18")
    assert torch.equal(model.fc.weight, donor.fc.weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_left_by_distributed_and_compiled_training_are_understood(tmp_path: Path, prefix: str) -> None:
    donor = build_model("resnet18", 10)
    torch.save({f"{prefix}{name}": tensor for name, tensor in donor.state_dict().items()}, tmp_path / "donor.pt")
    model = build_model("resnet18", 10)
    load_weights(model, str(tmp_path / "donor.pt"), "resnet18")
    assert torch.equal(model.conv1.weight, donor.conv1.weight)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown: extra"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), "of another shape: conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(tmp_path: Path, spoil: object, said: str) -> None:
    state = build_model("resnet18", 10).state_dict()
    spoil(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=said):
        load_weights(build_model("resnet18", 10), str(tmp_path / "bad.pth"), "resnet18")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pth", b"no weights"),
        ("b.safetensors", b"neither"),
        ("c.pth", b""),
        ("d.safetensors", b""),
        ("e.pth", b"junk\n"),
        ("f.pth", b"# A page\n"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{name} (cannot be read as weights: \D|is no file of weights: expected is )"
    ):
        load_weights(build_model("resnet18", 10), str(tmp_path / name), "resnet18")


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(InputError, match=r"objects\.pth holds objects .*\(pathlib(\._local)?\.\w+\): expected is "):
        load_weights(build_model("resnet18", 10), str(tmp_path / "objects.pth"), "resnet18")


@pytest.mark.parametrize("content", [{1: torch.zeros(1)}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1)])
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth holds no state dict"):
        load_weights(build_model("resnet18", 10), str(tmp_path / "other.pth"), "resnet18")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no file .*nowhere\.pth"):
        load_weights(build_model("resnet18", 10), "nowhere.pth", "resnet18")


def test_imagenet_weights_come_from_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    donor = torchvision_models.resnet18(weights=None)
    (tmp_path / "checkpoints").mkdir()
    name = torchvision_models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(donor.state_dict(), tmp_path / "checkpoints" / name)
    model = build_model("resnet18", 10)
    assert "IMAGENET1K_V1" in load_weights(model, "imagenet", "resnet18")
    assert torch.equal(model.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_without_network_the_message_names_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(models.WeightsUnavailableError) as caught:
        load_weights(build_model("resnet18", 10), "imagenet", "resnet18")
    for part in (str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth"), "https://", "WEIGHTS=none"):
        assert part in str(caught.value)
