"""Channel attention, spatial attention and CBAM. A gate returns its map; only `CBAM` multiplies.

S. Woo, J. Park, J.-Y. Lee, I. S. Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018
(arXiv:1807.06521), sections 3 and 4.1; the numbers of equations and tables below are the paper's.
"""

import math
import reprlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # (N, C, H, W) -> (N, C)
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "lp": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "lse": lambda x: x.logsumexp((2, 3)),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {  # logits -> a map of the same shape
    "sigmoid": torch.sigmoid,
    "hard-sigmoid": F.hardsigmoid,
    "softmax": lambda z: z.flatten(1).softmax(1).reshape(z.shape),  # an image's entries sum to 1
}
ORDERS = ("channel-spatial", "spatial-channel", "parallel", "channel-only", "spatial-only")

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 32


def shown(value: object) -> str:
    """Return `value` as Python writes it, cut where it is long or deep."""
    text = _SHORT.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}")


def check_positive(name: str, value: object, odd: bool = False) -> None:
    if type(value) is not int or value < 1 or (odd and value % 2 == 0):
        raise ValueError(f"{name} must be a positive {'odd ' * odd}integer, got {shown(value)}")


def check_input(x: Tensor, channels: int | None = None) -> None:
    if x.ndim != 4 or any(n == 0 for n in x.shape[1:]) or x.shape[1] != (channels or x.shape[1]):
        wanted = f"(N, {channels or 'C'}, H, W)"
        raise ValueError(f"expected an input of shape {wanted}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"expected a floating-point input, got {x.dtype}; convert it: x.float()")


class ChannelAttention(nn.Module):
    """The channel gate M_c, "what" is meaningful (equation 2).

    Parameters
    ----------
    channels : int
        C, the number of channels of the input.
    reduction : int
        r; the shared MLP has ``max(1, channels // reduction)`` hidden units.
    pooling : sequence of {"avg", "max", "lp", "lse"}
        How a channel's H x W places become one number; the logits of all are added.
    mixer : {"mlp", "conv1d"}
        The paper's shared MLP, or ECA's 1-D convolution.
    bias : bool
        Whether the mixer's layers have biases.
    gate : {"sigmoid", "softmax", "hard-sigmoid"}
        What turns logits into the map.

    Raises
    ------
    ValueError, TypeError
        For a bad argument, or an input that is not a floating-point (N, channels, H, W).
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        pooling: Sequence[str] = ("avg", "max"),
        mixer: str = "mlp",
        bias: bool = True,
        gate: str = "sigmoid",
    ):
        super().__init__()
        check_positive("channels", channels)
        check_positive("reduction", reduction)
        if not isinstance(pooling, list | tuple) or not pooling:
            raise ValueError(f'pooling must be a list such as ["avg", "max"], got {pooling!r}')
        for name in pooling:
            check_choice("each pooling", name, tuple(POOLINGS))
        check_choice("mixer", mixer, ("mlp", "conv1d"))
        check_choice("gate", gate, tuple(GATES))
        self.channels, self.pooling, self.gate = channels, tuple(pooling), gate
        if mixer == "conv1d":  # Wang et al., "ECA-Net", CVPR 2020, equation 12: gamma = 2, b = 1
            k = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
            conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=bias)
            layers = [nn.Unflatten(1, (1, channels)), conv, nn.Flatten(1)]
        else:
            h = max(1, channels // reduction)  # hidden units
            layers = [nn.Linear(channels, h, bias), nn.ReLU(), nn.Linear(h, channels, bias)]
        self.mixer = nn.Sequential(*layers)

    def logits(self, x: Tensor) -> Tensor:
        """Return the map before the gate: (N, C, H, W) float -> (N, C, 1, 1)."""
        check_input(x, self.channels)
        logits = [self.mixer(POOLINGS[name](x)) for name in self.pooling]
        return torch.stack(logits).sum(0)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Return M_c: (N, C, H, W) float -> (N, C, 1, 1), between 0 and 1."""
        return GATES[self.gate](self.logits(x))


class SpatialAttention(nn.Module):
    """The spatial gate M_s, "where" the meaning is (equation 3).

    Parameters
    ----------
    kernel_size : int
        Odd side k of the convolution; the paper compares 3 and 7 and takes 7.
    norm : bool
        Whether BatchNorm follows the convolution, as in the authors' code.
    gate : {"sigmoid", "softmax", "hard-sigmoid"}
        What turns logits into the map.

    Raises
    ------
    ValueError, TypeError
        For a bad argument, or an input that is not a floating-point (N, C, H, W).
    """

    def __init__(self, kernel_size: int = 7, *, norm: bool = True, gate: str = "sigmoid"):
        super().__init__()
        check_positive("kernel_size", kernel_size, odd=True)
        check_choice("gate", gate, tuple(GATES))
        self.gate = gate
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1) if norm else None

    def logits(self, x: Tensor) -> Tensor:
        """Return the map before the gate: (N, C, H, W) float -> (N, 1, H, W)."""
        check_input(x)
        logits = self.conv(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1))
        if (n := self.norm) is None:
            return logits
        if self.training and logits.numel() == 1:  # one value has no variance of its own
            return F.batch_norm(logits, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
        return n(logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return M_s: (N, C, H, W) float -> (N, 1, H, W), between 0 and 1."""
        return GATES[self.gate](self.logits(x))


class CBAM(nn.Module):
    """CBAM: ``F' = M_c(F) * F``, then ``F'' = M_s(F') * F'`` (equation 1).

    Parameters
    ----------
    channels, reduction, pooling, mixer, bias, gate
        As in `ChannelAttention`; the gate is that of both maps.
    kernel_size, norm
        As in `SpatialAttention`.
    order : {"channel-spatial", "spatial-channel", "parallel", "channel-only", "spatial-only"}
        Which gates there are and which comes first (Table 3); in parallel, their logits add up.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        order: str = "channel-spatial",
        pooling: Sequence[str] = ("avg", "max"),
        mixer: str = "mlp",
        bias: bool = True,
        norm: bool = True,
        gate: str = "sigmoid",
    ):
        super().__init__()
        check_positive("channels", channels)
        check_choice("order", order, ORDERS)
        self.channels, self.order, self.gate = channels, order, gate
        if order != "spatial-only":
            self.channel = ChannelAttention(
                channels, reduction, pooling=pooling, mixer=mixer, bias=bias, gate=gate
            )
        if order != "channel-only":
            self.spatial = SpatialAttention(kernel_size, norm=norm, gate=gate)

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined feature map: (N, C, H, W) float -> the same shape."""
        check_input(x, self.channels)
        if self.order == "parallel":
            return x * GATES[self.gate](self.channel.logits(x) + self.spatial.logits(x))
        if self.order == "spatial-channel":
            x = x * self.spatial(x)
        if self.order != "spatial-only":
            x = x * self.channel(x)
        if self.order in ("channel-spatial", "spatial-only"):
            x = x * self.spatial(x)
        return x
