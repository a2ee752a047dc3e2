"""The judges of chapter 02: the stored solutions pass, and each usual mistake is named."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cbam_edu.check import ch02
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "02_pooling.ipynb")


def test_every_judge_has_an_exercise():
    calls = [exercise.judge_call for exercise in EXERCISES]
    names = ("descriptors", "spot_on_a_map", "mended_descriptors", "noise_max", "soft_pool")
    for name in names:
        assert sum(f"check.ch02.{name}(" in call for call in calls) == 1


MEAN, MAX = (lambda x: x.mean((2, 3))), (lambda x: x.amax((2, 3)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: torch.cat([MAX(x), MEAN(x)], 1), "The maxima come first"),
        (lambda x: torch.stack([MEAN(x), MAX(x)], 2).flatten(1), "alternate"),
        (lambda x: torch.cat([MEAN(x), MAX(x)]), "there are 2N rows"),
        (lambda x: torch.stack([MEAN(x), MAX(x)], 1), "along a new axis"),
        (lambda x: torch.cat([x.mean(1), x.amax(1)], 1), "pooled along the channels"),
        (lambda x: torch.cat([x.sum((2, 3)), MAX(x)], 1), "These are sums"),
        (lambda x: torch.cat([MEAN(x), MAX(x.abs())], 1), "absolute values"),
        (lambda x: torch.cat([MEAN(x), MAX(x.relu())], 1), "it should be"),
        (MEAN, "has shape (2, 3); it should have (2, 6)"),
        (lambda x: x.mean((2, 3)).tolist(), "must be a tensor"),
        (lambda x: (MEAN(x), MAX(x)), "must be a tensor, but is a tuple"),
        (lambda x: torch.cat([x.mean((2, 3), True), x.amax((2, 3), True)], 1), "(2, 6, 1, 1)"),
        (lambda x: torch.cat([MEAN(x), x.amin((2, 3))], 1), "it should be"),
        (lambda x: torch.cat([MEAN(x), MEAN(x)], 1), "it should be"),
        (lambda x: torch.cat([MEAN(x), x.flatten(2).argmax(2)], 1), "it should be"),
        (lambda x: torch.cat([MEAN(x), x.flatten(2).max(2)], 1), "stopped with TypeError"),
        (lambda x: torch.cat([x.sum((2, 3)) / 20, MAX(x)], 1), "it should be"),
        (lambda x: torch.cat([x.mean(3), x.amax(3)], 1), "has shape (2, 6, 4)"),
        (lambda x: torch.cat([MEAN(x), MAX(x)], 1).view(2, 6), "it should have (3, 4)"),
        (lambda x: torch.cat([x.mean((0, 2, 3)), x.amax((0, 2, 3))]), "has shape (6,)"),
    ],
)
def test_descriptors_names_the_mistake(answer, words, capsys):
    refuses(ch02.descriptors, answer, words, capsys)


def test_descriptors_takes_any_right_spelling(capsys):
    def pooled(x):
        both = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return torch.cat(both, 1).flatten(1)

    def loops(x):
        rows = [[s.mean() for s in image] + [s.max() for s in image] for image in x]
        return torch.tensor(rows)

    accepts(ch02.descriptors, pooled, capsys)
    accepts(ch02.descriptors, loops, capsys)
    waits(ch02.descriptors, lambda x: None, capsys)


def right_numbers():
    # The stored answers, derived once more from maps.
    numbers = {}
    for side in (10, 20):
        x = torch.zeros(side, side)
        x[3:5, 3:5] = 5
        numbers[f"mean_{side}"] = float(x.mean())
        numbers[f"max_{side}"] = x.max()
        numbers[f"l2_{side}"] = float(x.square().sum().sqrt())
    return numbers


def test_spot_numbers_are_those_of_maps(capsys):
    accepts(ch02.spot_on_a_map, right_numbers(), capsys)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean_20", 0.2, "mean_20 is not 0.2. The mean is the sum, 4 times 5, over the number"),
        ("max_20", 1.25, "however many places there are"),
        ("l2_10", 1.0, "it does not divide by the area"),
        ("l2_20", "10", "must be a number, but is a str"),
        ("max_10", True, "must be a number, but is a bool"),
        ("mean_10", 5.0, "The mean is the sum, 4 times 5, over the number"),
        ("mean_10", 20, "The mean is the sum, 4 times 5, over the number"),
        ("mean_20", 0.1, "The mean is the sum, 4 times 5, over the number"),
        ("max_20", 20, "however many places there are"),
        ("l2_10", 100, "The l2 norm is the root of the sum of squares"),
        ("l2_20", 0.5, "it does not divide by the area"),
        ("max_10", [5], "must be a number, but is a list"),
        ("max_10", torch.ones(3), "must be a number, but is a Tensor"),
        ("l2_10", math.nan, "l2_10 is not nan"),
    ],
)
def test_spot_explains_a_wrong_number(name, value, words, capsys):
    refuses(ch02.spot_on_a_map, right_numbers() | {name: value}, words, capsys)


def test_spot_takes_numbers_of_any_kind(capsys):
    numbers = right_numbers()
    accepts(ch02.spot_on_a_map, {name: np.float32(v) for name, v in numbers.items()}, capsys)
    accepts(ch02.spot_on_a_map, {name: torch.tensor([v]) for name, v in numbers.items()}, capsys)
    accepts(ch02.spot_on_a_map, numbers | {"max_10": np.int64(5)}, capsys)


def test_spot_wants_all_six_and_waits_for_the_last(capsys):
    numbers = right_numbers()
    waits(ch02.spot_on_a_map, numbers | {"l2_20": ...}, capsys)
    for other in (7, list(numbers.values()), lambda: numbers):
        refuses(ch02.spot_on_a_map, other, "Give a number for each of mean_10, max_10", capsys)
    del numbers["max_10"]
    refuses(ch02.spot_on_a_map, numbers, "Give a number for each of mean_10, max_10", capsys)


def places(x):
    return x.shape[2] * x.shape[3]


def both(mean, largest):
    return lambda x: torch.stack([mean(x), largest(x)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (both(MEAN, lambda x: MAX(x).clamp(min=0)), "The maximum is still never below 0"),
        (both(lambda x: MEAN(x) / x.shape[1], MAX), "The mean is still too small"),
        (both(lambda x: x.sum((2, 3)), MAX), "The mean is a sum now"),
        (both(MAX, MEAN), "The maxima come first"),
        (both(MEAN, lambda x: -MAX(-x)), "The maximum["),
        (lambda x: torch.cat([MEAN(x), MAX(x)], 1), "First the means, then the maxima."),
        (both(MEAN, lambda x: MAX(x).clamp(min=-1e9)), "Begin with the map's own first place"),
        (both(MEAN, lambda x: MAX(x).maximum(x[:1, :, 0, 0])), "Begin with the map's own first"),
        (both(MEAN, lambda x: MAX(x).maximum(x[0, 0, 0, 0])), "The maximum["),
        (both(MEAN, lambda x: MAX(x).clamp(min=-1)), "The maximum["),
        (both(MEAN, lambda x: MAX(x.abs())), "The maximum["),
        (both(lambda x: x.sum((2, 3)) / 30, MAX), "The mean["),
        (both(lambda x: x.sum((2, 3)) // places(x), MAX), "The mean["),
        (both(lambda x: x[:, :, 1:].mean((2, 3)), MAX), "The mean["),
        (
            lambda x: torch.stack([MEAN(x), MAX(x)], 1),
            "has shape (3, 2, 4); it should have (2, 3, 4)",
        ),
        (lambda x: torch.stack([MEAN(x), MAX(x)], 2), "has shape (3, 4, 2)"),
        (lambda x: (MEAN(x), MAX(x)), "must be a tensor, but is a tuple"),
    ],
)
def test_mended_descriptors_names_the_bug_that_is_left(answer, words, capsys):
    refuses(ch02.mended_descriptors, answer, words, capsys)


@pytest.mark.parametrize("start", ["first", -torch.inf, torch.finfo(torch.float32).min])
def test_mended_descriptors_takes_every_sound_start(start, capsys):
    def loop(x):
        n, c, h, w = x.shape
        total = torch.zeros(n, c)
        largest = x[:, :, 0, 0].clone() if start == "first" else torch.full((n, c), start)
        for i in range(h):
            for j in range(w):
                total += x[:, :, i, j]
                largest = torch.where(x[:, :, i, j] > largest, x[:, :, i, j], largest)
        return torch.stack([total / (h * w), largest])

    accepts(ch02.mended_descriptors, loop, capsys)
    accepts(ch02.mended_descriptors, both(MEAN, MAX), capsys)
    waits(ch02.mended_descriptors, lambda x: None, capsys)


def noise(side, trials):
    return torch.randn(trials, side, side).amax((1, 2))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda side, trials: torch.randn(trials, side, side).mean(), "like the mean of the noise"),
        (
            lambda side, trials: torch.randn(trials, side).amax(1).mean(),
            "side x side places, not side",
        ),
        (
            lambda side, trials: torch.randn(trials, side, side).amax(),
            "the maximum of each map on its own",
        ),
        (lambda side, trials: torch.randn(trials, side, side).amax((1, 2)), "has shape (40000,)"),
        (lambda side, trials: torch.rand(trials, side, side).amax((1, 2)).mean(), "to be expected"),
        (lambda side, trials: math.sqrt(2 * math.log(side**2)), "to be expected"),
        (
            lambda side, trials: torch.randn(trials, side, side).amax((1, 2)).median(),
            "That looks like the median",
        ),
        (lambda side, trials: int(noise(side, trials).mean()), "Is it rounded"),
        (lambda side, trials: noise(side, trials).mean().round(), "Is it rounded"),
        (lambda side, trials: True, "must be a number, but is a bool"),
        (lambda side, trials: [noise(side, trials).mean()], "but is a list"),
        (lambda side, trials: noise(side, trials).mean()[None], "has shape (1,)"),
        (lambda side, trials: noise(side, trials).sum(), "the maximum of each map on its own"),
        (lambda side, trials: noise(side, trials).std(), "to be expected"),
        (lambda side, trials: -noise(side, trials).mean(), "to be expected"),
        (lambda side, trials: noise(side, 3).mean(), "to be expected"),
        (lambda side, trials: noise(32, 300).mean(), "to be expected"),
        (lambda side, trials: torch.randn(trials, side, side).mean(0).max(), "like the mean of"),
        (
            lambda side, trials: torch.randn(trials, side, side).abs().amax((1, 2)).mean(),
            "to be exp",
        ),
        (lambda side, trials: math.nan, "For side 2 it is nan"),
    ],
)
def test_noise_max_names_the_mistake(answer, words, capsys):
    refuses(ch02.noise_max, answer, words, capsys)


def test_noise_max_takes_a_plain_number_and_any_luck(capsys):
    for luck in range(20):
        generator = torch.Generator().manual_seed(luck)

        def answer(side, trials, generator=generator):
            maps = torch.randn(trials, side * side, generator=generator)
            return maps.amax(1).mean().item()

        accepts(ch02.noise_max, answer, capsys)

    def in_numpy(side, trials):
        return np.random.default_rng(0).standard_normal((trials, side**2), "f").max(1).mean()

    accepts(ch02.noise_max, in_numpy, capsys)
    accepts(
        ch02.noise_max,
        lambda *args: F.max_pool2d(torch.randn(args[1], 1, args[0], args[0]), args[0]).mean(),
        capsys,
    )
    waits(ch02.noise_max, lambda side, trials: None, capsys)


def right_pool(x, t):
    return t * ((x / t).logsumexp((2, 3)) - math.log(places(x)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, t: t * (x / t).logsumexp((2, 3)), "the log of the sum"),
        (
            lambda x, t: t * (x / t).logsumexp((2, 3)) - math.log(places(x)),
            "must be multiplied by t, too",
        ),
        (lambda x, t: (x / t).logsumexp((2, 3)) - math.log(places(x)), "multiply the logarithm"),
        (
            lambda x, t: ((x * t).logsumexp((2, 3)) - math.log(places(x))) / t,
            "You multiplied x by t inside",
        ),
        (lambda x, t: t * (x / t).exp().mean((2, 3)).log(), "exp overflows"),
        (lambda x, t: t * (x / t).exp().mean((1, 2, 3)).log(), "has shape (2,)"),
        (lambda x, t: x.mean((2, 3)), "it should be"),
        (
            lambda x, t: t * ((x / max(t, 0.5)).logsumexp((2, 3)) - math.log(places(x))),
            "At t = 0.01 the descriptor",
        ),
        (lambda x, t: right_pool(x, t)[..., None, None], "has shape (2, 3, 1, 1)"),
        (lambda x, t: x.amax((2, 3)), "it should be"),
        (lambda x, t: right_pool(x, 1), "it should be"),
        (lambda x, t: t * ((x / t).logsumexp((2, 3)) - math.log10(places(x))), "it should be"),
        (lambda x, t: t * ((x / t).logsumexp((2, 3)) - math.log(20)), "it should be"),
        (lambda x, t: t * ((x / t).logsumexp((2, 3)) / places(x)), "it should be"),
        (lambda x, t: t * (x / t).clamp(max=80).exp().mean((2, 3)).log(), "At t = 0.01"),
        (lambda x, t: right_pool(x, t).nan_to_num() if t > 0.1 else x.mean((2, 3)), "At t = 0.01"),
        (lambda x, t: t * (x.double() / t).exp().mean((2, 3)).log(), "exp overflows"),
        (lambda x, t: t * ((x - x.max()) / t).exp().mean((2, 3)).log() + x.max(), "exp overflows"),
        (lambda x, t: ((x / t).flatten(2).softmax(2) * x.flatten(2)).sum(2), "it should be"),
        (lambda x, t: right_pool(x, t).numpy(), "must be a tensor"),
    ],
)
def test_soft_pool_names_the_mistake(answer, words, capsys):
    refuses(ch02.soft_pool, answer, words, capsys)


def test_soft_pool_takes_any_right_spelling(capsys):
    def by_hand(x, t):
        z = x.flatten(2) / t
        top = z.amax(2, keepdim=True)
        return t * (top[..., 0] + (z - top).exp().mean(2).log())

    def in_two_steps(x, t):
        return t * ((x / t).logsumexp(3).logsumexp(2) - math.log(places(x)))

    accepts(ch02.soft_pool, by_hand, capsys)
    accepts(ch02.soft_pool, in_two_steps, capsys)
    waits(ch02.soft_pool, lambda x, t: None, capsys)


def test_soft_pool_tells_what_torch_says(capsys):
    def whole(x, t):
        return x.long().flatten(2).softmax(2)

    refuses(ch02.soft_pool, whole, "stopped with NotImplementedError", capsys)
