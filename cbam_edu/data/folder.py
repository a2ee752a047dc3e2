"""A folder of pictures, as ImageNet's are kept, read from the disk while a network trains.

The transforms are the usual ones, torchvision's: for training, a part of 8 to 100 % of the picture
and of sides 3:4 to 4:3 is scaled to the size wanted (Szegedy et al., "Going Deeper with
Convolutions", CVPR 2015, section 6) and mirrored half of the time; for testing, the shorter side
is scaled to 256/224 of that size, and the middle is cut out.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cbam_edu.attention import check_positive
from cbam_edu.data.batches import Augmentation, Order
from cbam_edu.data.images import normalise, open_picture, per_channel, split_off
from cbam_edu.neighbours import check_name
from cbam_edu.storage import explained

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels, per channel, in 0..1, as torchvision has them
STD = (0.229, 0.224, 0.225)
# Pictures that are not listed: torchvision, whose list is taken, has none of these.
OTHERS = (
    *(".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".dng", ".nef", ".raw"),
)
# No object is so long: what is longer is cut before it is scaled, lest a line of pixels become
# billions.
LONGEST = 16
TREE = "FOLDER/train/CLASS/*.jpg, and FOLDER/val/CLASS/*.jpg or FOLDER/test/CLASS/*.jpg"


class FolderError(ValueError):
    """A folder that is no data set: which, why, and what would be one."""


def _torchvision() -> tuple[Any, Any]:
    """Return torchvision's datasets and transforms, which only folders of pictures need."""
    try:
        from torchvision import datasets
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # a build for another torch fails in its own way
        raise FolderError(
            f"a folder of pictures is read by torchvision, which cannot be used here ({error}); "
            'run: pip install "cbam_edu[folder]"'
        ) from error
    return datasets, v2


@dataclass(frozen=True)
class PictureFolder:
    """Labelled pictures on the disk.

    Attributes
    ----------
    name : str
        The folder's own name; a record of a training run repeats it.
    paths : tuple of str
        The files.
    labels : Tensor
        ``(N,) int64``, indices into `classes`.
    classes : tuple of str
        The names of the classes, which are those of their folders, sorted.
    size : int
        Side, in pixels, of the images that a network gets.
    workers : int
        Processes that read ahead; 0 reads in the process that trains. They change no image.
    """

    name: str
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    size: int
    workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> "PictureFolder":
        """Return the pictures at `indices`, ``(M,) int64``, in that order."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def holdout(
        self, per_class: int | Sequence[int], seed: int = 0
    ) -> tuple["PictureFolder", "PictureFolder"]:
        """Split off random pictures, as `ImageSet.holdout` does: (rest, held out)."""
        rest, held = split_off(self.labels, self.classes, per_class, seed)
        return self.subset(rest), self.subset(held)

    def about(self) -> dict[str, Any]:
        """Return what a network that was trained on these pictures must be told of others."""
        return {"data": self.name, "size": self.size, "mean": MEAN, "std": STD}


def load_folder(
    folder: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 224,
    workers: int | None = None,
) -> PictureFolder:
    """List the pictures of an ImageNet-style tree, without opening them; hidden ones are not.

    Links are followed, and each folder is listed once in a class. A warning tells of pictures of
    kinds that are left out, such as HEIC.

    Parameters
    ----------
    folder : path
        Holds ``train``, and ``val`` or ``test``; in these, a folder of pictures for each class.
    split : {"train", "test"}
        Which part; for "test", ``val`` is taken where there are both, as ImageNet's own ``test``
        has no classes.
    size : int
        Side, in pixels, of the images that a network gets.
    workers : int, optional
        Processes that read ahead, 0 for none. Default: 4, or as many as there are cores.

    Raises
    ------
    FolderError
        If a part is missing, there are fewer than two classes, one has no picture, or torchvision
        is missing.
    cbam_edu.storage.StorageError
        If a folder cannot be read.
    """
    folder = Path(folder)
    check_name("split", split, ["train", "test"])
    check_positive("size", size)
    if workers is None:
        workers = min(4, _cores())
    if type(workers) is not int or workers < 0:
        raise ValueError(f"workers must be an integer from 0 up, got {workers!r}")
    datasets, _ = _torchvision()
    names = ("train",) if split == "train" else ("val", "test")
    root = next((folder / name for name in names if (folder / name).is_dir()), None)
    if root is None:
        raise FolderError(f"{folder} has no folder {' or '.join(names)} in it; wanted: {TREE}")

    with explained("read", root):
        try:
            classes = [n for n in datasets.folder.find_classes(root)[0] if not n.startswith(".")]
            if len(classes) < (2 if split == "train" else 1):
                raise FolderError(
                    f"{root} holds {', '.join(classes) or 'nothing'}, and a network needs two "
                    f"classes or more to tell apart; wanted: {TREE}"
                )
            files = {name: _files(root / name) for name in classes}
        except FileNotFoundError as error:  # torchvision says what is missing
            raise FolderError(f"wanted: {TREE}; in {root} it is not so: {error}") from error
    listed = {n: [f for f in f_s if datasets.folder.is_image_file(f)] for n, f_s in files.items()}
    _tell_others(root, [f for f_s in files.values() for f in f_s if f.lower().endswith(OTHERS)])
    if empty := [name for name in classes if not listed[name]]:
        raise FolderError(
            f"wanted: {TREE}; in {root} it is not so: no valid file for the classes "
            f"{', '.join(empty)}; pictures are {', '.join(datasets.folder.IMG_EXTENSIONS)}"
        )
    paths = tuple(path for name in classes for path in listed[name])
    labels = torch.tensor([i for i, name in enumerate(classes) for _ in listed[name]])
    return PictureFolder(folder.resolve().name, paths, labels, tuple(classes), size, workers)


def _files(folder: Path) -> list[str]:
    """Return the files in a folder and below, sorted, without hidden ones: ._1.jpg is macOS's."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set[str]()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to where we have been, or are
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found.append((root, sorted(name for name in names if not name.startswith("."))))
    return [os.path.join(root, name) for root, names in sorted(found) for name in names]


def _tell_others(root: Path, left_out: list[str]) -> None:
    """Warn of pictures that are not listed."""
    if left_out:
        warnings.warn(
            f"{len(left_out):,} pictures in {root} are left out, as torchvision lists none of "
            f"their kind, such as {left_out[0]}; to have them, save them as JPEG or PNG",
            stacklevel=3,
        )


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shortened(picture: Image.Image) -> Image.Image:
    """Return the middle of a picture that is more than `LONGEST` times as long as it is wide."""
    width, height = picture.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = (max(0, (side - most) // 2) for side in (width, height))
    return picture.crop((left, top, min(width, left + most), min(height, top + most)))


def transform(size: int, augmentation: Augmentation | None = None) -> Any:
    """Return what turns a picture into ``(3, size, size) uint8``: for training, or for testing."""
    _, v2 = _torchvision()
    if augmentation is None:
        steps = [_shortened, v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    else:
        flip = [v2.RandomHorizontalFlip()] if augmentation.flip else []
        steps = [v2.RandomResizedCrop(size), *flip]
    return v2.Compose([*steps, v2.PILToTensor()])


class _Reader(Dataset[Tensor | Exception]):
    """Reads the pictures of a batch, in whichever process.

    The chances of a picture's crop and flip follow from the seed, the epoch and its index, so that
    neither the number of processes, nor their order, nor a resumption changes an image.
    """

    def __init__(self, paths: Sequence[str], transform: Any, seed: int):
        self.paths, self.transform, self.seed = paths, transform, seed

    def __getitem__(self, key: tuple[int, list[int]]) -> Tensor | Exception:
        epoch, indices = key
        try:
            return torch.stack([self.read(epoch, index) for index in indices])
        except (OSError, ValueError) as error:
            return error  # raised here, it would reach the reader as a page of text

    def read(self, epoch: int, index: int) -> Tensor:
        picture = open_picture(self.paths[index])
        chances = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(int(chances[0]))
            return self.transform(picture)


class FolderBatches(Order):
    """Iterate over a `PictureFolder` in batches ``(x, y)``, as `Batches` does over images.

    ``x`` is ``(n, 3, size, size)`` float, normalised by ImageNet's `MEAN` and `STD`, and ``y`` is
    ``(n,) int64``; both come to the device batch by batch.

    Parameters
    ----------
    data : PictureFolder
        The pictures.
    batch_size, shuffle, drop_last, seed, part, device, channels_last
        As in `Batches`.
    augmentation : Augmentation, optional
        None for the middle of each picture; else for random crops, mirrored if it says so. Its
        shifts and holes are for small images in memory: anything but their defaults is refused.
    """

    def __init__(
        self,
        data: PictureFolder,
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
        if augmentation not in (None, Augmentation(flip=True), Augmentation(flip=False)):
            raise ValueError(
                "crop and cutout are for images in memory; pictures of a folder get random "
                f"resized crops: leave crop {Augmentation.crop} and cutout {Augmentation.cutout}"
            )
        self.labels, self.device = data.labels, torch.device(device)
        self.mean, self.std = (per_channel(v, self.device) for v in (MEAN, STD))
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.keys: list[tuple[int, list[int]]] = []  # what the loader is to read, in order
        self.loader = DataLoader(
            _Reader(data.paths, transform(data.size, augmentation), seed),
            batch_size=None,  # a key is a batch already
            sampler=self.keys,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # of the workers' seeds, which nothing uses
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [batch for batch in self.draw(self.chances()) if len(batch)]
        self.keys[:] = [(self.epoch, batch.tolist()) for batch in batches]
        for chosen, images in zip(batches, self.loader, strict=True):
            if isinstance(images, Exception):
                raise images
            x = normalise(images.to(self.device, non_blocking=True), self.mean, self.std)
            y = self.labels[chosen].to(self.device, non_blocking=True)
            yield x.contiguous(memory_format=self.format), y
