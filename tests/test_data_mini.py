"""cifar10-mini: the right images, in the package, and only if they are right."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cbam_edu.data import CLASSES, CorruptFile, ImageSet, mini, miniature
from cbam_edu.data.cifar10 import is_complete, load_cifar10
from cbam_edu.storage import StorageError, cache_dir


def unsorted(count=60, seed=0):
    """Images of ten classes in no order, each filled with its own index."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.arange(count) % 10))
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    return ImageSet("toy", images.clone(), labels, CLASSES)


def test_the_first_of_each_class_are_taken_in_order_and_interleaved():
    full = unsorted()
    small = miniature(full, 4)
    assert small.name == "toy-mini"
    assert small.classes == CLASSES
    assert small.labels.tolist() == list(range(10)) * 4
    indices = small.images[:, 0, 0, 0].long()
    assert torch.equal(full.labels[indices], small.labels)
    for label in range(10):
        first = [i for i in range(60) if full.labels[i] == label][:4]
        assert indices[label::10].tolist() == first


@pytest.mark.parametrize("per_class", [0, -1, 7])
def test_more_than_there_are_cannot_be_taken(per_class):
    message = f"per_class must be from 1 to 6, .* 'airplane'; got {per_class}"
    with pytest.raises(ValueError, match=message):
        miniature(unsorted(), per_class)


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("test", 500)])
def test_the_package_has_it(split, count):
    images = mini.load_mini(split)
    assert images.name == "cifar10-mini"
    assert images.images.shape == (count, 3, 32, 32)
    assert images.images.dtype == torch.uint8
    assert images.images.is_contiguous()
    assert images.labels.dtype == torch.int64
    assert torch.equal(images.labels, torch.arange(count) % 10)
    assert images.classes == CLASSES


def test_it_is_small():
    assert sum(mini.sheet_path(split).stat().st_size for split in mini.PER_CLASS) < 3_600_000


def test_it_is_cifar10s_where_cifar10_is_at_hand():
    if not is_complete(cache_dir()):
        pytest.skip("CIFAR-10 is not in the cache")
    for split, per_class in mini.PER_CLASS.items():
        wanted = miniature(load_cifar10(split), per_class)
        got = mini.load_mini(split)
        assert got.name == wanted.name
        assert torch.equal(got.images, wanted.images)
        assert torch.equal(got.labels, wanted.labels)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The pictures, in a folder where they can be spoilt."""
    for split in mini.PER_CLASS:
        shutil.copy(mini.sheet_path(split), tmp_path)
    monkeypatch.setattr(mini, "sheet_path", lambda split: tmp_path / f"cifar10_mini_{split}.png")
    return tmp_path


def test_writing_the_pictures_and_reading_them_gives_the_same(copies, monkeypatch):
    monkeypatch.delitem(mini.PER_CLASS, "train")  # one is enough
    before = {split: mini.load_mini(split) for split in mini.PER_CLASS}
    mini.sheet_path("test").unlink()
    asked = []

    def load(split, folder):
        asked.append(folder)
        return before[split]

    monkeypatch.setattr(mini, "load_cifar10", load)
    mini.write_sheets("FOLDER")
    assert asked == ["FOLDER"]
    for split, images in before.items():
        assert torch.equal(mini.load_mini(split).images, images.images)


def test_a_column_of_the_picture_is_a_class():
    small = miniature(unsorted(), 4)
    sheet = np.asarray(mini.sheet(small))
    assert sheet.shape == (4 * 32, 10 * 32, 3)
    assert (sheet[32:64, 96:128] == small.images[13, 0, 0, 0].item()).all()


def save(pixels, path):
    Image.fromarray(pixels).save(path)


def test_a_spoilt_picture_is_reported(copies):
    path = copies / "cifar10_mini_test.png"
    whole = path.read_bytes()
    pixels = np.asarray(Image.open(path)).copy()
    flipped = pixels.copy()
    flipped[0, 0, 0] ^= 1
    spoilt = {
        "its pixels have another SHA-256": lambda: save(flipped, path),
        r"it has the shape \(1600, 320\)": lambda: save(pixels[:, :, 0], path),
        r"it has the shape \(1568, 320, 3\)": lambda: save(pixels[32:], path),
        "image file is truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "it is no PNG": lambda: path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]),
        r"it is no \w+": lambda: path.write_bytes(b"no picture"),
        "unrecognized data stream|broken PNG": lambda: path.write_bytes(
            whole[:5000] + bytes(1000) + whole[6000:]
        ),
    }
    for reason, spoil in spoilt.items():
        spoil()
        with pytest.raises(
            CorruptFile, match=f"test.png is truncated or altered .*{reason}.*; inst"
        ):
            mini.load_mini("test")
    path.write_bytes(whole)
    assert len(mini.load_mini("test")) == 500


def test_a_missing_picture_is_reported(copies):
    (copies / "cifar10_mini_train.png").unlink()
    with pytest.raises(StorageError, match=r"cannot read .*train\.png: it does not exist"):
        mini.load_mini("train")
