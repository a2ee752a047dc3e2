"""How often the intervals of `cbam_edu.statistics` hold the truth, in worlds where it is known.

    python tests/coverage_study.py [--out FILE]

Three kinds of worlds. In "welch" the accuracies of two arms are normal. In "holm" several arms are
compared with one baseline, and no arm, or only some, differ from it. In "bootstrap" a network of
some seed names an image rightly with a probability that depends on how good that seed came out, on
how hard the image is, and on how well the arm, whatever the seed, fits that image; the truth is the
arms' difference for all seeds and all images.

One line of JSON a world is written as soon as it is known: how often the truth was covered, and
how often a difference was reported where there is none. It takes some minutes; run again, the
program goes on where it stopped.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from cbam_edu.statistics import LEVEL, bootstrap, holm, welch
from cbam_edu.storage import make_folder, replace_file

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "book/results/checks/coverage.jsonl"
SEEDS = (3, 5, 8, 20)
SPREADS = ((1, 1), (3, 1))  # standard deviations over seeds, of the arm and of the baseline
FAMILIES = ((2, 0), (8, 0), (8, 4))  # arms, of which so many do differ from the baseline
# What matters: seeds, images x arm, as standard deviations on the scale of the probit.
WORLDS = {"seeds": (0.1, 0.0), "images": (0.02, 0.8), "both": (0.06, 0.4)}
HARDNESS = 1.2  # how much the images differ, for all arms alike


def exact_welch(counts: tuple[int, int], spreads: tuple[float, float], grid: int = 200) -> float:
    """Return how often Welch's interval covers, by integration over the two sample variances.

    It rests on an approximation of the degrees of freedom, so that this is not quite 95 %.
    """
    quantiles = (np.arange(grid) + 0.5) / grid
    a, b = (
        s**2 * stats.chi2.ppf(quantiles, n - 1) / (n - 1) / n
        for n, s in zip(counts, spreads, strict=True)
    )
    a, b = a[:, None], b[None]
    freedom = (a + b) ** 2 / (a**2 / (counts[0] - 1) + b**2 / (counts[1] - 1))
    error = np.sqrt(sum(s**2 / n for n, s in zip(counts, spreads, strict=True)))
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(a + b) / error
    return float((2 * stats.norm.cdf(reach) - 1).mean())


def of_welch(
    rng: np.random.Generator, seeds: int, spreads: tuple[float, float], repetitions: int
) -> dict[str, int]:
    """Compare two arms that differ by 2, and two that do not."""
    covered = alarms = 0
    for _ in range(repetitions):
        a, b = (rng.normal(90, s, seeds) for s in spreads)
        found = welch(a + 2, b)
        covered += found.low <= 2 <= found.high
        alarms += welch(rng.normal(90, spreads[0], seeds), b).p < 1 - LEVEL
    return {"covered": covered, "alarms": alarms}


def of_holm(
    rng: np.random.Generator, seeds: int, family: tuple[int, int], repetitions: int
) -> dict[str, int]:
    """Compare several arms with one baseline; count studies with any false alarm."""
    (arms, differing), alarms, uncorrected = family, 0, 0
    for _ in range(repetitions):
        baseline = rng.normal(90, 1, seeds)
        effects = np.where(np.arange(arms) < differing, 3.0, 0.0)
        p = [welch(rng.normal(90 + effect, 1, seeds), baseline).p for effect in effects]
        alarms += min(holm(p)[differing:]) < 1 - LEVEL
        uncorrected += min(p[differing:]) < 1 - LEVEL
    return {"alarms": alarms, "uncorrected alarms": uncorrected}


def answers(
    rng: np.random.Generator, world: str, seeds: int, images: int, levels: tuple[float, ...]
) -> list[np.ndarray]:
    """Return for each arm which images its networks name rightly, ``(seeds, images) bool``."""
    of_seeds, of_fit = WORLDS[world]
    hardness = rng.normal(0, HARDNESS, images)
    arms = []
    for level in levels:
        fit = rng.normal(0, of_fit, images)  # the same for all seeds of the arm
        luck = rng.normal(0, of_seeds, (seeds, 1))
        chances = special.ndtr(level + hardness + fit + luck)
        arms.append(rng.random((seeds, images)) < chances)
    return arms


def accuracy(world: str, level: float) -> float:
    """Return an arm's accuracy over all seeds and all images."""
    return float(special.ndtr(level / np.sqrt(1 + HARDNESS**2 + np.square(WORLDS[world]).sum())))


def of_bootstrap(
    rng: np.random.Generator, seeds: int, world: str, images: int, repetitions: int, draws: int
) -> dict[str, int]:
    """Compare two arms that differ, and two that do not; by Welch's interval as well."""
    names = ("covered", "alarms", "covered by Welch", "alarms of Welch")
    counts, levels = dict.fromkeys(names, 0), (0.6, 0.5)
    truth = accuracy(world, levels[0]) - accuracy(world, levels[1])
    for turn in range(repetitions):
        a, b = answers(rng, world, seeds, images, levels)
        low, high = bootstrap(a, b, draws=draws, seed=turn)
        counts["covered"] += low <= truth <= high
        _, low, high, _ = welch(a.mean(1), b.mean(1))
        counts["covered by Welch"] += low <= truth <= high
        a, b = answers(rng, world, seeds, images, levels[:1] * 2)
        low, high = bootstrap(a, b, draws=draws, seed=turn)
        counts["alarms"] += not low <= 0 <= high
        counts["alarms of Welch"] += welch(a.mean(1), b.mean(1)).p < 1 - LEVEL
    return counts


Study = Callable[[np.random.Generator], dict[str, int]]


def worlds() -> Iterator[tuple[dict[str, Any], Study]]:
    """Name every world, and what to do in it."""
    for n, spreads in itertools.product(SEEDS, SPREADS):
        about = {"method": "welch", "seeds": n, "spreads": list(spreads), "repetitions": 4000}
        yield about, partial(of_welch, seeds=n, spreads=spreads, repetitions=4000)
    for n, family in itertools.product((5, 8), FAMILIES):
        about = {"method": "holm", "seeds": n, "family": list(family), "repetitions": 4000}
        yield about, partial(of_holm, seeds=n, family=family, repetitions=4000)
    for n, world in itertools.product((5, 20), WORLDS):
        size = {"images": 300, "repetitions": 1000, "draws": 200}
        about = {"method": "bootstrap", "seeds": n, "world": world, **size}
        yield about, partial(of_bootstrap, seeds=n, world=world, **size)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, if it is there."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RECORDED, help="the file of results")
    path = parser.parse_args(words).out
    make_folder(path.parent)
    records = read(path)
    for about, run in worlds():
        about["nominal"] = LEVEL
        if not any(about.items() <= record.items() for record in records):
            records.append(about | run(np.random.default_rng(about["seeds"])))
            text = "".join(json.dumps(record) + "\n" for record in records)
            replace_file(path, lambda file, text=text: file.write(text.encode()))
            print(json.dumps(records[-1]), flush=True)


if __name__ == "__main__":
    main()
