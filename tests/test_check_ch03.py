"""The judges of chapter 03 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import ChannelAttention
from cbam_edu.check import ch03
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "03_channel_attention.ipynb")
COUNTS = [580, 512, 25, 3]


def test_there_are_six_exercises() -> None:
    assert len(EXERCISES) == 6


def merged(
    merge: Callable[[Tensor, Tensor], Tensor], relu: Callable[[Tensor], Tensor] = torch.relu
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a channel map whose two votes, (N, C) each, become one map by `merge`."""

    def channel_map(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
        votes = [relu(d @ w0.T) @ w1.T for d in (x.mean((2, 3)), x.amax((2, 3)))]
        return merge(*votes)[:, :, None, None]

    return channel_map


def correct(a: Tensor, m: Tensor) -> Tensor:
    return (a + m).sigmoid()


def of_the_sum(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
    d = x.mean((2, 3)) + x.amax((2, 3))
    return ((d @ w0.T).relu() @ w1.T).sigmoid()[:, :, None, None]


def sum_pooled(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
    votes = [(d @ w0.T).relu() @ w1.T for d in (x.sum((2, 3)), x.amax((2, 3)))]
    return (votes[0] + votes[1]).sigmoid()[:, :, None, None]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (merged(correct, relu=lambda h: h), "The ReLU between the two layers is missing"),
        (merged(lambda a, m: correct(a.relu(), m.relu())), "a ReLU after the second layer"),
        (merged(lambda a, m: a.sigmoid() + m.sigmoid()), "reach from 0 to 2"),
        (merged(lambda a, m: (a.sigmoid() + m.sigmoid()) / 2), "You averaged two maps"),
        (merged(lambda a, m: ((a + m) / 2).sigmoid()), "You averaged the two logits"),
        (of_the_sum, "before the MLP"),
        (sum_pooled, "instead of averaging"),
        (merged(lambda a, m: a.sigmoid()), "average descriptor alone"),
        (merged(lambda a, m: m.sigmoid()), "maximum descriptor alone"),
        (merged(lambda a, m: correct(a, a)), "The average votes twice"),
        (merged(lambda a, m: correct(m, m)), "The maximum votes twice"),
        (merged(lambda a, m: correct(a, m).sigmoid()), "second sigmoid"),
        (merged(lambda a, m: a + m), "These are the logits"),
        (merged(lambda a, m: (a + m).softmax(1)), "You took a softmax"),
        (merged(lambda a, m: 2 * correct(a, m)), "The map runs from"),
        (merged(lambda a, m: correct(a, m) / 2), "The map["),
        (lambda x, w0, w1: merged(correct)(x, w0, w1)[:, :, 0, 0], "[:, :, None, None]"),
        (lambda x, w0, w1: x.mean(1, keepdim=True).sigmoid(), "you pooled over the channels"),
        (lambda x, w0, w1: x * merged(correct)(x, w0, w1), "that of the features"),
        (lambda x, w0, w1: torch.zeros(2, 3), "it should have (2, 6, 1, 1)"),
        (lambda x, w0, w1: [0.5], "must be a tensor"),
        (lambda x, w0, w1: x @ w1, "RuntimeError"),
        (lambda x, w0, w1: merged(correct)(x, w0[:3], w1[:, :3]), "it should be"),
        (lambda x, w0, w1: merged(correct)(x, w0, w1).view(2, 6, 1, 1), "is invalid for input of"),
        (lambda x, w0, w1: merged(correct)(x[:1], w0, w1), "it should have (2, 6, 1, 1)"),
        (lambda x, w0, w1: merged(correct)(x, w0, w1) > 0.5, "it should be"),
        (lambda x, w0, w1: merged(correct)(x, w0, w1).half(), "it should be"),
        (lambda x, w0, w1: merged(correct)(x.relu(), w0, w1), "it should be"),
        (lambda x, w0, w1: ChannelAttention(x.shape[1])(x), "it should be"),
        (merged(correct, relu=torch.sigmoid), "it should be"),
    ],
)
def test_channel_map_names_the_mistake(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch03.channel_map, answer, reason, capsys)


def test_channel_map_takes_any_right_spelling(capsys: Any) -> None:
    def convolved(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
        def mlp(d: Tensor) -> Tensor:
            return F.conv2d(F.conv2d(d, w0[..., None, None]).relu(), w1[..., None, None])

        pooled = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return torch.sigmoid(sum(map(mlp, pooled)))

    def together(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
        both = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
        hidden = torch.einsum("hc,knc->knh", w0, both).relu().sum(0)
        return torch.einsum("ch,nh->nc", w1, hidden).sigmoid()[:, :, None, None]

    accepts(ch03.channel_map, merged(correct), capsys)
    accepts(ch03.channel_map, convolved, capsys)
    accepts(ch03.channel_map, together, capsys)
    waits(ch03.channel_map, lambda x, w0, w1: None, capsys)


class Gate(nn.Module):
    """A right gate, with parts that the wrong ones below replace."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = self.build(channels, max(1, channels // reduction))

    def build(self, channels: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def merge(self, a: Tensor, m: Tensor) -> Tensor:
        return correct(a, m)

    def forward(self, x: Tensor) -> Tensor:
        a, m = self.mlp(x.mean((2, 3))), self.mlp(x.amax((2, 3)))
        return self.merge(a, m)[:, :, None, None]


class Convolutional(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        layers = [nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)]
        return nn.Sequential(nn.Unflatten(1, (channels, 1, 1)), *layers, nn.Flatten())


class SecondFirst(Gate):
    """Makes the second layer before the first."""

    def build(self, channels: int, hidden: int) -> nn.Module:
        self.second, self.first = nn.Linear(hidden, channels), nn.Linear(channels, hidden)
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, m = (self.second(self.first(d).relu()) for d in (x.mean((2, 3)), x.amax((2, 3))))
        return self.merge(a, m)[:, :, None, None]


class FromTheRight(SecondFirst):
    """Multiplies by bare matrices, (C, h) and (h, C)."""

    def build(self, channels: int, hidden: int) -> nn.Module:
        self.w0 = nn.Parameter(torch.randn(channels, hidden))
        self.b0 = nn.Parameter(torch.zeros(hidden))
        self.w1 = nn.Parameter(torch.randn(hidden, channels))
        self.b1 = nn.Parameter(torch.zeros(channels))
        return nn.Identity()

    def first(self, d: Tensor) -> Tensor:
        return d @ self.w0 + self.b0

    def second(self, hidden: Tensor) -> Tensor:
        return hidden @ self.w1 + self.b1


class Rounded(Gate):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__(channels)
        self.mlp = self.build(channels, max(1, round(channels / reduction)))


class Frozen(Gate):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__(channels, reduction)
        self.requires_grad_(False)


class WithoutGradient(Gate):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Detached(SecondFirst):
    def forward(self, x: Tensor) -> Tensor:
        a, m = (
            self.second(self.first(d).relu().detach()) for d in (x.mean((2, 3)), x.amax((2, 3)))
        )
        return self.merge(a, m)[:, :, None, None]


class OneBatch(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(6, -1, 1, 1)


class Squeezed(Gate):
    def forward(self, x: Tensor) -> Tensor:
        both = F.adaptive_avg_pool2d(x, 1).squeeze(), F.adaptive_max_pool2d(x, 1).squeeze()
        return self.merge(*map(self.mlp, both))[:, :, None, None]


class OneSize(Gate):
    def forward(self, x: Tensor) -> Tensor:
        both = F.avg_pool2d(x, (4, 3)).flatten(1), F.max_pool2d(x, (4, 3)).flatten(1)
        return self.merge(*map(self.mlp, both))[:, :, None, None]


class InAList(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        self.layers = [super().build(channels, hidden)]  # a plain list hides it from PyTorch
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, m = self.layers[0](x.mean((2, 3))), self.layers[0](x.amax((2, 3)))
        return self.merge(a, m)[:, :, None, None]


class Normed(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        first, last = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)


class Misspelt(nn.Module):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()

    def foward(self, x: Tensor) -> Tensor:
        return x


class TwoMlps(Gate):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__(channels, reduction)
        self.other = self.build(channels, max(1, channels // reduction))

    def forward(self, x: Tensor) -> Tensor:
        a, m = self.mlp(x.mean((2, 3))), self.other(x.amax((2, 3)))
        return correct(a, m)[:, :, None, None]


class NoRelu(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(channels, hidden), nn.Linear(hidden, channels))


class NoBias(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        first, last = nn.Linear(channels, hidden, False), nn.Linear(hidden, channels, False)
        return nn.Sequential(first, nn.ReLU(), last)


class OneLayer(Gate):
    def build(self, channels: int, hidden: int) -> nn.Module:
        return nn.Linear(channels, channels)


class FixedReduction(Gate):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__(channels, 16)


class DeadWhenNarrow(Gate):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__(channels, reduction)
        self.mlp = self.build(channels, channels // reduction)


class NoWeights(nn.Module):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).sigmoid()


class AverageTwice(Gate):
    def merge(self, a: Tensor, m: Tensor) -> Tensor:
        return correct(a, a)


class SigmoidTwice(Gate):
    def merge(self, a: Tensor, m: Tensor) -> Tensor:
        return correct(a, m).sigmoid()


class SigmoidFirst(Gate):
    def merge(self, a: Tensor, m: Tensor) -> Tensor:
        return a.sigmoid() + m.sigmoid()


class Product(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


JUDGES = pytest.mark.parametrize("judge", [ch03.shared_mlp, ch03.mended_gate])


@JUDGES
@pytest.mark.parametrize(
    "answer", [Gate, Convolutional, ChannelAttention, SecondFirst, FromTheRight]
)
def test_every_form_of_a_right_gate_is_accepted(judge: Any, answer: Any, capsys: Any) -> None:
    accepts(judge, answer, capsys)
    waits(judge, lambda channels, reduction: None, capsys)


@JUDGES
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (TwoMlps, "The gate has two MLPs"),
        (NoRelu, "The ReLU between the two layers is missing"),
        (NoBias, "one bias each"),
        (OneLayer, "The layers have [32] outputs"),
        (FixedReduction, "With 32 channels the hidden layer has 2 units; it should have 8"),
        (DeadWhenNarrow, "With 8 channels the hidden layer has 0 units; it should have 1"),
        (NoWeights, "no weights that PyTorch knows of"),
        (AverageTwice, "The average votes twice"),
        (SigmoidTwice, "second sigmoid"),
        (SigmoidFirst, "reach from 0 to 2"),
        (Product, "that of the features"),
        (Rounded, "With 14 channels the hidden layer has 3 units; it should have 2"),
        (Frozen, "The gate cannot learn"),
        (WithoutGradient, "The gate cannot learn"),
        (Detached, "No gradient reaches first.weight"),
        (OneBatch, "is invalid for input of size 32"),
        (Squeezed, "IndexError"),
        (OneSize, "Output size is too small"),
        (InAList, "no weights that PyTorch knows of"),
        (Normed, "vectors of the lengths [8, 8, 8, 32]; the layers should have one bias each"),
        (Misspelt, 'missing the required "forward" function'),
        (Gate(32, 4), "Hand over the class itself"),
        (lambda channels, reduction: torch.zeros(1), "A gate must be an nn.Module, but"),
    ],
)
def test_gate_names_the_mistake(judge: Any, answer: Any, reason: str, capsys: Any) -> None:
    refuses(judge, answer, reason, capsys)


def test_the_faulty_gate_of_exercise_4_has_its_three_faults(capsys: Any) -> None:
    """Each fault, mended alone, leaves the judge something to say; all three leave nothing."""
    source = next(e.solution for e in EXERCISES if "three faults" in e.title)
    mends = {
        "hidden = max(1, channels // reduction)": "hidden = max(1, channels // 16)",
        "y_avg + y_max": "y_avg + y_avg",
        "return y[": "return torch.sigmoid(y)[",
    }
    exercise = next(e for e in EXERCISES if "three faults" in e.title)
    for right, wrong in mends.items():
        assert source.count(right) == 1
        assert not exercise.run(source.replace(right, wrong))
        assert capsys.readouterr().out.startswith("✗")


@pytest.mark.parametrize(
    ("place", "count", "reason"),
    [
        (0, 512, "the biases are missing"),
        (0, 1160, "two MLPs"),
        (1, 580, "That is with biases"),
        (1, 1024, "two MLPs"),
        (2, 8, "dead"),
        (2, 16, "the biases are missing"),
        (3, 5, "brings it to 3"),
        (3, 64, "the kernel's length"),
        (3, 7, "Number 4 is not 7."),
        (0, 580.5, "Write a whole number"),
        (0, "580", "Write a whole number"),
        (3, True, "Number 4 is not True"),
        (0, [580], "Write a whole number"),
        (0, 516, "One of the biases is missing"),
        (2, 0, "dead"),
    ],
)
def test_counts_name_the_mistake(place: int, count: Any, reason: str, capsys: Any) -> None:
    answer = [*COUNTS[:place], count, *COUNTS[place + 1 :]]
    refuses(ch03.parameter_counts, answer, reason, capsys)


def test_counts_are_those_of_pytorch(capsys: Any) -> None:
    accepts(ch03.parameter_counts, COUNTS, capsys)
    accepts(ch03.parameter_counts, tuple(COUNTS), capsys)
    accepts(ch03.parameter_counts, list(np.array(COUNTS)), capsys)
    refuses(ch03.parameter_counts, COUNTS[:3], "a list of four", capsys)
    refuses(ch03.parameter_counts, 580, "a list of four", capsys)
    waits(ch03.parameter_counts, [580, ..., 25, 3], capsys)


def spreads(m: Tensor) -> tuple[Any, Any]:
    m = m.flatten(1)
    return m.std(0, correction=0).mean(), m.mean(0).std(correction=0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda m: spreads(m)[::-1], "between_images is wrong for a random map. The two numbers"),
        (lambda m: (m.std((1, 2, 3), correction=0).mean(), 0), "images are axis 0"),
        (lambda m: (m.std(correction=0), 0), "over everything at once"),
        (lambda m: (m.flatten(1).mean(1).std(correction=0), 0), "average last"),
        (lambda m: (m.flatten(1).std(0).mean(), 0), "Pass correction=0"),
        (lambda m: (spreads(m)[0], m.flatten(1).std(1, correction=0).mean()), "images first"),
        (lambda m: (spreads(m)[0], m.std(correction=0)), "between images count too"),
        (lambda m: (spreads(m)[0], m.flatten(1).mean(0).std()), "Pass correction=0"),
        (lambda m: (spreads(m)[0], 7.0), "between_channels is 7.0000"),
        (lambda m: (m.flatten(1).std(0), 0), "between_images should be one number"),
        (lambda m: spreads(m)[0], "should return two numbers"),
        (lambda m: (*spreads(m), 0), "should return two numbers"),
        (lambda m: dict(zip("ab", spreads(m), strict=True)), "should return two numbers"),
        (lambda m: tuple(map(str, spreads(m))), "between_images must be a number, but is a str"),
        (lambda m: ([spreads(m)[0]], 0), "between_images must be a number, but is a list"),
        (lambda m: spreads(m.view(7, 5)), "is invalid for input of size 18"),
        (lambda m: (m.var(0, correction=0).mean(), 0), "between_images is 0.0825"),
        (lambda m: tuple(round(float(v), 2) for v in spreads(m)), "between_images is 0.2800"),
        (
            lambda m: (spreads(m)[0] if len(m) > 1 else 1.0, spreads(m)[1]),
            "for the map of a single image",
        ),
    ],
)
def test_spreads_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch03.spreads, answer, reason, capsys)


def test_spreads_takes_tensors_and_numbers(capsys: Any) -> None:
    def in_numpy(m: Tensor) -> tuple[Any, Any]:
        flat = m.flatten(1).numpy()
        return flat.std(0).mean(), flat.mean(0).std()

    accepts(ch03.spreads, spreads, capsys)
    accepts(ch03.spreads, lambda m: [float(v) for v in spreads(m)], capsys)
    accepts(ch03.spreads, in_numpy, capsys)
    waits(ch03.spreads, lambda m: (spreads(m)[0], None), capsys)


# 3.6


def opening(
    first: Callable[[nn.Sequential, float], None], merge: Callable[..., Tensor] = correct
) -> type[nn.Module]:
    """Return a gate whose layers get their first values from `first(mlp, start)`."""

    class OpenGate(nn.Module):
        def __init__(self, channels: int, reduction: int, start: float) -> None:
            super().__init__()
            hidden = max(1, channels // reduction)
            self.mlp = nn.Sequential(
                nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
            )
            with torch.no_grad():
                first(self.mlp, start)

        def forward(self, x: Tensor) -> Tensor:
            votes = self.mlp(x.mean((2, 3))), self.mlp(x.amax((2, 3)))
            return merge(*votes)[:, :, None, None]

    return OpenGate


def logit(start: float) -> float:
    return torch.logit(torch.tensor(start)).item()


def second_zero(mlp: nn.Sequential, start: float, scale: float = 0.5) -> None:
    mlp[2].weight.zero_()
    mlp[2].bias.fill_(scale * logit(start))


def all_zero(mlp: nn.Sequential, start: float) -> None:
    second_zero(mlp, start)
    mlp[0].weight.zero_()
    mlp[0].bias.zero_()


def start_as_bias(mlp: nn.Sequential, start: float, scale: float = 1.0) -> None:
    mlp[2].weight.zero_()
    mlp[2].bias.fill_(scale * start)


def frozen(mlp: nn.Sequential, start: float) -> None:
    second_zero(mlp, start)
    mlp[2].weight.requires_grad_(False)


def small(mlp: nn.Sequential, start: float) -> None:
    second_zero(mlp, start)
    mlp[2].weight.normal_(std=1e-5)


def first_zero(mlp: nn.Sequential, start: float) -> None:
    """No image has a say because the hidden units are 1, whatever comes in."""
    mlp[0].weight.zero_()
    mlp[0].bias.fill_(1.0)
    mlp[2].bias.copy_(logit(start) / 2 - mlp[2].weight.sum(1))


def cancelled(mlp: nn.Sequential, start: float) -> None:
    """No image has a say because the hidden units come in pairs that cancel each other."""
    half = len(mlp[0].weight) // 2
    second_zero(mlp, start)
    if half:
        mlp[0].weight[half:] = mlp[0].weight[:half]
        mlp[0].bias[half:] = mlp[0].bias[:half]
        mlp[2].weight[:, :half] = 0.3
        mlp[2].weight[:, half:] = -0.3


@pytest.mark.parametrize("first", [second_zero, small, first_zero, cancelled])
def test_open_gate_takes_every_start_that_can_learn(first: Any, capsys: Any) -> None:
    accepts(ch03.open_gate, opening(first), capsys)


class Starts(SecondFirst):
    def __init__(self, channels: int, reduction: int, start: float) -> None:
        super().__init__(channels, reduction)
        nn.init.zeros_(self.second.weight)
        nn.init.constant_(self.second.bias, logit(start) / 2)


class StartsFromTheRight(FromTheRight):
    def __init__(self, channels: int, reduction: int, start: float) -> None:
        super().__init__(channels, reduction)
        nn.init.zeros_(self.w1)
        nn.init.constant_(self.b1, logit(start) / 2)


def test_open_gate_takes_layers_in_any_order(capsys: Any) -> None:
    accepts(ch03.open_gate, Starts, capsys)
    accepts(ch03.open_gate, StartsFromTheRight, capsys)
    waits(ch03.open_gate, lambda channels, reduction, start: None, capsys)


def constant(channels: int, reduction: int, start: float) -> nn.Module:
    class Constant(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), channels, 1, 1), start)

    return Constant(channels, reduction)


def dead(mlp: nn.Sequential, start: float) -> None:
    second_zero(mlp, start)
    mlp[0].bias.fill_(-1000.0)


def no_gradient(channels: int, reduction: int, start: float) -> nn.Module:
    gate = opening(second_zero)(channels, reduction, start)
    gate.requires_grad_(False)
    return gate


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (opening(lambda mlp, start: None), "Which matrix must be zero"),
        (opening(lambda mlp, start: second_zero(mlp, start, 1.0)), "counts twice"),
        (opening(start_as_bias), "You put start itself into the logits"),
        (opening(lambda mlp, start: start_as_bias(mlp, start, 0.5)), "Your logit is start"),
        (opening(lambda mlp, start: second_zero(mlp, start, 0.0)), "half open"),
        (opening(lambda mlp, start: second_zero(mlp, start, 0.3)), "before training"),
        (opening(all_zero), "cannot learn to look at the image"),
        (opening(frozen), "cannot learn to look at the image"),
        (
            opening(
                lambda mlp, start: second_zero(mlp, start, 1.0),
                merge=lambda a, m: ((a + m) / 2).sigmoid(),
            ),
            "averaged the two logits",
        ),
        (lambda channels, reduction, start: nn.Identity(), "The map has shape"),
        (opening(lambda mlp, start: second_zero(mlp, 0.95)), "For start = 0.8 the map is 0.95"),
        (opening(lambda mlp, start: second_zero(mlp, 1 - start)), "the map is 0.05 before"),
        (opening(dead), "every hidden unit is 0 at the start"),
        (
            opening(second_zero, merge=lambda a, m: correct(a, m).sigmoid()),
            "or a second sigmoid follows",
        ),
        (opening(second_zero, merge=lambda a, m: correct(a, m).clamp(min=0.3)), "it should be"),
        (lambda c, r, start: Starts(c, 16, start), "has 2 units; it should have 8"),
        (constant, "The gate cannot learn"),
        (no_gradient, "The gate cannot learn"),
        (lambda channels, reduction, start: start, "A gate must be an nn.Module, but"),
        (Gate, "takes from 2 to 3 positional arguments but 4 were given"),
    ],
)
def test_open_gate_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch03.open_gate, answer, reason, capsys)
