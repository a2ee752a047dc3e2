"""ResNets for 32 x 32 images, with room for attention in every block.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv:1512.03385). Attention stands after a block's last BatchNorm and before the addition, as in
the CBAM paper's figure 3.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import check_positive, shown
from cbam_edu.fused import refine_and_add
from cbam_edu.models.staged import Staged, check_dims, in_block
from cbam_edu.neighbours import attention_layer


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, attention, and the addition of the block's input.

    The shortcut has no parameters (option A of He et al., section 4.2): where the block halves the
    map it takes every second place, and the channels that are missing are zeros.

    Parameters
    ----------
    in_channels, channels : int
        Channels of the input and of the output.
    stride : int
        1, or 2 to halve height and width.
    attention, attention_options
        As for `cbam_edu.neighbours.attention_layer`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        attention: str | None = None,
        **attention_options: Any,
    ):
        super().__init__()
        self.stride, self.padding = stride, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.attention = attention_layer(attention, channels, **attention_options)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input in the output's shape: (N, C_in, H, W) -> (N, C, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) float -> (N, C, ceil(H/stride), ceil(W/stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return refine_and_add(self.attention, out, self.shortcut(x))


class CIFARResNet(Staged):
    """The ResNet for CIFAR-10 of He et al., section 4.2: 6n + 2 layers, 16, 32 and 64 channels.

    Parameters
    ----------
    blocks : int
        n, the number of residual blocks in each of the three stages; 3 gives ResNet-20.
    num_classes : int
        Size of the output; 0 gives the network without its head, whose output are the pooled
        features ``(N, dims[-1])``.
    attention : {None, "se", "eca", "bam", "channel", "spatial", "cbam"}
        What stands in every block before the addition; BAM ends every stage but the last instead.
    attention_options : dict, optional
        Passed to every attention layer, such as ``{"reduction": 8}``.
    dims : sequence of int
        Channels of the stages.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        attention: str | None = None,
        attention_options: dict[str, Any] | None = None,
        dims: Sequence[int] = (16, 32, 64),
    ):
        super().__init__()
        check_positive("blocks", blocks)
        check_dims(dims)
        options = attention_options or {}
        self.conv = nn.Conv2d(3, dims[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dims[0])
        self.stages = nn.ModuleList()
        channels = dims[0]
        for index, dim in enumerate(dims):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(ResidualBlock(channels, dim, stride, in_block(attention), **options))
                channels = dim
            self.stages.append(stage)
        self.finish(dims, num_classes, attention, options)

    def stem(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float -> (N, dims[0], H, W)."""
        return F.relu(self.bn(self.conv(x)))


class _ConvUnit(nn.Sequential):
    """3 x 3 convolution, BatchNorm, ReLU, and a 2 x 2 max-pool if `pool`."""

    def __init__(self, in_channels: int, channels: int, pool: bool = False):
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        if pool:
            self.append(nn.MaxPool2d(2, ceil_mode=True))


class ResNet9(Staged):
    """ResNet-9: four wide convolutions, two residual blocks; made to train fast on CIFAR-10.

    After D. Page, "How to Train Your ResNet" (2018), https://github.com/davidcpage/cifar10-fast.

    Parameters
    ----------
    num_classes, attention, attention_options
        As for `CIFARResNet`; attention stands in the two residual blocks.
    dims : sequence of int
        Channels of the four stages.
    """

    def __init__(
        self,
        num_classes: int = 10,
        attention: str | None = None,
        attention_options: dict[str, Any] | None = None,
        dims: Sequence[int] = (64, 128, 256, 512),
    ):
        super().__init__()
        check_dims(dims)
        if len(dims) != 4:
            raise ValueError(f"dims must name the channels of four stages, got {shown(dims)}")
        options = attention_options or {}
        first, second, third, last = dims
        self.stages = nn.ModuleList(
            [
                _ConvUnit(3, first),
                nn.Sequential(
                    _ConvUnit(first, second, pool=True),
                    ResidualBlock(second, second, 1, in_block(attention), **options),
                ),
                _ConvUnit(second, third, pool=True),
                nn.Sequential(
                    _ConvUnit(third, last, pool=True),
                    ResidualBlock(last, last, 1, in_block(attention), **options),
                ),
            ]
        )
        self.finish(dims, num_classes, attention, options)

    def pool(self, x: Tensor) -> Tensor:
        """Take each channel's maximum, as the original does."""
        return x.amax((2, 3))

    def forward_head(self, x: Tensor) -> Tensor:
        """Return logits, an eighth of the head's as in the original: (N, C, H, W) -> (N, classes).

        He's weights make them large here, and undivided they do not train at its learning rate.
        """
        out = super().forward_head(x)
        return out if isinstance(self.head, nn.Identity) else out / 8
