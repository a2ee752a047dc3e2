"""Kill the library at random and at chosen moments, and stop it as people and schedulers do.

::

    OMP_NUM_THREADS=1 python tests/attacks/kills.py [--kills N] [--only NAME ...] [--seed S]

`N` random moments of each kind of work, uniform over its measured time, and one kill before each
thing that it does to a file: a piece written, a syncing, a renaming. After each kill all that
stands under its final name must be whole; the next run must end well, with what a run that was not
killed leaves, to the last bit of the weights, and with no file more. Fifteen minutes on one core.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jobs
import recorded
from ground import Child, Ended, Trap, die, listing, site
from jobs import Job


class Reference:
    """What a job comes to when nothing stops it, and how long it takes."""

    def __init__(self, job: Job, ground: Path):
        self.job, self.ground = job, ground
        self.content, self.names, self.seconds = None, [], 0.0  # type: Any, list[str], float
        folder = self.fresh()
        jobs.warm(lambda: job.work(folder), ground)
        for _ in range(2):
            folder = self.fresh()
            child = self.start(folder)
            ended = child.end()
            self.seconds = time.monotonic() - child.began
            assert ended.code == 0, ended.said
            self.content, self.names = job.content(folder), listing(folder)
        trap = self.ground / "steps"

        def counted() -> int:
            watch = Trap(folder)
            watch.set()
            code = job.work(folder) or 0
            trap.write_text("\n".join(watch.seen))
            return code

        folder = self.fresh()
        assert Child(counted, self.ground / "said").end().code == 0
        self.steps = trap.read_text().split("\n")

    def fresh(self) -> Path:
        """Return a folder as it is before the work."""
        folder = self.ground / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.job.prepare(folder)
        return folder

    def start(self, folder: Path, trap: Callable[[], object] | None = None) -> Child:
        """Begin the work in a child."""

        def work() -> int | None:
            if trap:
                trap()
            return self.job.work(folder)

        return Child(work, self.ground / "said")

    def faults_after(self, folder: Path) -> list[str]:
        """Look at what a kill has left, do the work again, and look at that."""
        faults = self.not_whole(folder, "after the kill")
        ended = self.start(folder).end()
        if ended.code != 0:
            return [*faults, f"the next run ends with {ended.code}: {ended.said.strip()[-200:]}"]
        faults += self.not_whole(folder, "after the next run")
        if not faults and (found := self.job.content(folder)) != self.content:
            what = [k for k in found if found[k] != self.content[k]] if type(found) is dict else ""
            faults.append(f"the next run leaves something else {what}")
        if more := set(listing(folder)) - set(self.names):
            faults.append(f"left over: {len(more)} such as {_general(min(more))}")
        if less := set(self.names) - set(listing(folder)):
            faults.append(f"missing: {', '.join(sorted(less))}")
        return faults

    def not_whole(self, folder: Path, when: str) -> list[str]:
        """Say what stands there under its name and is not whole."""
        try:
            self.job.whole(folder)
        except Exception as error:
            return [f"not whole {when}: {type(error).__name__}: {str(error)[:200]}"]
        return []


def _general(name: str) -> str:
    """Return a name of a leftover with its random part gone."""
    import re

    return re.sub(r"[0-9a-f]{8}", "*", name)


def at_random(reference: Reference, kills: int, chances: random.Random) -> tuple[int, Counter[str]]:
    """Kill at moments uniform over the run; every third time kill the run that recovers, too."""
    done, faults = 0, Counter()  # type: int, Counter[str]
    while done < kills:
        folder = reference.fresh()
        for _ in range(1 if chances.random() < 2 / 3 else 2):
            child = reference.start(folder)
            moment = child.began + chances.uniform(0, reference.seconds)
            time.sleep(max(0.0, moment - time.monotonic()))
            done += child.kill()
            child.end()
        faults.update(reference.faults_after(folder))
    return done, faults


def at_each_step(
    reference: Reference, chances: random.Random, most: int
) -> tuple[int, Counter[str]]:
    """Kill before each thing that is done to a file, or before `most` of them."""
    numbers = range(1, len(reference.steps) + 1)
    chosen = numbers if len(numbers) <= most else sorted(chances.sample(numbers, most))
    faults: Counter[str] = Counter()
    done = 0
    for number in chosen:
        folder = reference.fresh()
        ended = reference.start(folder, Trap(folder, number, die).set).end()
        done += ended.code == -signal.SIGKILL
        faults.update(reference.faults_after(folder))
    return done, faults


def stopped(
    reference: Reference, number: int, times: int, chances: random.Random
) -> tuple[int, Counter[str]]:
    """Send Ctrl-C or SIGTERM at random moments: a sentence and an exit code, and all recovers."""
    done, faults = 0, Counter()  # type: int, Counter[str]
    while done < times:
        folder = reference.fresh()
        child = reference.start(folder)
        moment = child.began + chances.uniform(0.01, reference.seconds)
        time.sleep(max(0.0, moment - time.monotonic()))
        if not child.kill(number):
            continue
        ended = child.end(20)
        done += 1
        faults.update(_not_as_told(ended, number))
        faults.update(reference.faults_after(folder))
    return done, faults


def _not_as_told(ended: Ended, number: int) -> list[str]:
    if ended.code == 0 or (ended.code == 70 and "cbam_edu" not in ended.said):
        return []  # it was just done, or the attack's own lines before and after it were hit
    if number == signal.SIGTERM:
        return [] if ended.code == -signal.SIGTERM else [f"SIGTERM ends it with {ended.code}"]
    last = ended.said.strip().splitlines()[-1:]
    if ended.code != 130 or "Traceback" in ended.said or "cbam-edu: stopped" not in "".join(last):
        return [f"Ctrl-C ends it with {ended.code} and says {last}"]
    return []


def main() -> None:
    """Do the attacks that are asked for, and record each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with site(paced=0.02) as url, tempfile.TemporaryDirectory() as ground:
        works = {
            "training": {"": jobs.TRAIN},
            "downloading": {"": jobs.downloading(url("paced"))},
            "converting": {"": jobs.CONVERT},
            "experimenting": {"": jobs.EXPERIMENT},
            "saving": jobs.SAVING,
        }
        for name, kinds in works.items():
            if not args.only or name in args.only:
                attack(name, kinds, args.kills, args.seed, Path(ground))


def attack(name: str, kinds: dict[str, Job], kills: int, seed: int, ground: Path) -> None:
    """Kill one kind of work in all ways, and record what came of it."""
    chances = random.Random(f"{name} {seed}")
    began, faults = time.monotonic(), Counter()  # type: float, Counter[str]
    random_kills = aimed = 0
    lasted: dict[str, float] = {}
    for kind, job in kinds.items():
        reference = Reference(job, ground)
        lasted[kind] = round(reference.seconds, 2)
        done, found = at_random(reference, kills // len(kinds) + 1, chances)
        random_kills += done
        faults += found
        done, found = at_each_step(reference, chances, 60 // len(kinds))
        aimed += done
        faults += found
        print(name, kind, done, dict(faults), flush=True)
    recorded.write(
        "kills",
        f"killed while {name}",
        tried=random_kills + aimed,
        unit="kills",
        failed=sum(faults.values()),
        seconds=time.monotonic() - began,
        random_moments=random_kills,
        before_a_step=aimed,
        seconds_of_a_run=lasted,
        faults=dict(faults),
    )
    if name in ("training", "downloading", "experimenting"):
        began, faults = time.monotonic(), Counter()
        tried = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            done, found = stopped(Reference(job, ground), number, kills // 3, chances)
            tried += done
            faults += found
        print(name, "stopped", tried, dict(faults), flush=True)
        recorded.write(
            "kills",
            f"stopped by Ctrl-C or SIGTERM while {name}",
            tried=tried,
            unit="signals",
            failed=sum(faults.values()),
            seconds=time.monotonic() - began,
            faults=dict(faults),
        )


if __name__ == "__main__":
    main()
