"""Statistics on simulated data with known truth, against SciPy, and against their definitions."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

import coverage_study
from cbam_edu.statistics import LEVEL, bootstrap, holm, smallest_effect, welch

A, B = [91.2, 92.1, 91.7, 92.4, 91.9], [91.0, 91.3, 90.2, 91.9]


def assert_rate(count: int, repetitions: int, rate: float, allowed: float = 0.0) -> None:
    """A count is that of its rate: 3.9 binomial standard errors, one false alarm in 10,000."""
    error = math.sqrt(rate * (1 - rate) / repetitions)
    assert abs(count / repetitions - rate) < 3.9 * error + allowed, count / repetitions


def assert_at_most(count: int, repetitions: int, rate: float) -> None:
    """A count is that of its rate, or of a smaller one, by the same measure."""
    error = math.sqrt(rate * (1 - rate) / repetitions)
    assert count / repetitions < rate + 3.9 * error, count / repetitions


# ---- Welch


def test_welch_gives_what_scipy_gives():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.normal(90, 3, rng.integers(2, 9)), rng.normal(91, 0.3, rng.integers(2, 9))
        theirs = stats.ttest_ind(a, b, equal_var=False)
        low, high = theirs.confidence_interval(0.95)
        wanted = (a.mean() - b.mean(), low, high, theirs.pvalue)
        np.testing.assert_allclose(welch(a, b), wanted, rtol=1e-9)


def test_welch_by_hand():
    """Two of two: 1 and 3, 0 and 2. The error is sqrt 2, with 2 degrees of freedom, t = 1 / sqrt 2.

    Student's t of 2 degrees has the distribution 1/2 + t / (2 sqrt(2 + t^2)).
    """
    found = welch([1, 3], [0, 2])
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    assert found.value == 1
    assert found.p == pytest.approx(1 - math.sqrt(0.5 / 2.5))
    assert (found.low, found.high) == pytest.approx((1 - t * math.sqrt(2), 1 + t * math.sqrt(2)))


def test_welch_does_not_hang_on_sign_order_shift_or_scale():
    value, low, high, p = welch(A, B)
    assert welch(B, A) == pytest.approx((-value, -high, -low, p))
    assert welch(A[::-1], sorted(B)) == pytest.approx((value, low, high, p))
    shifted = welch(np.array(A) + 1e6, np.array(B) + 1e6)
    assert shifted == pytest.approx((value, low, high, p), rel=1e-6)
    scaled = welch(np.array(A) / 100, np.array(B) / 100)
    assert scaled == pytest.approx((value / 100, low / 100, high / 100, p))
    assert low < value < high
    assert (p < 0.05) == (not low < 0 < high)


@pytest.mark.parametrize("equal", [0.1, 91.23, 1e9 + 0.1, 0.0])
def test_values_that_are_all_equal_have_no_spread(equal):
    """Not even that of a rounding: 0.1 three times has a mean of 0.10000000000000002."""
    assert welch([equal] * 3, [equal] * 5) == (0, 0, 0, 1)
    difference = (equal + 1) - equal
    assert welch([equal + 1] * 3, [equal] * 5) == (difference, difference, difference, 0)
    assert smallest_effect([equal] * 3, [equal] * 5) == 0


def test_one_sample_without_spread_is_compared():
    """As a control's scores have none; SciPy warns of it. It is Student's test of the other."""
    found, theirs = welch(A, [0.1] * 3), stats.ttest_1samp(A, 0.1)
    assert found.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low + 0.1, found.high + 0.1) == pytest.approx((low, high))


def test_a_spread_of_roundings_is_a_spread():
    tiny = np.nextafter(0.5, 1)
    found = welch([0.5, tiny, 0.5], [0.5, 0.5])
    assert 0 < found.high < 1e-15
    assert found.p > 0.3


@pytest.mark.parametrize("spreads", coverage_study.SPREADS)
@pytest.mark.parametrize("seeds", coverage_study.SEEDS)
def test_welchs_interval_covers_and_its_test_errs_as_they_say(seeds, spreads):
    """95 and 5 %; for as few as three seeds, what the approximation is known to give: 96.5 %."""
    exact = coverage_study.exact_welch((seeds, seeds), spreads)
    assert exact == pytest.approx(LEVEL, abs=0.016 if seeds == 3 else 0.006)
    found = coverage_study.of_welch(np.random.default_rng(1), seeds, spreads, 1000)
    assert_rate(found["covered"], 1000, exact)
    assert_rate(found["alarms"], 1000, 1 - exact)


def test_the_integral_is_that_of_a_known_case():
    """With one spread far larger, Welch's interval is Student's, which is exact."""
    assert coverage_study.exact_welch((5, 5), (1e6, 1)) == pytest.approx(0.95, abs=2e-3)


# ---- Holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02]
    assert holm([0.5, 0.9, 0.6]) == [1, 1, 1]
    assert holm([0.01, 0.01]) == [0.02, 0.02]
    assert holm([0, 1]) == [0, 1]
    assert holm([]) == []


def rejected(p: list[float], alpha: float) -> set[int]:
    """Return which hypotheses Holm's procedure rejects, as he states it."""
    order = sorted(range(len(p)), key=p.__getitem__)
    stop = next((k for k, i in enumerate(order) if p[i] > alpha / (len(p) - k)), len(p))
    return set(order[:stop])


def test_holm_rejects_what_his_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(rng.integers(1, 9)) ** 3).tolist()
        corrected = holm(p)
        for alpha in (0.01, 0.05, 0.2):
            assert {i for i, q in enumerate(corrected) if q <= alpha} == rejected(p, alpha)
        order = rng.permutation(len(p))
        assert holm([p[i] for i in order]) == [corrected[i] for i in order]
        bonferroni = [min(1, len(p) * q) for q in p]
        assert all(q <= c <= b for q, c, b in zip(p, corrected, bonferroni, strict=True))


@pytest.mark.parametrize("family", coverage_study.FAMILIES)
def test_a_family_has_a_false_alarm_as_rarely_as_one_comparison(family):
    """At most 5 %: the arms share a baseline, so that some of the alarms come together."""
    found = coverage_study.of_holm(np.random.default_rng(1), 5, family, 400)
    assert_at_most(found["alarms"], 400, 0.05)
    assert found["uncorrected alarms"] > 1.5 * found["alarms"]
    if family[0] == 8:
        assert found["uncorrected alarms"] > 0.1 * 400


# ---- The bootstrap


@pytest.mark.parametrize("world", coverage_study.WORLDS)
def test_the_bootstrap_covers_for_other_seeds_and_other_images(world):
    rng = np.random.default_rng(2)
    found = coverage_study.of_bootstrap(rng, 5, world, 300, 200, 200)
    assert_rate(found["covered"], 200, LEVEL)
    assert_rate(found["alarms"], 200, 1 - LEVEL)
    # Over seeds alone one learns nothing of other images.
    if world == "images":
        assert found["covered by Welch"] < 178  # 3.9 standard errors below 95 %
        assert found["alarms of Welch"] > 22
    elif world == "seeds":
        assert_rate(found["covered by Welch"], 200, LEVEL)


def variance_of(low: float, high: float, freedom: float) -> float:
    return ((high - low) / 2 / stats.t.ppf(0.975, freedom)) ** 2


def test_the_bootstraps_variance_is_that_of_the_parts():
    """Of seeds and of images, each once, as an analysis of variance finds them; many draws."""
    rng = np.random.default_rng(0)
    a, b = coverage_study.answers(rng, "both", 4, 300, (0.5, 0.5))
    image = a.mean(0) - b.mean(0)
    parts = []
    for arm in (a, b):
        rest = arm - arm.mean(0) - arm.mean(1, keepdims=True) + arm.mean()
        peculiar = (rest**2).sum() / 3 / 299
        parts.append((arm.mean(1).var(ddof=1) / 4, peculiar / 4 / 300))
    seeds = sum(part for part, _ in parts)
    # The variance of images' means, and that of seeds' means, both hold what is peculiar.
    wanted = seeds + image.var() / 300 - sum(peculiar for _, peculiar in parts)
    freedom = wanted**2 / sum(part**2 / 3 for part, _ in parts)
    found = variance_of(*bootstrap(a, b, draws=20_000), freedom)
    assert found == pytest.approx(wanted, rel=0.05)


def test_the_bootstrap_hangs_on_its_seed_and_on_nothing_else():
    a, b = coverage_study.answers(np.random.default_rng(0), "both", 4, 200, (0.7, 0.5))
    low, high = bootstrap(a, b, seed=1)
    assert bootstrap(a, b, seed=1) == (low, high)
    assert bootstrap(a, b, seed=2) != (low, high)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean())
    assert bootstrap(b, a, seed=1) == pytest.approx((-high, -low), rel=0.1)
    order = np.random.default_rng(1).permutation(200)
    assert bootstrap(a[::-1, order], b[:, order]) == pytest.approx((low, high), rel=0.1)
    other = bootstrap(a[:, ::2], b[:, ::2])
    assert other[1] - other[0] > 1.1 * (high - low)  # fewer images say less


def test_the_draws_go_in_blocks_of_any_number():
    a, b = coverage_study.answers(np.random.default_rng(0), "images", 3, 50, (0.7, 0.5))
    wide = {draws: np.ptp(bootstrap(a, b, draws=draws)) for draws in (1, 499, 500, 501, 1001)}
    assert wide[500] != wide[501]
    assert all(wide[draws] == pytest.approx(wide[1001], rel=0.15) for draws in (499, 500, 501))
    # One draw has no spread: what remains is that of the seeds.
    assert wide[1] == pytest.approx(np.ptp(welch(a.mean(1), b.mean(1))[1:3]))


def test_the_bootstrap_of_what_does_not_vary():
    right, wrong = np.ones((3, 20), dtype=bool), np.zeros((2, 20), dtype=bool)
    assert bootstrap(right, wrong) == pytest.approx((1, 1), abs=1e-6)
    assert bootstrap(right, right) == pytest.approx((0, 0), abs=1e-6)
    assert bootstrap(wrong, wrong) == (0, 0)
    # Seeds that agree about every image, and images that do not: only these vary.
    some = np.tile(np.arange(200) < 100, (3, 1))
    low, high = bootstrap(some, np.ones((3, 200), dtype=bool), draws=5000)
    assert (low, high) == pytest.approx((-0.5 - 1.96 / 2 / 200**0.5, -0.5 + 0.98 / 200**0.5), 0.05)


# ---- The smallest effect


@pytest.mark.parametrize(("n", "effect"), [(64, 0.5), (26, 0.8), (394, 0.2)])
def test_the_smallest_effect_is_cohens(n, effect):
    """J. Cohen, "Statistical Power Analysis", 1988, table 2.4.1: n for a power of 80 % at 5 %."""
    per_sd = []
    for count in (n, n - 1):
        sample = stats.norm.ppf((np.arange(count) + 0.5) / count)
        per_sd.append(smallest_effect(sample, sample) / sample.std(ddof=1))
    assert per_sd[0] <= effect < per_sd[1]


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
@pytest.mark.parametrize(("seeds", "spreads"), [(5, (1, 1)), (8, (1, 1)), (20, (3, 1))])
def test_the_smallest_effect_is_seen_in_four_of_five_studies(seeds, spreads, alpha):
    """Up to 4 %: the degrees of freedom are those of the samples, which vary."""
    normal = stats.norm.ppf((np.arange(seeds) + 0.5) / seeds)
    normal /= normal.std(ddof=1)
    effect = smallest_effect(*(s * normal for s in spreads), alpha=alpha)
    rng = np.random.default_rng(0)
    seen = sum(
        welch(effect + rng.normal(0, spreads[0], seeds), rng.normal(0, spreads[1], seeds)).p < alpha
        for _ in range(600)
    )
    assert_rate(seen, 600, 0.8, 0.04)


def test_the_smallest_effect_grows_with_the_spread_and_falls_with_the_number():
    one = smallest_effect(A, B)
    assert smallest_effect(B, A) == pytest.approx(one)
    assert smallest_effect(np.array(A) + 7, B) == pytest.approx(one)
    assert smallest_effect(3 * np.array(A), 3 * np.array(B)) == pytest.approx(3 * one)
    assert smallest_effect(A * 4, B * 4) < one / 1.9
    assert smallest_effect(A, B, alpha=0.01) > one
    for n, alpha in itertools.product((2, 3, 20), (1e-4, 0.05 / 8, 0.5, 0.99)):
        assert math.isfinite(smallest_effect(np.arange(n), np.arange(n) / 2, alpha=alpha))


# ---- Bad input


@pytest.mark.parametrize("compare", [welch, smallest_effect])
@pytest.mark.parametrize(
    "sample", [[], [1.0], 1.0, [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0], [3.0, 4.0]]], ids=str
)
def test_what_is_no_sample_is_told(compare, sample):
    for arguments in ((sample, B), (A, sample)):
        with pytest.raises(ValueError, match="a sample is a list of 2 or more finite numbers, got"):
            compare(*arguments)


@pytest.mark.parametrize("p", [[0.5, 1.1], [-0.1], [math.nan], 0.5, [[0.1, 0.2]]], ids=str)
def test_what_is_no_p_value_is_told(p):
    with pytest.raises(ValueError, match="p-values are a list of numbers between 0 and 1, got"):
        holm(p)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan])
def test_what_is_no_level_is_told(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got"):
        smallest_effect(A, B, alpha=alpha)


def zeros(*shape: int, kind: type = bool) -> np.ndarray:
    return np.zeros(shape, dtype=kind)


@pytest.mark.parametrize(
    ("sample", "baseline"),
    [
        (zeros(3, 5), zeros(3, 6)),
        (zeros(1, 5), zeros(3, 5)),
        (zeros(3, 5), zeros(0, 5)),
        (zeros(3, 1), zeros(3, 1)),
        (zeros(3), zeros(3)),
        (zeros(3, 5, kind=float), zeros(3, 5)),
        (zeros(2, 2, 5), zeros(2, 2, 5)),
    ],
    ids=lambda arm: f"{arm.shape} {arm.dtype}",
)
def test_what_are_no_answers_is_told(sample, baseline):
    with pytest.raises(ValueError, match=r"same two or more images: \(seeds, images\) bool; got "):
        bootstrap(sample, baseline)


def test_no_draws_are_told():
    with pytest.raises(ValueError, match="draws must be a positive integer, got 0"):
        bootstrap(zeros(3, 5), zeros(3, 5), draws=0)


# ---- The record of the large study


def recorded(method: str) -> list[dict]:
    return [r for r in coverage_study.read(coverage_study.RECORDED) if r["method"] == method]


def test_the_study_is_recorded_whole():
    wanted = [about | {"nominal": LEVEL} for about, _ in coverage_study.worlds()]
    records = coverage_study.read(coverage_study.RECORDED)
    assert len(records) == len(wanted)
    assert all(about.items() <= r.items() for about, r in zip(wanted, records, strict=True))


def test_welch_is_recorded_to_hold_its_rates():
    for r in recorded("welch"):
        exact = coverage_study.exact_welch((r["seeds"],) * 2, r["spreads"])
        assert_rate(r["covered"], r["repetitions"], exact)
        assert_rate(r["alarms"], r["repetitions"], 1 - exact)


def test_holm_is_recorded_to_hold_his_rate():
    for r in recorded("holm"):
        assert_at_most(r["alarms"], r["repetitions"], 1 - r["nominal"])
        assert r["uncorrected alarms"] > 1.9 * r["alarms"]


def test_the_bootstrap_is_recorded_to_hold_its_rates():
    for r in recorded("bootstrap"):
        assert_rate(r["covered"], r["repetitions"], r["nominal"])
        assert_rate(r["alarms"], r["repetitions"], 1 - r["nominal"])


def test_welch_is_recorded_to_be_too_sure_of_other_images():
    """It is right where the seeds alone matter, and the worse the more seeds there are."""
    found = {(r["world"], r["seeds"]): r["covered by Welch"] for r in recorded("bootstrap")}
    for n in (5, 20):
        assert found["images", n] < found["both", n] < found["seeds", n]
        assert found["images", n] < 900
    assert found["images", 20] < 700


def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    ran = []

    def run(rng, n):
        ran.append(n)
        return {"alarms": n}

    worlds = [({"method": "welch", "seeds": n}, functools.partial(run, n=n)) for n in (3, 5)]
    monkeypatch.setattr(coverage_study, "worlds", lambda: worlds[:1])
    path = tmp_path / "folder" / "coverage.jsonl"
    coverage_study.main(["--out", str(path)])
    monkeypatch.setattr(coverage_study, "worlds", lambda: worlds)
    coverage_study.main(["--out", str(path)])
    assert ran == [3, 5]
    assert capsys.readouterr().out == path.read_text()
    assert [(r["seeds"], r["alarms"], r["nominal"]) for r in coverage_study.read(path)] == [
        (3, 3, 0.95),
        (5, 5, 0.95),
    ]
