"""How implementations of CBAM, and of ResNets with it, name and shape their weights.

A table of facts for `cbam_edu.convert`, each entry with the file and commit that it was read from.
"""

import dataclasses
import functools
import re

# The tensors of our CBAM. A name in a shape is a size that the weights themselves decide.
SHAPES: dict[str, tuple[int | str, ...]] = {
    "channel.mixer.0.weight": ("hidden", "channels"),
    "channel.mixer.0.bias": ("hidden",),
    "channel.mixer.2.weight": ("channels", "hidden"),
    "channel.mixer.2.bias": ("channels",),
    "spatial.conv.weight": (1, 2, "k", "k"),
    "spatial.norm.weight": (1,),
    "spatial.norm.bias": (1,),
    "spatial.norm.running_mean": (1,),
    "spatial.norm.running_var": (1,),
    "spatial.norm.num_batches_tracked": (),
}
WEIGHTS = ("channel.mixer.0.weight", "channel.mixer.2.weight", "spatial.conv.weight")
BIASES = ("channel.mixer.0.bias", "channel.mixer.2.bias")
COUNT = "spatial.norm.num_batches_tracked"  # torch before 0.4.1 wrote none, and reads without
NORM = tuple(name for name in SHAPES if name.startswith("spatial.norm.") and name != COUNT)
EPS = 1e-5  # of BatchNorm in all these implementations: torch's default


def join(*parts: str) -> str:
    """Join the parts of a key that are not empty by dots."""
    return ".".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class ResNetNames:
    """What an implementation calls the modules of a ResNet.

    Parameters
    ----------
    ends : dict of str to str
        Our names of the stem's and the head's modules -> theirs.
    block : str
        A block's name, with braces for the numbers of its stage and of itself.
    first : (int, int)
        The number of the first stage, and of a stage's first block.
    parts : dict of str to str
        Our names of the modules inside a block -> theirs.
    """

    ends: dict[str, str]
    block: str
    first: tuple[int, int]
    parts: dict[str, str]

    def place(self, path: str) -> tuple[int, int, str] | None:
        """Return stage and block, both from 0, and the rest of the path; None if in no block."""
        # As numbers are written, and of at most three digits: no key stands for a million blocks.
        pattern = self.block.replace(".", r"\.").replace("{}", r"(0|[1-9]\d{0,2})")
        if (found := re.match(rf"{pattern}(?:\.|$)", path)) is None:
            return None
        stage, block = (int(n) - first for n, first in zip(found.groups(), self.first, strict=True))
        return None if min(stage, block) < 0 else (stage, block, path[found.end() :])

    def read(self, path: str) -> str | None:
        """Return our name of one of their modules, None if a ResNet has no such module."""
        if (place := self.place(path)) is None:
            return {theirs: ours for ours, theirs in self.ends.items()}.get(path)
        stage, block, part = place
        ours = {theirs: ours for ours, theirs in self.parts.items()}.get(part)
        return ours and f"stages.{stage}.{block}.{ours}"

    def starts_block(self, path: str) -> bool:
        """Return whether a module is the first convolution of some block."""
        return (self.read(path) or "").endswith(".conv1")

    def write(self, ours: str) -> str:
        """Return their name of one of our modules."""
        if ours in self.ends:
            return self.ends[ours]
        _, stage, block, part = ours.split(".", 3)
        name = self.block.format(int(stage) + self.first[0], int(block) + self.first[1])
        return join(name, self.parts[part])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an implementation names and shapes the tensors of a CBAM, and what it can hold.

    Parameters
    ----------
    modules : dict of str to str
        Our names of the modules inside a CBAM -> theirs.
    resnet : ResNetNames
        The names in its ResNets.
    bias, norm : bool or None
        Whether its MLP has biases, and its spatial gate a BatchNorm: always (True), never
        (False), or as one likes (None).
    convolutions : bool
        Whether 1 x 1 convolutions stand for the MLP's linear layers.
    mean_first : bool
        Whether the spatial gate's convolution sees [mean; max], not [max; mean].
    """

    modules: dict[str, str]
    resnet: ResNetNames
    bias: bool | None
    norm: bool | None
    convolutions: bool = False
    mean_first: bool = False

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Our names of the tensors inside a CBAM -> theirs."""
        names = {}
        for name in SHAPES:
            module, _, leaf = name.rpartition(".")
            if module in self.modules and (name not in BIASES or self.bias is not False):
                names[name] = f"{self.modules[module]}.{leaf}"
        return names

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Return the shape that their tensor of our name has."""
        shape = SHAPES[name]
        return (*shape, 1, 1) if self.convolutions and len(shape) == 2 else shape


def leaves(name: str) -> tuple[str, ...]:
    """Return the names of the tensors in a module of our ResNet other than a CBAM."""
    last = name.rpartition(".")[2]
    if last == "head":
        return ("weight", "bias")
    if last in ("bn", "bn1", "bn2", "bn3", "1"):
        return ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return () if last in ("", "attention") else ("weight",)


def whole_resnet(names: set[str]) -> list[str]:
    """Return the modules that the whole ResNet has of which some are `names`.

    All blocks have the same modules, except that not all have a shortcut with weights.
    """
    blocks: dict[tuple[int, int], set[str]] = {}
    for name in names - {"conv", "bn", "head"}:
        stage, block, part = name.split(".")[1:4]
        blocks.setdefault((int(stage), int(block)), set()).add(part)
    parts = sorted(set().union(*blocks.values()) - {"downsample"})
    result = ["conv", "bn", *(names & {"head"})]
    for i in range(max(blocks)[0] + 1):
        for j in range(max((b for a, b in blocks if a == i), default=0) + 1):
            shortcut = "downsample" in blocks.get((i, j), ())
            inside = parts + ["downsample.0", "downsample.1"] * shortcut
            result += [f"stages.{i}.{j}.{part}" for part in inside]
    return result


def _modules(first: str, second: str, conv: str, norm: str | None = None) -> dict[str, str]:
    """Name the two layers of the MLP, the spatial convolution, and its BatchNorm."""
    names = {"channel.mixer.0": first, "channel.mixer.2": second, "spatial.conv": conv}
    return names | ({"spatial.norm": norm} if norm else {})


_INSIDE = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")


def _torchvision(attention: str) -> ResNetNames:
    """Name a ResNet as torchvision does; `attention` is what its blocks call theirs."""
    return ResNetNames(
        ends={"conv": "conv1", "bn": "bn1", "head": "fc"},
        block="layer{}.{}",
        first=(1, 0),
        parts={name: name for name in _INSIDE} | {"attention": attention},
    )


_LUUUYI = Layout(
    _modules("ca.fc.0", "ca.fc.2", "sa.conv1"),
    _torchvision(""),  # the two gates are the block's own
    bias=False,
    norm=False,
    convolutions=True,
    mean_first=True,
)

LAYOUTS: dict[str, Layout] = {
    "cbam_edu": Layout(
        _modules("channel.mixer.0", "channel.mixer.2", "spatial.conv", "spatial.norm"),
        ResNetNames(
            ends={"conv": "conv", "bn": "bn", "head": "head"},
            block="stages.{}.{}",
            first=(0, 0),
            parts={name: name for name in (*_INSIDE, "attention")},
        ),
        bias=None,
        norm=None,
    ),
    # Jongchan/attention-module, MODELS/cbam.py and MODELS/model_resnet.py, at 459efad
    "authors": Layout(
        _modules(
            "ChannelGate.mlp.1",
            "ChannelGate.mlp.3",
            "SpatialGate.spatial.conv",
            "SpatialGate.spatial.bn",
        ),
        _torchvision("cbam"),
        bias=True,
        norm=True,
    ),
    # timm 1.0.31, timm/layers/cbam.py (CbamModule) and timm/models/resnet.py
    "timm": Layout(
        _modules("channel.fc1", "channel.fc2", "spatial.conv.conv", "spatial.conv.bn"),
        _torchvision("se"),
        bias=None,
        norm=True,
        convolutions=True,
        mean_first=True,
    ),
    # luuuyi/CBAM.PyTorch, model/resnet_cbam.py, at 83d3312 of February 2021
    "luuuyi": _LUUUYI,
    # the same file as it was first published, at c85f6a2 of September 2018
    "luuuyi-2018": dataclasses.replace(_LUUUYI, modules=_modules("ca.fc1", "ca.fc2", "sa.conv1")),
    # osmr/pytorchcv, pytorchcv/models/cbamresnet.py and resnet.py, at 08805dd
    "pytorchcv": Layout(
        _modules("ch_gate.mlp.fc1", "ch_gate.mlp.fc2", "sp_gate.conv.conv", "sp_gate.conv.bn"),
        ResNetNames(
            ends={
                "conv": "features.init_block.conv.conv",
                "bn": "features.init_block.conv.bn",
                "head": "output",
            },
            block="features.stage{}.unit{}",
            first=(1, 1),
            parts={
                **{f"conv{i}": f"body.conv{i}.conv" for i in (1, 2, 3)},
                **{f"bn{i}": f"body.conv{i}.bn" for i in (1, 2, 3)},
                "downsample.0": "identity_conv.conv",
                "downsample.1": "identity_conv.bn",
                "attention": "cbam",
            },
        ),
        bias=True,
        norm=True,
    ),
}
