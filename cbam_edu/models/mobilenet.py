"""MobileNet with attention after every convolution, as in Table 5 of the CBAM paper.

A. G. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", 2017 (arXiv:1704.04861), Table 1. Where the CBAM paper puts attention is in no
published code; 27 places and hidden widths rounded to the nearest are what its parameters and
GFLOPs come out with.
"""

from typing import Any

from torch import Tensor, nn

from cbam_edu.attention import ChannelAttention
from cbam_edu.models.staged import Staged, in_block
from cbam_edu.neighbours import attention_layer

# Output channels at full width, and the depthwise convolution's stride, of each unit.
_STAGES = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


def _round_hidden(layer: nn.Module, channels: int, reduction: int) -> None:
    """Give a shared MLP ``round(channels / reduction)`` hidden units: 3 of 44 / 16, not 2."""
    hidden = max(1, round(channels / reduction))
    for gate in layer.modules():
        if isinstance(gate, ChannelAttention) and isinstance(gate.mixer[0], nn.Linear):
            bias = gate.mixer[0].bias is not None
            first, last = nn.Linear(channels, hidden, bias), nn.Linear(hidden, channels, bias)
            gate.mixer = nn.Sequential(first, nn.ReLU(), last)


class ConvUnit(nn.Sequential):
    """A convolution, BatchNorm, attention and ReLU.

    Parameters
    ----------
    in_channels, channels, kernel_size, stride, groups : int
        Of the convolution.
    attention, attention_options
        As for `cbam_edu.neighbours.attention_layer`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        attention: str | None = None,
        **attention_options: Any,
    ):
        pad = kernel_size // 2
        layer = attention_layer(attention, channels, **attention_options)
        _round_hidden(layer, channels, attention_options.get("reduction", 16))
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size, stride, pad, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            layer,
            nn.ReLU(),
        )


class MobileNet(Staged):
    """MobileNet, the first of its name: depthwise and pointwise convolutions in turn.

    Parameters
    ----------
    width : float
        The width multiplier alpha: a layer of n channels has ``int(alpha * n)``.
    num_classes : int
        Size of the output; 0 gives the network without its head, whose output are the pooled
        features.
    attention : {None, "se", "eca", "bam", "channel", "spatial", "cbam"}
        What follows every convolution and its BatchNorm; BAM ends every stage but the last instead.
    attention_options : dict, optional
        Passed to every attention layer, such as ``{"reduction": 8}``.
    """

    image_size = 224

    def __init__(
        self,
        width: float,
        num_classes: int = 1000,
        attention: str | None = None,
        attention_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        options = attention_options or {}
        inside = in_block(attention)
        channels = int(32 * width)
        self.conv = ConvUnit(3, channels, 3, 2, attention=inside, **options)
        stages, dims = [], []
        for units in _STAGES:
            stage = nn.Sequential()
            for out, stride in units:
                dim = int(out * width)
                depthwise = ConvUnit(channels, channels, 3, stride, channels, inside, **options)
                pointwise = ConvUnit(channels, dim, 1, attention=inside, **options)
                stage.extend([depthwise, pointwise])
                channels = dim
            stages.append(stage)
            dims.append(channels)
        # The first is part of the stem, so that stages see 1/4 to 1/32, as in a ResNet.
        self.first, self.stages = stages[0], nn.ModuleList(stages[1:])
        self.finish(dims[1:], num_classes, attention, options)

    def stem(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float -> (N, int(64 * width), H/2, W/2), rounded up."""
        return self.first(self.conv(x))
