"""What a study's records say: tables of differences with their intervals, and a figure of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cbam_edu.records import Record, check_comparable, unpack
from cbam_edu.statistics import Difference, bootstrap, holm, smallest_effect, welch
from cbam_edu.studies import Table, find

if TYPE_CHECKING:
    from cbam_edu.plot import Figure

# Percentage points below which a difference of accuracies matters to nobody: what another seed of
# the same network easily makes.
MARGIN = 0.2
CONTROLS = ("untrained", "chance", "centre")


class Comparison(NamedTuple):
    """An arm against its table's baseline; accuracies and differences in percentage points.

    Attributes
    ----------
    difference : Difference
        Arm minus baseline, with Welch's interval over seeds.
    p : float
        The same after Holm's correction for the arms of the table.
    wide : tuple of float
        The interval over seeds and test images.
    smallest : float
        The smallest difference that a study like this shows in four of five times.
    """

    difference: Difference
    p: float
    wide: tuple[float, float]
    smallest: float


class Arm(NamedTuple):
    """An arm's accuracies over seeds, in percent, and what it is; `comparison` may be missing."""

    name: str
    accuracies: tuple[float, ...]
    parameters: int
    multiply_accumulates: int
    seconds: float
    comparison: Comparison | None

    @property
    def mean(self) -> float:
        """Return the mean accuracy, in percent."""
        return float(np.mean(self.accuracies))

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds, in percentage points; NaN for one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else float("nan")


class Score(NamedTuple):
    """A score of maps, one value a seed, and its differences to the controls' scores."""

    arm: str
    map: str
    score: str
    values: tuple[float, ...]
    against: dict[str, Difference]


class Summary(NamedTuple):
    """All that the records of a study say."""

    study: str
    size: str
    about: str
    tables: dict[str, tuple[Table, list[Arm]]]
    scores: list[Score]
    lacking: list[str]


def summarise(name: str, size: str, records: Sequence[Record]) -> Summary:
    """Compare the arms of a study, from its records.

    Parameters
    ----------
    name, size : str
        A study of `cbam_edu.studies.STUDIES`, and "full" or "small".
    records : sequence of dict
        Of `cbam_edu.records.read`.

    Raises
    ------
    ValueError
        For no records, those of another study, or records that cannot be compared.
    """
    study, chosen = find(name, size)
    if not records:
        raise ValueError(
            f"there are no records of {name}, {size}; cbam-edu experiment {name} --size {size} "
            "makes them"
        )
    check_comparable(records)
    if (there := (records[0]["study"], records[0]["size"])) != (name, size):
        raise ValueError(f"the records are of {', '.join(there)}, not of {name}, {size}")
    if unknown := sorted({r["arm"] for r in records} - study.arms.keys()):
        raise ValueError(f"{name} has no arm {', '.join(unknown)}, of which there are records")
    by_arm = {arm: [r for r in records if r["arm"] == arm] for arm in study.arms}
    tables = {
        title: (table, _compare(table, {a: by_arm[a] for a in (table.baseline, *table.arms)}))
        for title, table in study.tables.items()
    }
    lacking = [
        f"{arm} ({len(runs)} of {chosen.seeds})"
        for arm, runs in by_arm.items()
        if len(runs) < chosen.seeds
    ]
    return Summary(name, size, _about(records), tables, _scores(records), lacking)


def _about(records: Sequence[Record]) -> str:
    first = records[0]
    devices = "; ".join(sorted({r["device"] for r in records}))
    torches = ", ".join(sorted({r["versions"]["torch"] for r in records}))
    recipe = first["recipe"]
    hours = sum(r["seconds"] for r in records) / 3600
    return (
        f"{first['model']} on {first['data']}, {first['train_images']:,} training "
        f"and {first['test_images']:,} test images, {first['epochs']} epochs in batches of "
        f"{recipe['batch_size']}, {recipe['precision']}; {len(records)} runs, {hours:.1f} hours of "
        f"training on {devices}; torch {torches}."
    )


def _compare(table: Table, by_arm: dict[str, list[Record]]) -> list[Arm]:
    """Return the arms that were run, the baseline first."""
    answers = {arm: _answers(runs) for arm, runs in by_arm.items() if runs}
    base = answers.get(table.baseline, np.empty((0, 0)))
    compared = [a for a in table.arms if len(base) > 1 and len(answers.get(a, ())) > 1]
    accuracy = {arm: 100 * right.mean(1) for arm, right in answers.items()}
    differences = {a: welch(accuracy[a], accuracy[table.baseline]) for a in compared}
    corrected = dict(zip(compared, holm([d.p for d in differences.values()]), strict=True))
    alpha = 0.05 / max(1, len(compared))
    arms = []
    for arm, right in answers.items():
        comparison = None
        if arm in differences:
            low, high = bootstrap(right, base)
            comparison = Comparison(
                differences[arm],
                corrected[arm],
                (100 * low, 100 * high),
                smallest_effect(accuracy[arm], accuracy[table.baseline], alpha=alpha),
            )
        first, seconds = by_arm[arm][0], float(np.mean([r["seconds"] for r in by_arm[arm]]))
        cost = first["parameters"], first["multiply_accumulates"]
        arms.append(Arm(arm, tuple(accuracy[arm].tolist()), *cost, seconds, comparison))
    return arms


def _answers(runs: Sequence[Record]) -> np.ndarray:
    """Return which test images each run named rightly, ``(seeds, images) bool``."""
    ordered = sorted(runs, key=lambda r: r["seed"])
    return np.stack([unpack(r["correct"], r["test_images"]) for r in ordered])


def _scores(records: Sequence[Record]) -> list[Score]:
    """Return every score of every arm, compared with the controls."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        for name, value in record.get("scores", {}).items():
            kind, _, score = name.rpartition(": ")
            found.setdefault((record["arm"], kind, score), []).append(value)
    scores = []
    for (arm, kind, score), values in found.items():
        against = {}
        for control in CONTROLS:
            other = f"{kind}, {control}" if control == "untrained" else control
            others = found.get((arm, other, score), [])
            if kind != other and len(others) > 1 and len(values) > 1:
                against[control] = welch(values, others)
        scores.append(Score(arm, kind, score, tuple(values), against))
    return scores


def reading(comparison: Comparison | None) -> str:
    """Say in a word what a comparison decides about "the arm is better than the baseline"."""
    if comparison is None:
        return "not run"
    difference = comparison.difference
    if comparison.p < 0.05:
        return "supported" if difference.value > 0 else "not supported: worse"
    if difference.high <= 0:
        return "not supported: no better"
    if difference.high < MARGIN:
        return f"not supported: at most {difference.high:.2f} better"
    return "not decidable with this n"


HEADINGS = ("other images, too", "p (Holm)", "would show", "reading")


def write(summary: Summary) -> str:
    """Return the summary as text."""
    parts = [f"{summary.study}, {summary.size}: {summary.about}"]
    if summary.lacking:
        parts.append(f"Not all runs are there: {', '.join(summary.lacking)}.")
    for title, (table, arms) in summary.tables.items():
        rows = [["arm", "n", "accuracy, %", f"minus {table.baseline}", *HEADINGS]]
        for arm in arms:
            spread = f" ± {arm.spread:.2f}" if len(arm.accuracies) > 1 else ""
            row = [arm.name, str(len(arm.accuracies)), f"{arm.mean:.2f}{spread}"]
            if (c := arm.comparison) is not None:
                d = c.difference
                row += [
                    f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})",
                    f"{c.wide[0]:+.2f} to {c.wide[1]:+.2f}",
                    *(f"{c.p:.3f}", f"{c.smallest:.2f}", reading(c)),
                ]
            rows.append(row)
        parts.append(f"{title}: {table.question}\n{_columns(rows)}")
    if summary.scores:
        rows = [["arm", "map", "score", "n", "mean", *(f"minus {c}" for c in CONTROLS)]]
        for s in summary.scores:
            spread = f" ± {np.std(s.values, ddof=1):.3f}" if len(s.values) > 1 else ""
            row = [s.arm, s.map, s.score, str(len(s.values)), f"{np.mean(s.values):.3f}{spread}"]
            found = (s.against.get(control) for control in CONTROLS)
            row += [
                "" if d is None else f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
                for d in found
            ]
            rows.append(row)
        parts.append(f"maps\n{_columns(rows)}")
    return "\n\n".join(parts)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Set rows of words below one another."""
    count = max(map(len, rows))
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(count)]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in full)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def draw(summary: Summary) -> "Figure":
    """Draw each table's differences to its baseline, with both intervals.

    Raises
    ------
    ValueError
        Where there is no difference yet, or no matplotlib.
    """
    try:
        from cbam_edu import plot
    except ImportError as error:
        raise ValueError(
            f"figures are drawn by matplotlib, which cannot be used here ({error}); "
            'run: pip install "cbam_edu[explain]"'
        ) from error
    panels = {}
    for title, (table, arms) in summary.tables.items():
        compared = [arm for arm in arms if arm.comparison is not None]
        if compared:
            panels[f"{title}: minus {table.baseline}"] = {
                arm.name: (*arm.comparison.difference[:3], *arm.comparison.wide)
                for arm in compared
                if arm.comparison is not None
            }
    if not panels:
        raise ValueError("no arm has two seeds yet, so that there is no difference to draw")
    return plot.differences(panels, label="difference in accuracy, percentage points")
