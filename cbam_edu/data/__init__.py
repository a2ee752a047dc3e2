"""CIFAR-10, its miniature, synthetic shapes, folders of pictures, and batches of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cbam_edu.data import cifar10, mini, sources
from cbam_edu.data.batches import Augmentation, Batches
from cbam_edu.data.cifar10 import CLASSES, CorruptFile
from cbam_edu.data.folder import FolderBatches, FolderError, PictureFolder, load_folder
from cbam_edu.data.images import (
    MEAN,
    STD,
    ImageSet,
    check_classes,
    normalise,
    open_picture,
    read_image,
)
from cbam_edu.data.mini import miniature
from cbam_edu.data.shapes import shapes
from cbam_edu.data.sources import DownloadError, download
from cbam_edu.neighbours import check_name

__all__ = [
    "CLASSES",
    "MEAN",
    "NAMES",
    "SPLITS",
    "STD",
    "Augmentation",
    "Batches",
    "CorruptFile",
    "DownloadError",
    "FolderBatches",
    "FolderError",
    "ImageSet",
    "PictureFolder",
    "check_classes",
    "download",
    "in_batches",
    "load",
    "miniature",
    "normalise",
    "open_picture",
    "read_image",
    "shapes",
]

SPLITS = ("train", "test")
_SHAPES = {"train": (10_000, 0), "test": (2_000, 1)}  # their number and seed


def _cifar10(split: str, folder: Path | None, fetch: bool) -> ImageSet:
    try:
        return cifar10.load_cifar10(split, folder)
    except FileNotFoundError:
        if not fetch:
            raise
    return cifar10.load_cifar10(split, sources.download(folder))


_READERS: dict[str, Callable[[str, Path | None, bool], ImageSet]] = {
    "cifar10": _cifar10,
    "cifar10-mini": lambda split, folder, fetch: mini.load_mini(split),
    "shapes": lambda split, folder, fetch: shapes(*_SHAPES[split]),
}
NAMES = tuple(_READERS)


def load(
    name: str,
    split: str = "train",
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    size: int | None = None,
    workers: int | None = None,
) -> ImageSet | PictureFolder:
    """Return a data set by its name, or the pictures in a folder.

    Parameters
    ----------
    name : {"cifar10", "cifar10-mini", "shapes"} or path
        "cifar10": 50,000 training and 10,000 test photographs of ten classes.
        "cifar10-mini": the first 1,000 and 500 of them, evenly of each class, from this package.
        "shapes": 10,000 and 2,000 synthetic images of ten shapes, with masks.
        Else a folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` in it: see `load_folder`.
    split : {"train", "test"}
        Which part.
    folder : path, optional
        Where CIFAR-10's files are, such as the ``root`` that torchvision was given. Default: the
        cache, `cbam_edu.storage.cache_dir`.
    download : bool
        Whether CIFAR-10 may be downloaded into `folder` if it is not there.
    size, workers : int, optional
        Of a folder of pictures, and of nothing else: side of the images (default: 224), and
        processes that read ahead (default: 4, or as many as there are cores).

    Raises
    ------
    ValueError
        For an unknown name or split, with the nearest known ones, or a `size` or `workers` that
        has no meaning.
    FolderError
        If a folder lacks the training or the test pictures, or those of a class.
    CorruptFile
        If a file is truncated or altered; it is not replaced unasked.
    FileNotFoundError
        If files are missing and `download` is false.
    DownloadError
        If files are missing and no source gives them.
    StorageError
        If a file cannot be read, or the folder not written to.
    """
    check_name("split", split, list(SPLITS))
    if name not in NAMES and os.path.isdir(name):  # which takes names that are far too long, too
        return load_folder(Path(name), split, size=224 if size is None else size, workers=workers)
    try:
        check_name("data set", name, list(NAMES))
    except ValueError as error:
        raise ValueError(f"{error} (nor is there a folder of that name)") from None
    if size is not None or workers is not None:
        raise ValueError(f"size and workers are for a folder of pictures, not for {name}")
    return _READERS[name](split, None if folder is None else Path(folder), download)


def in_batches(
    data: ImageSet | PictureFolder, batch_size: int, **options: Any
) -> Batches | FolderBatches:
    """Return the batches of a data set: `Batches` in memory, or `FolderBatches` from the disk."""
    if isinstance(data, PictureFolder):
        return FolderBatches(data, batch_size, **options)
    return Batches(data, batch_size, **options)
