"""What CBAM is compared with: SE, ECA, BAM, variants, a control; and the choice of one by name."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu import attention
from cbam_edu.attention import (
    ChannelAttention,
    SpatialAttention,
    check_choice,
    check_input,
    check_positive,
    shown,
)
from cbam_edu.fused import CBAM


class SqueezeExcitation(nn.Module):
    """Squeeze-and-Excitation: a channel gate that sees the mean alone.

    J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018, section 3.

    Parameters
    ----------
    channels : int
        C, the number of channels of the input.
    reduction : int
        r; the MLP has ``max(1, channels // reduction)`` hidden units.
    bias : bool
        Whether the MLP's layers have biases.
    """

    def __init__(self, channels: int, reduction: int = 16, *, bias: bool = True):
        super().__init__()
        self.channel = ChannelAttention(channels, reduction, pooling=("avg",), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (N, C, H, W) float -> the same shape."""
        return x * self.channel(x)


class ECA(nn.Module):
    """Efficient Channel Attention: the mean, then a 1-D convolution over the channels.

    Q. Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    CVPR 2020, section 3.

    Parameters
    ----------
    channels : int
        C, the number of channels of the input; the kernel's size follows from it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channel = ChannelAttention(channels, pooling=("avg",), mixer="conv1d", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (N, C, H, W) float -> the same shape."""
        return x * self.channel(x)


class _Norm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where one value has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class BAM(nn.Module):
    """Bottleneck Attention Module: F + F * M, where M is one map of every channel and place.

    J. Park, S. Woo, J.-Y. Lee, I. S. Kweon, "BAM: Bottleneck Attention Module", BMVC 2018
    (arXiv:1807.06514), section 3: the logits of a channel and of a spatial branch are added, then
    comes the sigmoid. (The authors' code multiplies them.) The two branches end with BatchNorm, as
    the paper has it; BatchNorm and ReLU follow the spatial branch's other convolutions, as in the
    authors' code. A network has it where the next stage halves the map.

    Parameters
    ----------
    channels : int
        C, the number of channels of the input.
    reduction : int
        r; both branches have ``max(1, channels // reduction)`` hidden units or channels.
    dilation : int
        Of the spatial branch's two 3 x 3 convolutions, which see further with more of it.
    """

    def __init__(self, channels: int, reduction: int = 16, *, dilation: int = 4):
        super().__init__()
        check_positive("dilation", dilation)
        self.channel = ChannelAttention(channels, reduction, pooling=("avg",))
        self.channel_norm = _Norm(channels)
        hidden = max(1, channels // reduction)
        self.spatial = nn.Sequential(nn.Conv2d(channels, hidden, 1), _Norm(hidden), nn.ReLU())
        for _ in range(2):
            conv = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            self.spatial.extend([conv, _Norm(hidden), nn.ReLU()])
        self.spatial.extend([nn.Conv2d(hidden, 1, 1), _Norm(1)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined feature map: (N, C, H, W) float -> the same shape."""
        logits = self.channel_norm(self.channel.logits(x)) + self.spatial(x)
        return x + x * torch.sigmoid(logits)


class _ConvSpatial(SpatialAttention):
    """A spatial gate that sees a learnt mixture of the channels, not their maximum and mean."""

    def __init__(self, channels: int, kernel_size: int = 7, *, norm: bool, gate: str):
        super().__init__(kernel_size, norm=norm, gate=gate)
        self.squeeze = nn.Conv2d(channels, 1, 1, bias=False)
        self.conv = nn.Conv2d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = _Norm(1) if norm else None

    def logits(self, x: Tensor) -> Tensor:
        check_input(x)
        logits = self.conv(self.squeeze(x))
        return logits if self.norm is None else self.norm(logits)


class Variant(attention.CBAM):
    """CBAM with what the paper's ablations and its authors' code do beside its default.

    Section 4.1 and Table 2 of the CBAM paper; https://github.com/Jongchan/attention-module, whose
    initialisation leaves the spatial BatchNorm's scale at zero.

    Parameters
    ----------
    channels : int
        C, the number of channels of the input.
    squeeze : {"pool", "conv"}
        What the spatial gate's convolution sees: the maximum and the mean over the channels, or
        the one map that a 1 x 1 convolution makes of them.
    norm_scale : float
        What the spatial BatchNorm's weight starts at. At zero M_s is one half everywhere, and its
        convolution has no gradient in the first step.
    **options
        As for `cbam_edu.CBAM`; the order must have a spatial gate.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        squeeze: str = "pool",
        norm_scale: float = 1.0,
        order: str = "channel-spatial",
        norm: bool = True,
        gate: str = "sigmoid",
    ):
        super().__init__(channels, reduction, kernel_size, order=order, norm=norm, gate=gate)
        check_choice("squeeze", squeeze, ("pool", "conv"))
        check_choice("order", order, [name for name in attention.ORDERS if name != "channel-only"])
        if squeeze == "conv":
            self.spatial = _ConvSpatial(channels, kernel_size, norm=norm, gate=gate)
        if self.spatial.norm is not None:
            nn.init.constant_(self.spatial.norm.weight, norm_scale)
        elif norm_scale != 1:
            raise ValueError(
                f"norm_scale needs norm=True; got {shown(norm_scale)} without a BatchNorm"
            )


class Half(nn.Module):
    """CBAM whose two maps are one half everywhere: a control that scales and never looks.

    Parameters
    ----------
    channels : int
        C, the number of channels of the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        check_positive("channels", channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return a quarter of the map: (N, C, H, W) float -> the same shape."""
        check_input(x, self.channels)
        return x * 0.5 * 0.5


def _spatial_only(
    channels: int, kernel_size: int = 7, *, norm: bool = True, gate: str = "sigmoid"
) -> CBAM:
    return CBAM(channels, kernel_size=kernel_size, order="spatial-only", norm=norm, gate=gate)


def _channel_only(
    channels: int,
    reduction: int = 16,
    *,
    pooling: Sequence[str] = ("avg", "max"),
    mixer: str = "mlp",
    bias: bool = True,
    gate: str = "sigmoid",
) -> CBAM:
    order = "channel-only"
    return CBAM(
        channels, reduction, order=order, pooling=pooling, mixer=mixer, bias=bias, gate=gate
    )


ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "se": SqueezeExcitation,
    "eca": ECA,
    "bam": BAM,
    "channel": _channel_only,
    "spatial": _spatial_only,
    "cbam": CBAM,
}
# For the studies of `cbam_edu.studies`: nothing that a network for use should have.
STUDIED: dict[str, Callable[..., nn.Module]] = {"half": Half, "variant": Variant}


def check_name(kind: str, name: object, known: list[str]) -> None:
    """Raise ValueError, with the nearest names, unless `name` is among `known`."""
    if name not in known:
        near = difflib.get_close_matches(shown(name).strip("'"), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"unknown {kind} {shown(name)}; {hint}")


def attention_layer(name: str | None, channels: int, **options: Any) -> nn.Module:
    """Build an attention layer that maps (N, channels, H, W) to the same shape.

    Parameters
    ----------
    name : {None, "se", "eca", "bam", "channel", "spatial", "cbam", "half", "variant"}
        Which one; None gives the identity. "channel" and "spatial" are CBAM with one gate; the
        last two, `Half` and `Variant`, are for studies.
    channels : int
        C, the number of channels.
    **options
        Passed to the layer, such as ``reduction=8``.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest known ones, or a bad option.
    """
    if name is None:
        return nn.Identity()
    check_name("attention", name, [*ATTENTIONS, *STUDIED])
    layer = {**ATTENTIONS, **STUDIED}[name]
    known = [p for p in inspect.signature(layer).parameters if p != "channels"]
    for option in options:
        check_name(f"option of {name}", option, known)
    return layer(channels, **options)
