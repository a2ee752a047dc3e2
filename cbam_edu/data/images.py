"""Labelled images in memory, and the numbers that a network sees instead of pixels."""

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cbam_edu.storage import explained

MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training pixels, per channel, in 0..1
STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size.

    Attributes
    ----------
    name : str
        Where they come from, such as ``"cifar10"``; a record of a training run repeats it.
    images : Tensor
        ``(N, 3, H, W) uint8``.
    labels : Tensor
        ``(N,) int64``, indices into `classes`.
    classes : tuple of str
        The names of the classes.
    masks : Tensor or None
        ``(N, H, W) bool``, true where the labelled object is; only synthetic images have them.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices`, ``(M,) int64``, in that order."""
        masks = None if self.masks is None else self.masks[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], masks=masks)

    def holdout(self, per_class: int, seed: int = 0) -> tuple["ImageSet", "ImageSet"]:
        """Split off `per_class` random images of each class, to tune on: (rest, held out).

        With CIFAR-10's training images and ``per_class=500``, this is 45,000/5,000.
        """
        rng = np.random.default_rng(seed)
        labels = self.labels.numpy()
        held = np.zeros(len(self), bool)
        for label in range(len(self.classes)):
            members = np.flatnonzero(labels == label)
            if len(members) <= per_class:
                raise ValueError(
                    f"per_class must be below {len(members)}, the number of images of class "
                    f"{self.classes[label]!r}; got {per_class}"
                )
            held[rng.choice(members, per_class, replace=False)] = True
        rest, out = (torch.from_numpy(np.flatnonzero(m)) for m in (~held, held))
        return self.subset(rest), self.subset(out)


def normalise(images: Tensor) -> Tensor:
    """Turn pixels, ``(N, 3, H, W) uint8``, into what the networks are trained on.

    Returns ``(N, 3, H, W) float32``: pixels over 255, minus `MEAN`, over `STD`.
    """
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for v in (MEAN, STD)
    )
    return (images.float() / 255 - mean) / std


def read_image(path: str | os.PathLike[str], size: int = 32) -> Tensor:
    """Read a picture of any kind that Pillow knows as a small square, ``(3, size, size) uint8``.

    The largest square in its middle is kept and scaled, smoothly, to `size` pixels a side.

    Raises
    ------
    cbam_edu.storage.StorageError
        Where the file cannot be read.
    ValueError
        For a file that is no picture, a damaged one, or one of absurd size.
    """
    with explained("read", path):
        try:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                small = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a picture that can be read: {error}") from error
        except OSError as error:
            if error.errno is not None:  # the file system's, not the decoder's
                raise
            raise ValueError(f"{path} is a damaged picture: {error}") from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
