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
    sample: Array, baseline: Array, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval of a difference of accuracies, for other seeds and other images.

    Seeds are drawn from each arm's, images from those that both were tested on. One seed fewer is
    drawn than there are, which makes the spread right (J. N. K. Rao, C. F. J. Wu, "Resampling
    inference with complex survey data", JASA 83, 1988), and the interval is widened as far as
    Student's t is wider than the normal distribution (T. C. Hesterberg, "What teachers should know
    about the bootstrap", The American Statistician 69, 2015, section 5.3). With few seeds, the
    plain bootstrap is too sure of itself.

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
    a, b = np.asarray(sample, dtype=np.float32), np.asarray(baseline, dtype=np.float32)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "two or more seeds, each on the same images, are wanted: (seeds, images); got shapes "
            f"{a.shape} and {b.shape}"
        )
    rng = np.random.default_rng(seed)
    images = a.shape[1]
    values = np.empty(draws)
    for start in range(0, draws, 500):
        stop = min(start + 500, draws)
        counts = rng.multinomial(images, np.full(images, 1 / images), stop - start)
        means = (
            np.einsum("di,di->d", _draw(rng, arm, stop - start), counts.astype(np.float32)) / images
            for arm in (a, b)
        )
        values[start:stop] = np.subtract(*means)
    # Degrees of freedom, after Welch and Satterthwaite: those of the seeds, as far as the spread
    # comes from the seeds; the images are so many that theirs have no end.
    parts = [arm.mean(1).var(ddof=1) / len(arm) for arm in (a, b)]
    spread = sum(v**2 / (len(arm) - 1) for v, arm in zip(parts, (a, b), strict=True))
    freedom = values.var() ** 2 / spread if spread else np.inf
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, freedom))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


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
