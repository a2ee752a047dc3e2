"""The judges of chapter 02: the stored solutions pass, and each usual mistake is named."""

import math

import numpy as np
import pytest
import torch

from cbam_edu.check import ch02
from notebook_cells import NOTEBOOKS, exercises, refuses

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
    ],
)
def test_descriptors_names_the_mistake(answer, words, capsys):
    refuses(ch02.descriptors, answer, words, capsys)


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
    assert ch02.spot_on_a_map(right_numbers())
    assert capsys.readouterr().out == "✓ Right.\n"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean_20", 0.2, "mean_20 is not 0.2. The mean is the sum, 4 times 5, over the number"),
        ("max_20", 1.25, "however many places there are"),
        ("l2_10", 1.0, "it does not divide by the area"),
        ("l2_20", "10", "must be a number, but is a str"),
        ("max_10", True, "must be a number, but is a bool"),
    ],
)
def test_spot_explains_a_wrong_number(name, value, words, capsys):
    refuses(ch02.spot_on_a_map, right_numbers() | {name: value}, words, capsys)


def test_spot_takes_numbers_of_any_kind():
    assert ch02.spot_on_a_map({name: np.float32(v) for name, v in right_numbers().items()})
    assert ch02.spot_on_a_map(right_numbers() | {"max_10": np.int64(5)})


def test_spot_wants_all_six_and_waits_for_the_last(capsys):
    numbers = right_numbers()
    assert not ch02.spot_on_a_map(numbers | {"l2_20": ...})
    assert capsys.readouterr().out.startswith("○ Not answered yet")
    del numbers["max_10"]
    refuses(ch02.spot_on_a_map, numbers, "Give a number for each of mean_10, max_10", capsys)


def both(mean, largest):
    return lambda x: torch.stack([mean(x), largest(x)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (both(MEAN, lambda x: MAX(x).clamp(min=0)), "The maximum is still never below 0"),
        (both(lambda x: MEAN(x) / x.shape[1], MAX), "The mean is still too small"),
        (both(lambda x: x.sum((2, 3)), MAX), "The mean is a sum now"),
        (both(MAX, MEAN), "The mean["),
        (both(MEAN, lambda x: -MAX(-x)), "The maximum["),
        (lambda x: torch.cat([MEAN(x), MAX(x)], 1), "First the means, then the maxima."),
        (both(MEAN, lambda x: MAX(x).clamp(min=-1e9)), "Begin with the map's own first place"),
    ],
)
def test_mended_descriptors_names_the_bug_that_is_left(answer, words, capsys):
    refuses(ch02.mended_descriptors, answer, words, capsys)


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

        assert ch02.noise_max(answer), capsys.readouterr().out

    def in_numpy(side, trials):
        return np.random.default_rng(0).standard_normal((trials, side**2), "f").max(1).mean()

    assert ch02.noise_max(in_numpy), capsys.readouterr().out


def places(x):
    return x.shape[2] * x.shape[3]


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
    ],
)
def test_soft_pool_names_the_mistake(answer, words, capsys):
    refuses(ch02.soft_pool, answer, words, capsys)
