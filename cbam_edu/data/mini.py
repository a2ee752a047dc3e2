"""cifar10-mini: 1,000 training and 500 test photographs of CIFAR-10 inside this package.

They are the first 100 training and the first 50 test images of each class, in the order of the
files, without loss: `miniature` picks them. Each split is one picture, ten images wide, one column
a class, so that image i has class i mod 10 and no file of labels is needed.

The photographs are CIFAR-10's: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", technical report, University of Toronto, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html. That page asks users to cite the report, and states no
licence; so the licence of this package covers its code and not these two pictures.

To make the pictures again from CIFAR-10 in FOLDER, run::

    python -c "from cbam_edu.data import mini; mini.write_sheets('FOLDER')"
"""

import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from cbam_edu.data.cifar10 import CLASSES, CorruptFile, load_cifar10
from cbam_edu.data.images import ImageSet
from cbam_edu.neighbours import check_name
from cbam_edu.storage import explained, open_file, replace_file

PER_CLASS = {"train": 100, "test": 50}
PIXELS_SHA256 = {  # of the images, (N, 3, 32, 32), in row-major order
    "train": "a711302519f4540701b25cf7afc63b7265480c01ab55b26022c66cfe2e0c572c",
    "test": "b24037057127dfebe67106f277228786f888437d45ba6a92ceaaab8add33b1fc",
}


def miniature(images: ImageSet, per_class: int) -> ImageSet:
    """Return the first images of each class, interleaved: image i has class i mod C.

    Parameters
    ----------
    images : ImageSet
        Images of C classes.
    per_class : int
        How many images to take of each class.

    Returns
    -------
    ImageSet
        ``per_class * C`` images, named after `images` with "-mini" added.

    Raises
    ------
    ValueError
        If a class has fewer images.
    """
    columns = []
    for label, name in enumerate(images.classes):
        members = torch.nonzero(images.labels == label).flatten()
        if not 0 < per_class <= len(members):
            raise ValueError(
                f"per_class must be from 1 to {len(members)}, the number of images of class "
                f"{name!r}; got {per_class}"
            )
        columns.append(members[:per_class])
    chosen = images.subset(torch.stack(columns, dim=1).flatten())
    return ImageSet(f"{images.name}-mini", chosen.images, chosen.labels, chosen.classes)


def load_mini(split: str = "train") -> ImageSet:
    """Read cifar10-mini out of the package.

    Parameters
    ----------
    split : {"train", "test"}
        1,000 or 500 images.

    Raises
    ------
    CorruptFile
        If the picture in the package is truncated or altered.
    StorageError
        If it is missing or cannot be read.
    ValueError
        For another split.
    """
    check_name("split", split, list(PER_CLASS))
    path = sheet_path(split)
    count = PER_CLASS[split] * len(CLASSES)
    with explained("read", path):
        content = open_file(path)
    try:
        with content, Image.open(content, formats=["PNG"]) as picture:
            if picture.width * picture.height > count * 32 * 32:  # no memory is taken for it
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            pixels = np.asarray(picture)
    except UnidentifiedImageError as error:
        raise _corrupt(path, "it is no PNG") from error
    except Exception as error:  # Pillow raises what it likes for a broken picture
        raise _corrupt(path, str(error)) from error
    if pixels.shape != (count // 10 * 32, 10 * 32, 3):
        raise _corrupt(path, f"it has the shape {pixels.shape}")
    images = np.ascontiguousarray(
        pixels.reshape(-1, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    )
    if hashlib.sha256(images.tobytes()).hexdigest() != PIXELS_SHA256[split]:
        raise _corrupt(path, "its pixels have another SHA-256")
    labels = torch.arange(count) % len(CLASSES)
    return ImageSet("cifar10-mini", torch.from_numpy(images), labels, CLASSES)


def sheet_path(split: str) -> Path:
    """Return where the package keeps the picture of a split."""
    return Path(__file__).with_name(f"cifar10_mini_{split}.png")


def _corrupt(path: Path, reason: str) -> CorruptFile:
    return CorruptFile(f"{path} is truncated or altered ({reason}); install cbam_edu again")


def sheet(images: ImageSet) -> Image.Image:
    """Lay out what `miniature` returns as one picture, a column for each class."""
    columns = len(images.classes)
    tiles = images.images.numpy().reshape(-1, columns, *images.images.shape[1:])
    rows, _, channels, height, width = tiles.shape
    pixels = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    return Image.fromarray(pixels)


def write_sheets(folder: str | os.PathLike[str] | None = None) -> None:
    """Write the package's two pictures from CIFAR-10 in `folder` (default: the cache)."""
    for split, per_class in PER_CLASS.items():
        picture = sheet(miniature(load_cifar10(split, folder), per_class))
        save = partial(picture.save, format="PNG", optimize=True)
        replace_file(sheet_path(split), save)
