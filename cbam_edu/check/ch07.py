"""Judges of chapter 07, "CBAM in a network"."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import CBAM
from cbam_edu.check.verdict import Wrong, begun, judge, number, written
from cbam_edu.complexity import count
from cbam_edu.surgery import Attended, add_attention


def _one(net: nn.Module, kind: type[nn.Module]) -> Any:
    """Return the one module of a kind; its own parts do not count."""
    found = [module for module in net.modules() if isinstance(module, kind)]
    if len(found) != 1:
        raise Wrong(f"There must be exactly one {kind.__name__}, but there are {len(found)}.")
    return found[0]


class _Held:
    """Holds a gate at a map of ours while one image passes, and keeps what it read."""

    def __init__(self, gate: nn.Module, gives: Callable[[Tensor], Tensor]):
        self.read: list[Tensor] = []
        self._gate, self._gives = gate, gives

    def __enter__(self) -> "_Held":
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            self.read.append(args[0].detach())
            return self._gives(out)

        self._handle = self._gate.register_forward_hook(hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# 7.1

_BEHIND = "The gate stands behind the addition: what it gives must still meet the shortcut."


@judge
def gated_block(answer: Callable[..., nn.Module]) -> None:
    """Judge `answer(in_channels, channels, stride)`: a residual block with CBAM on its branch."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the class itself, GatedBlock, not a block made by it.")
    if not begun(answer):
        raise NotImplementedError
    for case in ((16, 16, 1), (16, 32, 2), (16, 24, 1), (16, 16, 2)):
        torch.manual_seed(0)
        _judge_block(answer(*case), *case)


def _judge_block(block: nn.Module, wide: int, channels: int, stride: int) -> None:
    if not isinstance(block, nn.Module):
        raise Wrong("GatedBlock must be an nn.Module.")
    what = f"GatedBlock({wide}, {channels}, {stride})"
    gate = _one(block, CBAM)
    inside = set(gate.modules())
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m not in inside]
    convs = [conv for conv in convs if conv.kernel_size == (3, 3)]
    if len(convs) != 2:
        raise Wrong("The branch must have two 3 x 3 convolutions.")
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m not in inside]
    for norm in norms:
        if norm.affine:  # one that starts at zero is right, too
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
    x = torch.randn(4, wide, 9, 8).relu()
    out = _pass(block, x, what)
    size = (4, channels, *(-(-side // stride) for side in x.shape[2:]))
    if tuple(out.shape) != size:
        raise Wrong(f"{what} gives {tuple(out.shape)} for {tuple(x.shape)}; it should be {size}.")
    with _Held(gate, lambda out: 0 * out) as held:
        shortcut = _pass(block, x, what)
    if len(held.read) != 1:
        raise Wrong(f"The gate must be called once in a pass; it was called {len(held.read)} times")
    _judge_shut(shortcut, x, stride == 1 and wide == channels, what)
    known = torch.randn_like(out)
    with _Held(gate, lambda _: known.clone()):  # the block may add to it in place
        moved = _pass(block, x, what)
    _judge_sum(moved, shortcut, known)
    _judge_read(held.read[0])
    with _Held(gate, lambda out: out - 1e4):
        if (_pass(block, x, what) < 0).any():
            raise Wrong("The block must end with a ReLU, behind the addition.")
    _judge_learns(block, (*convs, gate), norms, x)
    _judge_bent(block, gate, x, what)


def _pass(block: nn.Module, x: Tensor, what: str) -> Tensor:
    with torch.no_grad():
        try:
            given = x.clone()
            out = written(block(given))
        except RuntimeError as error:
            if "must match the size" in str(error):
                raise Wrong(
                    f"In {what} branch and shortcut have different shapes. The shortcut must be "
                    "padded or projected where the stride is not 1, and also where only the "
                    f"channels change. ({error})"
                ) from error
            raise
    if not isinstance(out, Tensor):
        raise Wrong(f"The block must return a tensor, but returns a {type(out).__name__}.")
    if not torch.equal(given, x):
        raise Wrong(
            "The block changes its input in place, so that the shortcut's map is lost for whoever "
            "gave it. Write a + b, and not a += b."
        )
    return out


def _judge_shut(out: Tensor, x: Tensor, same_shape: bool, what: str) -> None:
    if not out.any():
        raise Wrong(
            f"With a shut gate {what} returns only zeros. {_BEHIND} Or is there no shortcut at all?"
        )
    if same_shape and not torch.allclose(out, x, atol=1e-5):
        raise Wrong(
            f"With a shut gate {what} should return its input, and does not. Does the gate stand "
            "on the shortcut? Does something else change the shortcut where the shape stays, or "
            "does the branch reach the addition past the gate?"
        )


def _judge_sum(moved: Tensor, shortcut: Tensor, known: Tensor) -> None:
    if torch.allclose(moved, known, atol=1e-5) or torch.allclose(moved, known.relu(), atol=1e-5):
        raise Wrong(_BEHIND)
    # Where the shortcut alone is above 0, it is seen whole: the rest may be cut by the ReLU.
    seen = shortcut > 0
    if not torch.allclose(moved[seen], (shortcut + known).relu()[seen], atol=1e-4):
        if torch.allclose(moved[seen], (shortcut + known.relu()).relu()[seen], atol=1e-4):
            raise Wrong("There is a ReLU between the gate and the addition. It cuts the branch.")
        if torch.allclose(moved[seen], (shortcut + known)[seen], atol=1e-4):
            raise Wrong("The block must end with a ReLU, behind the addition.")
        raise Wrong(
            "What the gate gives is not what is added to the shortcut. Is there a BatchNorm or "
            "something else behind the gate?"
        )


def _judge_read(read: Tensor) -> None:
    mean, spread = read.mean((0, 2, 3)), read.std((0, 2, 3), correction=0)
    if bool((mean.abs() < 1e-2).all()) and bool(((spread - 1).abs() < 5e-2).all()):
        return
    if bool((read >= 0).all()):
        raise Wrong("The gate reads a map behind a ReLU. It belongs right behind the BatchNorm.")
    raise Wrong(
        "The gate does not read what a BatchNorm gives: its channels have not mean 0 and spread 1. "
        "It belongs behind the branch's last BatchNorm."
    )


def _judge_learns(
    block: nn.Module, parts: Sequence[nn.Module], norms: list[nn.BatchNorm2d], x: Tensor
) -> None:
    used: set[nn.Module] = set()
    hooks = [norm.register_forward_hook(lambda norm, *_: used.add(norm)) for norm in norms]
    out = block(x)
    for hook in hooks:
        hook.remove()
    if len(used) < 2:
        raise Wrong("Each of the two convolutions has a BatchNorm of its own behind it.")
    if out.requires_grad:
        out.sum().backward()
    learnt = {id(p) for part in parts for p in part.parameters()}
    for name, p in block.named_parameters():
        if id(p) in learnt and p.grad is None:
            raise Wrong(
                f"No gradient reaches {name}, so it would never learn. Is there a detach() or a "
                "torch.no_grad() in forward?"
            )


def _judge_bent(block: nn.Module, gate: nn.Module, x: Tensor, what: str) -> None:
    block.eval()
    with _Held(gate, lambda out: out) as held:
        for v in (x, -x, 0 * x):
            _pass(block, v, what)
    up, down, middle = held.read
    if torch.allclose(up + down, 2 * middle, atol=1e-4):
        raise Wrong("Between the two convolutions there is no ReLU: they do no more than one.")


# 7.2

_STAGES = ((16, 32), (32, 16), (64, 8))  # channels and side of ResNet-56's maps


def _added(blocks: int = 9, reduction: int = 8, runs: int = 2) -> dict[str, int]:
    parameters = macs = 0
    for channels, side in _STAGES:
        h = max(1, channels // reduction)
        parameters += blocks * (2 * channels * h + h + channels + 100)
        macs += blocks * (runs * 2 * channels * h + 98 * side * side)
    return {"modules": 3 * blocks, "parameters": parameters, "multiply-accumulates": macs}


def _slips() -> dict[str, dict[int, str]]:
    """Return the usual wrong numbers, and what each says."""
    right, other, few = _added(), _added(reduction=16), _added(blocks=3)
    biases = sum(9 * (c // 8 + c) for c, _ in _STAGES)
    bare = right["parameters"] - biases
    flat = 27 * 98 * 32 * 32 + sum(9 * 4 * c * (c // 8) for c, _ in _STAGES)
    macs = right["multiply-accumulates"]
    few_places = 98 * sum(9 * (side * side - side) for _, side in _STAGES)
    thirds = "These are the {}s of ResNet-20, with three blocks a stage. ResNet-56 has nine."
    default = "This is for the reduction 16. Here it is 8, so h = C / 8."
    return {
        "modules": {
            9: thirds.format("module"),
            54: "One CBAM a block, not one a convolution.",
            3: "One CBAM a block, not one a stage.",
        },
        "parameters": {
            few["parameters"]: thirds.format("parameter"),
            other["parameters"]: default,
            bare: "The MLP's biases are missing: h + C for each module.",
            right["parameters"]
            - 54: "The BatchNorm behind the 7 x 7 convolution has 2 parameters.",
            right["parameters"] // 9: "This is for one block a stage. There are nine.",
        },
        "multiply-accumulates": {
            few["multiply-accumulates"]: thirds.format("multiply-accumulate"),
            other["multiply-accumulates"]: default,
            _added(runs=1)[
                "multiply-accumulates"
            ]: "The shared MLP runs twice, on two descriptors.",
            2 * macs: "These are FLOPs: halve them.",
            macs - few_places: "The 7 x 7 visits side x side places, not one side of them.",
            flat: "Each stage halves the sides: 32, 16, 8. The 7 x 7 visits fewer places.",
            macs // 9: "This is for one block a stage. There are nine.",
        },
    }


@judge
def added(answer: Mapping[str, Any]) -> None:
    """Judge what CBAM with reduction 8 is predicted to add to ResNet-56."""
    right = _added()
    if not isinstance(answer, Mapping) or set(answer) != set(right):
        raise Wrong(f"Give a dict with {', '.join(map(repr, right))}.")
    for value in answer.values():
        written(value)
    for name, wanted in right.items():
        value = number(answer[name], repr(name))
        if value != wanted:
            slip = _slips()[name].get(int(value) if value.is_integer() else -1)
            raise Wrong(f"{name!r} is not {value:,.12g}. {slip or 'Add up the three stages anew.'}")


# 7.3

_WIDE, _NARROW = 32, 16
_GUILTY = {
    "A": "before the last BatchNorm",
    "B": "on the narrow map",
    "C": "behind the addition",
    "D": "none",
    "E": "one gate for all blocks",
    "F": "on the shortcut",
}
_REFUTED = {
    "none": "Give its gate's place to a module that returns zeros, and look at its arguments: "
    "something is not as the paper has it.",
    "behind the addition": "Its gate does not read relu(x + branch).",
    "on the shortcut": "Its gate does not read the block's input.",
    "before the last BatchNorm": "Its gate does not read what conv3 gives.",
    "on the narrow map": f"Its gates are for {_WIDE} channels, as many as the branch's end has.",
    "one gate for all blocks": "Its two blocks have two different gates: first.gate is not "
    "second.gate.",
}


class SuspectBlock(nn.Module):
    """A bottleneck with a gate, which may stand where it should not.

    Attributes
    ----------
    conv1, bn1, conv2, bn2, conv3, bn3 : nn.Module
        The branch: 1 x 1, 3 x 3 and 1 x 1 convolution, each with its BatchNorm.
    gate : CBAM
        Sound in itself.
    """

    def __init__(self, bug: str, gate: CBAM | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(_WIDE, _NARROW, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_NARROW)
        self.conv2 = nn.Conv2d(_NARROW, _NARROW, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(_NARROW)
        self.conv3 = nn.Conv2d(_NARROW, _WIDE, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(_WIDE)
        self.gate = gate or CBAM(_NARROW if bug == "on the narrow map" else _WIDE, 4)
        self._bug = bug

    def _at(self, place: str, x: Tensor) -> Tensor:
        bug = "none" if self._bug == "one gate for all blocks" else self._bug
        return self.gate(x) if place == bug else x

    def forward(self, x: Tensor) -> Tensor:
        """Return what should be the block's output: (N, 32, H, W) float -> the same shape."""
        f = F.relu(self.bn1(self.conv1(x)))
        f = self._at("on the narrow map", F.relu(self.bn2(self.conv2(f))))
        f = self.bn3(self._at("before the last BatchNorm", self.conv3(f)))
        f = self._at("none", f)
        return self._at("behind the addition", F.relu(self._at("on the shortcut", x) + f))


def suspects() -> dict[str, nn.Sequential]:
    """Return six stages of two blocks for 32 channels, in eval mode; all but one have a bug."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        stages = {}
        for letter, bug in _GUILTY.items():
            first = SuspectBlock(bug)
            gate = first.gate if bug == "one gate for all blocks" else None
            stages[letter] = nn.Sequential(first, SuspectBlock(bug, gate)).eval()
        return stages


@judge
def named(answer: Mapping[str, Any]) -> None:
    """Judge which bug each of the `suspects` has."""
    if not isinstance(answer, Mapping) or set(answer) != set(_GUILTY):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(_GUILTY)}.")
    for claim in answer.values():
        written(claim)
    for letter, bug in _GUILTY.items():
        claim = answer[letter]
        if not isinstance(claim, str) or claim not in _REFUTED:
            names = ", ".join(map(repr, _REFUTED))
            raise Wrong(f"For suspect {letter}, choose one of {names}; {claim!r} is none of them.")
        if claim != bug:
            raise Wrong(f"Suspect {letter} is not {claim!r}. {_REFUTED[claim]}")


# 7.4


class _Twice(nn.Module):
    """Runs its layer twice, and ends with a linear layer on whole maps' features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 6, (3, 1), padding=(1, 0))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.layer(x)).mean((2, 3)))
        return out


def _nets() -> dict[str, tuple[nn.Module, tuple[int, int, int]]]:
    grouped = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 5, groups=4)
    )
    return {
        "a convolution": (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)), (3, 12, 9)),
        "strides and groups": (grouped, (3, 20, 14)),
        "a layer that runs twice": (_Twice(), (6, 7, 9)),
        "a CBAM": (nn.Sequential(nn.Conv2d(3, 16, 1), CBAM(16, 4)), (3, 8, 10)),
    }


@judge
def layer_macs(answer: Callable[[nn.Module, Tensor], Any]) -> None:
    """Judge `answer(net, image)`: each layer's multiply-accumulates for one image, by name."""
    for what, (net, size) in _nets().items():
        net.eval()
        image = torch.randn(1, *size)
        value = written(answer(net, image))
        if not isinstance(value, Mapping):
            raise Wrong(f"Return a dict from names to numbers, not a {type(value).__name__}.")
        if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
            raise Wrong(
                "Your hooks are still on the layers. Call remove() on what "
                "register_forward_hook returned, or the next count is wrong."
            )
        _judge_macs(value, net, size, what)


def _judge_macs(
    value: Mapping[str, Any], net: nn.Module, size: tuple[int, int, int], what: str
) -> None:
    layers = {layer.name: layer for layer in count(net, size).layers}
    wanted = {n: layer for n, layer in layers.items() if layer.multiply_accumulates}
    missing = [name for name in wanted if name not in value]
    if missing:
        raise Wrong(
            f"{what}: there is no number for {missing[0]!r}. Look at every nn.Conv2d and nn.Linear "
            "of net.named_modules(), and give each hook its own name."
        )
    modules = dict(net.named_modules())
    for name, given in value.items():
        if name not in modules:
            raise Wrong(f"{what}: {name!r} is not among the names of net.named_modules().")
        right = wanted[name].multiply_accumulates if name in wanted else 0
        macs = number(given, repr(name))
        if macs != right:
            runs = layers[name].runs if name in layers else 0
            raise Wrong(
                f"{what}: {name!r} has not {macs:,.12g} but {right:,} "
                f"multiply-accumulates. {_why(macs, right, modules[name], runs)}".strip()
            )


def _why(macs: float, right: int, module: nn.Module, runs: int) -> str:
    if right and macs == 2 * right:
        return "Yours is twice that: one multiply-accumulate is a multiplication and its addition."
    if runs > 1 and macs * runs == right:
        return f"The layer runs {runs} times; add up its runs instead of keeping the last."
    if isinstance(module, nn.Conv2d) and macs == right * module.groups and module.groups > 1:
        return f"With {module.groups} groups each output sees only C_in / groups channels."
    if not right:
        return "Only convolutions and linear layers count."
    if isinstance(module, nn.Linear):
        return "A linear layer uses each weight once; biases do not count."
    return "Every weight is used once at every place of the *output*; biases do not count."


# 7.5

SLOTS = ("after_expand", "after_depthwise", "after_project", "after_addition")


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 (Sandler et al., CVPR 2018, figure 3), with four empty slots.

    Parameters
    ----------
    channels : int
        Of the block's input and output.
    expansion : int
        How many times as wide the map is in the middle.

    Attributes
    ----------
    channels, wide : int
        Channels of the narrow and of the wide map.
    after_expand, after_depthwise, after_project, after_addition : nn.Module
        The slots; at first each holds an `nn.Identity`.
    """

    def __init__(self, channels: int, expansion: int = 6):
        super().__init__()
        self.channels, self.wide = channels, expansion * channels
        self.expand = nn.Conv2d(channels, self.wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.wide)
        self.depthwise = nn.Conv2d(self.wide, self.wide, 3, padding=1, groups=self.wide, bias=False)
        self.bn2 = nn.BatchNorm2d(self.wide)
        self.project = nn.Conv2d(self.wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.after_expand: nn.Module = nn.Identity()
        self.after_depthwise: nn.Module = nn.Identity()
        self.after_project: nn.Module = nn.Identity()
        self.after_addition: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) float -> the same shape."""
        f = self.after_expand(F.relu6(self.bn1(self.expand(x))))
        f = self.after_depthwise(F.relu6(self.bn2(self.depthwise(f))))
        out: Tensor = self.after_addition(x + self.after_project(self.bn3(self.project(f))))
        return out


@judge
def design(answer: Callable[[InvertedResidual], Any]) -> None:
    """Judge `answer(block)`: where a CBAM stands in a block of MobileNetV2, and how large it is."""
    for channels in (24, 64):
        block = InvertedResidual(channels)
        plain = sum(p.numel() for p in block.parameters())
        parts = _parts(block)
        returned = answer(block)
        if isinstance(returned, InvertedResidual) and returned is not block:
            block, parts = returned, _parts(returned)
        if all(isinstance(getattr(block, slot), nn.Identity) for slot in SLOTS):
            if not begun(answer):
                raise NotImplementedError
            raise Wrong(
                "All four slots are still empty. Assign to the one that you choose: "
                "block.<slot> = CBAM(...)."
            )
        if _parts(block) != parts:
            raise Wrong("Change nothing but one slot: the block's other parts are not as they were")
        _judge_design(block, plain)


def _parts(block: InvertedResidual) -> dict[str, nn.Module]:
    return {name: part for name, part in block.named_children() if name not in SLOTS}


def _judge_design(block: InvertedResidual, plain: int) -> None:
    filled = [s for s in SLOTS if not isinstance(getattr(block, s), nn.Identity)]
    if len(filled) != 1:
        raise Wrong(f"Fill one slot, not {len(filled)} ({', '.join(filled)}).")
    slot, gate = filled[0], getattr(block, filled[0])
    if not isinstance(gate, CBAM):
        raise Wrong(f"{slot} holds a {type(gate).__name__}; put a CBAM there.")
    width = block.wide if slot in SLOTS[:2] else block.channels
    if gate.channels != width:
        raise Wrong(
            f"In a block of {block.channels} channels the map at {slot} has {width}, and this CBAM "
            f"is for {gate.channels}. Take block.channels or block.wide."
        )
    if slot == "after_addition":
        raise Wrong(
            "after_addition breaks condition 1: with a shut gate the block returns zeros, and the "
            "identity path is scaled in every block."
        )
    if slot == "after_depthwise":
        raise Wrong(
            "after_depthwise breaks condition 1: a BatchNorm comes behind it, and what that adds "
            "(its bias, its running mean) stays when the gate is shut. (MobileNetV3 puts SE there "
            "all the same.)"
        )
    if slot == "after_expand":
        raise Wrong(
            "after_expand breaks condition 2: the depthwise convolution keeps the channels apart, "
            "so the BatchNorm behind it takes back what the gate does to the scale of a channel, "
            "the same for every image."
        )
    _judge_size(block, gate, plain)


def _judge_size(block: InvertedResidual, gate: CBAM, plain: int) -> None:
    with torch.no_grad():
        block.eval()(torch.randn(2, block.channels, 7, 5))
    if gate.order == "spatial-only":
        raise Wrong("This CBAM has no channel gate, so it has no MLP.")
    first = gate.channel.mixer[0]
    if not isinstance(first, nn.Linear):
        raise Wrong('Condition 3 is about the MLP, and this channel gate has none: mixer="mlp".')
    if first.out_features < 4:
        raise Wrong(
            f"For {block.channels} channels the MLP has {first.out_features} hidden unit(s): "
            "condition 3 wants 4. Choose a smaller reduction, best one that depends on the channels"
        )
    more = sum(p.numel() for p in gate.parameters())
    if more > plain / 10:
        raise Wrong(
            f"For {block.channels} channels it adds {more / plain:.1%} to the block's parameters; "
            "condition 4 allows a tenth. Choose a larger reduction."
        )


# 7.6


class _Plain(nn.Module):
    """A small residual network without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn(self.conv(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def _fresh(start: str) -> nn.Module:
    return add_attention(_Plain(), "cbam", start=start, input_size=(3, 8, 8))


@judge
def load_plain(answer: Callable[[nn.Module, dict[str, Tensor]], Any]) -> None:
    """Judge `answer(net, weights)`: plain weights into a network that has attention."""
    for seed, start in enumerate(("random", "identity")):
        torch.manual_seed(seed)
        weights = {
            key: torch.rand_like(v.float()).to(v) for key, v in _Plain().state_dict().items()
        }
        net = _fresh(start)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        left = written(answer(net, dict(weights)))
        _judge_loaded(net, weights, before)
        if not isinstance(left, Set | Sequence) or isinstance(left, str):
            raise Wrong(f"Return the keys that got nothing, as a set; not a {type(left).__name__}.")
        _judge_left(set(left), set(before), set(weights))
    _judge_refusal(answer)


def _renamed(net: nn.Module) -> dict[str, str]:
    """Return, for each key of the network that a plain one has too, what it is called there."""
    bodies = [name for name, module in net.named_modules() if isinstance(module, Attended)]
    found = {}
    for key in net.state_dict():
        for name in bodies:
            if key.startswith(f"{name}.body."):
                found[key] = name + key[len(name) + len(".body") :]
                break
            if key.startswith(f"{name}."):
                break
        else:
            found[key] = key
    return found


def _judge_loaded(net: nn.Module, weights: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    now, names = net.state_dict(), _renamed(net)
    if set(now) != set(before):
        raise Wrong("The network's keys have changed. Load into it, and leave its attention in.")
    changed = {key for key in now if not torch.equal(now[key], before[key])}
    if not changed:
        raise Wrong("Nothing was loaded: all weights of the network are what they were.")
    if lost := [key for key, name in names.items() if not torch.equal(now[key], weights[name])]:
        why = (
            "A wrapped layer's key has gained '.body'; with strict=False such a weight is passed "
            "over without a word."
        )
        raise Wrong(
            f"{lost[0]!r} did not get the plain weight {names[lost[0]]!r}. "
            f"{why if names[lost[0]] != lost[0] else ''}".strip()
        )
    if other := changed - set(names):
        raise Wrong(f"{min(other)!r} belongs to the attention, and has changed.")


def _judge_left(left: set[Any], keys: set[str], weights: set[str]) -> None:
    wanted = {key for key in keys if ".attention." in key or key.endswith(".mix")}
    if left == wanted:
        return
    if left and left <= weights:
        raise Wrong("You return names of the plain network; wanted are keys of net.state_dict().")
    if extra := left - wanted:
        raise Wrong(f"{min(map(str, extra))!r} is among the keys you return, and it was loaded.")
    raise Wrong(f"{min(wanted - left)!r} got nothing, and is not among the keys you return.")


def _judge_refusal(answer: Callable[[nn.Module, dict[str, Tensor]], Any]) -> None:
    net, weights = _fresh("random"), _Plain().state_dict()
    try:
        answer(net, weights | {"conv2.weight": torch.zeros(8, 8, 3, 3)})
    except KeyError:
        return
    except Exception as error:
        raise Wrong(
            "A plain weight 'conv2.weight', for which the network has no place, should raise a "
            f"KeyError; yours raises {type(error).__name__}: {error}"
        ) from error
    raise Wrong(
        "A plain weight 'conv2.weight', for which the network has no place, should raise a "
        "KeyError. A file of another network would be loaded in part, and nobody would know."
    )
