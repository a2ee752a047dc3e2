"""The judges of chapter 07 accept what is right, and name the usual mistakes."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cbam_edu
from cbam_edu.attention import CBAM
from cbam_edu.check import ch07
from cbam_edu.complexity import count
from cbam_edu.models import create_model
from cbam_edu.surgery import remove_attention
from notebook_cells import NOTEBOOKS, ROOT, accepts, constant, exercises, refuses, waits

PATH = NOTEBOOKS / "07_in_a_network.ipynb"


def test_there_are_six_exercises() -> None:
    assert len(exercises(PATH)) == 6


def test_published_figures_in_the_notebook_are_those_on_record() -> None:
    printed = constant(PATH, "paper-tables-4-and-5", "PRINTED")
    paper = json.loads((ROOT / "book/results/paper_tables.json").read_text("utf-8"))
    recorded = paper["table4_imagenet"] | paper["table5_mobilenet"]
    shown = {}
    for line in printed.splitlines():
        name, *numbers = line.split()
        shown[name] = [float(number) for number in numbers]
    assert shown == {
        name: [x for arm in ("none", "se", "cbam") for x in arms[arm][:3]]
        for name, arms in recorded.items()
    }


# 7.1


class Block(nn.Module):
    """A right answer, and a wrong one for each `fault`."""

    def __init__(self, wide: int, channels: int, stride: int = 1, fault: str = ""):
        super().__init__()
        self.fault = fault
        inner = 1 if fault == "too large" else stride
        self.conv1 = nn.Conv2d(wide, channels, 3, inner, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = self.bn1 if fault == "one norm" else nn.BatchNorm2d(channels)
        gate: type[nn.Module] = cbam_edu.CBAM if fault == "fused" else CBAM
        self.gate = nn.Identity() if fault == "no gate" else gate(channels)
        if fault == "gate of the input":
            self.gate = gate(wide)
        self.stride, self.more = inner, channels - wide
        if fault == "zero":
            nn.init.zeros_(self.bn2.weight)
        projected = stride != 1 or (wide != channels and fault != "half a condition")
        projected = projected or fault == "always projected"
        self.down: nn.Module = nn.Identity()
        if projected and fault != "option A":
            self.down = nn.Sequential(
                nn.Conv2d(wide, channels, 1, inner, bias=False), nn.BatchNorm2d(channels)
            )

    def shortcut(self, x: Tensor) -> Tensor:
        if self.fault != "option A":
            return self.down(x)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))

    def forward(self, x: Tensor) -> Any:
        fault, f = self.fault, self.conv1(x)
        f = f if fault == "no first norm" else self.bn1(f)
        f = self.conv2(f if fault == "linear" else F.relu(f))
        if fault == "before":
            return F.relu(self.shortcut(x) + self.bn2(self.gate(f)))
        f = self.bn2(f)
        if fault == "behind":
            return self.gate(F.relu(self.shortcut(x) + f))
        if fault == "shortcut":
            return F.relu(self.gate(self.shortcut(x)) + f)
        if fault == "relu first":
            return F.relu(self.shortcut(x) + self.gate(F.relu(f)))
        if fault == "relu behind":
            return F.relu(self.shortcut(x) + F.relu(self.gate(f)))
        if fault == "twice":
            return F.relu(self.shortcut(x) + self.gate(self.gate(f)))
        if fault == "alone":
            return F.relu(self.gate(f))
        if fault == "no gradient":
            with torch.no_grad():
                return F.relu(self.shortcut(x) + self.gate(f))
        if fault == "detached":
            return F.relu(self.shortcut(x) + self.gate(f.detach()))
        if fault == "past the gate":
            return F.relu(self.shortcut(x) + f + self.gate(f))
        if fault == "times":
            return F.relu(self.shortcut(x) * self.gate(f))
        if fault == "joined":
            return F.relu(torch.cat([self.shortcut(x), self.gate(f)], 1))
        if fault == "in place":
            x = self.shortcut(x)
            x += self.gate(f)
            return F.relu(x)
        out = self.shortcut(x) + self.gate(f)
        if fault == "list":
            return [F.relu(out)]
        return out if fault == "no relu" else F.relu(out)


class AsSequence(nn.Module):
    """The branch in one nn.Sequential, convolutions with biases, norms without weights."""

    def __init__(self, wide: int, channels: int, stride: int = 1):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(wide, channels, 3, stride, padding=1),
            nn.BatchNorm2d(channels, affine=False),
            nn.ELU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            CBAM(channels, 4),
        )
        self.same = stride == 1 and wide == channels
        self.down = nn.Conv2d(wide, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).add_(x if self.same else self.down(x)).clamp(min=0)


def test_gated_block_takes_a_sequence(capsys: Any) -> None:
    accepts(ch07.gated_block, AsSequence, capsys)
    waits(ch07.gated_block, Unwritten, capsys)


class Unwritten(Block):
    def forward(self, x: Tensor) -> Any: ...


class NotCalled(nn.Module):
    def __init__(self, wide: int, channels: int, stride: int = 1):
        self.conv1 = nn.Conv2d(wide, channels, 3, stride, padding=1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Block(16, 16), "Hand over the class itself"),
        (NotCalled, "before Module.__init__() call"),
        (lambda a, b, s: torch.zeros(1), "GatedBlock must be an nn.Module"),
        (lambda a, b, s: nn.Linear(2, 2), "exactly one CBAM, but there are 0"),
        (lambda a, b, s: CBAM(b), "two 3 x 3 convolutions"),
    ],
)
def test_gated_block_wants_the_class_of_a_block(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch07.gated_block, answer, reason, capsys)


@pytest.mark.parametrize("way", ["", "option A", "zero", "fused"])
def test_gated_block_takes_any_right_block(way: str, capsys: Any) -> None:
    accepts(ch07.gated_block, lambda a, b, s: Block(a, b, s, way), capsys)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("behind", "The gate stands behind the addition"),
        ("before", "Is there a BatchNorm or something else behind the gate?"),
        ("shortcut", "should return its input"),
        ("alone", "Or is there no shortcut at all?"),
        ("relu first", "behind a ReLU"),
        ("relu behind", "a ReLU between the gate and the addition"),
        ("no relu", "must end with a ReLU"),
        ("twice", "must be called once in a pass; it was called 2 times"),
        ("no gate", "exactly one CBAM, but there are 0"),
        ("half a condition", "also where only the channels change"),
        ("too large", "it should be (4, 32, 5, 4)"),
        ("one norm", "Each of the two convolutions has a BatchNorm of its own"),
        ("no first norm", "Each of the two convolutions has a BatchNorm of its own"),
        ("linear", "Between the two convolutions there is no ReLU"),
        ("no gradient", "No gradient reaches conv1.weight"),
        ("detached", "No gradient reaches conv1.weight"),
        ("in place", "changes its input in place"),
        ("past the gate", "does the branch reach the addition past the gate?"),
        ("always projected", "Does something else change the shortcut where the shape stays"),
        ("times", "returns only zeros"),
        ("joined", "it should be (4, 16, 9, 8)"),
        ("list", "must return a tensor, but returns a list"),
        ("gate of the input", "expected an input of shape (N, 16, H, W), got (4, 32, 5, 4)"),
    ],
)
def test_gated_block_names_the_mistake(fault: str, reason: str, capsys: Any) -> None:
    refuses(ch07.gated_block, lambda a, b, s: Block(a, b, s, fault), reason, capsys)


# 7.2

ADDED = {
    "modules": 27,
    "parameters": 27 * 100 + 9 * (2 * 16 * 2 + 18 + 2 * 32 * 4 + 36 + 2 * 64 * 8 + 72),
    "multiply-accumulates": 9 * (4 * (32 + 128 + 512) + 98 * (1024 + 256 + 64)),
}


def test_added_is_what_the_networks_have(capsys: Any) -> None:
    options = {"reduction": 8}
    plain = count(create_model("resnet56"))
    more = count(create_model("resnet56", attention="cbam", attention_options=options))
    difference = {
        "modules": 27,
        "parameters": more.parameters - plain.parameters,
        "multiply-accumulates": more.multiply_accumulates - plain.multiply_accumulates,
    }
    assert difference == ADDED
    accepts(ch07.added, ADDED, capsys)
    accepts(ch07.added, {k: torch.tensor(v) for k, v in ADDED.items()}, capsys)
    accepts(ch07.added, {k: float(v) for k, v in ADDED.items()}, capsys)
    accepts(ch07.added, {k: np.int64(v) for k, v in ADDED.items()}, capsys)
    accepts(ch07.added, {k: np.array([v]) for k, v in ADDED.items()}, capsys)
    waits(ch07.added, ADDED | {"parameters": ...}, capsys)


def _added(blocks: int, reduction: int, runs: int = 2, bias: bool = True, norm: int = 2) -> Any:
    parameters = macs = 0
    for c, side in ((16, 32), (32, 16), (64, 8)):
        h = c // reduction
        parameters += blocks * (2 * c * h + bias * (h + c) + 98 + norm)
        macs += blocks * (runs * 2 * c * h + 98 * side**2)
    return {"modules": 27, "parameters": parameters, "multiply-accumulates": macs}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ADDED | {"modules": 9}, "ResNet-56 has nine"),
        (ADDED | {"modules": 54}, "not one a convolution"),
        (_added(3, 8), "ResNet-56 has nine"),
        (_added(9, 16), "Here it is 8"),
        (_added(9, 8, bias=False), "biases are missing"),
        (_added(9, 8, norm=0), "has 2 parameters"),
        (_added(9, 8, runs=1), "runs twice"),
        (
            ADDED | {"multiply-accumulates": 2 * ADDED["multiply-accumulates"]},
            "These are FLOPs",
        ),
        (ADDED | {"parameters": 1.5}, "'parameters' is not 1.5"),
        (ADDED | {"parameters": 15_929}, "'parameters' is not 15,929"),
        (ADDED | {"parameters": math.nan}, "'parameters' is not nan"),
        (ADDED | {"multiply-accumulates": math.inf}, "is not inf"),
        (ADDED | {"parameters": True}, "must be a number, but is a bool"),
        (ADDED | {"parameters": np.ones(3)}, "must be a number, but is a ndarray"),
        (
            ADDED | {"multiply-accumulates": 9 * (4 * (32 + 128 + 512) + 98 * (32 + 16 + 8))},
            "side x side places",
        ),
        (list(ADDED.values()), "Give a dict with"),
        (ADDED | {"parameters": "many"}, "must be a number, but is a str"),
        ({"modules": 27}, "Give a dict with"),
    ],
)
def test_added_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch07.added, answer, reason, capsys)


# 7.3

VERDICTS = {
    "A": "before the last BatchNorm",
    "B": "on the narrow map",
    "C": "behind the addition",
    "D": "none",
    "E": "one gate for all blocks",
    "F": "on the shortcut",
}


def test_named_knows_the_right_answers(capsys: Any) -> None:
    accepts(ch07.named, VERDICTS, capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"A": "none"}, "Suspect A is not 'none'"),
        ({"B": "one gate for all blocks"}, "two different gates"),
        ({"D": "before the last BatchNorm"}, "does not read what conv3 gives"),
        ({"C": "on the shortcut"}, "does not read the block's input"),
        ({"F": "behind the addition"}, "does not read relu(x + branch)"),
        ({"E": "on the narrow map"}, "are for 32 channels"),
        ({"D": "no idea"}, "'no idea' is none of them"),
        ({"A": "None"}, "choose one of 'none'"),
        ({"A": 4}, "4 is none of them"),
        ({"B": ["on the narrow map"]}, "['on the narrow map'] is none of them"),
        (dict.fromkeys("ABCDEF", "none"), "Suspect A is not 'none'"),
        ({"A": VERDICTS["B"], "B": VERDICTS["A"]}, "Its gates are for 32 channels"),
    ],
)
def test_named_says_what_refutes_a_claim(change: dict[str, str], reason: str, capsys: Any) -> None:
    refuses(ch07.named, VERDICTS | change, reason, capsys)


def test_named_wants_an_answer_for_each_suspect(capsys: Any) -> None:
    refuses(ch07.named, list(VERDICTS.values()), "an answer for each of A, B, C", capsys)
    few = {letter: VERDICTS[letter] for letter in "ABC"}
    refuses(ch07.named, few, "an answer for each of A, B, C", capsys)
    accepts(ch07.named, dict(reversed(VERDICTS.items())), capsys)
    waits(ch07.named, VERDICTS | {"C": ...}, capsys)


def test_suspects_differ_from_the_right_stage_and_draw_no_numbers() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    stages = ch07.suspects()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(stages) == set(VERDICTS)
    x = torch.randn(2, 32, 8, 8)
    assert all(stage(x).shape == x.shape for stage in stages.values())


# 7.4


def counting(slip: str = "") -> Callable[[nn.Module, Tensor], Any]:
    def answer(net: nn.Module, image: Tensor) -> Any:
        macs: dict[str, Any] = {}
        hooks = []

        def note(name: str) -> Any:
            def hook(layer: Any, args: Any, out: Tensor) -> None:
                wide = layer.weight[0].numel()
                if slip == "groups" and isinstance(layer, nn.Conv2d):
                    wide *= layer.groups
                places = args[0] if slip == "input" and out.ndim == 4 else out
                work = places[0, 0].numel() * wide * out.shape[1]
                if slip == "square" and out.ndim == 4:
                    work = out.shape[2] ** 2 * wide * out.shape[1]
                if slip == "1 x 1" and isinstance(layer, nn.Conv2d):
                    work = out.numel() * layer.in_channels // layer.groups
                if slip == "weights":
                    work = layer.weight.numel()
                if slip == "millions":
                    work = np.float64(work / 1e6)
                if slip == "NumPy":
                    work = np.int64(work)
                if slip == "shapes":
                    work = torch.tensor(out.shape) * wide
                if slip == "flops":
                    work *= 2
                if slip == "bias" and layer.bias is not None:
                    work += out.numel()
                macs[name] = work if slip == "last run" else macs.get(name, 0) + work

            return hook

        for name, layer in net.named_modules():
            counts = nn.Conv2d if slip == "convolutions only" else nn.Conv2d | nn.Linear
            if isinstance(layer, counts):
                hooks.append(layer.register_forward_hook(note(name)))
            elif isinstance(layer, nn.BatchNorm2d) and slip == "zeros":
                macs[name] = 0
            elif isinstance(layer, nn.BatchNorm2d) and slip == "norms":
                macs[name] = 2 * layer.num_features
        with torch.no_grad():
            net(image)
        for hook in hooks if slip != "left" else ():
            hook.remove()
        if slip == "left before":
            net.register_forward_pre_hook(lambda *given: None)
        if slip == "in total":
            return sum(macs.values())
        if slip == "and in total":
            return macs | {"total": sum(macs.values())}
        if slip == "last names":
            return {name.rpartition(".")[2]: work for name, work in macs.items()}
        return list(macs) if slip == "list" else macs

    return answer


def by_tool(net: nn.Module, image: Tensor) -> dict[str, int]:
    c, h, w = image.shape[1:]
    return {layer.name: layer.multiply_accumulates for layer in count(net, (c, h, w)).layers}


@pytest.mark.parametrize("answer", [counting(), counting("zeros"), counting("NumPy"), by_tool])
def test_layer_macs_takes_any_way(answer: Any, capsys: Any) -> None:
    accepts(ch07.layer_macs, answer, capsys)
    waits(ch07.layer_macs, lambda net, image: None, capsys)


def one_name_for_all(net: nn.Module, image: Tensor) -> dict[str, int]:
    """Count under the loop's last name, which all hooks share."""
    macs, hooks = {}, []
    for name, layer in net.named_modules():

        def hook(layer: Any, args: Any, out: Tensor) -> None:
            macs[name] = out.numel() * layer.weight[0].numel()  # noqa: B023  (the mistake)

        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(hook))
    net(image)
    for handle in hooks:
        handle.remove()
    return macs


def test_layer_macs_sees_hooks_that_share_a_name(capsys: Any) -> None:
    refuses(ch07.layer_macs, one_name_for_all, "give each hook its own name", capsys)


@pytest.mark.parametrize(
    ("slip", "reason"),
    [
        ("groups", "With 4 groups"),
        ("last run", "The layer runs 2 times"),
        ("input", "at every place of the *output*"),
        ("flops", "Yours is twice that"),
        ("bias", "biases do not count"),
        ("norms", "Only convolutions and linear layers count"),
        ("convolutions only", "there is no number for"),
        ("left", "still on the layers"),
        ("list", "Return a dict"),
        ("left before", "still on the layers"),
        ("square", "at every place of the *output*"),
        ("1 x 1", "Every weight is used once"),
        ("weights", "Every weight is used once"),
        ("millions", "has not 0.01512 but 15,120"),
        ("shapes", "must be a number, but is a Tensor"),
        ("in total", "not a int"),
        ("and in total", "'total' is not among the names"),
        ("last names", "there is no number for '1.channel.mixer.0'"),
    ],
)
def test_layer_macs_names_the_mistake(slip: str, reason: str, capsys: Any) -> None:
    refuses(ch07.layer_macs, counting(slip), reason, capsys)


# 7.5


def put(slot: str, **options: Any) -> Callable[[ch07.InvertedResidual], Any]:
    def answer(block: ch07.InvertedResidual) -> ch07.InvertedResidual:
        width = block.wide if slot in ("after_expand", "after_depthwise") else block.channels
        setattr(block, slot, CBAM(options.pop("channels", width), **options))
        return block

    return answer


def in_place(block: ch07.InvertedResidual) -> None:
    block.after_project = cbam_edu.CBAM(block.channels, 4)


def convolved(block: ch07.InvertedResidual) -> Any:
    block.after_project = CBAM(block.channels, mixer="conv1d", bias=False)
    return block


def anew(block: ch07.InvertedResidual) -> ch07.InvertedResidual:
    return put("after_project", reduction=4)(ch07.InvertedResidual(block.channels))


@pytest.mark.parametrize("answer", [put("after_project", reduction=6), in_place, anew])
def test_design_takes_any_that_meets_the_conditions(answer: Any, capsys: Any) -> None:
    accepts(ch07.design, answer, capsys)
    waits(ch07.design, lambda block: None, capsys)


def set_on(name: str, channels: int = 0) -> Callable[[ch07.InvertedResidual], None]:
    def answer(block: ch07.InvertedResidual) -> None:
        setattr(block, name, CBAM(channels or block.channels, 4))

    return answer


def kept_to_itself(block: ch07.InvertedResidual) -> None:
    gate = CBAM(block.channels, 4)
    gate.eval()


def without_its_norm(block: ch07.InvertedResidual) -> None:
    in_place(block)
    block.bn3 = nn.Identity()  # type: ignore[assignment]


def wrapped(block: ch07.InvertedResidual) -> None:
    block.after_project = nn.Sequential(CBAM(block.channels, 4), nn.ReLU())


def the_class(block: ch07.InvertedResidual) -> None:
    block.after_project = CBAM  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (kept_to_itself, "All four slots are still empty"),
        (lambda block: CBAM(block.channels, 4), "All four slots are still empty"),
        (set_on("attention"), "All four slots are still empty"),
        (set_on("after_projection"), "All four slots are still empty"),
        (set_on("after_project", 24), "this CBAM is for 24. Take block.channels"),
        (without_its_norm, "Change nothing but one slot"),
        (wrapped, "after_project holds a Sequential"),
        (the_class, "cannot assign"),
    ],
)
def test_design_wants_the_slot_itself_filled(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch07.design, answer, reason, capsys)


def two(block: ch07.InvertedResidual) -> Any:
    return put("after_depthwise")(put("after_project", reduction=4)(block))


def squeezed(block: ch07.InvertedResidual) -> Any:
    block.after_project = cbam_edu.attention.ChannelAttention(block.channels, 4)
    return block


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (put("after_addition", reduction=4), "breaks condition 1"),
        (put("after_depthwise"), "breaks condition 1"),
        (put("after_expand"), "breaks condition 2"),
        (put("after_project"), "1 hidden unit(s)"),
        (put("after_project", reduction=1), "condition 4 allows a tenth"),
        (put("after_project", channels=144), "this CBAM is for 144"),
        (put("after_project", order="spatial-only"), "has no MLP"),
        (two, "Fill one slot, not 2"),
        (squeezed, "holds a ChannelAttention"),
        (convolved, "this channel gate has none"),
    ],
)
def test_design_says_which_condition_is_broken(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch07.design, answer, reason, capsys)


def test_a_shut_gate_leaves_the_input_of_an_inverted_residual() -> None:
    block = ch07.InvertedResidual(24).eval()
    block.after_project = CBAM(24, 4).eval()
    nn.init.constant_(block.after_project.channel.mixer[-1].bias, -1000.0)
    x = torch.randn(2, 24, 6, 5)
    assert torch.equal(block(x), x)


# 7.6


def rename(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "body")


def right(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    state = net.state_dict()
    found = {key: weights[rename(key)] for key in state if rename(key) in weights}
    if set(weights) - {rename(key) for key in found}:
        raise KeyError("no place")
    net.load_state_dict(found, strict=False)
    return set(state) - set(found)


def by_copying(net: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    state, left = net.state_dict(), dict(weights)
    for key, value in state.items():
        if rename(key) in left:
            value.copy_(left.pop(rename(key)))
    if left:
        raise KeyError(str(left))
    return [key for key in state if ".attention." in key or key.endswith("mix")]


@pytest.mark.parametrize(
    "answer", [right, by_copying, lambda net, weights: dict.fromkeys(right(net, weights)).keys()]
)
def test_load_plain_takes_any_way(answer: Any, capsys: Any) -> None:
    accepts(ch07.load_plain, answer, capsys)
    waits(ch07.load_plain, lambda net, weights: ..., capsys)


def not_strict(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    return set(net.load_state_dict(weights, strict=False).missing_keys)


def taken_out(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    before = set(net.state_dict())
    remove_attention(net).load_state_dict(weights)
    return before - set(weights)


def plain_names(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    right(net, weights)
    return set(weights)


def too_many(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    right(net, weights)
    return set(net.state_dict()) - set(weights)


def too_few(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    return {key for key in right(net, weights) if "channel" in key}


def reset(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    left = right(net, weights)
    for name, parameter in net.named_parameters():
        if ".attention." in name:
            nn.init.zeros_(parameter)
    return left


def patient(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    known = {rename(key) for key in net.state_dict()}
    return right(net, {key: value for key, value in weights.items() if key in known})


def nothing(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    return {key for key in net.state_dict() if ".attention." in key}


def zeros(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    return right(net, {key: torch.zeros_like(value) for key, value in weights.items()})


def parameters_only(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    parameters = dict(net.named_parameters())
    found = {k: weights[rename(k)] for k in parameters if rename(k) in weights}
    return set(net.load_state_dict(found, strict=False).missing_keys)


def by_their_own_names(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    net.load_state_dict({key: weights[key] for key in net.state_dict()})
    return set()


def strictly(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    net.load_state_dict(weights)
    return set()


def raising(error: type[Exception]) -> Callable[[nn.Module, dict[str, Tensor]], set[str]]:
    def answer(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
        if set(weights) - {rename(key) for key in net.state_dict()}:
            raise error("no place")
        return right(net, weights)

    return answer


def with_the_head(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    left = right(net, weights)
    nn.init.zeros_(net.get_parameter("head.weight"))
    return left


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (nothing, "Nothing was loaded"),
        (zeros, "'stem.weight' did not get the plain weight 'stem.weight'."),
        (with_the_head, "'head.weight' did not get the plain weight 'head.weight'."),
        (parameters_only, "'bn.body.running_mean' did not get"),
        (by_their_own_names, "stopped with KeyError: 'bn.body.weight'"),
        (strictly, "Missing key(s) in state_dict"),
        (raising(ValueError), "a KeyError; yours raises ValueError: no place"),
        (raising(AssertionError), "a KeyError; yours raises AssertionError"),
        (lambda net, weights: (key for key in right(net, weights)), "not a generator"),
        (lambda net, weights: right(net, weights) and net, "not a _Plain"),
        (not_strict, "has gained '.body'"),
        (taken_out, "leave its attention in"),
        (plain_names, "names of the plain network"),
        (too_many, "and it was loaded"),
        (too_few, "is not among the keys you return"),
        (reset, "belongs to the attention, and has changed"),
        (patient, "should raise a KeyError"),
        (lambda net, weights: len(right(net, weights)), "as a set; not a int"),
    ],
)
def test_load_plain_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch07.load_plain, answer, reason, capsys)
