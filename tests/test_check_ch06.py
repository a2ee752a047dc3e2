"""The judges of chapter 06 accept what is right, and name the usual mistakes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import CBAM
from cbam_edu.check import ch06
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "06_line_by_line.ipynb")


def test_there_are_five_exercises() -> None:
    assert len(EXERCISES) == 5


# 6.1


def spread(value: Tensor) -> Tensor:
    return value[:, :, None, None] if value.ndim == 2 else value


def in_place(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for key in state:
        state[key] = spread(state[key])
    return state


def adds_to_what_it_got(state: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {key: spread(value) for key, value in state.items()}
    state["x"] = torch.ones(1)
    return made


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda s: dict(s), "two axes are missing"),
        (lambda s: {k: v[..., None, None] for k, v in s.items()}, "one number for each output"),
        (lambda s: {k: spread(v.T if v.ndim == 2 else v) for k, v in s.items()}, "swapped"),
        (lambda s: {k: spread(v) for k, v in s.items() if v.ndim == 2}, "is missing"),
        (lambda s: {k.replace("0", "fc1"): spread(v) for k, v in s.items()}, "is missing"),
        (lambda s: {k: spread(v) for k, v in s.items()} | {"x": torch.ones(1)}, "no 'x'"),
        (lambda s: {k: spread(0.5 * v) for k, v in s.items()}, "are these the numbers"),
        (lambda s: {k: spread(v).tolist() for k, v in s.items()}, "must name a tensor"),
        (lambda s: list(s.values()), "Return a dict"),
        (in_place, "Make a new dict"),
        (lambda s: {k: v.reshape(9, 9) for k, v in s.items()}, "RuntimeError"),
        (lambda s: {k: v[None, None] if v.ndim == 2 else v for k, v in s.items()}, "0.weight has"),
        (lambda s: {k: v[..., None] if v.ndim == 2 else v for k, v in s.items()}, "(4, 16, 1)"),
        (
            lambda s: {k: spread(s[k]) for k in ("0.weight", "0.bias", "2.weight", "2.bias")},
            "KeyEr",
        ),
        (adds_to_what_it_got, "It changed 'x' of the dict it was given"),
        (lambda s: {k: spread(s.pop(k)) for k in list(s)}, "It changed '0.weight'"),
        (lambda s: {k: spread(v).int() for k, v in s.items()}, "are these the numbers"),
        (lambda s: ((k, spread(v)) for k, v in s.items()), "not a generator"),
        (
            lambda s: {
                k: spread(v).expand(-1, -1, 7, 7) if v.ndim == 2 else v for k, v in s.items()
            },
            "(4, 16, 7, 7)",
        ),
    ],
)
def test_wrong_conversions(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch06.to_convolutions, answer, reason, capsys)


def test_other_right_conversions(capsys: Any) -> None:
    def by_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {key: value.clone() for key, value in state.items()}
        for key in made:
            if key.endswith("weight"):
                made[key] = made[key].unsqueeze(-1).unsqueeze(-1)
        return made

    def by_module(state: dict[str, Tensor]) -> Any:
        def layer(name: str) -> nn.Module:
            weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
            made = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
            made.weight.data.copy_(weight.reshape(made.weight.shape))
            if bias is not None:
                made.bias = nn.Parameter(bias)
            return made

        return nn.Sequential(layer("0"), nn.ReLU(), layer("2")).state_dict()

    accepts(ch06.to_convolutions, by_name, capsys)
    accepts(ch06.to_convolutions, by_module, capsys)
    waits(ch06.to_convolutions, lambda state: None, capsys)


# 6.2


class Answer(nn.Module):
    """A right answer, or one with some of the bugs."""

    def __init__(self, channels: int, ratio: int, *, conv: bool = False, **bugs: Any):
        super().__init__()
        hidden = bugs.get("hidden", lambda c, r: max(1, c // r))(channels, ratio)
        bias = bugs.get("bias", False)

        def layer(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 1, bias=bias) if conv else nn.Linear(a, b, bias)

        self.conv = nn.Conv2d(
            2, 1, 7, padding=3, bias=False
        )  # first, so that no order is relied on
        self.fc2 = layer(hidden, channels)
        self.fc1 = layer(channels, hidden)
        if bugs.get("two"):
            self.fc3, self.fc4 = layer(channels, hidden), layer(hidden, channels)
        self.is_conv, self.bugs = conv, bugs

    def mlp(self, d: Tensor) -> Tensor:
        d = d if self.is_conv else d.flatten(1)
        hidden = self.fc1(d)
        return self.fc2(hidden if self.bugs.get("linear") else hidden.relu())

    def forward(self, x: Tensor) -> Tensor:
        bugs = self.bugs
        avg, top = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        if bugs.get("early"):
            logits = self.mlp(avg + top)
        else:
            logits = self.mlp(avg) + self.mlp(avg if bugs.get("mean_twice") else top)
        out = x * logits.sigmoid().reshape(*x.shape[:2], 1, 1)
        read = x if bugs.get("reads_f") else out
        maps = [read.amax(1, keepdim=True), read.mean(1, keepdim=True)]
        if bugs.get("means"):
            maps = [maps[1], maps[1]]
        if bugs.get("tops"):
            maps = [maps[0], maps[0]]
        if bugs.get("mean_first"):
            maps = maps[::-1]
        out = out * self.conv(torch.cat(maps, 1)).sigmoid()
        if bugs.get("half"):
            out = out / 2
        return out + x if bugs.get("plus_x") else out


@pytest.mark.parametrize(
    ("bugs", "reason"),
    [
        ({"mean_twice": True, "means": True, "plus_x": True}, "still added at the end"),
        ({"mean_twice": True, "means": True}, "The two maps of the spatial gate are the same"),
        ({"mean_twice": True}, "The maximum is not heard"),
        ({"means": True}, "the mean, twice"),
        ({"tops": True}, "the maximum, twice"),
        ({"plus_x": True}, "The factor F''/F is above 1"),
        ({"mean_first": True}, "keep [max; mean]"),
        ({"linear": True}, "The ReLU between the two layers got lost"),
        ({"early": True}, "before the MLP"),
        ({"reads_f": True}, "should read F'"),
        ({"two": True}, "the MLP is shared"),
        ({"bias": True}, "Keep the dialect"),
        ({"half": True}, "it should be"),
        ({"hidden": lambda c, r: c // 16}, "Who uses the argument?"),
        ({"hidden": lambda c, r: c // r}, "the gate is deaf"),
        ({"hidden": lambda c, r: max(1, r)}, "Who uses the argument?"),
        ({"hidden": lambda c, r: max(2, c // r)}, "For 8 channels and a reduction of 16"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_bugs_that_are_left(bugs: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch06.mended, lambda c, r: Answer(c, r, **bugs), reason, capsys)


def test_other_right_modules(capsys: Any) -> None:
    accepts(ch06.mended, Answer, capsys)
    accepts(ch06.mended, lambda c, r: Answer(c, r, conv=True), capsys)
    accepts(ch06.mended, lambda c, r: CBAM(c, r, bias=False, norm=False), capsys)
    waits(ch06.mended, lambda c, r: None, capsys)


def test_answers_that_are_no_such_module(capsys: Any) -> None:
    class InPlace(Answer):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0.5)

    class OneBatch(Answer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(3, -1, 11, 8)

    class WithoutGradient(Answer):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    class Detached(Answer):
        def mlp(self, d: Tensor) -> Tensor:
            return self.fc2(self.fc1(d.flatten(1)).relu().detach())

    class Dropped(Answer):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    def stops(channels: int, reduction: int) -> nn.Module:
        raise ValueError("no")

    refuses(ch06.mended, OneBatch, "is invalid for input of size", capsys)
    refuses(ch06.mended, WithoutGradient, "It cannot be trained", capsys)
    refuses(ch06.mended, lambda c, r: Answer(c, r).requires_grad_(False), "be trained", capsys)
    refuses(ch06.mended, Detached, "No gradient reaches fc1.weight", capsys)
    refuses(ch06.mended, Dropped, "in training mode", capsys)
    refuses(ch06.mended, Answer(8, 2), "Hand over the function, or the class", capsys)

    refuses(ch06.mended, lambda c, r: 3, "Return a module", capsys)
    refuses(ch06.mended, lambda c, r: nn.Linear(c, r, bias=False), "two layers", capsys)
    refuses(ch06.mended, lambda c, r: InPlace(c, r), "in place", capsys)
    refuses(ch06.mended, stops, "stopped: no", capsys)


# 6.3

SEEN = {letter: right for letter, (right, _) in ch06._SEEN.items()}


@pytest.mark.parametrize("letter", list(SEEN))
def test_a_wrong_prediction_is_explained(letter: str, capsys: Any) -> None:
    wrong = "same" if SEEN[letter] == "other" else "other"
    refuses(ch06.seen, SEEN | {letter: wrong}, f"{letter} is not '{wrong}'. ", capsys)


def test_predictions_are_read_kindly(capsys: Any) -> None:
    accepts(ch06.seen, {k: f" {v.upper()} " for k, v in SEEN.items()}, capsys)
    refuses(ch06.seen, SEEN | {"A": True}, 'each answer is "same" or "other"', capsys)
    accepts(ch06.seen, dict(reversed(SEEN.items())), capsys)
    refuses(ch06.seen, SEEN | {"A": "equal"}, 'each answer is "same" or "other"', capsys)
    refuses(ch06.seen, SEEN | {"B": ["same"]}, 'each answer is "same" or "other"', capsys)
    refuses(ch06.seen, dict.fromkeys(SEEN, "same"), "D is not 'same'", capsys)
    refuses(ch06.seen, ["same"] * 7, "Give a dict", capsys)
    refuses(ch06.seen, {k: v for k, v in SEEN.items() if k != "G"}, "Give a dict", capsys)
    waits(ch06.seen, SEEN | {"G": ...}, capsys)


def test_the_predictions_are_true() -> None:
    """Compute each of the seven."""
    torch.manual_seed(0)
    x, m = torch.randn(4, 8, 6, 6), CBAM(8, 2).eval()
    mlp, gate = m.channel.mixer, m.spatial

    def look(z: Tensor, mean_first: bool = False, norm: bool = True) -> Tensor:
        maps = [z.amax(1, keepdim=True), z.mean(1, keepdim=True)]
        logits = gate.conv(torch.cat(maps[::-1] if mean_first else maps, 1))
        return (gate.norm(logits) if norm else logits).sigmoid()

    def same(a: Tensor, b: Tensor) -> str:
        return "same" if torch.allclose(a, b, atol=1e-4) else "other"

    found = {}
    equal = x[:, :1].repeat(1, 8, 1, 1)
    found["A"] = same(look(equal), look(equal, mean_first=True))
    refined = equal * m.channel(equal)  # equal channels of F are not enough, it must be F'
    assert same(look(refined), look(refined, mean_first=True)) == "other"
    flat = copy.deepcopy(gate)
    nn.init.zeros_(flat.norm.weight)
    found["B"] = same(flat(x), flat(x.flip(1) * 2))
    one = x[:, :, :1, :1]
    found["C"] = same(m.channel(one), (2 * mlp(one.mean((2, 3)))).sigmoid()[:, :, None, None])
    a, b = torch.rand(4, 8), torch.rand(4, 8)
    positive = copy.deepcopy(mlp)
    for p in positive.parameters():
        p.data.abs_()
    found["D"] = same(positive(a) + positive(b), positive(a + b))
    found["E"] = same(look(x), look(x, norm=False))
    gate.train()
    found["F"] = same(look(x), look(x, norm=False))
    found["G"] = same(mlp(a), mlp(a.relu()))
    assert found == SEEN


# 6.4


def course(kind: str = "right") -> Callable[..., Any]:
    def answer(module: CBAM, x: Tensor, steps: int) -> Any:
        kernel = module.spatial.conv.weight
        chosen = [kernel] if kind == "kernel only" else module.parameters()
        make = torch.optim.Adam if kind == "adam" else torch.optim.SGD
        optimiser, norms = make(chosen, lr=1.0 if kind == "lr" else 0.1), []
        if kind == "eval":
            module.eval()
        for _ in range(steps):
            if kind != "added up":
                module.zero_grad()
            square = module(x).square()
            (square.sum() if kind == "summed" else square.mean()).backward()
            if kind == "after":
                optimiser.step()
                module.zero_grad()
                module(x).square().mean().backward()
            of = kernel if kind == "weights" else kernel.grad
            norm = of.norm() ** 2 if kind == "squared" else of.norm()
            norms.append(norm.detach() if kind == "tensors" else norm.item())
            if kind not in ("after", "still"):
                optimiser.step()
        rounded = [round(float(norm), 2) for norm in norms]
        others = {"short": norms[:-1], "one": norms[0], "rounded": rounded, "dict": {0: norms}}
        others["without numbers"] = torch.empty(steps, device="meta")
        return others.get(kind, norms)

    return answer


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("added up", "were added up"),
        ("kernel only", "Only the kernel was trained"),
        ("weights", "the norms of the kernel itself"),
        ("squared", "a root is missing"),
        ("after", "The first step is missing"),
        ("lr", "SGD, lr=0.1"),
        ("short", "Return a list of 4 numbers"),
        ("one", "Return a list of 4 numbers"),
        ("dict", "Return a list of 4 numbers"),
        ("without numbers", "Return a list of 4 numbers"),
        ("adam", "SGD, lr=0.1"),
        ("eval", "training mode"),
        ("summed", "Take the mean of the squares"),
        ("still", "and let it step"),
        ("rounded", "and round nothing"),
    ],
)
def test_wrong_courses(kind: str, reason: str, capsys: Any) -> None:
    refuses(ch06.kernel_gradients, course(kind), reason, capsys)


def test_other_right_courses(capsys: Any) -> None:
    accepts(ch06.kernel_gradients, course("tensors"), capsys)
    accepts(ch06.kernel_gradients, lambda *args: torch.tensor(course()(*args)), capsys)
    accepts(ch06.kernel_gradients, lambda *args: torch.tensor(course()(*args)).numpy(), capsys)
    accepts(ch06.kernel_gradients, lambda *args: [np.float32(v) for v in course()(*args)], capsys)
    waits(ch06.kernel_gradients, lambda *args: None, capsys)

    def texts(*args: Any) -> list[str]:
        return [str(value) for value in course()(*args)]

    refuses(ch06.kernel_gradients, texts, "Each step's norm must be a number, but is a str", capsys)


# 6.5


def by_hook(gate: Any) -> bool:
    given: list[Tensor] = []
    hook = gate.conv.register_forward_hook(lambda conv, inputs, out: given.append(inputs[0]))
    x = torch.rand(1, 3, 9, 9)
    gate(x)
    hook.remove()
    return bool((given[0][:, 0] < given[0][:, 1]).all())


def by_surgery(gate: Any) -> bool:
    """Put a copy's convolution aside, and see what its first sheet reads."""
    probe = copy.deepcopy(gate)
    sheet = torch.zeros_like(probe.conv.weight)
    sheet[0, 0, sheet.shape[2] // 2, sheet.shape[3] // 2] = 1
    probe.conv.weight.data = sheet
    for module in probe.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
    x = torch.randn(1, 4, 8, 8)
    louder = x.clone()
    louder[:, :1] -= 5  # another mean; the maximum changes only where channel 0 had it
    kept = x.argmax(1, keepdim=True) != 0
    return bool(((probe(x) - probe(louder)).abs()[kept] > 1e-4).any())


def by_output(gate: Any) -> bool:
    """Compare the map with the formula: deaf where the map says nothing."""
    x = torch.randn(2, 4, 8, 8)
    maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return torch.allclose(gate(x), gate.norm(gate.conv(maps)).sigmoid(), atol=1e-6)


def leaves_hook(gate: Any) -> bool:
    gate.conv.register_forward_pre_hook(lambda conv, inputs: None)
    return True


def leaves_backward_hook(gate: Any) -> bool:
    gate.conv.register_full_backward_hook(lambda *args: None)
    return True


def leaves_forward(gate: Any) -> bool:
    gate.conv.forward = gate.conv.forward
    return True


def loses_the_convolution(gate: Any) -> bool:
    gate.conv = nn.Identity()
    return True


def freezes(gate: Any) -> bool:
    gate.requires_grad_(False)
    return True


def trains(gate: Any) -> bool:
    gate.train()
    return True


def overwrites(gate: Any) -> bool:
    gate.conv.weight.data.fill_(1)
    return True


def test_right_ways_to_tell_the_order(capsys: Any) -> None:
    accepts(ch06.mean_first, by_hook, capsys)
    accepts(ch06.mean_first, by_surgery, capsys)
    accepts(ch06.mean_first, lambda gate: torch.tensor(by_hook(gate)), capsys)
    accepts(ch06.mean_first, lambda gate: np.bool_(by_hook(gate)), capsys)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (by_output, "Look at what the convolution is given"),
        (lambda gate: True, "It says True to every gate"),
        (lambda gate: False, "It says False to every gate"),
        (lambda gate: not by_hook(gate), "the other way round"),
        (lambda gate: by_hook(gate) == (gate.conv.bias is None), "Does your input have"),
        (leaves_hook, "Your hook still hangs there"),
        (trains, "in training mode"),
        (overwrites, "Put back what you change"),
        (lambda gate: "mean", "Return True or False"),
        (lambda gate: gate.fc1, "AttributeError"),
        (leaves_backward_hook, "Your hook still hangs there"),
        (leaves_forward, "A forward is still replaced"),
        (loses_the_convolution, "has other parts afterwards"),
        (freezes, "take no gradient afterwards"),
        (lambda gate: int(by_hook(gate)), "Return True or False, not a int"),
        (lambda gate: bool(gate(torch.zeros(1, 3, 5, 5)).mean() > 0.5), "It is wrong about"),
    ],
)
def test_wrong_ways_to_tell_the_order(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch06.mean_first, answer, reason, capsys)


def test_nothing_is_judged_before_it_is_written(capsys: Any) -> None:
    waits(ch06.mean_first, lambda gate: None, capsys)
    waits(ch06.mean_first, ..., capsys)
