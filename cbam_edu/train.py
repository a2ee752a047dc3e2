"""Training: one loop, for one process or many."""

import copy
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cbam_edu.checkpoint import CheckpointError, check_same, read_checkpoint, write_checkpoint
from cbam_edu.data import Augmentation, ImageSet, PictureFolder, check_classes, in_batches
from cbam_edu.distributed import all_sum, broadcast_buffers, rank, world_size
from cbam_edu.measure import Scores, evaluate, evaluating, evaluation_batches, measure
from cbam_edu.recipe import (
    Average,
    Recipe,
    autocast,
    deterministic,
    make_optimizer,
    parameter_groups,
)
from cbam_edu.storage import alone, make_folder

__all__ = [
    "CheckpointError",
    "DivergenceError",
    "Recipe",
    "Scores",
    "deterministic",
    "evaluate",
    "evaluating",
    "fit",
    "parameter_groups",
    "read_checkpoint",
]


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number; the last good checkpoint is kept."""


def fit(
    model: nn.Module,
    train: ImageSet | PictureFolder,
    recipe: Recipe | None = None,
    *,
    test: ImageSet | PictureFolder | None = None,
    device: torch.device | str = "cpu",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a network in place; the generators of CPU and CUDA are left as they were.

    Processes that work together (`cbam_edu.distributed.processes`) see the same images in the
    same order as one process, each its share of every batch, and end with equal networks. Their
    mean gradient is that of the whole batch. BatchNorm's statistics are the whole batch's on
    GPUs; on CPUs, where PyTorch cannot join them, each process uses those of its share, and the
    running ones are the first process's. Dropout draws other chances in each process.

    Parameters
    ----------
    model : torch.nn.Module
        Maps ``(N, 3, H, W) float`` to logits ``(N, classes)``; moved to `device`.
    train : ImageSet or PictureFolder
        What it learns from.
    recipe : Recipe, optional
        How.
    test : ImageSet or PictureFolder, optional
        Measured after every epoch; nothing is chosen by it.
    device : torch.device or str
        Where to train.
    out : path, optional
        Folder for ``checkpoint.pt``, written before the first and after every epoch, and
        ``log.jsonl``, one line an epoch. The first process writes them; to resume, all must see
        them, and may be more or fewer than before.
    resume : bool
        Go on from the checkpoint in `out`; where there is none, start afresh.
    progress : bool
        Print one line an epoch, and in a terminal show a bar while an epoch runs.

    Returns
    -------
    list of dict
        One an epoch: ``epoch`` (from 1), ``lr``, ``loss``, ``train_accuracy``, ``seconds``, and
        with `test` also ``accuracy`` and ``test_loss``.

    Raises
    ------
    CheckpointError
        For a checkpoint of another run, a damaged one, or one that would be overwritten.
    ValueError
        For a batch that the processes cannot share evenly, or that is larger than `train`, for
        test images of other classes, a picture that cannot be read, or a network without
        parameters to train or with fewer outputs than classes.
    DivergenceError
        When the loss is no longer finite; `out` keeps the checkpoint before.
    """
    recipe = recipe or Recipe()
    device = torch.device(device)
    model.to(device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
    run = _Run(model, train, recipe, device)
    batches = None
    if test is not None:
        check_classes(test.name, test.classes, train.classes)
        batches = evaluation_batches(test, device)
    folder = None if out is None else make_folder(out)
    if folder:
        run.open(folder, resume)
    generators = [device] if device.type == "cuda" else []
    with deterministic(recipe.deterministic), torch.random.fork_rng(generators):
        while len(run.history) < recipe.epochs:
            entry = run.epoch(progress)
            if batches is not None:
                scores = measure(run.evaluated, batches, recipe.precision)
                entry |= {"accuracy": scores.accuracy, "test_loss": scores.loss}
            run.history.append(entry)
            if folder:
                run.save(folder)
            if progress and rank() == 0:
                print(_line(entry, recipe.epochs), flush=True)
    if run.evaluated is not model:
        model.load_state_dict(run.evaluated.state_dict())
    return run.history


def _with_joined_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the network, or a copy whose BatchNorms see the whole batch of many processes."""
    if world_size() == 1 or device.type != "cuda":  # PyTorch has them on GPUs only
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))


def _line(entry: dict[str, float], epochs: int) -> str:
    text = (
        f"epoch {entry['epoch']:3d}/{epochs}  loss {entry['loss']:.4f}  "
        f"train {entry['train_accuracy']:.2%}"
    )
    if "accuracy" in entry:
        text += f"  test {entry['accuracy']:.2%}"
    return f"{text}  {entry['seconds']:.1f} s"


def _check_history(history: list[Any]) -> None:
    """Raise unless there is an entry of numbers for each epoch."""
    keys = {"epoch", "lr", "loss", "train_accuracy", "seconds"}
    for number, entry in enumerate(history, 1):
        whole = isinstance(entry, dict) and keys <= entry.keys() and entry["epoch"] == number
        if not whole or not all(isinstance(v, int | float) for v in entry.values()):
            raise ValueError("its history is not one entry of numbers for each epoch")


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of an optimizer's groups, but the rate, which each step sets."""
    return [
        {k: v for k, v in group.items() if k not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def _fits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what an optimizer keeps of each parameter has its shape, or is one number."""
    return all(
        value is None or (isinstance(value, Tensor) and value.shape in (p.shape, ()))
        for p, kept in optimizer.state.items()
        for value in kept.values()
    )


class _Run:
    """All that changes while a network is trained, so that a checkpoint is all of it."""

    def __init__(
        self,
        model: nn.Module,
        train: ImageSet | PictureFolder,
        recipe: Recipe,
        device: torch.device,
    ):
        self.model, self.recipe = _with_joined_norms(model, device), recipe
        self.device, self.about, self.classes = device, train.about(), len(train.classes)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"{type(model).__name__} has no parameter that can be trained")
        # Each process takes an equal share of the batch, of whole pairs where Mixup makes pairs.
        shares = world_size() * (2 if recipe.mixup and world_size() > 1 else 1)
        if recipe.batch_size % shares:
            raise ValueError(
                f"batch_size must be a multiple of {shares}, for {world_size()} processes"
                f"{' and mixup' if recipe.mixup else ''}; got {recipe.batch_size}"
            )
        self.batches = in_batches(
            train,
            recipe.batch_size,
            augmentation=Augmentation(recipe.crop, recipe.flip, recipe.cutout),
            shuffle=True,
            drop_last=True,
            seed=recipe.seed,
            part=(rank(), world_size()),
            device=device,
            channels_last=recipe.channels_last,
        )
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.average = Average(self.model, recipe.ema) if recipe.ema else None
        self.forward: Callable[[Tensor], Tensor] = self.model
        if world_size() > 1:
            self.forward = DistributedDataParallel(self.model)
        if recipe.compile:
            self.forward = torch.compile(self.forward)
        self.history: list[dict[str, float]] = []

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def open(self, folder: Path, resume: bool) -> None:
        """Go on from the folder's checkpoint, or put a first one there."""
        path = folder / "checkpoint.pt"
        # The sum also keeps the first process from writing before the last one has looked.
        there = int(all_sum(torch.tensor(int(path.exists()), device=self.device)))
        if not there:
            with alone(folder):
                if rank() > 0 or not path.exists():
                    return self.save(folder)
            there = 1  # another process has begun a run there since
        if not resume:
            raise CheckpointError(
                f"{folder} holds a run already; resume it (--resume), or choose another folder"
            )
        if there < world_size():
            raise CheckpointError(
                f"only {there} of {world_size()} processes see {path}; choose a folder that all "
                "machines share"
            )
        self.load(path)

    def identity(self) -> dict[str, Any]:
        """Return what makes this run the one it is."""
        return {**asdict(self.recipe), **getattr(self.model, "config", {}), **self.about}

    def save(self, folder: Path) -> None:
        """Write the checkpoint, in the first process; it tells nothing of how many there are."""
        if rank() > 0:
            return
        state = {
            "identity": self.identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "history": self.history,
        }
        write_checkpoint(folder, state)

    def load(self, path: Path) -> None:
        state = read_checkpoint(path)
        check_same(path, state["identity"], self.identity())
        options = _options(self.optimizer)
        try:
            _check_history(state["history"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if _options(self.optimizer) != options or not _fits(self.optimizer):
                raise ValueError("its optimizer is another one")
            self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise CheckpointError(
                f"{path} does not fit this network: {reason}; choose another folder"
            ) from error
        self.history = state["history"]

    def epoch(self, progress: bool) -> dict[str, float]:
        """Train for one epoch and return its entry of the history."""
        recipe, index, steps = self.recipe, len(self.history), len(self.batches)
        self.batches.set_epoch(index)
        chances = np.random.default_rng((recipe.seed, index, 1))
        torch.manual_seed(int(chances.integers(2**31)) + rank())  # for a network with dropout
        mixes = chances.beta(recipe.mixup, recipe.mixup, steps) if recipe.mixup else np.ones(steps)
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        hidden = not (progress and rank() == 0 and sys.stderr.isatty())
        bar = tqdm(self.batches, f"epoch {index + 1}", leave=False, disable=hidden)
        began = time.perf_counter()
        self.model.train()
        for step, (x, y) in enumerate(bar):
            # Between the first step and the last, never at zero: no step is wasted.
            done = (index * steps + step + 1) / (recipe.epochs * steps + 1)
            lr = recipe.learning_rate(done)
            step_loss, logits = self.step(x, y, lr, float(mixes[step]))
            if self.average is not None:
                self.average.follow(first=index == step == 0)
            loss += step_loss
            right += (logits.argmax(1) == y).sum()
        broadcast_buffers(self.evaluated)
        loss, right = all_sum(loss), all_sum(right)
        mean = loss.item() / (steps * world_size())  # the one wait for the device in an epoch
        if not math.isfinite(mean):
            raise DivergenceError(
                f"the loss became {mean} in epoch {index + 1}; checkpoints before it are kept. "
                f"A lower lr (now {recipe.lr}) or precision float32 may help"
            )
        return {
            "epoch": index + 1,
            "lr": lr,
            "loss": mean,
            "train_accuracy": right.item() / (steps * recipe.batch_size),
            "seconds": time.perf_counter() - began,
        }

    def step(self, x: Tensor, y: Tensor, lr: float, mix: float) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on a batch; return its loss and logits."""
        if mix < 1:  # Mixup: the batch is shuffled, so its reverse is a random partner
            x = mix * x + (1 - mix) * x.flip(0)
        with autocast(self.device, self.recipe.precision):
            logits = self.forward(x)
        if logits.shape[-1] < self.classes:  # on a GPU, torch itself would only lose the device
            raise ValueError(
                f"the network gives {logits.shape[-1]} numbers for {self.classes} classes; make it "
                f"with num_classes={self.classes}"
            )
        logits = logits.float()
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        if mix < 1:
            other = F.cross_entropy(logits, y.flip(0), label_smoothing=smoothing)
            loss = mix * loss + (1 - mix) * other
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), logits.detach()
