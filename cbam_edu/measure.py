"""Measuring a network on labelled images, in one process or many."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cbam_edu.data import Batches, FolderBatches, ImageSet, PictureFolder, in_batches
from cbam_edu.distributed import all_sum, rank, world_size
from cbam_edu.recipe import autocast


class Scores(NamedTuple):
    """Part of the images named rightly, from 0 to 1, and mean cross-entropy in nats."""

    accuracy: float
    loss: float


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and after that each part into the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def evaluate(
    model: nn.Module,
    data: ImageSet | PictureFolder,
    *,
    batch_size: int | None = None,
    precision: str = "float32",
) -> Scores:
    """Measure a network on labelled images, on the device where the network is.

    Processes that work together share the images, and each returns the scores on all.

    Parameters
    ----------
    model : torch.nn.Module
        Maps ``(N, 3, H, W) float`` to logits ``(N, classes)``; evaluated in evaluation mode, and
        each part left in the mode it had.
    data : ImageSet or PictureFolder
        At least one image.
    batch_size : int, optional
        Images at a time; it changes nothing but time and memory. Default: 500, or 125 on a CPU,
        whose cache is small, or 64 of a folder, whose images are large.
    precision : {"float32", "bfloat16", "float16"}
        Of the forward pass, by autocast.
    """
    device = next(model.parameters()).device
    return measure(model, evaluation_batches(data, device, batch_size), precision)


def evaluation_batches(
    data: ImageSet | PictureFolder, device: torch.device, batch_size: int | None = None
) -> Batches | FolderBatches:
    """Return the batches on which `measure` measures: this process's share of the images."""
    if not len(data):
        raise ValueError(f"{data.name} has no images to evaluate on")
    if batch_size is None:
        few = device.type == "cpu"
        batch_size = 64 if isinstance(data, PictureFolder) else 125 if few else 500
    part = rank(), world_size()
    return in_batches(data, batch_size, part=part, device=device, channels_last=True)


@torch.no_grad()
def measure(model: nn.Module, batches: Batches | FolderBatches, precision: str) -> Scores:
    """Do what `evaluate` does, on batches that can be used again."""
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    with evaluating(model):
        for x, y in batches:
            with autocast(device, precision):
                logits = model(x)
            loss += F.cross_entropy(logits.float(), y, reduction="sum")
            right += (logits.argmax(1) == y).sum()
    right, loss = all_sum(right), all_sum(loss)
    return Scores(right.item() / batches.count, loss.item() / batches.count)
