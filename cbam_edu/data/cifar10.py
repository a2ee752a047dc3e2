"""CIFAR-10 from its binary version: 50,000 training and 10,000 test photographs, ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University
of Toronto, 2009; https://www.cs.toronto.edu/~kriz/cifar.html. The page asks users to cite the
report; it states no licence.

Nothing is believed but the digests pinned here: a file is used only when its SHA-256 is right.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cbam_edu.data.images import ImageSet
from cbam_edu.neighbours import check_name
from cbam_edu.storage import cache_dir, explained, open_file

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
RECORD = 1 + 3 * 32 * 32  # bytes an image: its label, then its red, green and blue planes


@dataclass(frozen=True)
class Batch:
    """One file of the binary version: its split, number of images and SHA-256."""

    split: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """An archive of all files: the folder inside it, its bytes and their SHA-256."""

    inner: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Edition:
    """What a data set's files and archives must be, byte for byte.

    Attributes
    ----------
    batches : dict
        File names without ending -> `Batch`, in the order of the images.
    archives : dict
        File names -> `Archive`.
    """

    batches: dict[str, Batch]
    archives: dict[str, Archive]


BINARY = "cifar-10-batches-bin"  # the folders inside the archives
PYTHON = "cifar-10-batches-py"


CIFAR10 = Edition(
    batches={
        "data_batch_1": Batch(
            "train", 10_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
        ),
        "data_batch_2": Batch(
            "train", 10_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
        ),
        "data_batch_3": Batch(
            "train", 10_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
        ),
        "data_batch_4": Batch(
            "train", 10_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
        ),
        "data_batch_5": Batch(
            "train", 10_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
        ),
        "test_batch": Batch(
            "test", 10_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    },
    archives={
        "cifar-10-binary.tar.gz": Archive(
            BINARY,
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        "cifar-10-python.tar.gz": Archive(
            PYTHON,
            170_498_071,
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    },
)


class CorruptFile(ValueError):
    """A file of the data set that is not what it should be: which, what it is, what to do."""


def load_cifar10(
    split: str = "train",
    folder: str | os.PathLike[str] | None = None,
    *,
    edition: Edition = CIFAR10,
) -> ImageSet:
    """Read CIFAR-10 from a folder, after checking each file's SHA-256.

    Parameters
    ----------
    split : {"train", "test"}
        50,000 or 10,000 images.
    folder : path, optional
        Where the files are: in it, in its ``cifar-10-batches-bin``, or, as torchvision leaves
        them, in its ``cifar-10-batches-py``. Default: `cbam_edu.storage.cache_dir`.
    edition : Edition
        The files wanted.

    Returns
    -------
    ImageSet
        Named "cifar10", images in the order of the files.

    Raises
    ------
    FileNotFoundError
        If a file is in none of these places.
    CorruptFile
        If a file is there, but is truncated or altered.
    StorageError
        If a file cannot be read.
    ValueError
        For another split.
    """
    check_name("split", split, ["train", "test"])
    folder = cache_dir() if folder is None else Path(folder)
    batches = {name: batch for name, batch in edition.batches.items() if batch.split == split}
    total = sum(batch.count for batch in batches.values())
    pixels = np.empty((total, 3, 32, 32), np.uint8)
    labels = np.empty(total, np.int64)
    start = 0
    for name, batch in batches.items():
        records = np.frombuffer(read_batch(folder, name, batch), np.uint8).reshape(-1, RECORD)
        here = slice(start, start + batch.count)
        pixels[here] = records[:, 1:].reshape(-1, 3, 32, 32)
        labels[here] = records[:, 0]
        start += batch.count
    return ImageSet("cifar10", torch.from_numpy(pixels), torch.from_numpy(labels), CLASSES)


def is_complete(folder: str | os.PathLike[str], edition: Edition = CIFAR10) -> bool:
    """Say whether every file of `edition` can be read from `folder` and is right."""
    try:
        for name, batch in edition.batches.items():
            read_batch(Path(folder), name, batch)
    except (FileNotFoundError, CorruptFile):
        return False
    return True


def read_batch(folder: Path, name: str, batch: Batch) -> bytes:
    """Return the right content of a file of the binary version, from wherever `folder` has it.

    Raises as `load_cifar10` does.
    """
    faults, most = [], 2 * batch.count * RECORD  # the python version's are little longer
    for path in (folder / BINARY / f"{name}.bin", folder / f"{name}.bin"):
        if (content := _read(path, most)) is not None:
            if (fault := batch_fault(content, batch)) is None:
                return content
            faults.append(f"{path} {fault}")
    for path in (folder / PYTHON / name, folder / name):
        if (content := _read(path, most)) is not None:
            content = from_python(content, batch.count)
            if content is not None and batch_fault(content, batch) is None:
                return content
            faults.append(f"{path} is truncated or altered")
    if faults:
        raise CorruptFile(f"{' and '.join(faults)}; to replace it, run: cbam-edu download")
    raise FileNotFoundError(
        f"there is no {name}.bin in {folder} or its {BINARY}; to have CIFAR-10, run: "
        "cbam-edu download (cifar10-mini needs no download)"
    )


def _read(path: Path, most: int) -> bytes | None:
    """Return a file's content, `most` bytes of a longer one; None where there is no file."""
    with explained("read", path):
        try:
            with open_file(path) as file:
                return file.read(most)
        except (FileNotFoundError, NotADirectoryError):
            return None


def batch_fault(content: bytes, batch: Batch) -> str | None:
    """Say what is wrong with the content of a file of the binary version, or None."""
    wanted = batch.count * RECORD
    if len(content) != wanted:
        more = "more than " if len(content) == 2 * wanted else ""  # read no further
        return f"has {more}{len(content):,} bytes where {wanted:,} are right"
    digest = hashlib.sha256(content).hexdigest()
    if digest != batch.sha256:
        return f"has the SHA-256 {digest[:12]}... where {batch.sha256[:12]}... is right"
    return None


def from_python(content: bytes, count: int) -> bytes | None:
    """Rebuild a file of the binary version from one of the python version, by its bytes alone.

    The python version's files are serialised dictionaries. Only two stretches of them matter: the
    labels, one byte each with a "K" before it, in lists from "(" to "e"; and the pixels, one string
    of ``count * 3072`` bytes after "T" and that length. They are cut out and nothing is
    interpreted, so a hostile file can do nothing; the digest of the result says whether it is
    right.

    Returns
    -------
    bytes or None
        The `count` records, or None where the two stretches are not found.
    """
    size = count * (RECORD - 1)
    lists = re.search(rb"labels.{0,16}?((?:\((?:K[\x00-\x09])+e)+)", content, re.DOTALL)
    mark = content.find(b"T" + size.to_bytes(4, "little"))
    labels = re.sub(rb"[(Ke]", b"", lists[1]) if lists else b""
    if mark < 0 or len(content) < mark + 5 + size or len(labels) != count:
        return None
    records = np.empty((count, RECORD), np.uint8)
    records[:, 0] = np.frombuffer(labels, np.uint8)
    records[:, 1:] = np.frombuffer(content, np.uint8, size, mark + 5).reshape(count, -1)
    return records.tobytes()
