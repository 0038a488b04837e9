"""CIFAR-10: both official versions, damaged ones, and none at all."""

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from loaders import InputError, Source, open_data
from loaders.sources import PixelArray, cifar10

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_FILE = 12
BINARY = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
PYTHON = [name.removesuffix(".bin") for name in BINARY]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """The images of all six files, uint8 `[72, 32, 32, 3]`."""
    return np.random.default_rng(0).integers(0, 256, (6 * PER_FILE, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, 6 * PER_FILE)


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray) -> Path:
    """The binary version: per image one byte of label, then 1024 of red, of green, of blue."""
    folder = tmp_path / "binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for place, name in enumerate(BINARY):
        with open(folder / name, "wb") as file:
            for index in range(place * PER_FILE, (place + 1) * PER_FILE):
                planes = [images[index, :, :, channel].tobytes() for channel in range(3)]
                file.write(bytes([labels[index]]) + b"".join(planes))
    monkeypatch.setattr(cifar10, "BINARY_MD5", {name: md5(folder / name) for name in BINARY})
    return folder.parent


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray) -> Path:
    """The python version: pickled dictionaries, `data` with one row of three planes per image."""
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for place, name in enumerate(PYTHON):
        rows = slice(place * PER_FILE, (place + 1) * PER_FILE)
        data = images[rows].transpose(0, 3, 1, 2).reshape(PER_FILE, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels[rows].tolist()}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    listed = [[name, md5(folder / name)] for name in PYTHON]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return folder.parent


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)


def pixels(source: Source) -> np.ndarray:
    assert isinstance(source.images, PixelArray)
    return source.images.pixels


@pytest.mark.parametrize("version", ["binary", "python"])
def test_the_first_five_files_are_trained_on_and_the_last_validates(
    request: pytest.FixtureRequest, version: str, images: np.ndarray, labels: np.ndarray
) -> None:
    train, val = open_data("cifar10", root=request.getfixturevalue(version))
    np.testing.assert_array_equal(pixels(train), images[: 5 * PER_FILE])
    np.testing.assert_array_equal(pixels(val), images[5 * PER_FILE :])
    np.testing.assert_array_equal(train.labels, labels[: 5 * PER_FILE])
    np.testing.assert_array_equal(val.labels, labels[5 * PER_FILE :])
    for source in (train, val):
        assert source.name == "cifar10"
        assert list(source.classes) == NAMES
        assert source.labels.dtype == np.int64
        assert not source.bad
        np.testing.assert_array_equal(source.sizes, np.full((len(source), 2), 32))


def test_both_versions_have_the_same_fingerprints(binary: Path, python: Path) -> None:
    ours, theirs = open_data("cifar10", root=binary), open_data("cifar10", root=python)
    assert [source.fingerprint for source in ours] == [source.fingerprint for source in theirs]
    assert ours[0].fingerprint != ours[1].fingerprint


@pytest.mark.parametrize("changed", ["a label", "a pixel"])
def test_other_content_has_another_fingerprint(binary: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    before = [source.fingerprint for source in open_data("cifar10", root=binary)]
    path = binary / "cifar-10-batches-bin" / "data_batch_3.bin"
    data = bytearray(path.read_bytes())
    at = 2 * 3073 + (0 if changed == "a label" else 1)  # the third image's label, or its first pixel
    data[at] = (data[at] + 1) % 10
    path.write_bytes(data)
    monkeypatch.setitem(cifar10.BINARY_MD5, path.name, md5(path))
    after = [source.fingerprint for source in open_data("cifar10", root=binary)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
@pytest.mark.parametrize("damage", ["a byte differs", "cut short"])
def test_a_damaged_file_is_named(binary: Path, name: str, damage: str) -> None:
    path = binary / "cifar-10-batches-bin" / name
    data = path.read_bytes()
    path.write_bytes(data[:-3073] if damage == "cut short" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{path} is damaged.*unpack"):
        open_data("cifar10", root=binary)


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_a_missing_file_is_named(binary: Path, name: str) -> None:
    path = binary / "cifar-10-batches-bin" / name
    path.unlink()
    with pytest.raises(InputError, match=f"{path} cannot be read .*No such file.*unpack"):
        open_data("cifar10", root=binary)


def test_a_folder_that_must_not_be_read_is_an_input_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> bool:  # what permissions do to anybody but root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(InputError, match=f"CIFAR-10 is not under {tmp_path} .*Permission denied"):
        open_data("cifar10", root=tmp_path)


@pytest.mark.usefixtures("offline")
def test_the_python_version_needs_no_network(python: Path) -> None:
    assert len(open_data("cifar10", root=python)[0]) == 5 * PER_FILE


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("there", ["nothing", "a damaged python version"])
def test_without_data_and_network_the_message_says_what_to_fetch_and_where_to_put_it(python: Path, there: str) -> None:
    if there == "nothing":
        root = python.parent / "empty"
    else:
        root = python
        (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"damaged")
    with pytest.raises(InputError) as caught:
        open_data("cifar10", root=root)
    for part in (CIFAR10.url, str(root / "cifar-10-batches-py"), "Name or service not known", "`root` names"):
        assert part in str(caught.value)


def test_a_download_that_is_not_the_archive_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def proxy_page(_: str, path: str, **__: object) -> None:
        Path(path).write_text("<html>Please log in</html>")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", proxy_page)
    with pytest.raises(InputError, match="could not be downloaded"):
        open_data("cifar10", root=tmp_path)


@pytest.fixture(scope="module")
def official(cifar10_root: Path) -> tuple[Source, Source]:
    return open_data("cifar10", root=cifar10_root)


@pytest.mark.needs_cifar10
def test_the_real_set_has_as_many_images_of_each_class_as_its_page_says(official: tuple[Source, Source]) -> None:
    assert [np.bincount(source.labels).tolist() for source in official] == [[5000] * 10, [1000] * 10]
    assert [pixels(source).shape for source in official] == [(50000, 32, 32, 3), (10000, 32, 32, 3)]


@pytest.mark.needs_cifar10
def test_the_real_set_begins_with_a_frog_and_a_cat(official: tuple[Source, Source]) -> None:
    assert [source.classes[source.labels[0]] for source in official] == ["frog", "cat"]
    assert pixels(official[0])[0, 0, 0].tolist() == [59, 62, 63]


@pytest.mark.needs_cifar10
def test_the_real_set_has_the_known_means_per_channel(official: tuple[Source, Source]) -> None:
    means = pixels(official[0]).mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
