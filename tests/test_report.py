"""What records say: tables, intervals, readings and figures, on runs whose truth is known."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cbam_edu import report, studies
from cbam_edu.report import Comparison, draw, reading, summarise, write
from cbam_edu.statistics import Difference, bootstrap, smallest_effect
from cbam_edu.studies import Table
from tiny_study import SIZE, TINY, a_record

RIGHT = {"none": (50, 52, 54), "c & s": (56, 58, 60), "worse": (30, 31, 32)}  # of 100 images
ARMS = {"none": {}, "c & s": {"attention": "cbam"}, "worse": {"attention": "se"}}
TABLES = {
    "gates": Table("Are gates better?", "none", ("c & s", "worse")),
    "other": Table("Is the other better?", "worse", ("c & s",)),
}
STUDY = replace(TINY, arms=ARMS, tables=TABLES, sizes={"small": replace(SIZE, seeds=3)})


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "tiny", STUDY)


def answers(arm, seed):
    return np.random.default_rng(seed).permutation(100) < RIGHT[arm][seed]


def runs(arms=tuple(RIGHT), seeds=(0, 1, 2), **changes):
    """Return records; the seeds are mixed, as they are where several processes wrote them."""
    return [
        a_record(arm, seed, answers(arm, seed), seconds=60.0 * (seed + 1), **changes)
        for seed in reversed(seeds)
        for arm in arms
    ]


def test_numbers_are_those_of_the_records():
    summary = summarise("tiny", "small", runs())
    assert (summary.study, summary.size) == ("tiny", "small")
    assert summary.lacking == summary.scores == []
    table, (none, better, worse) = summary.tables["gates"]
    assert table == TABLES["gates"]
    assert [arm.name for arm in (none, better, worse)] == ["none", "c & s", "worse"]
    assert none.accuracies == pytest.approx((50, 52, 54))
    assert better.accuracies == pytest.approx((56, 58, 60))
    assert (none.mean, none.spread) == pytest.approx((52, 2))
    assert (none.parameters, none.multiply_accumulates, none.seconds) == (510, 184_400, 120)
    assert none.comparison is None


def test_comparisons_are_scipys():
    _, (_, better, worse) = summarise("tiny", "small", runs()).tables["gates"]
    tests = [stats.ttest_ind(RIGHT[a], RIGHT["none"], equal_var=False) for a in ("c & s", "worse")]
    for arm, test, value in zip((better, worse), tests, (6, -21), strict=True):
        interval = test.confidence_interval(0.95)
        wanted = (value, interval.low, interval.high, test.pvalue)
        assert arm.comparison.difference == pytest.approx(wanted)
    # Holm: the smaller of two p-values twice, the other as it is.
    assert tests[1].pvalue < tests[0].pvalue
    assert worse.comparison.p == pytest.approx(2 * tests[1].pvalue)
    assert better.comparison.p == pytest.approx(tests[0].pvalue)


def test_wide_intervals_and_power_are_those_of_the_arms():
    _, (_, better, _) = summarise("tiny", "small", runs()).tables["gates"]
    ours, base = (np.stack([answers(arm, s) for s in range(3)]) for arm in ("c & s", "none"))
    assert better.comparison.wide == pytest.approx([100 * end for end in bootstrap(ours, base)])
    smallest = smallest_effect(RIGHT["c & s"], RIGHT["none"], alpha=0.05 / 2)
    assert better.comparison.smallest == pytest.approx(smallest)
    _, (_, alone) = summarise("tiny", "small", runs()).tables["other"]
    smallest = smallest_effect(RIGHT["c & s"], RIGHT["worse"], alpha=0.05)
    assert alone.comparison.smallest == pytest.approx(smallest)


def test_the_text_is_this(monkeypatch):
    """Welch's by hand: t(4) is 2.776 at 97.5 %, the error of 6 is 2 * sqrt(2 / 3) = 1.633."""
    monkeypatch.setattr(report, "bootstrap", lambda sample, baseline: (-0.01, 0.123))
    monkeypatch.setattr(report, "smallest_effect", lambda sample, baseline, alpha: 7.891)
    found = runs(arms=("none", "c & s"), seeds=(0, 1, 2))
    assert write(summarise("tiny", "small", [*found, *runs(("worse",), (2,))])) == (
        "tiny, small: cbamnet_tiny on cifar10-mini, 50 training and 100 test images, "
        "2 epochs in batches of 25, float32; 7 runs, 0.2 hours of training on "
        "CPU (x86_64, 1 threads); torch 2.11.0.\n"
        "\n"
        "Not all runs are there: worse (1 of 3).\n"
        "\n"
        "gates: Are gates better?\n"
        "  arm    n  accuracy, %   minus none               other images, too  p (Holm)  "
        "would show  reading\n"
        "  none   3  52.00 ± 2.00\n"
        "  c & s  3  58.00 ± 2.00  +6.00 (+1.47 to +10.53)  -1.00 to +12.30    0.021     "
        "7.89        supported\n"
        "  worse  1  32.00\n"
        "\n"
        "other: Is the other better?\n"
        "  arm    n  accuracy, %   minus worse  other images, too  p (Holm)  would show  reading\n"
        "  worse  1  32.00\n"
        "  c & s  3  58.00 ± 2.00"
    )


def test_what_was_not_run_is_left_out():
    summary = summarise("tiny", "small", runs(arms=("c & s",)))
    assert summary.lacking == ["none (0 of 3)", "worse (0 of 3)"]
    for _, arms in summary.tables.values():
        (arm,) = arms  # there is no baseline to compare with
        assert (arm.name, arm.comparison) == ("c & s", None)
    with pytest.raises(ValueError, match="no arm has two seeds yet"):
        draw(summary)


def test_one_seed_has_no_spread_and_no_comparison():
    summary = summarise("tiny", "small", runs(seeds=(1,)))
    arms = summary.tables["gates"][1]
    assert [arm.mean for arm in arms] == pytest.approx([52, 58, 31])
    assert all(np.isnan(arm.spread) and arm.comparison is None for arm in arms)
    assert "±" not in write(summary)
    assert "nan" not in write(summary)


def test_arms_with_one_seed_are_not_counted_in_holms_correction():
    found = [*runs(arms=("none", "c & s")), *runs(("worse",), (0,))]
    _, (_, better, _) = summarise("tiny", "small", found).tables["gates"]
    assert better.comparison.p == better.comparison.difference.p


def test_records_that_do_not_belong_here_are_refused():
    with pytest.raises(ValueError, match="there are no records of tiny, small; cbam-edu experi"):
        summarise("tiny", "small", [])
    other = [record | {"study": "where"} for record in runs()]
    with pytest.raises(ValueError, match="the records are of where, small, not of tiny, small"):
        summarise("tiny", "small", other)
    with pytest.raises(ValueError, match="cannot be compared, as they differ in digest: "):
        summarise("tiny", "small", [*runs(seeds=(0,)), *runs(seeds=(1,), digest="other")])
    with pytest.raises(ValueError, match="tiny has no arm gone, of which there are records"):
        summarise("tiny", "small", [*runs(), a_record("gone", 0, answers("none", 0))])
    with pytest.raises(ValueError, match="unknown study 'tny'"):
        summarise("tny", "small", runs())


def compared(value, low, high, p):
    return Comparison(Difference(value, low, high, p), p, (low, high), 1.0)


@pytest.mark.parametrize(
    ("comparison", "told"),
    [
        (None, "not run"),
        (compared(0.5, 0.1, 0.9, 0.01), "supported"),
        (compared(-0.5, -0.9, -0.1, 0.01), "not supported: worse"),
        (compared(-0.1, -0.35, 0.15, 0.4), "not supported: at most 0.15 better"),
        (compared(-0.3, -0.5, -0.1, 0.06), "not supported: no better"),
        (compared(0.3, -0.2, 0.8, 0.2), "not decidable with this n"),
        (compared(0.3, 0.1, 0.5, 0.05), "not decidable with this n"),
    ],
)
def test_readings(comparison, told):
    assert reading(comparison) == told


def test_scores_are_compared_with_their_controls():
    values = {"cam: iou": (0.5, 0.6, 0.7), "cam, untrained: iou": (0.2, 0.3, 0.4)}
    values |= {"chance: iou": (0.1, 0.1, 0.4), "centre: iou": (0.3, 0.3, 0.3)}
    found = [
        a_record("none", seed, answers("none", seed))
        | {"scores": {name: numbers[seed] for name, numbers in values.items()}}
        for seed in (2, 0, 1)
    ]
    summary = summarise("tiny", "small", found)
    assert [(s.arm, s.map, s.score) for s in summary.scores] == [
        ("none", kind, "iou") for kind in ("cam", "cam, untrained", "chance", "centre")
    ]
    cam, untrained, chance, centre = summary.scores
    assert cam.values == (0.5, 0.6, 0.7)
    assert list(cam.against) == ["untrained", "chance", "centre"]
    test = stats.ttest_ind(values["cam: iou"], values["cam, untrained: iou"], equal_var=False)
    interval = test.confidence_interval(0.95)
    wanted = (0.3, interval.low, interval.high, test.pvalue)
    assert cam.against["untrained"] == pytest.approx(wanted)
    assert cam.against["chance"].value == pytest.approx(0.4)
    assert list(untrained.against) == ["chance", "centre"]
    assert list(chance.against) == ["centre"]
    assert list(centre.against) == ["chance"]
    low, high = interval.low, interval.high
    lines = write(summary).split("\n\n")[-1].splitlines()
    assert lines[0] == "maps"
    titles = [word.strip() for word in lines[1].split("  ") if word]
    controls = ["minus untrained", "minus chance", "minus centre"]
    assert titles == ["arm", "map", "score", "n", "mean", *controls]
    assert lines[2].startswith("  none  cam             iou    3  0.600 ± 0.100  +0.300 (")
    assert f" +0.300 ({low:+.3f} to {high:+.3f})  +0.400 (" in lines[2]


def test_a_score_of_one_seed_is_shown_alone():
    found = [a_record("none", 0, answers("none", 0)) | {"scores": {"cam: iou": 0.25}}]
    summary = summarise("tiny", "small", found)
    assert (summary.scores[0].values, summary.scores[0].against) == ((0.25,), {})
    assert write(summary).endswith("none  cam  iou    1  0.250")


def test_the_figure_shows_the_differences():
    summary = summarise("tiny", "small", runs())
    axes = draw(summary).axes
    assert [a.get_title("left") for a in axes] == ["gates: minus none", "other: minus worse"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["c & s", "worse"]
    assert axes[-1].get_xlabel() == "difference in accuracy, percentage points"
    points = next(line for line in axes[0].lines if line.get_marker() == "o")
    assert points.get_xdata() == pytest.approx([6, -21])
    thin, thick = ([s[:, 0] for s in part.get_segments()] for part in axes[0].collections)
    _, arms = summary.tables["gates"]
    for i, arm in enumerate(arms[1:]):
        assert thick[i] == pytest.approx(arm.comparison.difference[1:3])
        assert thin[i] == pytest.approx(arm.comparison.wide)


def test_what_has_one_seed_is_not_drawn():
    summary = summarise("tiny", "small", [*runs(("none", "c & s")), *runs(("worse",), (0,))])
    (axes,) = draw(summary).axes
    assert axes.get_title("left") == "gates: minus none"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c & s"]


def test_without_matplotlib_the_figure_alone_is_missing(monkeypatch):
    summary = summarise("tiny", "small", runs())
    monkeypatch.setitem(sys.modules, "cbam_edu.plot", None)
    monkeypatch.delattr("cbam_edu.plot", raising=False)
    with pytest.raises(ValueError, match=r"drawn by matplotlib, which .*\[explain\]"):
        draw(summary)
