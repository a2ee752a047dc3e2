"""What CBAM is compared with: Squeeze-and-Excitation, ECA, and the choice of one by its name."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cbam_edu.attention import CBAM, ChannelAttention


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


def _spatial_only(channels: int, kernel_size: int = 7, **options: Any) -> CBAM:
    return CBAM(channels, kernel_size=kernel_size, order="spatial-only", **options)


def _channel_only(channels: int, reduction: int = 16, **options: Any) -> CBAM:
    return CBAM(channels, reduction, order="channel-only", **options)


ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "se": SqueezeExcitation,
    "eca": ECA,
    "channel": _channel_only,
    "spatial": _spatial_only,
    "cbam": CBAM,
}


def check_name(kind: str, name: object, known: list[str]) -> None:
    """Raise ValueError, with the nearest names, unless `name` is among `known`."""
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"unknown {kind} {name!r}; {hint}")


def attention_layer(name: str | None, channels: int, **options: Any) -> nn.Module:
    """Build an attention layer that maps (N, channels, H, W) to the same shape.

    Parameters
    ----------
    name : {None, "se", "eca", "channel", "spatial", "cbam"}
        Which one; None gives the identity. "channel" and "spatial" are CBAM with one gate.
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
    check_name("attention", name, list(ATTENTIONS))
    return ATTENTIONS[name](channels, **options)
