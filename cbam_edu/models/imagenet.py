"""The ResNets of the CBAM paper's ImageNet table: ResNet, Wide ResNet and ResNeXt.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv:1512.03385), Table 1; S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016
(arXiv:1605.07146); S. Xie et al., "Aggregated Residual Transformations for Deep Neural Networks",
CVPR 2017 (arXiv:1611.05431), Table 1. Their cost is that of Table 4 of the CBAM paper.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import check_choice, shown
from cbam_edu.fused import refine_and_add
from cbam_edu.models.resnet import ResidualBlock
from cbam_edu.models.staged import Staged, check_dims, in_block
from cbam_edu.neighbours import attention_layer


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Return the shortcut of He et al.'s option B: a 1 x 1 convolution where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class BasicBlock(ResidualBlock):
    """Two 3 x 3 convolutions, attention, and the addition of the block's, maybe projected, input.

    Parameters
    ----------
    in_channels, channels, stride, attention, attention_options
        As for `cbam_edu.models.resnet.ResidualBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        attention: str | None = None,
        **attention_options: Any,
    ):
        super().__init__(in_channels, channels, stride, attention, **attention_options)
        self.downsample = _projection(in_channels, channels, stride)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input in the output's shape."""
        return self.downsample(x)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution, attention, and the addition of the block's input.

    Parameters
    ----------
    in_channels, channels : int
        Channels of the input and of the output.
    stride : int
        1, or 2 to halve height and width.
    width : int
        Channels of the 3 x 3 convolution.
    groups : int
        Groups of the 3 x 3 convolution.
    stride_on : {"1x1", "3x3"}
        Which convolution has the stride.
    attention, attention_options
        As for `cbam_edu.neighbours.attention_layer`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        width: int,
        groups: int,
        stride_on: str,
        attention: str | None = None,
        **attention_options: Any,
    ):
        super().__init__()
        first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.attention = attention_layer(attention, channels, **attention_options)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) float -> (N, C, ceil(H/stride), ceil(W/stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return refine_and_add(self.attention, out, self.downsample(x))


class ResNet(Staged):
    """A ResNet for ImageNet: 7 x 7 stem, max-pooling, four stages of residual blocks.

    Parameters
    ----------
    blocks : sequence of int
        The number of residual blocks in each stage.
    dims : sequence of int
        Channels of the stages; wide networks have more, in the stages alone: the stem has 64.
    bottleneck : int
        How many times narrower than its output a bottleneck's 3 x 3 convolution is (4 in ResNet-50,
        2 in ResNeXt-50); 0 for blocks of two 3 x 3 convolutions.
    groups : int
        Groups of a bottleneck's 3 x 3 convolution: 32 in ResNeXt.
    num_classes : int
        Size of the output; 0 gives the network without its head, whose output are the pooled
        features ``(N, dims[-1])``.
    attention : {None, "se", "eca", "bam", "channel", "spatial", "cbam"}
        What stands in every block before the addition; BAM ends every stage but the last instead.
    attention_options : dict, optional
        Passed to every attention layer, such as ``{"reduction": 8}``.
    stride_on : {"1x1", "3x3"}
        Which convolution of a bottleneck halves the map: the first, as in He et al. and in the
        CBAM paper's GFLOPs, or the 3 x 3, as in torchvision, timm and the CBAM authors' code.
        Take "3x3" for weights from there.
    """

    image_size = 224

    def __init__(
        self,
        blocks: Sequence[int],
        dims: Sequence[int],
        bottleneck: int = 0,
        groups: int = 1,
        num_classes: int = 1000,
        attention: str | None = None,
        attention_options: dict[str, Any] | None = None,
        stride_on: str = "1x1",
    ):
        super().__init__()
        check_dims(dims)
        check_choice("stride_on", stride_on, ("1x1", "3x3"))
        if len(dims) != len(blocks):
            raise ValueError(
                f"dims must name the channels of {len(blocks)} stages, got {shown(dims)}"
            )
        options = attention_options or {}
        inside = in_block(attention)
        self.conv = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.stages = nn.ModuleList()
        channels = 64
        for index, (depth, dim) in enumerate(zip(blocks, dims, strict=True)):
            stage = nn.Sequential()
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                if bottleneck:
                    shape = (channels, dim, stride, dim // bottleneck, groups, stride_on)
                    stage.append(Bottleneck(*shape, inside, **options))
                else:
                    stage.append(BasicBlock(channels, dim, stride, inside, **options))
                channels = dim
            self.stages.append(stage)
        self.finish(dims, num_classes, attention, options)

    def stem(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float -> (N, 64, H/4, W/4), rounded up."""
        return F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, padding=1)
