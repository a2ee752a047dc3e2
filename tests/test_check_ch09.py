"""The judges of chapter 09 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from cbam_edu.check import ch09
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "09_does_it_help.ipynb")
Array = np.ndarray


def test_there_are_five_exercises() -> None:
    assert len(EXERCISES) == 5


# 9.1


def dealt(count: Callable[[Array, float], Any]) -> Callable[[list[float], list[float]], float]:
    """Return an answer that looks at every deal, and counts as `count` does."""

    def answer(a: list[float], b: list[float]) -> float:
        pot, differences = np.array([*a, *b]), []
        for chosen in combinations(range(len(pot)), len(a)):
            as_a = np.isin(np.arange(len(pot)), chosen)
            differences.append(pot[as_a].mean() - pot[~as_a].mean())
        return float(count(np.array(differences), float(np.mean(a) - np.mean(b))))

    return answer


def by_value(a: list[float], b: list[float]) -> float:
    """Return the p-value with deals of equal values counted once."""
    real, total = abs(np.mean(a) - np.mean(b)), sum([*a, *b])
    deals = set(combinations(sorted([*a, *b]), len(a)))
    far = [abs(np.mean(d) - (total - sum(d)) / len(b)) >= real - 1e-9 for d in deals]
    return float(np.mean(far))


def without_the_real_one(a: list[float], b: list[float]) -> float:
    count = dealt(lambda d, real: (abs(d) >= abs(real) - 1e-9).sum())(a, b)
    ways = dealt(lambda d, real: len(d))(a, b)
    return (count - 1) / (ways - 1)


def compared(
    a: list[float], b: list[float], size: int, of: Callable[[Array], Any] = np.mean
) -> float:
    """Deal out `size` runs in every way, and compare the two heaps' means or sums."""
    pot, real, far = np.array([*a, *b]), abs(of(np.array(a)) - of(np.array(b))), []
    for chosen in combinations(range(len(pot)), size):
        as_a = np.isin(np.arange(len(pot)), chosen)
        far.append(abs(of(pot[as_a]) - of(pot[~as_a])) >= real - 1e-9)
    return float(np.mean(far))


def of_few_deals(a: list[float], b: list[float]) -> float:
    rng, real = np.random.default_rng(0), abs(np.mean(a) - np.mean(b))
    pots = [rng.permutation([*a, *b]) for _ in range(10)]
    return float(np.mean([abs(p[: len(a)].mean() - p[len(a) :].mean()) >= real for p in pots]))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (without_the_real_one, "let it count itself"),
        (lambda a, b: compared(a, b, (len(a) + len(b)) // 2), "This deals out halves"),
        (lambda a, b: compared(a, b, len(a), np.sum), "This compares sums"),
        (of_few_deals, "of the 70 ways to deal them out, 4 differ"),
        (lambda a, b: float("nan"), "p = nan for 4 and 4 runs"),
        (lambda a, b: 100 * dealt(lambda d, r: (abs(d) >= abs(r)).mean())(a, b), "p = 5.714"),
        (lambda a, b: stats.mannwhitneyu(a, b).pvalue, "runs; of the 56 ways"),
        (lambda a, b: 4 / 70, "runs; of the 252 ways"),
        (lambda a, b: (0.05, True), "must be a number, but is a tuple"),
        (lambda a, b: (np.array(a) > np.array(b)).mean(), "could not be broadcast"),
        (dealt(lambda d, real: (d >= real).mean()), "one direction only"),
        (dealt(lambda d, real: (d <= real).mean()), "in the other direction"),
        (dealt(lambda d, real: (abs(d) > abs(real)).mean()), "the real one among them"),
        (dealt(lambda d, real: (abs(d) < abs(real)).mean()), "that differ less"),
        (dealt(lambda d, real: (abs(d) <= abs(real)).mean()), "at most as much"),
        (dealt(lambda d, real: (d >= abs(real)).mean()), "the absolute value of both"),
        (dealt(lambda d, real: (abs(d) >= abs(real)).sum()), "Divide it by all 70"),
        (by_value, "counted once"),
        (lambda a, b: stats.ttest_ind(a, b, equal_var=False).pvalue, "This is Welch's test"),
        (lambda a, b: 0.5, "p = 0.5 for 4 and 4 runs; of the 70 ways"),
        (lambda a, b: "0.05", "must be a number, but is a str"),
        (lambda a, b: 1 / 0, "stopped with ZeroDivisionError"),
    ],
)
def test_permutation_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch09.permutation_p, answer, reason, capsys)


def test_permutation_takes_random_deals_and_scipys(capsys: Any) -> None:
    def shuffled(a: list[float], b: list[float]) -> np.floating[Any]:
        rng, real = np.random.default_rng(0), abs(np.mean(a) - np.mean(b))
        pots = rng.permuted(np.tile([*a, *b], (20_000, 1)), axis=1)
        differences = pots[:, : len(a)].mean(1) - pots[:, len(a) :].mean(1)
        return np.mean(abs(differences) >= real - 1e-9)

    def scipys(a: list[float], b: list[float]) -> float:
        def distance(x: Array, y: Array, axis: int) -> Any:
            return abs(np.mean(x, axis=axis) - np.mean(y, axis=axis))

        samples = (np.array(a), np.array(b))
        return float(
            stats.permutation_test(samples, distance, vectorized=True, alternative="greater").pvalue
        )

    accepts(ch09.permutation_p, shuffled, capsys)
    accepts(ch09.permutation_p, scipys, capsys)
    waits(ch09.permutation_p, lambda a, b: None, capsys)


# 9.2


def corrected(
    se: float, eca: float, channel: float, cbam: float, below: float = 1
) -> dict[str, Any]:
    return {"se": se, "eca": eca, "channel": channel, "cbam": cbam, "below 0.05": below}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (corrected(0.024, 0.4, 0.01, 0.02, 3), "the p-values as they came"),
        (corrected(0.096, 1.6, 0.04, 0.08), "Bonferroni's correction. It is safe"),
        (corrected(0.096, 1.0, 0.04, 0.08), "Bonferroni's correction. Holm"),
        (corrected(0.048, 0.4, 0.04, 0.06, 2), "`se` became smaller than `cbam`"),
        (corrected(0.072, 1.6, 0.01, 0.04), "the wrong way round"),
        (corrected(0.096, 1.2, 0.02, 0.02), "Sort them first"),
        (corrected(0.032, 0.4, 0.032, 0.032, 3), "Benjamini and Hochberg"),
        (corrected(0.06, 0.4, 0.03, 0.06), "'channel' is not 0.03. 0.01 is number 1 from below"),
        (corrected(0.06, 0.4, 0.04, 0.06, 2), "2 of the four below 0.05?"),
        ({"se": 0.06}, "Give a dict with an answer for each of se, eca"),
        ([0.06, 0.4, 0.04, 0.06, 1], "Give a dict with an answer for each of se, eca"),
        (corrected(0.06, 0.4, 0.04, 0.06, ["channel"]), "'below 0.05' must be a number"),  # type: ignore[arg-type]
        (corrected(0.06, 0.4, 0.04, 0.06, True), "but is a bool"),
        (corrected(0.06, 1.0, 0.04, 0.06), "'eca' is not 1"),
        (corrected(6, 40, 4, 6), "'se' is not 6"),
        (corrected(float("nan"), 0.4, 0.04, 0.06), "'se' is not nan"),
        (corrected(0.006, 0.4, 0.0025, 0.0067), "so it is multiplied by 2"),
        (corrected(0.048, 0.4, 0.04, 0.048), "raised to the one before it if that is larger"),
        (corrected("0.06", 0.4, 0.04, 0.06), "'se' must be a number, but is a str"),  # type: ignore[arg-type]
    ],
)
def test_corrected_p_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch09.corrected_p, answer, reason, capsys)


def test_corrected_p_takes_what_is_right_and_waits(capsys: Any) -> None:
    accepts(ch09.corrected_p, corrected(0.06, 0.4, 0.04, 0.06), capsys)
    computed = corrected(2 * 0.03, np.float32(0.4), 4 * 0.01, torch.tensor(3 * 0.02), np.int64(1))  # type: ignore[arg-type]
    accepts(ch09.corrected_p, computed, capsys)
    waits(ch09.corrected_p, corrected(0.06, 0.4, 0.04, ...), capsys)  # type: ignore[arg-type]


# 9.3


def error(a: Array, b: Array) -> float:
    return float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


def last(runs: Array) -> Array:
    return np.asarray(runs[:, -1])


def colleague(ours: Array, baseline: Array) -> tuple[float, float]:
    a, b = ours.max(axis=1), baseline.max(axis=1)
    both = np.concatenate([a, b])
    return a.max() - b.mean(), both.std() / np.sqrt(len(both))


def difference_of(
    a: Callable[[Array], float], b: Callable[[Array], float]
) -> Callable[[Array, Array], tuple[float, float]]:
    return lambda ours, baseline: (a(ours) - b(baseline), error(last(ours), last(baseline)))


def mean_of_last(runs: Array) -> float:
    return float(last(runs).mean())


def error_of(
    error: Callable[[Array, Array], float],
) -> Callable[[Array, Array], tuple[float, float]]:
    return lambda ours, baseline: (
        mean_of_last(ours) - mean_of_last(baseline),
        error(ours, baseline),
    )


def one_pot(ours: Array, baseline: Array) -> float:
    both = np.concatenate([last(ours), last(baseline)])
    return float(both.std() / np.sqrt(len(both)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (colleague, "the best seed of one arm with the mean of the other"),
        (colleague, "And the best epoch is still in it"),
        (
            difference_of(lambda r: r.max(1).mean(), lambda r: r.max(1).mean()),
            "the best epoch, on the test set: that rewards noise",
        ),
        (difference_of(lambda r: r.max(1).mean(), mean_of_last), "Take the last one, ours as well"),
        (difference_of(lambda r: r.mean(), lambda r: r.mean()), "the mean of all epochs"),
        (
            difference_of(lambda r: r.mean(0).max(), lambda r: r.mean(0).max()),
            "best on the mean of the seeds",
        ),
        (difference_of(lambda r: last(r).max(), mean_of_last), "Take both means"),
        (
            difference_of(lambda r: last(r).max(), lambda r: last(r).max()),
            "the best seeds of both arms",
        ),
        (lambda a, b: difference_of(mean_of_last, mean_of_last)(b, a), "The sign is turned round"),
        (difference_of(lambda r: r[:, 0].mean(), lambda r: r[:, 0].mean()), "the first epoch"),
        (difference_of(lambda r: 1.0, lambda r: 0.0), "the means of the last epochs differ by"),
        (error_of(one_pot), "both arms in one pot"),
        (error_of(lambda a, b: colleague(a, b)[1]), "both arms in one pot"),
        (error_of(lambda a, b: ch09._error(last(a), last(b), 0)), "pass ddof=1"),
        (error_of(lambda a, b: error(a.max(1), b.max(1))), "the error still of the best one"),
        (
            error_of(lambda a, b: np.sqrt(last(a).var(ddof=1) + last(b).var(ddof=1))),
            "the spread of single runs",
        ),
        (error_of(lambda a, b: error(last(a), last(b)) ** 2), "Take the root"),
        (
            error_of(lambda a, b: stats.sem(last(a)) + stats.sem(last(b))),
            "Independent errors add up as squares",
        ),
        (error_of(lambda a, b: stats.sem(last(a))), "the error of one arm"),
        (error_of(lambda a, b: stats.sem(last(b))), "the error of one arm"),
        (error_of(ch09._pooled), "as Student's test does"),
        (error_of(lambda a, b: 0.1), "The standard error is 0.1; it should be"),
        (lambda a, b: 0.2, "Return two numbers, the difference and its error"),
        (lambda a, b: {"difference": 0.2, "error": 0.1}, "Return two numbers"),
        (lambda a, b: (mean_of_last(a) - mean_of_last(b), 0.1, 0.05), "Return two numbers"),
        (lambda a, b: (error(last(a), last(b)), mean_of_last(a) - mean_of_last(b)), "differ by"),
        (lambda a, b: (last(a) - mean_of_last(b), 0.1), "must be a number, but is a ndarray"),
        (lambda a, b: ((a - b).mean(), (a - b).std()), "could not be broadcast"),
        (difference_of(lambda r: r.max(0).mean(), lambda r: r.max(0).mean()), "differ by 0.1743"),
        (difference_of(lambda r: r[-1].mean(), lambda r: r[-1].mean()), "differ by 0.1743"),
        (error_of(lambda a, b: 1.96 * error(last(a), last(b))), "it should be 0.1216"),
        (
            error_of(
                lambda a, b: np.sqrt((last(a).var(ddof=1) + last(b).var(ddof=1)) / a.shape[1])
            ),
            "it should be 0.1216",
        ),
        (lambda a, b: (float("nan"), 0.1), "The difference is nan"),
    ],
)
def test_compare_names_the_mistake(answer: Callable[..., Any], reason: str, capsys: Any) -> None:
    refuses(ch09.compare, answer, reason, capsys)


def test_compare_takes_what_is_right_and_waits(capsys: Any) -> None:
    def in_torch(ours: Array, baseline: Array) -> list[torch.Tensor]:
        a, b = (torch.from_numpy(runs)[:, -1] for runs in (ours, baseline))
        return [a.mean() - b.mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()]

    accepts(ch09.compare, in_torch, capsys)
    accepts(ch09.compare, lambda a, b: np.array(in_torch(a, b)), capsys)
    accepts(ch09.compare, difference_of(mean_of_last, mean_of_last), capsys)
    waits(ch09.compare, lambda a, b: None, capsys)
    waits(ch09.compare, lambda a, b: (mean_of_last(a) - mean_of_last(b), ...), capsys)


def test_student_is_told_from_welch() -> None:
    found = [(ch09._pooled(a, b), error(last(a), last(b))) for a, b in ch09._curves()]
    assert any(abs(student - welch) > 0.01 for student, welch in found)
    for a, b in ch09._curves():  # SciPy's own error of Student's test
        test = stats.ttest_ind(last(a), last(b))
        assert ch09._pooled(a, b) == pytest.approx(
            (last(a).mean() - last(b).mean()) / test.statistic
        )


# 9.4


def images(
    error: Callable[[Array, Array], Any], factor: float = 1
) -> Callable[[Array, Array], tuple[float, Any]]:
    return lambda a, b: (factor * (a.mean() - b.mean()), error(a, b))


def paired(a: Array, b: Array) -> float:
    return float(stats.sem(a.astype(int) - b.astype(int)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            images(lambda a, b: np.sqrt((a.var() + b.var()) / len(a))),
            "two networks that met different images",
        ),
        (images(lambda a, b: (1.0 * a - b).std()), "the spread over single images"),
        (images(lambda a, b: paired(a, b) ** 2), "the variance of the mean"),
        (images(lambda a, b: (1.0 * a - b).std() / len(a)), "divided by the root"),
        (images(lambda a, b: a.std() / np.sqrt(len(a))), "the error of one network's accuracy"),
        (
            images(lambda a, b: (a.std() + b.std()) / np.sqrt(len(a))),
            "as if the networks had nothing to do with each other",
        ),
        (images(lambda a, b: (a ^ b).std() / np.sqrt(len(a))), "must be able to cancel"),
        (images(paired, -1), "a minus b"),
        (images(paired, 100), "percentage points"),
        (images(paired, 2), "The difference is"),
        (images(lambda a, b: 0.5), "The standard error is 0.5; it should be"),
        (lambda a, b: a - b, "numpy boolean subtract"),
        (lambda a, b: (1.0, 2.0, 3.0), "Return two numbers"),
        (images(lambda a, b: (1.0 * a - b).std() / (a ^ b).sum() ** 0.5), "All images count"),
        (images(lambda a, b: (a ^ b).mean()), "66 of which the two disagree on"),
        (images(lambda a, b: 1.96 * paired(a, b)), "it should be 0.01621"),
        (images(lambda a, b: (1.0 * a - b).std() / 100), "for 500 images"),  # as if 10,000
        (lambda a, b: (a.sum() - b.sum(), paired(a, b)), "The difference is 12"),
        (lambda a, b: ((a & ~b).mean(), paired(a, b)), "it should be 0.024"),
        (lambda a, b: (1.0 * a - b, paired(a, b)), "must be a number, but is a ndarray"),
        (lambda a, b: ((a.astype("uint8") - b.astype("uint8")).mean(), 0.1), "is 13.85"),
    ],
)
def test_image_error_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch09.image_error, answer, reason, capsys)


def test_image_error_takes_what_is_right_and_waits(capsys: Any) -> None:
    accepts(ch09.image_error, images(paired), capsys)
    accepts(ch09.image_error, images(lambda a, b: (1.0 * a - b).std() / len(a) ** 0.5), capsys)
    accepts(ch09.image_error, images(lambda a, b: (a ^ b).sum() ** 0.5 / len(a)), capsys)  # McNemar
    waits(ch09.image_error, lambda a, b: None, capsys)


# 9.5


def envelope(gain: float, spread: float, arms: int, power: float = 0.8) -> float:
    z = stats.norm.ppf(1 - 0.05 / arms / 2) + stats.norm.ppf(power)
    return float(2 * (z * spread / gain) ** 2)


def simulated(gain: float, spread: float, arms: int) -> int:
    """Find the number by making studies: the power is estimated, not computed."""
    rng, n = np.random.default_rng(0), max(2, int(0.9 * envelope(gain, spread, arms)))
    while True:
        a, b = rng.normal(0, spread, (2, 1500, n))
        p = stats.ttest_ind(a + gain, b, axis=1).pvalue
        if (p < 0.05 / arms).mean() >= 0.8:
            return n
        n += 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda g, s, m: ch09._exact(g, s, 1), "The arms are not counted"),
        (lambda g, s, m: 16 * (s / g) ** 2, "The arms are not counted"),
        (lambda g, s, m: np.ceil(envelope(g, s, m, 0.5)), "missed every second time"),
        (lambda g, s, m: ch09._exact(g, s, m, power=0.5), "missed every second time"),
        (lambda g, s, m: ch09._exact(g, s, m, noisy=1), "the baseline has noise, too"),
        (lambda g, s, m: np.ceil(envelope(g, s, m) / 2), "the baseline has noise, too"),
        (lambda g, s, m: 2 * ch09._exact(g, s, m), "two arms together"),
        (lambda g, s, m: 16 * (s / g) ** 2 * m, "multiplied by the arms"),
        (lambda g, s, m: np.ceil(16 * s / g), "half the gain needs four times the seeds"),
        (lambda g, s, m: (s / g) ** 2, "still to be multiplied"),
        (lambda g, s, m: 1, "Without two seeds there is no spread at all"),
        (lambda g, s, m: 10, "10 seeds for a gain of 0.2, a spread of 0.2 and 1 arm: then 5"),
        (lambda g, s, m: 3 * ch09._exact(g, s, m), "are the fewest with 80 %"),
        (lambda g, s, m: [17], "must be a number, but is a list"),
        (lambda g, s, m: 17, "then 18% of the studies see the gain"),
        (lambda g, s, m: float("inf"), "inf is no number of seeds"),
        (lambda g, s, m: float("nan"), "nan is no number of seeds"),
        (lambda g, s, m: -5, "-5 seeds for a gain of 0.2"),
        (lambda g, s, m: ch09._exact(g, s, m + 1), "There are `arms` of them beside it"),
        (lambda g, s, m: np.ceil(envelope(g, s, max(1, m - 1))), "beside it"),
        (lambda g, s, m: envelope(g, s, m / 2), "The limit is for one direction"),
        (lambda g, s, m: ch09._exact(g, s, m, power=0.9), "17 seeds are the fewest"),
        (lambda g, s, m: envelope(s, g, m), "60 seeds are the fewest"),
        (lambda g, s, m: envelope(g / 100, s, m), "are the fewest with 80 %"),
        (lambda g, s, m: ch09._exact(0.2, s, m), "are the fewest with 80 %"),
    ],
)
def test_seeds_needed_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch09.seeds_needed, answer, reason, capsys)


@pytest.mark.parametrize("rounding", [np.ceil, np.round, float])
def test_seeds_needed_takes_the_envelope(rounding: Callable[[float], Any], capsys: Any) -> None:
    accepts(ch09.seeds_needed, lambda g, s, m: rounding(envelope(g, s, m)), capsys)


def test_seeds_needed_takes_a_simulation_and_waits(capsys: Any) -> None:
    accepts(ch09.seeds_needed, simulated, capsys)
    waits(ch09.seeds_needed, lambda g, s, m: None, capsys)


def test_the_power_is_that_of_simulated_studies() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 0.2, (2, 20_000, 12))
    seen = (stats.ttest_ind(a + 0.2, b, axis=1).pvalue < 0.05 / 4).mean()
    assert ch09._power(0.2, 0.2, 4, 12) == pytest.approx(seen, abs=0.01)
