"""Labelled images in memory, and the numbers that a network sees instead of pixels."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cbam_edu.storage import explained, open_file

MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training pixels, per channel, in 0..1
STD = (0.2470, 0.2435, 0.2616)
# The kinds that Pillow itself may read here. Of its others some are read by slow code in Python,
# which a small file keeps busy for minutes, and EPS is run by Ghostscript, another program.
KINDS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM", "AVIF", "JPEG2000")


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

    @property
    def size(self) -> int:
        """Return the height of the images, in pixels."""
        return self.images.shape[2]

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices`, ``(M,) int64``, in that order."""
        masks = None if self.masks is None else self.masks[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], masks=masks)

    def holdout(
        self, per_class: int | Sequence[int], seed: int = 0
    ) -> tuple["ImageSet", "ImageSet"]:
        """Split off random images, to tune on: (rest, held out).

        `per_class` is how many of each class, or for each class how many. With CIFAR-10's training
        images and ``per_class=500``, this is 45,000/5,000.
        """
        rest, held = split_off(self.labels, self.classes, per_class, seed)
        return self.subset(rest), self.subset(held)

    def about(self) -> dict[str, Any]:
        """Return what a network that was trained on these images must be told of others."""
        return {"data": self.name}


def split_off(
    labels: Tensor, classes: Sequence[str], per_class: int | Sequence[int], seed: int
) -> tuple[Tensor, Tensor]:
    """Choose `per_class` random images of each class; return the others' indices, and theirs."""
    rng = np.random.default_rng(seed)
    counts = [per_class] * len(classes) if isinstance(per_class, int) else per_class
    held = np.zeros(len(labels), bool)
    for label, (name, count) in enumerate(zip(classes, counts, strict=True)):
        members = np.flatnonzero(labels.numpy() == label)
        if len(members) <= count:
            raise ValueError(
                f"per_class must be below {len(members)}, the number of images of class "
                f"{name!r}; got {count}"
            )
        held[rng.choice(members, count, replace=False)] = True
    rest, chosen = (torch.from_numpy(np.flatnonzero(m)) for m in (~held, held))
    return rest, chosen


def check_classes(name: str, got: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise ValueError unless the classes of the images `name` are those of the network."""
    if list(got) == list(wanted):
        return

    def few(names: list[str]) -> str:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(names[:5]) + more or "none"

    lacking, unknown = ([c for c in a if c not in b] for a, b in ((wanted, got), (got, wanted)))
    raise ValueError(
        f"the classes to measure on, of {name}, are not those that were trained; lacking: "
        f"{few(lacking)}; unknown: {few(unknown)}"
    )


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Put one number a channel where images are, ``(3, 1, 1) float32``, for `normalise`."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def normalise(
    images: Tensor,
    mean: Sequence[float] | Tensor = MEAN,
    std: Sequence[float] | Tensor = STD,
) -> Tensor:
    """Turn pixels, ``(N, 3, H, W) uint8``, into what the networks are trained on.

    Returns ``(N, 3, H, W) float32``: pixels over 255, minus `mean`, over `std`, both per channel.
    A GPU is waited for where these are numbers; who does it often gives them as tensors,
    ``(3, 1, 1) float32``, on the device of the images.
    """
    centre, scale = (
        v if isinstance(v, Tensor) else per_channel(v, images.device) for v in (mean, std)
    )
    return (images.float() / 255 - centre) / scale


def _kinds() -> list[str]:
    """Return the kinds of pictures that may be read: `KINDS`, and those that the user has added."""
    Image.init()
    return [
        kind
        for kind in Image.ID
        if kind in KINDS or not Image.OPEN[kind][0].__module__.startswith("PIL.")
    ]


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture of one of `KINDS`, in RGB, turned as its camera says.

    Grey of 16 bits is scaled to 8. Raises as `read_image` does.
    """
    with explained("read", path), open_file(path) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file, formats=_kinds()) as picture:
                    return _upright(picture)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{path} is not a picture that can be read; it can be {', '.join(KINDS)}"
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{path} is not a picture that can be read: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises what it likes for a broken picture
            if getattr(error, "errno", None) is not None:  # the file system's, not the decoder's
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is a damaged picture: {reason}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Return a picture's pixels in RGB, turned as its camera says, in little memory."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format != "TIFF"):
        grey = np.asarray(picture) // 257  # from 0..65535; Pillow would cut it off at 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'integers' if picture.mode == 'I' else 'fractions'} of 32 bits, not "
            "shades from 0 to 255"
        )
    if picture.mode != "RGB":
        return picture.convert("RGB")
    picture.load()
    return picture


def read_image(path: str | os.PathLike[str], size: int = 32) -> Tensor:
    """Read a picture of one of `KINDS` as a small square, ``(3, size, size) uint8``.

    The largest square in its middle is kept and scaled, smoothly, to `size` pixels a side.

    Raises
    ------
    cbam_edu.storage.StorageError
        Where the file cannot be read.
    ValueError
        For a file that is no picture, a damaged one, or one of absurd size.
    """
    small = ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
