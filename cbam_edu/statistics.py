"""What several seeds say: spreads, differences with intervals, corrections, power.

Accuracies and differences have the units in which they are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

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


def _sample(values: Sequence[float] | Array, least: int = 2) -> Array:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < least or not np.isfinite(array).all():
        raise ValueError(f"a sample is a list of {least} or more finite numbers, got {values!r}")
    return array


def welch(sample: Sequence[float] | Array, baseline: Sequence[float] | Array) -> Difference:
    """Compare two means without supposing equal variances.

    B. L. Welch, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34 (1947), as `scipy.stats.ttest_ind` computes it.

    Parameters
    ----------
    sample, baseline : sequence of float
        Two or more values each, such as the accuracies of two arms over seeds.
    """
    a, b = _sample(sample), _sample(baseline)
    value = float(a.mean() - b.mean())
    if a.var() + b.var() == 0:  # no spread at all: nothing for a test to stand on
        return Difference(value, value, value, float(value == 0))
    test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high), float(test.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that one false alarm among all is as rare as in one.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979). SciPy has no such function.
    """
    values = np.asarray(p, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1, got {list(p)!r}")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(values) else steps
    return corrected.tolist()


def bootstrap(
    sample: Array, baseline: Array, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval of a difference of accuracies, for other seeds and other images.

    Seeds are drawn from each arm's, images from those that both were tested on (A. B. Owen, "The
    pigeonhole bootstrap", The Annals of Applied Statistics 1, 2007). The spread of such draws
    counts what is peculiar to one seed and one image about three times, so two of them are taken
    off; and as many seeds are drawn as there are but one, which makes the rest right (J. N. K. Rao,
    C. F. J. Wu, "Resampling inference with complex survey data", JASA 83, 1988). Student's t makes
    an interval of it: with few seeds, quantiles of draws are too sure of themselves.

    Parameters
    ----------
    sample, baseline : ndarray
        ``(seeds, images) bool``: whether the network of that seed named that image rightly. The
        images are the same in both; there are two or more seeds of each.
    draws : int
        How many times to draw.
    seed : int
        Of the draws.
    """
    arms = [np.asarray(arm, dtype=np.float32) for arm in (sample, baseline)]
    a, b = arms
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "two or more seeds, each on the same images, are wanted: (seeds, images); got shapes "
            f"{a.shape} and {b.shape}"
        )
    value = float(a.mean(dtype=float) - b.mean(dtype=float))
    values = _drawn(a, b, draws, np.random.default_rng(seed))
    seeds = [arm.mean(1, dtype=float).var(ddof=1) / len(arm) for arm in arms]
    variance = max(values.var() - sum(map(_peculiar, arms)), sum(seeds))
    if variance == 0:
        return value, value
    # Degrees of freedom, after Welch and Satterthwaite: those of the seeds, as far as the spread
    # comes from the seeds; the images are so many that theirs have no end.
    parts = sum(v**2 / (len(arm) - 1) for v, arm in zip(seeds, arms, strict=True))
    freedom = variance**2 / parts if parts else np.inf
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))
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
    return (1 + seeds / (seeds - 1)) * each / (seeds * images)


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
    """
    a, b = _sample(sample), _sample(baseline)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = float(np.sqrt(sum(parts)))
    if error == 0:
        return 0.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    limit = stats.t.ppf(1 - alpha / 2, freedom)

    def lacking(effect: float) -> float:
        return float(stats.nct.sf(limit, freedom, effect) - POWER)

    return error * float(optimize.brentq(lacking, 0, 10 * limit))
