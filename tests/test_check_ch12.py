"""The judges of chapter 12 accept what is right, and name the usual mistakes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import POOLINGS
from cbam_edu.check import ch12
from cbam_edu.neighbours import ECA
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "12_variants.ipynb")


def test_there_are_six_exercises() -> None:
    assert len(EXERCISES) == 6


# 12.1


def shifted(m: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return log-sum-exp with `m(x)`, (N, C, 1, 1) or of one number, taken out."""
    return lambda x: m(x).flatten(1)[:, :1].squeeze() + (x - m(x)).exp().sum((2, 3)).log()


def by_the_image(x: Tensor) -> Tensor:
    m = x.amax((1, 2, 3), keepdim=True)
    return m[:, :, 0, 0] + (x - m).exp().sum((2, 3)).log()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: x.exp().sum((2, 3)).log(), "For channels around 1000, -1000 and 0"),
        (lambda x: x.double().exp().sum((2, 3)).log().float(), "For channels around 1000"),
        (
            lambda x: x.amax() + (x - x.amax()).exp().sum((2, 3)).log(),
            "One shift for the whole map",
        ),
        (lambda x: x.exp().mean((2, 3)).log(), "the log of the mean"),
        (lambda x: x.logsumexp((2, 3)) - x.amax((2, 3)), "has not been added again"),
        (lambda x: x.logsumexp(1), "pools over the channels"),
        (lambda x: x.exp().sum((2, 3)), "The logarithm is missing"),
        (lambda x: x.logsumexp((2, 3), keepdim=True), "has shape (2, 3, 1, 1)"),
        (lambda x: x.amax((2, 3)), "Compare it with x.logsumexp"),
        (lambda x: x.clamp(-80, 80).logsumexp((2, 3)), "large and small channels"),
        (lambda x: "5", "must be a tensor, but is a str"),
        (lambda x: x.detach().logsumexp((2, 3)), "No gradient comes through the descriptor"),
        (lambda x: x.logsumexp((2, 3)).tolist(), "must be a tensor, but is a list"),
        (lambda x: x.logsumexp((2, 3)).numpy(), "must be a tensor, but is a ndarray"),
        (lambda x: x.logsumexp(3), "has shape (2, 3, 4)"),
        (lambda x: x.logsumexp((2, 3)).reshape(2, 3), "is invalid for input of size 2"),
        (lambda x: x.exp().sum((2, 3)).log().nan_to_num(), "is 3.403e+38; it should be 1003"),
        (lambda x: (x.exp().sum((2, 3)) + 1e-8).log(), "Take a number out"),
        (lambda x: (x - 500).exp().sum((2, 3)).log() + 500, "is -inf; it should be"),
        (lambda x: x.logsumexp((2, 3)) / math.log(2), "Compare it with x.logsumexp"),
        (lambda x: x.sum((2, 3)).exp().log(), "Compare it with x.logsumexp"),
        (by_the_image, "Take the maximum of each channel"),
    ],
)
def test_lse_names_the_mistake(answer: Callable[[Tensor], Any], reason: str, capsys: Any) -> None:
    refuses(ch12.lse, answer, reason, capsys)


def test_lse_takes_any_shift_that_holds(capsys: Any) -> None:
    def by_the_mean(x: Tensor) -> Tensor:
        m = x.mean((2, 3), keepdim=True)
        return m[:, :, 0, 0] + (x - m).exp().sum((2, 3)).log()

    accepts(ch12.lse, by_the_mean, capsys)
    accepts(ch12.lse, POOLINGS["lse"], capsys)
    waits(ch12.lse, lambda x: ..., capsys)


# 12.2


def kernel_of(channels: int) -> int:
    return ECA(channels).channel.mixer[1].kernel_size[0]


class Map(nn.Module):
    """The right channel map, or one with another kernel or another last step."""

    def __init__(self, channels: int, k: int | None = None, bias: bool = False):
        super().__init__()
        k = kernel_of(channels) if k is None else k
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=bias)

    def row(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, None]

    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.row(x))[:, 0, :, None, None], x)


class OneRow(Map):
    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        row = x.mean((2, 3)).reshape(1, 1, n * c)
        return self.conv(row)[..., : n * c].reshape(n, c, 1, 1).sigmoid()


class OverImages(Map):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mean((2, 3)).T[:, None])[:, 0].T[:, :, None, None].sigmoid()


class Largest(Map):
    def row(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))[:, None]


class Logits(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits


class Softmax(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.softmax(1)


class Features(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return x * logits.sigmoid()


class Flat(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.sigmoid()[:, :, 0, 0]


class Summed(Map):
    def row(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))[:, None]


class TwoSigmoids(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.sigmoid().sigmoid()


class Detached(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.sigmoid().detach()


class OtherAxis(Map):
    def last(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits.sigmoid().transpose(1, 2)


class OfTheBatch(Map):
    def row(self, x: Tensor) -> Tensor:
        return x.mean((0, 2, 3), keepdim=True)[:, :, 0, 0][:, None].expand(len(x), -1, -1)


class NotPadded(Map):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv = nn.Conv1d(1, 1, kernel_of(channels), bias=False)


class Around(Map):
    def __init__(self, channels: int):
        super().__init__(channels)
        k = kernel_of(channels)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, padding_mode="circular", bias=False)


class Full(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Backwards(Map):
    def row(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).flip(1)[:, None]


def odd(value: float) -> int:
    t = int(value)
    return t if t % 2 else t + 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda c: Map(c, int((math.log2(c) + 1) / 2)), "An even kernel has no middle"),
        (lambda c: OneRow(c, int(math.log2(c) / 2 + 1)), "An even kernel has no middle"),
        (lambda c: Map(c, odd(math.log2(c) / 2 + 1)), "b is divided by gamma as well"),
        (lambda c: Map(c, odd((math.log(c) + 1) / 2)), "natural logarithm"),
        (lambda c: Map(c, 9), "Cut off what follows the point"),
        (lambda c: Map(c, bias=True), "2 parameter tensors"),
        (OneRow, "All images lie in one row"),
        (OverImages, "slides over the images"),
        (Largest, "It reads the maximum"),
        (Logits, "The sigmoid is missing"),
        (Softmax, "share one cake"),
        (Features, "Return the map, (N, C, 1, 1)"),
        (Flat, "has shape (3, 8)"),
        (Backwards, "Slide the kernel along"),
        (ECA, "Return the map, (N, C, 1, 1)"),
        (lambda c: lambda x: x, "Return a module, not a function"),
        (Map(64), "Hand over the function"),
        (lambda c: Map(c, 3), "with one length for all"),
        (lambda c: Map(c, odd(math.ceil((math.log2(c) + 1) / 2))), "cut off, not rounded up"),
        (lambda c: Map(c).requires_grad_(False), "No gradient comes through the map"),
        (Detached, "No gradient comes through the map"),
        (Full, "One kernel is for all channels"),
        (Summed, "Slide the kernel along the channels' means"),
        (TwoSigmoids, "Slide the kernel along the channels' means"),
        (OfTheBatch, "Slide the kernel along the channels' means"),
        (Around, "Slide the kernel along the channels' means"),
        (NotPadded, "has shape (3, 6, 1, 1)"),
        (OtherAxis, "has shape (3, 1, 8, 1)"),
    ],
)
def test_channel_map_names_the_mistake(
    answer: Callable[[int], Any], reason: str, capsys: Any
) -> None:
    refuses(ch12.channel_map, answer, reason, capsys)


class BareKernel(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(kernel_of(channels)))

    def forward(self, x: Tensor) -> Tensor:
        pad = len(self.kernel) // 2
        windows = F.pad(x.mean((2, 3)), (pad, pad)).unfold(1, len(self.kernel), 1)
        return (windows @ self.kernel).sigmoid()[:, :, None, None]


def test_channel_map_takes_other_spellings(capsys: Any) -> None:
    accepts(ch12.channel_map, Map, capsys)
    accepts(ch12.channel_map, BareKernel, capsys)
    accepts(ch12.channel_map, lambda channels: ECA(channels).channel, capsys)
    waits(ch12.channel_map, lambda channels: None, capsys)


# 12.3

MEANS = ch12.MEANS | {ch12.NO_GATE: "s.softmax(1)"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"c.softmax(0)": 1 / 8}, "over all 8 channels"),
        ({"c.softmax(0)": 1}, "that is their sum, not their mean"),
        ({"c.softmax(1)": 1 / 16}, "the axis does not join the images"),
        ({"s.softmax(1)": 1 / 16}, "over all 16 places"),
        ({"s.softmax(1)": 0.5}, "undecided sigmoids"),
        ({"s.softmax(2)": 1 / 16}, "over all 16 places"),
        ({"s.flatten(1).softmax(1)": 1 / 32}, "the axis does not join the images"),
        ({"s.flatten(1).softmax(1)": 0.3}, "divide by how many there are"),
        ({"s.softmax(2)": "a quarter"}, "must be a number"),
        ({ch12.NO_GATE: "c.softmax(0)"}, "nothing competes along its axis"),
        ({"s.softmax(3)": 1 / 4}, "an answer for each of"),
        ({"c.softmax(1)": math.nan}, "has not the mean nan"),
        ({"c.softmax(1)": 12.5}, "divide by how many there are"),
        ({"c.softmax(1)": torch.full((8,), 1 / 8)}, "must be a number, but is a Tensor"),
        ({"s.softmax(2)": True}, "must be a number, but is a bool"),
        ({"s.flatten(1).softmax(1)": 0.06}, "has not the mean 0.06"),
        ({ch12.NO_GATE: "none"}, "is one of the five names above, not 'none'"),
        ({ch12.NO_GATE: '"s.softmax(1)"'}, "is one of the five names above"),
        ({ch12.NO_GATE: np.array(["a", "b"])}, "is one of the five names above"),
    ],
)
def test_softmax_means_says_why(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch12.softmax_means, MEANS | change, reason, capsys)


def test_softmax_means_are_those_of_torch(capsys: Any) -> None:
    c, s = torch.randn(2, 8, 1, 1), torch.randn(2, 1, 4, 4)
    for name, mean in ch12.MEANS.items():
        assert eval(name, {"c": c, "s": s}).mean().item() == pytest.approx(mean)
    assert (s.softmax(1) == 1).all()
    accepts(ch12.softmax_means, MEANS | {"s.softmax(1)": torch.tensor(1.0)}, capsys)
    accepts(ch12.softmax_means, MEANS | {"s.softmax(2)": np.float32(0.25)}, capsys)
    accepts(ch12.softmax_means, MEANS | {"c.softmax(1)": np.array([0.125])}, capsys)
    waits(ch12.softmax_means, MEANS | {"c.softmax(0)": ...}, capsys)


# 12.4


def multiplied(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    return x + x * torch.sigmoid(channel.logits(x) * spatial.logits(x))


def reads_refined(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    return x + x * torch.sigmoid(channel.logits(x) + spatial.logits(x * channel(x)))


def in_sequence(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    refined = x * channel(x)
    return x + refined * spatial(refined)


def right_join(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    return x + x * torch.sigmoid(channel.logits(x) + spatial.logits(x))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (multiplied, "two noes make a yes"),
        (lambda x, c, s: right_join(x, c, s) - x, "This is CBAM's parallel order"),
        (lambda x, c, s: x + x * c(x) * s(x), "two sigmoids, multiplied"),
        (lambda x, c, s: x + x * (c(x) + s(x)), "two sigmoids, added"),
        (lambda x, c, s: x + x * (c.logits(x) + s.logits(x)), "The sigmoid is missing"),
        (lambda x, c, s: x + torch.sigmoid(c.logits(x) + s.logits(x)), "x and the factors are"),
        (reads_refined, "that the channel gate has changed"),
        (in_sequence, "one gate after the other"),
        (lambda x, c, s: 2 * right_join(x, c, s), "both logits added"),
        (lambda x, c, s: c.logits(x), "has shape (2, 6, 1, 1)"),
        (lambda x, c, s: x + x * torch.sigmoid(c(x) + s(x)), "There are sigmoids in the sigmoid"),
        (lambda x, c, s: torch.sigmoid(c.logits(x) + s.logits(x)), "the map of the gates, M"),
        (lambda x, c, s: 1 + torch.sigmoid(c.logits(x) + s.logits(x)), "This is 1 + M"),
        (lambda x, c, s: x + x * c(x), "Only the channel gate"),
        (lambda x, c, s: x + x * s(x), "Only the spatial gate"),
        (lambda x, c, s: x.add_(x * torch.sigmoid(c.logits(x) + s.logits(x))), "been changed"),
        (lambda x, c, s: right_join(x.detach(), c, s).detach(), "No gradient comes through"),
        (lambda x, c, s: x + (right_join(x, c, s) - x).detach() * (x / x), "No gradient comes"),
        (lambda x, c, s: x + x * torch.sigmoid(c.logits + s.logits), "'method' and 'method'"),
        (lambda x, c, s: x * (1 + c(x)) * (1 + s(x)), "both logits added"),
        (lambda x, c, s: right_join(x[:1], c, s), "has shape (1, 6, 5, 4)"),
        (
            lambda x, c, s: x + x * (c.logits(x) + s.logits(x)).softmax(1),
            "both logits added",
        ),
    ],
)
def test_residual_parallel_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch12.residual_parallel, answer, reason, capsys)


def test_residual_parallel_takes_other_spellings(capsys: Any) -> None:
    def factored(x: Tensor, channel: Any, spatial: Any) -> Tensor:
        return x * (1 + F.sigmoid(spatial.logits(x) + channel.logits(x)))

    def in_steps(x: Tensor, channel: Any, spatial: Any) -> Tensor:
        logits = spatial.logits(x) + channel.logits(x)
        return torch.addcmul(x, x, 1 / (1 + torch.exp(-logits)))

    accepts(ch12.residual_parallel, factored, capsys)
    accepts(ch12.residual_parallel, in_steps, capsys)
    waits(ch12.residual_parallel, lambda x, channel, spatial: None, capsys)


# 12.5


def compared(
    x: Callable[[], Tensor], larger: Callable[[Tensor], Tensor], rtol: float = 1e-4
) -> Callable[[Any], bool]:
    """Return an answer that compares the pooling of a map with that of a larger one."""

    def answer(pool: Any) -> bool:
        v = x()
        return not torch.allclose(pool(v), pool(larger(v)), rtol=rtol, atol=1e-5)

    return answer


def noise() -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (compared(lambda: torch.zeros(1, 2, 4, 4), repeated), "Is your map zero everywhere?"),
        (compared(lambda: torch.ones(1, 2, 4, 4), repeated), "The spread depends on the size"),
        (
            compared(noise, lambda x: torch.randn(2, 3, 8, 10)),
            "The mean does not depend on the size. Do you compare",
        ),
        (compared(noise, lambda x: F.pad(x, (0, 5, 0, 4))), "The mean does not depend"),
        (compared(noise, lambda x: F.pad(x, (1, 1, 1, 1), "circular")), "The mean does not"),
        (compared(noise, lambda x: x.repeat(1, 1, 2, 2)), "A tiling of the whole map"),
        (compared(noise, repeated, rtol=0.1), "your tolerance wide?"),
        (lambda pool: not torch.equal(pool(noise()), pool(repeated(noise()))), "rounding"),
        (lambda pool: False, "Lp depends on the size"),
        (lambda pool: "yes", "Return True or False"),
        (lambda pool: True, "The mean does not depend on the size"),
        (lambda pool: not compared(noise, repeated)(pool), "The mean does not depend"),
        (lambda pool: pool(noise()).shape != pool(repeated(noise())).shape, "Lp depends"),
        (lambda pool: torch.isclose(pool(noise()), pool(repeated(noise()))), "Return True or"),
        (lambda pool: np.array([True, False]), "Return True or False"),
        (lambda pool: [compared(noise, repeated)(pool)], "it returned [False]"),
        (lambda pool: 0.5, "it returned 0.5"),
        (compared(noise, lambda x: x.repeat_interleave(2, 2)), "two neighbours depends"),
        (compared(lambda: -noise().abs() - 1, repeated), "Are there places above 0"),
        (lambda pool: pool(torch.randn(4, 5)), "Dimension out of range"),
        (
            compared(noise, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
            "The maximum does not depend",
        ),
    ],
)
def test_depends_on_size_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch12.depends_on_size, answer, reason, capsys)


def test_depends_on_size_takes_other_spellings(capsys: Any) -> None:
    accepts(ch12.depends_on_size, compared(noise, repeated), capsys)

    def as_a_tensor(pool: Any) -> Tensor:
        x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1)).double()
        difference = pool(x) - pool(F.interpolate(x, scale_factor=2))
        return (difference.abs() > 1e-6).any()

    accepts(ch12.depends_on_size, as_a_tensor, capsys)
    waits(ch12.depends_on_size, lambda pool: None, capsys)


# 12.6


def of_mean_1(m: Tensor) -> Tensor:
    return m / m.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (torch.sigmoid, "This is the sigmoid"),
        (lambda z: z.softmax(1), "multiply by the number of channels"),
        (lambda z: 16 * z.softmax(1), "it should be 1"),
        (lambda z: z.exp() / z.exp().mean(), "not image by image"),
        (lambda z: len(z) * z.softmax(0), "the mean"),
        (lambda z: 1 + z - z.mean(1, keepdim=True), "every factor must be positive"),
        (lambda z: torch.ones_like(z), "3. In some image"),
        (lambda z: z.shape[1] * (-z).softmax(1), "3. In some image"),
        (lambda z: of_mean_1(z.exp().round() + 1), "3. In some image"),
        (lambda z: of_mean_1((z - z.mean(0, keepdim=True)).sigmoid()), "3. In some image"),
        (
            lambda z: z.shape[1] * (z / z.std().nan_to_num(1)).softmax(1),
            "another image of the batch",
        ),
        (lambda z: z.shape[1] * (z * len(z)).softmax(1), "when it is alone in the batch"),
        (lambda z: z.shape[1] * (1000 * z).exp() / (1000 * z).exp().sum(1, True), "not finite"),
        (lambda z: z.softmax(1).flatten(1), "has shape (3, 4)"),
        (lambda z: 1.0, "must be a tensor, but is a float"),
        (lambda z: (z.shape[1] * z.softmax(1)).detach(), "No gradient comes through the factors"),
        (lambda z: 4 * z.softmax(1), "For 16 channels it should be 1"),
        (lambda z: 2 * z.sigmoid(), "have the mean 0.995"),
        (lambda z: of_mean_1(z.relu()), "every factor must be positive"),
        (lambda z: of_mean_1(z.square() + 0.1), "3. In some image"),
        (lambda z: of_mean_1(z.clamp(-0.5, 0.5).exp()), "3. In some image"),
        (lambda z: z.numel() * z.flatten().softmax(0).view_as(z), "not image by image"),
        (lambda z: z.sigmoid() / z.sigmoid().sum(1, keepdim=True), "multiply by the number of"),
        (lambda z: (z.shape[1] * z.softmax(1)).numpy(), "must be a tensor, but is a ndarray"),
    ],
)
def test_gate_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch12.gate, answer, reason, capsys)


def test_gate_sees_who_does_not_compete(capsys: Any) -> None:
    def by_rank(z: Tensor) -> Tensor:
        return of_mean_1(z.argsort(1).argsort(1).to(z.dtype) + 1)

    refuses(ch12.gate, by_rank, "4. One logit rose by 0.5", capsys)


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: z.shape[1] * z.softmax(1),
        lambda z: z.shape[1] * (z / 3).softmax(1),
        lambda z: of_mean_1(z.sigmoid()),
        lambda z: of_mean_1(F.softplus(z)),
        lambda z: 1 + (z.tanh() - z.tanh().mean(1, keepdim=True)) / 3,
    ],
    ids=["softmax", "warmer", "sigmoid", "softplus", "what one gains, the others lose"],
)
def test_gate_takes_every_right_design(answer: Any, capsys: Any) -> None:
    accepts(ch12.gate, answer, capsys)


def test_gate_waits(capsys: Any) -> None:
    waits(ch12.gate, lambda logits: None, capsys)
