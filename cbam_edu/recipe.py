"""How a network is trained: a recipe, and what follows from it for torch."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cbam_edu.attention import ChannelAttention, SpatialAttention, check_choice, check_positive

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
            if value is None and name in ("channel_weight_decay", "spatial_weight_decay"):
                continue
            if not isinstance(value, int | float) or not 0 <= value <= highest:
                raise ValueError(f"{name} must be from 0 to {highest}, got {value!r}")

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate when the part `progress`, from 0 to 1, of training is done."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        rest = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 0.0
        if self.schedule == "cosine":
            rest = (1 - math.cos(math.pi * rest)) / 2
        return self.lr * rest


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


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for a network's parameters."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    momentum = recipe.momentum
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=momentum, nesterov=momentum > 0)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the forward pass has the recipe's precision."""
    check_choice("precision", precision, tuple(PRECISIONS))
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


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
