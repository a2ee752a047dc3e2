"""Judges of chapter 09, "Does it help?"."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from cbam_edu.check.verdict import Wrong, judge, number, written
from cbam_edu.statistics import holm

Array = np.ndarray

# ---- What answers are made of


def _two(value: Any, what: str) -> tuple[float, float]:
    """Return the difference and its standard error."""
    value = written(value)
    if isinstance(value, Tensor | np.ndarray) and tuple(value.shape) == (2,):
        value = list(value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Wrong(f"Return two numbers, {what}, in this order.")
    return number(value[0], "the difference"), number(value[1], "the standard error")


def _same(values: Sequence[float], others: Sequence[float], tolerance: float = 1e-6) -> bool:
    return bool(np.allclose(values, others, rtol=tolerance, atol=1e-9))


# ---- 9.1

# Eighths, whose sums are exact in any order: two ways of dealing that tie, tie to the last bit.
POTS = (
    ([91.5, 91.25, 91.625, 91.375], [91.0, 91.125, 90.75, 91.25]),
    ([90.5, 91.0, 90.75], [91.25, 90.875, 91.5, 91.375, 91.0]),
    ([91.0, 91.5, 91.25, 91.125, 90.875], [91.125, 91.375, 90.75, 91.25, 91.5]),
    ([91.0, 91.5], [90.5, 90.75, 91.25, 90.25, 90.0, 90.375]),
)


def _deals(pot: Sequence[float], size: int) -> Iterator[float]:
    """Yield the difference of means for every way to deal out `size` of the runs."""
    total = sum(pot)
    for chosen in combinations(pot, size):
        yield sum(chosen) / size - (total - sum(chosen)) / (len(pot) - size)


def _share(count: Callable[[Array, float], Array], halves: bool = False) -> list[float]:
    found = []
    for a, b in POTS:
        pot, real = [*a, *b], sum(a) / len(a) - sum(b) / len(b)
        size = len(pot) // 2 if halves else len(a)
        found.append(float(count(np.array(list(_deals(pot, size))), real).mean()))
    return found


def _by_sums() -> list[float]:
    """Return the p-values of those who compare sums, as if both arms had equally many runs."""
    found = []
    for a, b in POTS:
        pot, real = [*a, *b], abs(sum(a) - sum(b))
        sums = [abs(2 * sum(chosen) - sum(pot)) for chosen in combinations(pot, len(a))]
        found.append(float(np.mean(np.array(sums) >= real - 1e-9)))
    return found


def _distinct() -> list[float]:
    """Return the p-values of those who count deals of equal values once."""
    found = []
    for a, b in POTS:
        total, real = sum([*a, *b]), abs(sum(a) / len(a) - sum(b) / len(b))
        deals = set(combinations(sorted([*a, *b]), len(a)))
        far = [abs(sum(d) / len(a) - (total - sum(d)) / len(b)) >= real - 1e-9 for d in deals]
        found.append(sum(far) / len(deals))
    return found


def _ways(a: Sequence[float], b: Sequence[float]) -> int:
    return math.comb(len(a) + len(b), len(a))


@judge
def permutation_p(answer: Callable[[list[float], list[float]], Any]) -> None:
    """Judge `answer(a, b)`: the p-value from every way to deal out the runs of two arms."""
    values = [number(answer(list(a), list(b)), "The p-value") for a, b in POTS]
    close = 1e-9  # ties, whatever the order in which somebody adds
    right = _share(lambda d, real: np.abs(d) >= abs(real) - close)
    mistakes = {
        "This counts one direction only. A loss as large as the gain would have surprised just as "
        "much: compare absolute values.": _share(lambda d, real: d >= real - close),
        "This counts the deals in the other direction, those with a difference at most as large. "
        "Compare absolute values.": _share(lambda d, real: d <= real + close),
        "The deals that differ exactly as much as the real one are missing, the real one among "
        'them: "at least as much" is >=.': _share(lambda d, real: np.abs(d) > abs(real) + close),
        "This is the share of deals that differ less. The p-value is the share of those that "
        "differ at least as much.": _share(lambda d, real: np.abs(d) < abs(real) - close),
        "This is the share of deals that differ at most as much. It should be at least.": _share(
            lambda d, real: np.abs(d) <= abs(real) + close
        ),
        "This compares a difference with its sign to one without: take the absolute value of "
        "both.": _share(lambda d, real: d >= abs(real) - close),
        "Deals that look alike are counted once. Two runs of one accuracy are still two runs: deal "
        "out the runs, not their values.": _distinct(),
        "The real way to deal is one of all ways, too: let it count itself, above and below the "
        "line.": [
            (p * _ways(*pot) - 1) / (_ways(*pot) - 1) for p, pot in zip(right, POTS, strict=True)
        ],
        "This deals out halves. `a` and `b` need not have equally many runs: deal out len(a).": (
            _share(lambda d, real: np.abs(d) >= abs(real) - close, halves=True)
        ),
        "This compares sums. The two arms need not have equally many runs: compare means.": (
            _by_sums()
        ),
        "This is Welch's test, which has a formula. Here you are to deal out the runs.": [
            float(stats.ttest_ind(a, b, equal_var=False).pvalue) for a, b in POTS
        ],
    }
    for why, wrong in mistakes.items():
        if _same(values, wrong):
            raise Wrong(why)
    for (a, b), value, wanted in zip(POTS, values, right, strict=True):
        if not abs(value - wanted) <= 0.02:  # random deals, if there are enough, do as well
            ways = _ways(a, b)
            if abs(value - wanted * ways) < 1e-6:
                raise Wrong(f"This is a number of deals. Divide it by all {ways}.")
            raise Wrong(
                f"p = {value:.4g} for {len(a)} and {len(b)} runs; of the {ways} ways to deal them "
                f"out, {round(wanted * ways)} differ at least as much, so p = {wanted:.4g}."
            )


# ---- 9.2

GIVEN = {"se": 0.024, "eca": 0.400, "channel": 0.010, "cbam": 0.020}


def _steps() -> list[float]:
    """Return the p-values multiplied, and not raised."""
    order = sorted(GIVEN.values())
    return [p * (len(order) - order.index(p)) for p in GIVEN.values()]


@judge
def corrected_p(answer: Mapping[str, Any]) -> None:
    """Judge the predicted p-values after Holm's correction."""
    last = "below 0.05"
    if not isinstance(answer, Mapping) or set(answer) != {*GIVEN, last}:
        raise Wrong(f"Give a dict with an answer for each of {', '.join([*GIVEN, last])}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    p = list(GIVEN.values())
    values = [number(answer[arm], repr(arm)) for arm in GIVEN]
    order = sorted(p)
    mistakes = {
        "These are the p-values as they came.": p,
        "This multiplies all by 4: Bonferroni's correction. It is safe, but asks more than "
        "needed; Holm multiplies the second smallest by 3 only, and so on.": [4 * v for v in p],
        "This multiplies all by 4: Bonferroni's correction. Holm multiplies the second smallest "
        "by 3 only, and so on.": [min(4 * v, 1) for v in p],
        "`se` became smaller than `cbam`, though its p-value was larger. Raise it to the one "
        "before it.": _steps(),
        "The factors are the wrong way round: the smallest p-value is multiplied by 4, the largest "
        "by 1.": [v * (order.index(v) + 1) for v in p],
        "This multiplies in the order in which they are written. Sort them first.": [
            v * k for v, k in zip(p, (4, 3, 2, 1), strict=True)
        ],
        "This is the correction of Benjamini and Hochberg, which bounds another thing: the share "
        "of false ones among those found.": [float(v) for v in stats.false_discovery_control(p)],
    }
    for why, wrong in mistakes.items():
        if _same(values, wrong, 1e-3):
            raise Wrong(why)
    for (arm, given), value, wanted in zip(GIVEN.items(), values, holm(p), strict=True):
        if not _same([value], [wanted], 1e-3):
            factor = len(order) - order.index(given)
            raise Wrong(
                f"{arm!r} is not {value:g}. {given:g} is number {order.index(given) + 1} from "
                f"below, so it is multiplied by {factor}, and raised to the one before it if "
                "that is larger."
            )
    below = number(answer[last], repr(last))
    if below != 1:
        raise Wrong(f"{below:g} of the four below 0.05? Count again in your own corrected values.")


# ---- 9.3

Curves = list[tuple[Array, Array]]


def _curves() -> Curves:
    """Return runs of two arms that differ in level, noise and number of seeds."""
    rng = np.random.default_rng(0)
    found = []
    for seeds, levels in (((4, 4), (91.2, 91.0)), ((3, 6), (90.0, 92.0)), ((7, 2), (88.0, 88.1))):
        pair = [
            level + spread * rng.normal(size=(n, 1)) + spread * rng.normal(size=(n, 8))
            for n, level, spread in zip(seeds, levels, (0.4, 0.15), strict=True)
        ]
        found.append((pair[0], pair[1]))
    return found


def _last(runs: Array) -> Array:
    return np.asarray(runs[:, -1])


def _best(runs: Array) -> Array:
    return np.asarray(runs.max(1))


BY_EPOCH = "It takes the best epoch, on the test set: that rewards noise. Take the last one, ours "
BEST_SEED = "It compares the best seed of one arm with the mean of the other. Take both means."
DIFFERENCES: dict[str, Callable[[Array, Array], float]] = {
    f"{BY_EPOCH}and the baseline's.": lambda a, b: _best(a).mean() - _best(b).mean(),
    f"{BY_EPOCH}as well.": lambda a, b: _best(a).mean() - _last(b).mean(),
    "It takes the mean of all epochs; the first ones are no result of a training. Take the last.": (
        lambda a, b: a.mean() - b.mean()
    ),
    "It takes the epoch that is best on the mean of the seeds. That is a choice on the test set, "
    "too. Take the last one.": lambda a, b: a.mean(0).max() - b.mean(0).max(),
    BEST_SEED: lambda a, b: _last(a).max() - _last(b).mean(),
    "It compares the best seeds of both arms. With more seeds the best is better by luck alone. "
    "Take the means.": lambda a, b: _last(a).max() - _last(b).max(),
    f"{BEST_SEED} And the best epoch is still in it.": lambda a, b: (
        _best(a).max() - _best(b).mean()
    ),
    "The sign is turned round: it should be ours minus the baseline.": (
        lambda a, b: _last(b).mean() - _last(a).mean()
    ),
    "It takes the first epoch. The last one is at index -1.": lambda a, b: (
        (a - 0)[:, 0].mean() - b[:, 0].mean()
    ),
}


def _error(a: Array, b: Array, ddof: int = 1) -> float:
    return float(np.sqrt(a.var(ddof=ddof) / len(a) + b.var(ddof=ddof) / len(b)))


def _in_one_pot(ddof: int, values: Callable[[Array], Array]) -> Callable[[Array, Array], float]:
    def error(a: Array, b: Array) -> float:
        both = np.concatenate([values(a), values(b)])
        return float(both.std(ddof=ddof) / np.sqrt(len(both)))

    return error


def _pooled(a: Array, b: Array) -> float:
    """Return Student's standard error, which supposes equal spreads."""
    a, b = _last(a), _last(b)
    n, m = len(a), len(b)
    variance = ((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2)
    return float(np.sqrt(variance * (1 / n + 1 / m)))


ONE_POT = (
    "The error comes from both arms in one pot, whose spread has the difference itself in it. "
    "Each arm has its own spread: add up s²/n of both, then take the root."
)
ERRORS: dict[str, list[Callable[[Array, Array], float]]] = {
    ONE_POT: [_in_one_pot(ddof, values) for ddof in (0, 1) for values in (_last, _best)],
    "np.std and np.var divide by n. From a sample, divide by n - 1: pass ddof=1.": [
        lambda a, b: _error(_last(a), _last(b), 0)
    ],
    "The difference is of the last epoch, but the error still of the best one.": [
        lambda a, b: _error(_best(a), _best(b))
    ],
    "This is the spread of single runs. The error of a mean is smaller: divide each variance by "
    "its number of seeds.": [
        lambda a, b: float(np.sqrt(_last(a).var(ddof=1) + _last(b).var(ddof=1)))
    ],
    "This is the square of the error. Take the root.": [
        lambda a, b: _error(_last(a), _last(b)) ** 2
    ],
    "The two standard errors are added. Independent errors add up as squares.": [
        lambda a, b: float(sum(_last(v).std(ddof=1) / np.sqrt(len(v)) for v in (a, b)))
    ],
    "This is the error of one arm. The other one has noise, too.": [
        lambda a, b: float(_last(a).std(ddof=1) / np.sqrt(len(a))),
        lambda a, b: float(_last(b).std(ddof=1) / np.sqrt(len(b))),
    ],
    "This pools both spreads into one, as Student's test does. Section 4 has the error that does "
    "not suppose them equal.": [_pooled],
}


@judge
def compare(answer: Callable[[Array, Array], Any]) -> None:
    """Judge `answer(ours, baseline)`: the difference of means and its error, (seeds, epochs)."""
    curves = _curves()
    pairs = [_two(answer(a.copy(), b.copy()), "the difference and its error") for a, b in curves]
    differences, errors = zip(*pairs, strict=True)
    for why, wrong in DIFFERENCES.items():
        if _same(differences, [wrong(a, b) for a, b in curves]):
            raise Wrong(why)
    for value, (a, b) in zip(differences, curves, strict=True):
        if not _same([value], [_last(a).mean() - _last(b).mean()]):
            raise Wrong(
                f"The difference is {value:.4g}; the means of the last epochs differ by "
                f"{_last(a).mean() - _last(b).mean():.4g}."
            )
    for why, formulas in ERRORS.items():
        if any(_same(errors, [wrong(a, b) for a, b in curves]) for wrong in formulas):
            raise Wrong(why)
    for value, (a, b) in zip(errors, curves, strict=True):
        if not _same([value], [_error(_last(a), _last(b))]):
            raise Wrong(
                f"The standard error is {value:.4g}; it should be {_error(_last(a), _last(b)):.4g} "
                f"for {len(a)} and {len(b)} seeds. The formula for e is in section 4."
            )


# ---- 9.4


def _answered() -> Curves:
    """Return pairs of networks that agree on most of the same images."""
    rng = np.random.default_rng(0)
    found = []
    for images, shift in ((500, 0.1), (2000, -0.05), (1200, 0.0)):
        hard = rng.normal(size=images)
        a, b = (hard + 0.4 * rng.normal(size=images) + s > -0.8 for s in (shift, 0.0))
        found.append((a, b))
    return found


def _apart(a: Array, b: Array) -> float:
    return float(np.sqrt((a.var() + b.var()) / len(a)))


def _each(a: Array, b: Array) -> Array:
    return np.asarray(a.astype(float) - b.astype(float))


def _paired(a: Array, b: Array) -> float:
    return float(_each(a, b).std() / np.sqrt(len(a)))


IMAGE_ERRORS: dict[str, Callable[[Array, Array], float]] = {
    "This is the error for two networks that met different images. These met the same, and "
    "images on which they agree add nothing: start from a - b, image by image.": _apart,
    "This is the spread over single images. For that of the mean, divide by the root of their "
    "number.": lambda a, b: float(_each(a, b).std()),
    "This is divided by the root of the number of images on which the two disagree. All images "
    "count: those on which they agree have a difference, too, of 0.": (
        lambda a, b: float(_each(a, b).std() / np.sqrt((a ^ b).sum()))
    ),
    "This is the variance of the mean. Take the root.": lambda a, b: _paired(a, b) ** 2,
    "The spread over images is divided by their number. A standard error is divided by the root "
    "of it.": lambda a, b: float(_each(a, b).std() / len(a)),
    "This is the error of one network's accuracy. The question is that of the difference.": (
        lambda a, b: float(a.std() / np.sqrt(len(a)))
    ),
    "The two standard errors are added, as if the networks had nothing to do with each other. "
    "Start from a - b, image by image.": lambda a, b: float((a.std() + b.std()) / np.sqrt(len(a))),
    "This takes the absolute value of each image's difference. +1 and -1 must be able to cancel.": (
        lambda a, b: float(np.abs(_each(a, b)).std() / np.sqrt(len(a)))
    ),
}


@judge
def image_error(answer: Callable[[Array, Array], Any]) -> None:
    """Judge `answer(a, b)`: the difference of two accuracies on the same images, and its error."""
    answered = _answered()
    pairs = [_two(answer(a.copy(), b.copy()), "the difference and its error") for a, b in answered]
    differences, errors = zip(*pairs, strict=True)
    right = [float(_each(a, b).mean()) for a, b in answered]
    for why, factor in {
        "The sign is turned round: it should be a minus b.": -1.0,
        "These are percentage points. The difference should lie between -1 and 1.": 100.0,
    }.items():
        if _same(differences, [factor * v for v in right]):
            raise Wrong(why)
    if not _same(differences, right):
        raise Wrong(f"The difference is {differences[0]:.4g}; it should be {right[0]:.4g}.")
    loose = 5e-3  # n or n - 1; and the error under the null, from the images they disagree on
    for why, wrong in IMAGE_ERRORS.items():
        if _same(errors, [wrong(a, b) for a, b in answered], loose):
            raise Wrong(why)
    for value, (a, b) in zip(errors, answered, strict=True):
        disagree = float(np.sqrt((a ^ b).sum()) / len(a))
        if not (_same([value], [_paired(a, b)], loose) or _same([value], [disagree], loose)):
            raise Wrong(
                f"The standard error is {value:.4g}; it should be {_paired(a, b):.4g} for "
                f"{len(a)} images, {(a ^ b).sum()} of which the two disagree on."
            )


# ---- 9.5

PLANS = ((0.2, 0.2, 1), (0.2, 0.3, 8), (0.3, 0.5, 2), (0.5, 0.6, 3), (0.1, 0.15, 1), (0.3, 0.5, 20))
WANTED = 0.8  # the power
ALPHA = 0.05


def _power(gain: float, spread: float, arms: float, n: int, noisy: int = 2) -> float:
    """Return how often a gain is seen; `noisy` is how many of the two arms have noise."""
    freedom = 2 * n - 2
    limit = stats.t.ppf(1 - ALPHA / arms / 2, freedom)
    return float(stats.nct.sf(limit, freedom, gain / (spread * math.sqrt(noisy / n))))


def _exact(gain: float, spread: float, arms: float, noisy: int = 2, power: float = WANTED) -> int:
    n = 2
    while _power(gain, spread, arms, n, noisy) < power:
        n += 1
    return n


def _envelope(gain: float, spread: float, arms: float, power: float = WANTED) -> float:
    """Return the number of seeds by the rule of the envelope, which supposes a known spread."""
    far = stats.norm.ppf(1 - ALPHA / arms / 2) + stats.norm.ppf(power)
    return float(2 * (far * spread / gain) ** 2)


Plan = Callable[[float, float, int], float]
PLANNED: dict[str, list[Plan]] = {
    "The arms are not counted: with more of them, the smallest p must be below 0.05 / arms.": [
        lambda g, s, m: _exact(g, s, 1),
        lambda g, s, m: _envelope(g, s, 1),
        lambda g, s, m: 16 * (s / g) ** 2,
    ],
    "The baseline counts as an arm, or one arm does not. There are `arms` of them beside it.": [
        lambda g, s, m: _exact(g, s, m + 1),
        lambda g, s, m: _envelope(g, s, m + 1),
        lambda g, s, m: _exact(g, s, max(1, m - 1)),
        lambda g, s, m: _envelope(g, s, max(1, m - 1)),
    ],
    "The limit is for one direction. p < 0.05 / arms holds half of it at either end.": [
        lambda g, s, m: _envelope(g, s, m / 2),
        lambda g, s, m: _exact(g, s, m / 2),
    ],
    "This plans for a power of one half: a gain that lies just at the limit is missed every "
    "second time. Four of five are wanted.": [
        lambda g, s, m: _exact(g, s, m, power=0.5),
        lambda g, s, m: _envelope(g, s, m, power=0.5),
    ],
    "This leaves out that the baseline has noise, too: the standard error of the difference is "
    "spread * sqrt(2 / n).": [
        lambda g, s, m: _exact(g, s, m, noisy=1),
        lambda g, s, m: _envelope(g, s, m) / 2,
    ],
    "These are the seeds of two arms together. Give those of each arm.": [
        lambda g, s, m: 2 * _exact(g, s, m),
        lambda g, s, m: 2 * _envelope(g, s, m),
    ],
    "The seeds are multiplied by the arms. More arms ask for a smaller p, and not for so many "
    "more seeds.": [
        lambda g, s, m: _exact(g, s, 1) * m,
        lambda g, s, m: 16 * (s / g) ** 2 * m,
    ],
    "spread / gain enters as its square: half the gain needs four times the seeds.": [
        lambda g, s, m: _envelope(g, s, m) * g / s,
        lambda g, s, m: 16 * s / g,
    ],
}


@judge
def seeds_needed(answer: Plan) -> None:
    """Judge `answer(gain, spread, arms)`: the smallest number of seeds of each arm."""
    values = [number(answer(*plan), "The number of seeds") for plan in PLANS]
    if _planned(values, [lambda g, s, m: s**2 / g**2 * m**0]):
        raise Wrong("This is the square of spread / gain. It has still to be multiplied.")
    if endless := [n for n in values if not abs(n) < 1e9]:
        raise Wrong(f"{endless[0]:g} is no number of seeds that a study could have.")
    for (gain, spread, arms), n in zip(PLANS, values, strict=True):
        exact = _exact(gain, spread, arms)
        # The envelope's number, however rounded, is near enough, and so is a simulation's.
        if 0.95 * math.floor(_envelope(gain, spread, arms)) <= n <= 1.05 * exact + 1:
            continue
        for why, plans in PLANNED.items():
            if _planned(values, plans):
                raise Wrong(why)
        case = f"a gain of {gain}, a spread of {spread} and {arms} arm{'s' * (arms > 1)}"
        if n < 2:
            raise Wrong(f"{n:g} seeds for {case}? Without two seeds there is no spread at all.")
        seen = _power(gain, spread, arms, math.ceil(n))
        raise Wrong(
            f"{n:g} seeds for {case}: then {seen:.0%} of the studies see the gain. {exact} seeds "
            "are the fewest with 80 %."
        )


def _planned(values: Sequence[float], plans: Sequence[Plan]) -> bool:
    """Return whether the answers are those of one of `plans`, rounded somehow."""
    return any(
        all(abs(n - plan(*case)) <= 1 for n, case in zip(values, PLANS, strict=True))
        for plan in plans
    )
