"""Training: a recipe, one loop, and checkpoints that lose nothing."""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cbam_edu.attention import ChannelAttention, SpatialAttention, check_choice, check_positive
from cbam_edu.data.batches import Augmentation, Batches
from cbam_edu.data.images import ImageSet
from cbam_edu.storage import explained, make_folder, replace_file

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which, why, and what to do."""


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are for a ResNet-20 on CIFAR-10.

    Attributes
    ----------
    epochs, batch_size : int
        Passes over the images, and images in a step; an incomplete last batch is left out.
    optimizer : {"sgd", "adamw"}
        SGD with Nesterov momentum, or AdamW.
    lr : float
        The highest learning rate.
    momentum : float
        Of SGD; AdamW keeps its own.
    schedule : {"one-cycle", "cosine"}
        After the warm-up: a straight line, or half a cosine, down to zero.
    warmup : float
        The part of all steps, from 0 to 1, in which the learning rate rises from zero.
    weight_decay : float
        For weights of convolutions and linear layers; norms and biases have none.
    channel_weight_decay, spatial_weight_decay : float or None
        The same for the weights of channel and of spatial gates; None takes `weight_decay`.
    label_smoothing : float
        Part of the target spread over all classes.
    crop, flip, cutout
        As in `cbam_edu.data.Augmentation`.
    mixup : float
        Alpha of the Beta distribution of Mixup (Zhang et al., 2018, arXiv:1710.09412); 0 for none.
    ema : float
        Decay of the moving average of the weights that is evaluated and kept; 0 for none.
    precision : {"float32", "bfloat16", "float16"}
        Of the forward pass, by autocast; float16 scales the loss.
    channels_last, compile : bool
        Memory format, and whether `torch.compile` makes the training step.
    seed : int
        Of the order of images, augmentation and Mixup; the caller draws the initial weights.
    deterministic : bool
        Allow only algorithms that give the same bits each time.
    """

    epochs: int = 40
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.2
    momentum: float = 0.9
    schedule: str = "one-cycle"
    warmup: float = 0.2
    weight_decay: float = 5e-4
    channel_weight_decay: float | None = None
    spatial_weight_decay: float | None = None
    label_smoothing: float = 0.0
    crop: int = 4
    flip: bool = True
    cutout: int = 0
    mixup: float = 0.0
    ema: float = 0.0
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_positive("epochs", self.epochs)
        check_positive("batch_size", self.batch_size)
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        check_choice("schedule", self.schedule, ("one-cycle", "cosine"))
        check_choice("precision", self.precision, tuple(PRECISIONS))
        for name in ("seed", "crop", "cutout"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an integer from 0 up, got {value!r}")
        for name, highest in (
            ("lr", math.inf),
            ("weight_decay", math.inf),
            ("channel_weight_decay", math.inf),
            ("spatial_weight_decay", math.inf),
            ("mixup", math.inf),
            ("warmup", 1),
            ("momentum", 1),
            ("label_smoothing", 1),
            ("ema", 1),
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= highest:
                raise ValueError(f"{name} must be from 0 to {highest}, got {value!r}")

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate when the part `progress`, from 0 to 1, of training is done."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        rest = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 0.0
        if self.schedule == "cosine":
            rest = (1 - math.cos(math.pi * rest)) / 2
        return self.lr * rest


class Scores(NamedTuple):
    """Part of the images named rightly, from 0 to 1, and mean cross-entropy in nats."""

    accuracy: float
    loss: float


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort a network's parameters by their weight decay, for a torch optimizer."""

    def inside(kind: type[nn.Module]) -> set[int]:
        return {id(p) for m in model.modules() if isinstance(m, kind) for p in m.parameters()}

    channel, spatial = inside(ChannelAttention), inside(SpatialAttention)
    groups: dict[float, list[nn.Parameter]] = {}
    for p in model.parameters():
        own = None
        if p.ndim < 2:  # biases, and BatchNorm's weights
            own = 0.0
        elif id(p) in channel:
            own = recipe.channel_weight_decay
        elif id(p) in spatial:
            own = recipe.spatial_weight_decay
        groups.setdefault(recipe.weight_decay if own is None else own, []).append(p)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Allow only deterministic algorithms inside, if `wanted`; restore what was set before."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageSet, *, batch_size: int = 500, precision: str = "float32"
) -> Scores:
    """Measure a network on labelled images, on the device where the network is.

    Parameters
    ----------
    model : torch.nn.Module
        Maps ``(N, 3, H, W) float`` to logits ``(N, classes)``; evaluated in evaluation mode and
        left in the mode it had.
    data : ImageSet
        At least one image.
    batch_size : int
        Images at a time; it changes nothing but time and memory.
    precision : {"float32", "bfloat16", "float16"}
        Of the forward pass, by autocast.
    """
    if not len(data):
        raise ValueError(f"{data.name} has no images to evaluate on")
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    for x, y in Batches(data, batch_size, device=device, channels_last=True):
        with _autocast(device, precision):
            logits = model(x)
        loss += F.cross_entropy(logits.float(), y, reduction="sum")
        right += (logits.argmax(1) == y).sum()
    model.train(training)
    return Scores(right.item() / len(data), loss.item() / len(data))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `fit` left, on the CPU; no code in the file is run."""
    with explained("read", path):
        data = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if state["format"] != 1:
            raise KeyError("format")
    except Exception as error:  # whatever torch finds wrong with the bytes
        raise CheckpointError(
            f"{path} is not a whole checkpoint; move it away and train anew, or choose "
            "another folder"
        ) from error
    return state


def _check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless a checkpoint is of the run that is wanted, naming every difference."""
    differences = [
        f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} asked for"
        for key in sorted({**saved, **wanted})
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{path} is of another run ({'; '.join(differences)}); ask for the same, or choose "
            "another folder"
        )


def fit(
    model: nn.Module,
    train: ImageSet,
    recipe: Recipe | None = None,
    *,
    test: ImageSet | None = None,
    device: torch.device | str = "cpu",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a network in place.

    Parameters
    ----------
    model : torch.nn.Module
        Maps ``(N, 3, H, W) float`` to logits ``(N, classes)``; moved to `device`.
    train : ImageSet
        What it learns from.
    recipe : Recipe, optional
        How.
    test : ImageSet, optional
        Measured after every epoch; nothing is chosen by it.
    device : torch.device or str
        Where to train.
    out : path, optional
        Folder for ``checkpoint.pt``, written before the first and after every epoch, and
        ``log.jsonl``, one line an epoch.
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
    DivergenceError
        When the loss is no longer finite; `out` keeps the checkpoint before.
    """
    recipe = recipe or Recipe()
    device = torch.device(device)
    model.to(device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
    run = _Run(model, train, recipe, device)
    folder = None if out is None else make_folder(out)
    if folder:
        run.open(folder, resume)
    with deterministic(recipe.deterministic):
        while len(run.history) < recipe.epochs:
            entry = run.epoch(progress)
            if test is not None:
                scores = evaluate(run.evaluated, test, precision=recipe.precision)
                entry |= {"accuracy": scores.accuracy, "test_loss": scores.loss}
            run.history.append(entry)
            if folder:
                run.save(folder)
            if progress:
                print(_line(entry, recipe.epochs), flush=True)
    if run.average is not None:
        model.load_state_dict(run.average.module.state_dict())
    return run.history


def _line(entry: dict[str, float], epochs: int) -> str:
    text = (
        f"epoch {entry['epoch']:3d}/{epochs}  loss {entry['loss']:.4f}  "
        f"train {entry['train_accuracy']:.2%}"
    )
    if "accuracy" in entry:
        text += f"  test {entry['accuracy']:.2%}"
    return f"{text}  {entry['seconds']:.1f} s"


class _Run:
    """All that changes while a network is trained, so that a checkpoint is all of it."""

    def __init__(self, model: nn.Module, train: ImageSet, recipe: Recipe, device: torch.device):
        self.model, self.recipe, self.device, self.name = model, recipe, device, train.name
        self.batches = Batches(
            train,
            recipe.batch_size,
            augmentation=Augmentation(recipe.crop, recipe.flip, recipe.cutout),
            shuffle=True,
            drop_last=True,
            seed=recipe.seed,
            device=device,
            channels_last=recipe.channels_last,
        )
        groups = parameter_groups(model, recipe)
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=recipe.lr)
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(
                groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0
            )
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        self.forward = torch.compile(model) if recipe.compile else model
        self.history: list[dict[str, float]] = []

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def open(self, folder: Path, resume: bool) -> None:
        """Go on from the folder's checkpoint, or put a first one there."""
        path = folder / "checkpoint.pt"
        if not path.exists():
            self.save(folder)
        elif not resume:
            raise CheckpointError(
                f"{folder} holds a run already; resume it (--resume), or choose another folder"
            )
        else:
            self.load(path)

    def identity(self) -> dict[str, Any]:
        """Return what makes this run the one it is."""
        return {**asdict(self.recipe), **getattr(self.model, "config", {}), "data": self.name}

    def save(self, folder: Path) -> None:
        state = {
            "format": 1,
            "identity": self.identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "history": self.history,
        }
        buffer = io.BytesIO()  # torch's own writer hides what the disk says
        torch.save(state, buffer)
        replace_file(folder / "checkpoint.pt", lambda file: file.write(buffer.getbuffer()))
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        replace_file(folder / "log.jsonl", lambda file: file.write(lines.encode()))

    def load(self, path: Path) -> None:
        state = read_checkpoint(path)
        _check_same(path, state["identity"], self.identity())
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} does not fit this network: {error}; choose another folder"
            ) from error
        self.history = state["history"]

    def epoch(self, progress: bool) -> dict[str, float]:
        """Train for one epoch and return its entry of the history."""
        recipe, index, steps = self.recipe, len(self.history), len(self.batches)
        self.batches.set_epoch(index)
        chances = np.random.default_rng((recipe.seed, index, 1))
        torch.manual_seed(int(chances.integers(2**31)))  # for a network with dropout
        mixes = chances.beta(recipe.mixup, recipe.mixup, steps) if recipe.mixup else np.ones(steps)
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        hidden = not (progress and sys.stderr.isatty())
        bar = tqdm(self.batches, f"epoch {index + 1}", leave=False, disable=hidden)
        began = time.perf_counter()
        self.model.train()
        for step, (x, y) in enumerate(bar):
            # Between the first step and the last, never at zero: no step is wasted.
            done = (index * steps + step + 1) / (recipe.epochs * steps + 1)
            lr = recipe.learning_rate(done)
            step_loss, logits = self.step(x, y, lr, mixes[step])
            loss += step_loss
            right += (logits.argmax(1) == y).sum()
        mean = loss.item() / steps  # the one wait for the device in an epoch
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
        with _autocast(self.device, self.recipe.precision):
            logits = self.forward(x)
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
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach(), logits.detach()
