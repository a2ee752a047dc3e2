"""Batches that live on the device, augmented there.

An epoch's random choices - order, crops, flips, holes - are drawn at once, on the CPU, from the
seed and the epoch's number. So every device and every resumed run sees the same batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbam_edu.attention import check_positive
from cbam_edu.data.images import MEAN, STD, ImageSet, normalise, per_channel

# Images made at a time. A GPU has few, large steps to start then, and no batch waits for them; a
# CPU's cache still holds them.
BLOCK = 1024


@dataclass(frozen=True)
class Augmentation:
    """What happens to each training image, by chances of its own.

    Attributes
    ----------
    crop : int
        Pixels by which the image may shift each way; zeros, the mean colour, fill what opens.
    flip : bool
        Whether half of the images are mirrored left to right.
    cutout : int
        Side, in pixels, of a square set to zero at a random place; 0 for none
        (DeVries and Taylor, 2017, arXiv:1708.04552).
    """

    crop: int = 4
    flip: bool = True
    cutout: int = 0


def crop_and_flip(x: Tensor, shift: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Move every image by its own shift and mirror those that `flip` names.

    Parameters
    ----------
    x : Tensor
        ``(N, C, H, W)``.
    shift : Tensor
        ``(N, 2) int64``, rows and columns, from 0 to ``2 * pad``; `pad` leaves the image in place.
    flip : Tensor
        ``(N,) bool``.
    pad : int
        Zeros added on each side before the crop.
    """
    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    rows = torch.arange(height, device=x.device) + shift[:, :1]
    columns = torch.arange(width, device=x.device) + shift[:, 1:]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None]
    # Indexing puts the channels last: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of `side` pixels around each image's centre, ``(N, 2) int64``, to zero."""
    height, width = x.shape[2:]
    low = centre - side // 2
    rows = torch.arange(height, device=x.device) - low[:, :1]
    columns = torch.arange(width, device=x.device) - low[:, 1:]
    hole = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    return x.masked_fill(hole[:, None], 0)


def share(count: int, part: tuple[int, int]) -> np.ndarray:
    """Return the positions, in a batch of `count` images, that one of several processes takes.

    Parameters
    ----------
    count : int
        Images in the batch.
    part : tuple of int
        (r, n): the r-th, from 0, of n shares, which hold all positions once and differ in size by
        at most one.

    Returns
    -------
    ndarray
        Ascending ``int64``. Shares are dealt from both ends inwards, so that where their size is
        even, a position and its mirror, ``count - 1 - position``, are in the same one, and
        reversing each share is reversing the batch: Mixup's pairs are those of one process.
    """
    mine, shares = part
    positions = np.arange(count)
    inwards = np.argsort(np.minimum(positions, positions[::-1]), kind="stable")
    return np.sort(inwards[mine * count // shares : (mine + 1) * count // shares])


class Order:
    """Which images each batch holds, in each epoch: the part of `Batches` that sees no image.

    Parameters
    ----------
    count : int
        How many images there are.
    batch_size, shuffle, drop_last, seed, part
        As in `Batches`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        check_positive("batch_size", batch_size)
        if drop_last and count < batch_size:
            raise ValueError(
                f"batch_size must be at most {count}, the number of images; got {batch_size}"
            )
        self.count, self.batch_size, self.part = count, batch_size, part
        self.shuffle, self.drop_last, self.seed, self.epoch = shuffle, drop_last, seed, 0

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""
        self.epoch = epoch

    def chances(self) -> np.random.Generator:
        """Return the source of the epoch's random choices, of which the order is the first."""
        return np.random.default_rng((self.seed, self.epoch))

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the indices of the images of this part of each batch."""
        order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        return [batch[share(len(batch), self.part)] for batch in batches]


class Batches(Order):
    """Iterate over an `ImageSet` in batches ``(x, y)`` that never leave the device.

    ``x`` is ``(n, 3, H, W)`` float, normalised; ``y`` is ``(n,) int64``.

    Parameters
    ----------
    data : ImageSet
        The images; they are moved to `device` once.
    batch_size : int
        Images in a batch; the last one may be smaller unless `drop_last`.
    augmentation : Augmentation, optional
        Done to each image anew in each epoch.
    shuffle : bool
        Whether each epoch has an order of its own; set it by `set_epoch`.
    drop_last : bool
        Whether to leave out a last batch that is not full.
    seed : int
        With the epoch's number, the source of all chances.
    part : tuple of int
        (r, n) for the r-th, from 0, of n processes: it gets its share of each batch.
    device : torch.device or str
        Where the images live.
    channels_last : bool
        Memory format of ``x``.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ):
        super().__init__(
            len(data), batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed, part=part
        )
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.mean, self.std = (per_channel(v, self.images.device) for v in (MEAN, STD))
        self.augmentation = augmentation
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, device = self.count, self.images.device
        height, width = self.images.shape[2:]
        aug = self.augmentation or Augmentation(crop=0, flip=False)
        rng = self.chances()

        def put(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        batches = self.draw(rng)
        # Chances are drawn for all images, so that they do not hang on the number of processes.
        shift = put(rng.integers(0, 2 * aug.crop + 1, (count, 2)))
        flip = put(rng.random(count) < 0.5 if aug.flip else np.zeros(count, bool))
        centre = put(rng.integers(0, (height, width), (count, 2)))
        order = put(np.concatenate([np.arange(0), *batches]))  # to the device once an epoch
        together = max(1, BLOCK // self.batch_size)
        sizes = [len(batch) for batch in batches]
        blocks = [sizes[i : i + together] for i in range(0, len(sizes), together)]
        for block, chosen in zip(blocks, order.split([sum(b) for b in blocks]), strict=True):
            x = normalise(self.images[chosen], self.mean, self.std)
            if aug.crop or aug.flip:
                x = crop_and_flip(x, shift[chosen], flip[chosen], aug.crop)
            if aug.cutout:
                x = cut_out(x, centre[chosen], aug.cutout)
            x = x.contiguous(memory_format=self.format)
            yield from zip(x.split(block), self.labels[chosen].split(block), strict=True)
