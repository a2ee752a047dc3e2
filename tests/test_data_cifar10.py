"""Reading CIFAR-10: from every place it may be in, and only if it is right."""

import os

import numpy as np
import pytest
import torch

from cbam_edu import data
from cbam_edu.data import sources
from cbam_edu.data.cifar10 import (
    BINARY,
    CIFAR10,
    PYTHON,
    RECORD,
    CorruptFile,
    from_python,
    is_complete,
    load_cifar10,
)
from cbam_edu.storage import StorageError
from toy_cifar10 import COUNT, EDITION, FILES, edition, python_version, records


@pytest.fixture
def folder(tmp_path):
    """A folder with the toy's binary version."""
    (tmp_path / BINARY).mkdir()
    for name, content in FILES.items():
        (tmp_path / BINARY / f"{name}.bin").write_bytes(content)
    return tmp_path


def wanted(*names):
    rows = np.concatenate([np.frombuffer(FILES[n], np.uint8).reshape(-1, RECORD) for n in names])
    return torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())


def test_the_edition_is_cifar10s():
    assert [b.split for b in CIFAR10.batches.values()] == ["train"] * 5 + ["test"]
    assert {b.count for b in CIFAR10.batches.values()} == {10_000}
    digests = [x.sha256 for x in (*CIFAR10.batches.values(), *CIFAR10.archives.values())]
    assert len(set(digests)) == 8
    assert {len(digest) for digest in digests} == {64}
    assert all(url.rpartition("/")[2] in CIFAR10.archives for url in sources.SOURCES)


def test_images_and_labels_are_the_files(folder):
    train = load_cifar10("train", folder, edition=EDITION)
    assert train.name == "cifar10"
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    assert torch.equal(train.images, wanted("data_batch_1", "data_batch_2"))
    assert torch.equal(train.labels, torch.arange(2 * COUNT) % COUNT % 10)
    assert train.classes == data.CLASSES
    test = load_cifar10("test", folder, edition=EDITION)
    assert torch.equal(test.images, wanted("test_batch"))


def test_the_planes_are_red_green_blue_row_by_row(tmp_path, monkeypatch):
    row = np.zeros((1, RECORD), np.uint8)
    row[0, 0], row[0, 1 + 1024 + 32 * 3 + 5] = 7, 200  # green, row 3, column 5
    monkeypatch.setitem(FILES, "test_batch", row.tobytes() * COUNT)
    (tmp_path / "test_batch.bin").write_bytes(FILES["test_batch"])
    test = load_cifar10("test", tmp_path, edition=edition())
    assert test.images[0, 1, 3, 5] == 200
    assert test.images[0].sum() == 200
    assert test.labels[0] == 7


@pytest.mark.parametrize("inner", ["", BINARY])
def test_files_may_lie_in_the_folder_itself(folder, inner):
    where = folder / inner
    if not inner:
        for path in (folder / BINARY).iterdir():
            path.rename(folder / path.name)
    assert len(load_cifar10("train", where, edition=EDITION)) == 2 * COUNT


@pytest.mark.parametrize("inner", ["", PYTHON])
def test_a_torchvision_copy_is_read_where_it_lies(tmp_path, inner):
    (tmp_path / PYTHON).mkdir()
    for name, content in FILES.items():
        (tmp_path / PYTHON / name).write_bytes(python_version(content))
    before = sorted(tmp_path.rglob("*"))
    train = load_cifar10("train", tmp_path / inner, edition=EDITION)
    assert torch.equal(train.images, wanted("data_batch_1", "data_batch_2"))
    assert is_complete(tmp_path, EDITION)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_right_copy_serves_beside_a_wrong_one(folder):
    (folder / BINARY / "test_batch.bin").write_bytes(b"wrong")
    (folder / PYTHON).mkdir()
    (folder / PYTHON / "test_batch").write_bytes(python_version(FILES["test_batch"]))
    test = load_cifar10("test", folder, edition=EDITION)
    assert torch.equal(test.images, wanted("test_batch"))


def test_the_default_folder_is_the_cache(folder, monkeypatch):
    monkeypatch.setenv("CBAM_EDU_DATA", str(folder))
    assert len(load_cifar10("test", edition=EDITION)) == COUNT


def test_a_truncated_file_is_named_with_both_sizes(folder):
    path = folder / BINARY / "data_batch_2.bin"
    path.write_bytes(FILES["data_batch_2"][:-1])
    with pytest.raises(CorruptFile) as caught:
        load_cifar10("train", folder, edition=EDITION)
    assert str(caught.value) == (
        f"{path} has 61,459 bytes where 61,460 are right; to replace it, run: cbam-edu download"
    )
    assert len(load_cifar10("test", folder, edition=EDITION)) == COUNT
    assert not is_complete(folder, EDITION)


def test_one_changed_bit_is_found(folder):
    path = folder / BINARY / "test_batch.bin"
    content = bytearray(FILES["test_batch"])
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        CorruptFile, match=r"has the SHA-256 \w{12}\.{3} where \w{12}\.{3} is right"
    ):
        load_cifar10("test", folder, edition=EDITION)


def test_a_changed_torchvision_copy_is_found(tmp_path):
    content = bytearray(python_version(FILES["test_batch"]))
    content[5000] ^= 1
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(CorruptFile, match="test_batch is truncated or altered; to replace it"):
        load_cifar10("test", tmp_path, edition=EDITION)


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_missing_files_say_what_to_do(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar10("train", tmp_path / place, edition=EDITION)
    assert str(caught.value) == (
        f"there is no data_batch_1.bin in {tmp_path / place} or its cifar-10-batches-bin; to have "
        "CIFAR-10, run: cbam-edu download (cifar10-mini needs no download)"
    )
    assert not is_complete(tmp_path / place, EDITION)


def test_an_unreadable_file_is_no_missing_file(folder):
    path = folder / BINARY / "test_batch.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*test_batch\.bin: it is a folder"):
        load_cifar10("test", folder, edition=EDITION)


@pytest.mark.parametrize(("count", "group"), [(1, 1000), (20, 1000), (23, 7)])
def test_the_python_version_gives_the_binary_one(count, group):
    binary = records(count)
    assert from_python(python_version(binary, group), count) == binary


def test_a_wrong_python_version_gives_nothing():
    whole = python_version(records())
    assert from_python(whole, COUNT) is not None
    assert from_python(whole, COUNT - 1) is None
    assert from_python(whole[: len(whole) // 2], COUNT) is None
    assert from_python(whole.replace(b"labels", b"lab-ls"), COUNT) is None
    assert from_python(whole.replace(b"K\x09", b"", 1), COUNT) is None
    assert from_python(b"", COUNT) is None
    assert from_python(whole, 10_000) is None  # as many as a file of the real one has


def test_a_hostile_python_version_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    hostile = b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    assert from_python(hostile, COUNT) is None
    (tmp_path / "test_batch").write_bytes(hostile)
    with pytest.raises(CorruptFile):
        load_cifar10("test", tmp_path, edition=EDITION)
    assert not marker.exists()


# --- load, by name ---


def test_load_knows_its_names():
    assert data.NAMES == ("cifar10", "cifar10-mini", "shapes")
    with pytest.raises(ValueError, match="unknown data set 'cifar-10'; did you mean cifar10"):
        data.load("cifar-10")
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean test"):
        data.load("cifar10-mini", "tests")


def test_load_downloads_only_what_is_missing_and_only_if_it_may(folder, monkeypatch):
    monkeypatch.setattr(load_cifar10, "__kwdefaults__", {"edition": EDITION})
    asked = []
    monkeypatch.setattr(sources, "download", lambda where: asked.append(where) or folder)
    assert len(data.load("cifar10", folder=folder)) == 2 * COUNT
    assert asked == []
    empty = folder / "empty"
    with pytest.raises(FileNotFoundError):
        data.load("cifar10", folder=empty, download=False)
    assert asked == []
    assert len(data.load("cifar10", "test", folder=str(empty))) == COUNT
    assert asked == [empty]
    (folder / BINARY / "test_batch.bin").write_bytes(b"altered")
    with pytest.raises(CorruptFile):
        data.load("cifar10", "test", folder=folder)
    assert asked == [empty]


def test_load_gives_the_named_data():
    mini = data.load("cifar10-mini", "test")
    assert (mini.name, len(mini), mini.masks) == ("cifar10-mini", 500, None)
    shapes = data.load("shapes", "test")
    assert (shapes.name, len(shapes)) == ("shapes", 2000)
    assert torch.equal(shapes.images[:20], data.shapes(20, seed=1).images)
    first = data.shapes(20, seed=0)
    assert not torch.equal(shapes.images[:20], first.images)
    train = data.load("shapes")
    assert len(train) == 10_000
    assert torch.equal(train.images[:20], first.images)


def test_a_python_version_cut_off_anywhere_gives_nothing():
    binary = records(1)
    whole = python_version(binary)
    end = whole.index(binary[1:]) + RECORD - 1
    assert from_python(whole[:end], 1) == binary
    for length in (*range(0, end, 97), *range(end - 12, end)):
        assert from_python(whole[:length], 1) is None


def test_a_python_version_may_begin_with_its_pixels():
    binary = records(1)
    size = (RECORD - 1).to_bytes(4, "little")
    assert from_python(b"T" + size + binary[1:] + b"labels(K\x00e", 1) == binary


@pytest.mark.parametrize(
    ("times", "found"),
    [(1.5, "has 92,190 bytes"), (2, "has more than 122,920 bytes"), (3, "has more than 122,920 b")],
)
def test_a_file_that_is_too_long_is_told_and_not_read_to_its_end(folder, times, found):
    path = folder / BINARY / "test_batch.bin"
    path.write_bytes((FILES["test_batch"] * 3)[: int(len(FILES["test_batch"]) * times)])
    with pytest.raises(CorruptFile, match=f"{found}.* where 61,460 are right"):
        load_cifar10("test", folder, edition=EDITION)
