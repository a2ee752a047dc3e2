"""What several seeds say: spreads, differences with intervals, corrections, power.

Accuracies and differences have the units in which they are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from cbam_edu.attention import check_positive

Array = np.ndarray
LEVEL = 0.95  # of every interval
POWER = 0.8  # with which an effect should be seen that is there
_BLOCK = 500  # draws at a time, so that the arrays stay small


class Difference(NamedTuple):
    """The mean of one sample minus that of another.

    Attributes
    ----------
    value, low, high : float
        The difference and its 95 % interval.
    p : float
        How often chance alone would give a difference at least as large, were there none.
    """

    value: float
    low: float
    high: float
    p: float


def _sample(values: Sequence[float] | Array) -> Array:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"a sample is a list of 2 or more finite numbers, got {values!r}")
    return array


def _mean(sample: Array) -> tuple[float, float]:
    """Return a sample's mean and that mean's variance."""
    rest = sample - sample[0]  # so that values that are all equal have no spread, not a rounding's
    return float(sample[0] + rest.mean()), float(rest.var(ddof=1)) / len(sample)


def _freedom(parts: Sequence[float], counts: Sequence[int], variance: float) -> float:
    """Return the degrees of freedom of a variance, after Welch and Satterthwaite.

    Each part of it comes from so many values. What is in no part, as that of thousands of images,
    has no end of them.
    """
    unsure = sum((p / variance) ** 2 / (n - 1) for p, n in zip(parts, counts, strict=True))
    return 1 / max(unsure, 1e-9)


def welch(sample: Sequence[float] | Array, baseline: Sequence[float] | Array) -> Difference:
    """Compare two means without supposing equal variances.

    B. L. Welch, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34 (1947). The results are those of `scipy.stats.ttest_ind`,
    which warns where one sample has no spread, as a control's scores may have none.

    Parameters
    ----------
    sample, baseline : sequence of float
        Two or more values each, such as the accuracies of two arms over seeds.

    Raises
    ------
    ValueError
        For anything else.
    """
    a, b = _sample(sample), _sample(baseline)
    (mean, part), (other, other_part) = _mean(a), _mean(b)
    value, variance = mean - other, part + other_part
    if variance == 0:  # no spread at all: nothing for a test to stand on
        return Difference(value, value, value, float(value == 0))
    freedom, error = _freedom((part, other_part), (len(a), len(b)), variance), np.sqrt(variance)
    half = float(error * special.stdtrit(freedom, (1 + LEVEL) / 2))  # Student's t
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    return Difference(value, value - half, value + half, p)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that one false alarm among all is as rare as in one.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979). SciPy has no such function.
    """
    values = np.asarray(p, dtype=float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values are a list of numbers between 0 and 1, got {p!r}")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def bootstrap(
    sample: Array, baseline: Array, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval of a difference of accuracies, for other seeds and other images.

    Seeds are drawn from each arm's, images from those that both were tested on (A. B. Owen, "The
    pigeonhole bootstrap", The Annals of Applied Statistics 1, 2007). The spread of such draws
    counts what is peculiar to one seed and one image three times, so two of them are taken off; and
    as many seeds are drawn as there are but one, which makes the rest right (J. N. K. Rao, C. F. J.
    Wu, "Resampling inference with complex survey data", JASA 83, 1988). Student's t makes an
    interval of it: with few seeds, quantiles of draws are too sure of themselves.

    Parameters
    ----------
    sample, baseline : ndarray
        ``(seeds, images) bool``: whether the network of that seed named that image rightly. The
        images are the same in both; there are two or more of them, and two or more seeds of each.
    draws : int
        How many times to draw.
    seed : int
        Of the draws.

    Raises
    ------
    ValueError
        For arrays of another type or shape, and for no draws.
    """
    check_positive("draws", draws)
    given = [np.asarray(arm) for arm in (sample, baseline)]
    fit = all(arm.ndim == 2 and arm.dtype == bool and min(arm.shape) > 1 for arm in given)
    if not fit or given[0].shape[1] != given[1].shape[1]:
        kinds = " and ".join(f"{arm.shape} {arm.dtype}" for arm in given)
        raise ValueError(
            "wanted are two or more seeds, each on the same two or more images: (seeds, images) "
            f"bool; got {kinds}"
        )
    a, b = (arm.astype(np.float32) for arm in given)
    (mean, part), (other, other_part) = (_mean(arm.mean(1, dtype=float)) for arm in (a, b))
    value, seeds = mean - other, (part, other_part)
    values = _drawn(a, b, draws, np.random.default_rng(seed))
    variance = max(float(values.var()) - _peculiar(a) - _peculiar(b), sum(seeds))
    if variance == 0:
        return value, value
    freedom = _freedom(seeds, (len(a), len(b)), variance)
    half = float(np.sqrt(variance) * special.stdtrit(freedom, (1 + LEVEL) / 2))
    return value - half, value + half


def _drawn(a: Array, b: Array, draws: int, rng: np.random.Generator) -> Array:
    """Return differences of accuracies for seeds and images drawn anew, ``(draws,)``."""
    images, values = a.shape[1], np.empty(draws)
    for start in range(0, draws, _BLOCK):
        here = slice(start, min(start + _BLOCK, draws))
        count = here.stop - start
        chosen = rng.integers(0, images, (count, images))
        times = np.stack([np.bincount(row, minlength=images) for row in chosen])
        weights = (times / images).astype(np.float32)
        means = ((_draw(rng, arm, count) * weights).sum(1) for arm in (a, b))
        values[here] = np.subtract(*means)
    return values


def _peculiar(arm: Array) -> float:
    """Return what `bootstrap` counts too much: variance that neither seed nor image explains."""
    seeds, images = arm.shape
    rest = arm - arm.mean(0) - arm.mean(1, keepdims=True) + arm.mean()
    each = float((rest**2).sum(dtype=float)) / ((seeds - 1) * (images - 1))
    return 2 * each / (seeds * images)


def _draw(rng: np.random.Generator, arm: Array, draws: int) -> Array:
    """Return each image's mean over seeds drawn anew, ``(draws, images)``."""
    seeds = len(arm) - 1
    weights = rng.multinomial(seeds, np.full(len(arm), 1 / len(arm)), draws) / seeds
    return weights.astype(np.float32) @ arm


def smallest_effect(
    sample: Sequence[float] | Array, baseline: Sequence[float] | Array, *, alpha: float = 0.05
) -> float:
    """Return the difference that such samples show in four of five studies, if it is there.

    Parameters
    ----------
    sample, baseline : sequence of float
        Two or more values each; their spreads and numbers are what matters.
    alpha : float
        p-values below it count as seen; with m comparisons, 0.05 / m is what Holm's correction
        asks of the smallest.

    Raises
    ------
    ValueError
        For other samples, and for an alpha that does not lie between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}")
    a, b = _sample(sample), _sample(baseline)
    parts = _mean(a)[1], _mean(b)[1]
    variance = sum(parts)
    if variance == 0:
        return 0.0
    freedom = _freedom(parts, (len(a), len(b)), variance)
    limit = float(special.stdtrit(freedom, 1 - alpha / 2))

    def lacking(effect: float) -> float:
        return float(stats.nct.sf(limit, freedom, effect) - POWER)

    return float(np.sqrt(variance) * optimize.brentq(lacking, 0, 2 * limit + 2))
