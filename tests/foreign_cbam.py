"""CBAM and ResNets with it as other implementations name and compute them, written from facts.

Each class says which file its names and its formula were read from. timm's are in timm itself.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


def refine(x: Tensor, mlp: nn.Module, spatial: nn.Module, *, mean_first: bool) -> Tensor:
    """Weigh the channels, then the places; what differs is how the two maps are stacked."""
    pooled = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    x = x * torch.sigmoid(mlp(pooled[0]) + mlp(pooled[1])).reshape(*x.shape[:2], 1, 1)
    highest, mean = x.max(1, keepdim=True).values, x.mean(1, keepdim=True)
    maps = [mean, highest] if mean_first else [highest, mean]
    return x * torch.sigmoid(spatial(torch.cat(maps, 1)))


def spatial_conv(k: int) -> nn.Conv2d:
    return nn.Conv2d(2, 1, k, padding=k // 2, bias=False)


def pointwise(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=False)


class AuthorsCBAM(nn.Module):
    """Jongchan/attention-module, MODELS/cbam.py: linear, biases, [max; mean], BatchNorm."""

    def __init__(self, channels: int, hidden: int, k: int = 7):
        super().__init__()
        layers = nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        self.ChannelGate = nn.ModuleDict({"mlp": nn.Sequential(nn.Flatten(), *layers)})
        inner = nn.ModuleDict({"conv": spatial_conv(k), "bn": nn.BatchNorm2d(1, momentum=0.01)})
        self.SpatialGate = nn.ModuleDict({"spatial": inner})

    def forward(self, x: Tensor) -> Tensor:
        inner = self.SpatialGate["spatial"]
        spatial = nn.Sequential(inner["conv"], inner["bn"])
        return refine(x, self.ChannelGate["mlp"], spatial, mean_first=False)


class LuuuyiCBAM(nn.Module):
    """luuuyi/CBAM.PyTorch, model/resnet_cbam.py: 1 x 1 convolutions, no biases, [mean; max]."""

    def __init__(self, channels: int, hidden: int, k: int = 7):
        super().__init__()
        fc = nn.Sequential(pointwise(channels, hidden), nn.ReLU(), pointwise(hidden, channels))
        self.ca = nn.ModuleDict({"fc": fc})
        self.sa = nn.ModuleDict({"conv1": spatial_conv(k)})

    def forward(self, x: Tensor) -> Tensor:
        return refine(x, self.ca["fc"], self.sa["conv1"], mean_first=True)


class Luuuyi2018CBAM(nn.Module):
    """The same file before its "Cleanup" of August 2019: the layers are fc1 and fc2."""

    def __init__(self, channels: int, hidden: int, k: int = 7):
        super().__init__()
        self.ca = nn.ModuleDict(
            {"fc1": pointwise(channels, hidden), "fc2": pointwise(hidden, channels)}
        )
        self.sa = nn.ModuleDict({"conv1": spatial_conv(k)})

    def forward(self, x: Tensor) -> Tensor:
        mlp = nn.Sequential(self.ca["fc1"], nn.ReLU(), self.ca["fc2"])
        return refine(x, mlp, self.sa["conv1"], mean_first=True)


class PytorchcvCBAM(nn.Module):
    """osmr/pytorchcv, pytorchcv/models/cbamresnet.py: as the authors' in other names."""

    def __init__(self, channels: int, hidden: int, k: int = 7):
        super().__init__()
        mlp = nn.ModuleDict(
            {"fc1": nn.Linear(channels, hidden), "fc2": nn.Linear(hidden, channels)}
        )
        self.ch_gate = nn.ModuleDict({"mlp": mlp})
        block = nn.ModuleDict({"conv": spatial_conv(k), "bn": nn.BatchNorm2d(1)})
        self.sp_gate = nn.ModuleDict({"conv": block})

    def forward(self, x: Tensor) -> Tensor:
        mlp, block = self.ch_gate["mlp"], self.sp_gate["conv"]
        layers = nn.Sequential(nn.Flatten(), mlp["fc1"], nn.ReLU(), mlp["fc2"])
        spatial = nn.Sequential(block["conv"], block["bn"])
        return refine(x, layers, spatial, mean_first=False)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights and running statistics anew, in float64; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (tensor.numel() / len(tensor)) ** -0.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.3, generator=generator)
            if name.endswith(("running_var", ".weight")):  # of BatchNorm
                tensor.abs_().add_(0.5)
        else:
            tensor.fill_(7)  # batches that were seen
    return module


# ---- Whole ResNets


def with_cbam(net: torchvision.models.ResNet, source: str, reduction: int = 16) -> nn.Module:
    """Put CBAM after the last BatchNorm of each block of torchvision's ResNet.

    There the authors have it as ``cbam`` (MODELS/model_resnet.py), luuuyi as ``ca`` and ``sa`` of
    the block's own (model/resnet_cbam.py); all else is torchvision's in names and in order.
    """
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            last = getattr(block, "bn3", block.bn2)
            channels = last.num_features
            if source == "authors":
                cbam = block.cbam = AuthorsCBAM(channels, channels // reduction)
            else:
                made = {"luuuyi": LuuuyiCBAM, "luuuyi-2018": Luuuyi2018CBAM}[source]
                cbam = made(channels, channels // reduction)
                block.ca, block.sa = cbam.ca, cbam.sa
            last.register_forward_hook(lambda module, args, out, cbam=cbam: cbam(out))
    return net


def conv_block(channels: int, out: int, k: int, stride: int = 1) -> nn.ModuleDict:
    """pytorchcv/models/common/conv.py, ConvBlock: its convolution is ``conv``, its norm ``bn``."""
    conv = nn.Conv2d(channels, out, k, stride, padding=k // 2, bias=False)
    return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(out)})


def run(block: nn.ModuleDict, x: Tensor) -> Tensor:
    return block["bn"](block["conv"](x))


class PytorchcvUnit(nn.Module):
    """CbamResUnit of cbamresnet.py, with ResBlock or ResBottleneck of resnet.py as its body."""

    def __init__(self, channels: int, out: int, stride: int, bottleneck: bool):
        super().__init__()
        if bottleneck:  # the stride is on the 3 x 3 convolution: conv1_stride=False
            inner = out // 4
            shapes = [(channels, inner, 1), (inner, inner, 3, stride), (inner, out, 1)]
        else:
            shapes = [(channels, out, 3, stride), (out, out, 3)]
        self.body = nn.ModuleDict({f"conv{i + 1}": conv_block(*s) for i, s in enumerate(shapes)})
        if channels != out or stride != 1:
            self.identity_conv = conv_block(channels, out, 1, stride)
        self.cbam = PytorchcvCBAM(out, out // 16)

    def forward(self, x: Tensor) -> Tensor:
        identity = run(self.identity_conv, x) if hasattr(self, "identity_conv") else x
        for i, block in enumerate(self.body.values()):
            x = run(block, F.relu(x) if i else x)
        return F.relu(self.cbam(x) + identity)


class PytorchcvResNet(nn.Module):
    """CbamResNet of cbamresnet.py; stages and units are counted from 1, the head is ``output``."""

    def __init__(self, blocks: list[int], dims: list[int], bottleneck: bool, num_classes: int):
        super().__init__()
        self.features = nn.ModuleDict(
            {"init_block": nn.ModuleDict({"conv": conv_block(3, 64, 7, 2)})}
        )
        channels = 64
        for i, (depth, dim) in enumerate(zip(blocks, dims, strict=True)):
            units = {}
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                units[f"unit{j + 1}"] = PytorchcvUnit(channels, dim, stride, bottleneck)
                channels = dim
            self.features[f"stage{i + 1}"] = nn.ModuleDict(units)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        stem, *stages = self.features.values()
        x = F.max_pool2d(F.relu(run(stem["conv"], x)), 3, 2, padding=1)
        for stage in stages:
            for unit in stage.values():
                x = unit(x)
        return self.output(x.mean((2, 3)))
