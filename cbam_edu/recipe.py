"""How a network is trained: a recipe, and what follows from it for torch."""

import contextlib
import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cbam_edu.attention import (
    ChannelAttention,
    SpatialAttention,
    check_choice,
    check_positive,
    shown,
)

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
        for name in ("flip", "channels_last", "compile", "deterministic"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {shown(value)}")
        for name in ("seed", "crop", "cutout"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an integer from 0 up, got {shown(value)}")
            if value >= 2**63:  # nor has torch room for more
                raise ValueError(f"{name} must be below 2**63, got {shown(value)}")
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
                raise ValueError(f"{name} must be from 0 to {highest}, got {shown(value)}")

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate when the part `progress`, from 0 to 1, of training is done."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        rest = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 0.0
        if self.schedule == "cosine":
            rest = (1 - math.cos(math.pi * rest)) / 2
        return self.lr * rest


RECIPES = {
    "default": Recipe(),
    # For ResNet-9 with CBAM on CIFAR-10, on one GPU. D. Page, "How to Train Your ResNet 8: Bag of
    # Tricks" (2019, https://github.com/davidcpage/cifar10-fast, bag_of_tricks.ipynb), trains his
    # plain ResNet-9 like this once labels are smoothed: a mean of 94.2 % after 25 epochs, n = 50.
    # Ours has no decay on BatchNorm's weights, and bfloat16 for float16. NOT YET RUN ON A GPU. The
    # rate relies on the network's dividing its logits by 8.
    "speed": Recipe(
        epochs=25,
        batch_size=512,
        lr=0.4,
        warmup=0.2,
        weight_decay=5e-4,
        label_smoothing=0.2,
        crop=4,
        flip=True,
        cutout=8,
        precision="bfloat16",
        channels_last=True,
        compile=True,
    ),
}


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
    # Fused: one pass over memory and few kernels to start; it looks for float16's overflows on the
    # device, too, where the others would wait for it.
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    momentum = recipe.momentum
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=momentum, nesterov=momentum > 0, fused=True
    )


class Average:
    """The moving average of a network: of its parameters and of BatchNorm's statistics.

    torch's own, `torch.optim.swa_utils.AveragedModel`, waits for a GPU in every step.

    Parameters
    ----------
    model : torch.nn.Module
        The network, on its device; `module` is the average.
    decay : float
        What the average keeps of itself in a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(model), decay
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        self.numbers = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def follow(self, first: bool) -> None:
        """Move the average a step towards the network; the first step takes it as it is."""
        average, network = map(list, zip(*self.numbers, strict=True))
        torch._foreach_lerp_(average, network, 1.0 if first else 1 - self.decay)
        for mine, its in self.counts:
            mine.copy_(its)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Return a network's parameters and buffers, for reading and writing without a gradient."""
    return (t.detach() for t in (*model.parameters(), *model.buffers()))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the forward pass has the recipe's precision."""
    check_choice("precision", precision, tuple(PRECISIONS))
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Allow only deterministic algorithms inside, if `wanted`; restore what was set before.

    Else cuDNN tries which of its algorithms is the fastest here, once for each shape.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warning = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warning)
        torch.backends.cudnn.benchmark = benchmark
