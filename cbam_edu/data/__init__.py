"""CIFAR-10, its miniature, synthetic shapes, and batches that live on the device."""

import os
from collections.abc import Callable
from pathlib import Path

from cbam_edu.data.cifar10 import CLASSES, CorruptFile, load_cifar10
from cbam_edu.data.images import MEAN, STD, ImageSet, normalise
from cbam_edu.neighbours import check_name

__all__ = [
    "CLASSES",
    "MEAN",
    "NAMES",
    "SPLITS",
    "STD",
    "CorruptFile",
    "ImageSet",
    "load",
    "normalise",
]

_READERS: dict[str, Callable[[str, Path | None, bool], ImageSet]] = {
    "cifar10": lambda split, folder, download: load_cifar10(split, folder),
}
NAMES = tuple(_READERS)  # what `load` knows
SPLITS = ("train", "test")


def load(
    name: str,
    split: str = "train",
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ImageSet:
    """Return a data set by its name."""
    check_name("data set", name, list(NAMES))
    check_name("split", split, list(SPLITS))
    return _READERS[name](split, None if folder is None else Path(folder), download)
