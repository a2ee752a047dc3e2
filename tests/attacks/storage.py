"""Disks that are full or fail, folders that vanish or may not be written, clocks, and two at once.

::

    OMP_NUM_THREADS=1 python tests/attacks/storage.py [--only ATTACK ...] [--rounds N] [--seed S]

Whatever is refused must be told in one sentence, with nothing half-written left; what was there
must still be there; and the next run, where it may write, must end with what an untroubled run
leaves. What needs a disk of its own (mounted by root) is skipped, in words, where that cannot be.
Fifteen minutes on one core.
"""

import argparse
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import recorded
from ground import Child, Ended, Trap, listing, site
from jobs import Job
from kills import Reference

from cbam_edu import cli, storage
from cbam_edu.checkpoint import read_checkpoint

Faults = Counter[str]
WRITING = ("create", "write", "mkdir", "sync")  # what a full disk refuses
ANY = (errno.EIO, errno.EACCES, errno.EROFS)


def told(work: Callable[[], int | None]) -> int | None:
    """Do some work as the command line would: its refusals become a sentence and exit code 1."""
    try:
        return work()
    except storage.StorageError as error:
        print(f"cbam-edu: {error}")
        return 1


def attempt(job: Job, folder: Path) -> int | None:
    """Do a job as the command line would."""
    return told(lambda: job.work(folder))


def begin(reference: Reference, folder: Path, number: int = 0) -> Child:
    """Begin a job in a child, in a folder that may be in trouble."""
    said = reference.ground / f"said{number or ''}"
    said.unlink(missing_ok=True)
    return Child(functools.partial(attempt, reference.job, folder), said)


def not_told(ended: Ended) -> list[str]:
    """Say what is wrong with how a child that was in trouble ended."""
    if ended.code == 0:
        return []
    lines = ended.said.strip().splitlines() or [""]
    if ended.code not in (1, 2) or "Traceback" in ended.said:
        return [f"ends with {ended.code}: {lines[-1][:150]}"]
    if not lines[-1].startswith("cbam-edu: ") or "[Errno" in lines[-1]:
        return [f"says: {_plain(lines[-1])[:150]}"]
    return []


def _plain(line: str) -> str:
    return line.replace(tempfile.gettempdir(), "")


def halves(folder: Path) -> list[str]:
    """Return leftovers of files that were being written."""
    return [f"left over: {name}"[:40] for name in listing(folder) if name.endswith(".tmp")]


# --- each step fails ---


def failing(number: int, full: bool, trap: Trap) -> Callable[[str], None]:
    """Spring a trap by an error of the system's; a full disk stays full."""

    def spring(what: str) -> None:
        if full:
            trap.full = True
        raise OSError(number, os.strerror(number))

    return spring


class Full(Trap):
    """A disk that is full from the n-th step on."""

    def step(self, what: str) -> None:
        """Note one thing; refuse it where it needs room."""
        super().step(what)
        if self.full and what in WRITING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_each_step(
    reference: Reference, numbers: tuple[int, ...], most: int, chances: random.Random
) -> tuple[int, Faults]:
    """Let each step of a work fail, or `most` of them, with each of these errors."""
    tried, faults = 0, Counter()  # type: int, Faults
    for number in numbers:
        full = number == errno.ENOSPC
        steps = [i for i, s in enumerate(reference.steps, 1) if not full or s in WRITING]
        for at in steps if len(steps) <= most else sorted(chances.sample(steps, most)):
            folder = reference.fresh()
            trap = Full(folder, at)
            trap.spring = failing(number, full, trap)

            def work(trap: Trap = trap, folder: Path = folder) -> int | None:
                trap.set()
                return told(lambda: reference.job.work(folder))

            ended = Child(work, reference.ground / "said").end()
            what = f"{errno.errorcode[number]} at {reference.steps[at - 1]}"
            found = not_told(ended)
            if reference.steps[at - 1] != "remove":
                found += halves(folder)
            faults.update(f"{what}: {fault}" for fault in found)
            faults.update(f"{what}: {fault}" for fault in reference.faults_after(folder))
            tried += 1
    return tried, faults


# --- disks of their own ---


def mounted(folder: Path, *words: str) -> bool:
    """Mount a small disk in memory; say whether that could be done."""
    command = ["mount", "-t", "tmpfs", *words, "tmpfs", str(folder)]
    return not subprocess.run(command, check=False, capture_output=True).returncode


def unmount(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def on_small_disks(reference: Reference) -> tuple[int, Faults]:
    """Work on real disks, from one of a few kilobytes to one with room."""
    tried, faults = 0, Counter()  # type: int, Faults
    for kilobytes in (4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048):
        folder = reference.ground / "disk"
        folder.mkdir(exist_ok=True)
        if not mounted(folder, "-o", f"size={kilobytes}k"):
            return 0, faults
        try:
            reference.job.prepare(folder)
        except OSError:
            unmount(folder)  # not even room for what is there before
            continue
        try:
            ended = begin(reference, folder).end()
            found = not_told(ended) + halves(folder) + reference.not_whole(folder, "on it")
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            found += reference.faults_after(folder)
            faults.update(f"{kilobytes} kB: {fault}" for fault in found)
            tried += 1
        finally:
            unmount(folder)
    return tried, faults


def on_read_only_disks(reference: Reference) -> tuple[int, Faults]:
    """Work on a real disk that may only be read, before anything was done there and after."""
    tried, faults = 0, Counter()  # type: int, Faults
    for done in (False, True):
        folder = reference.ground / "disk"
        folder.mkdir(exist_ok=True)
        if not mounted(folder):
            return 0, faults
        try:
            reference.job.prepare(folder)
            if done:
                assert reference.start(folder).end().code == 0
            before = {name: _bytes(folder / name) for name in listing(folder)}
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            ended = begin(reference, folder).end()
            found = not_told(ended)
            if before != {name: _bytes(folder / name) for name in listing(folder)}:
                found.append("something was changed")
            faults.update(f"read-only disk, {'done before' if done else 'new'}: {f}" for f in found)
            tried += 1
        finally:
            unmount(folder)
    return tried, faults


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def without_permission(reference: Reference) -> tuple[int, Faults]:
    """Work as a user who may write nothing there, or not over the files that are there."""
    if os.geteuid():
        return 0, Counter()
    tried, faults = 0, Counter()  # type: int, Faults
    for folders, files in ((0o555, 0o644), (0o555, 0o444), (0o000, 0o644), (0o777, 0o444)):
        folder = reference.fresh()
        for path in [folder, *folder.rglob("*")]:
            path.chmod(folders if path.is_dir() else files)
        before = {name: _bytes(folder / name) for name in listing(folder)}

        def work(folder: Path = folder) -> int | None:
            os.setgid(65534)
            os.setuid(65534)
            return told(lambda: reference.job.work(folder))

        (reference.ground / "said").unlink(missing_ok=True)
        ended = Child(work, reference.ground / "said").end()
        found = not_told(ended) + halves(folder)
        found += [
            f"{name} was changed"
            for name, content in before.items()
            if _bytes(folder / name) != content
        ]
        faults.update(f"permissions {folders:o} and {files:o}: {fault}" for fault in found)
        tried += 1
    return tried, faults


# --- what happens meanwhile ---


def vanishing(reference: Reference, rounds: int, chances: random.Random) -> tuple[int, Faults]:
    """Take the folder away while the work runs."""
    tried, faults = 0, Counter()  # type: int, Faults
    while tried < rounds:
        folder = reference.fresh()
        child = begin(reference, folder)
        time.sleep(chances.uniform(0, reference.seconds))
        shutil.rmtree(folder, ignore_errors=True)
        ended = child.end()
        found = not_told(ended)
        folder = reference.fresh()
        found += reference.faults_after(folder)
        faults.update(f"folder gone: {fault}" for fault in found)
        tried += 1
    return tried, faults


def clock_set_back(reference: Reference, rounds: int, chances: random.Random) -> tuple[int, Faults]:
    """Set the clock back, by a second to twenty years, at some looks at it."""
    tried, faults, now = 0, Counter(), time.time  # type: int, Faults, Callable[[], float]
    while tried < rounds:
        folder = reference.fresh()
        seed = chances.random()

        def work(folder: Path = folder, seed: float = seed) -> int | None:
            jumps, behind = random.Random(seed), [0.0]

            def wrong() -> float:
                if jumps.random() < 0.2:
                    behind[0] += 10 ** jumps.uniform(0, 8.8)
                return now() - behind[0]

            time.time = wrong
            os.utime(folder, (0, 0))
            return reference.job.work(folder)

        ended = Child(work, reference.ground / "said").end()
        found = not_told(ended) + ([f"code {ended.code}"] if ended.code else [])
        for path in folder.rglob("*"):
            os.utime(path, (2**33, 2**33))  # left by somebody whose clock is far ahead
        found += reference.faults_after(folder)
        faults.update(f"clock: {fault}" for fault in found)
        tried += 1
    return tried, faults


def at_once(reference: Reference, rounds: int, chances: random.Random) -> tuple[int, Faults]:
    """Let two or three processes do the same work in the same place at the same time."""
    tried, faults = 0, Counter()  # type: int, Faults
    while tried < rounds:
        folder = reference.fresh()
        children = []
        for number in range(chances.choice((2, 2, 3))):
            children.append(begin(reference, folder, number))
            time.sleep(chances.choice((0, 0, 0.01, reference.seconds * chances.random())))
        ends = [child.end() for child in children]
        found = [fault for ended in ends for fault in not_told(ended)]
        found += [f"ends with {ended.code}: {ended.said[-150:]}" for ended in ends if ended.code]
        found += halves(folder)
        faults.update(f"at once: {f}" for f in found + reference.faults_after(folder))
        tried += 1
    return tried, faults


def rivals(ground: Path, rounds: int, chances: random.Random) -> tuple[int, Faults]:
    """Start two trainings of different seeds in one folder: one is refused, the other is whole."""
    tried, faults = 0, Counter()  # type: int, Faults
    while tried < rounds:
        folder = ground / "rivals"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        children = []
        for seed in ("1", "2"):
            children.append(
                Child(functools.partial(jobs.train, folder, "--seed", seed), ground / f"said{seed}")
            )
            time.sleep(chances.choice((0, 0, 0.01, 0.05)))
        ends = [child.end() for child in children]
        if sorted(str(ended.code) for ended in ends) != ["0", "2"]:
            faults[f"exit codes {[ended.code for ended in ends]}"] += 1
        winner = next((i for i, ended in enumerate(ends, 1) if ended.code == 0), 0)
        state = read_checkpoint(folder / "run/checkpoint.pt")
        record = json.loads((folder / "run/record.jsonl").read_text())
        if {state["identity"]["seed"], record["seed"]} != {winner}:
            faults["the folder holds parts of two runs"] += 1
        faults.update(halves(folder))
        tried += 1
    return tried, faults


# --- names, and what is in the way ---

NAMES = {
    "spaces": "a folder  of mine ",
    "a new line": "a\nb",
    "not UTF-8": os.fsdecode(b"\xff\xfe\x80"),
    "signs for the terminal": "\x1b[31mred",
    "quotes": 'it\'s "this" $HOME `x` ;',
    "a dash": "-rf",
    "a star": "[a]*?",
    "letters of all kinds": "données-数据-данные-😀",
    "255 bytes": "x" * 255,
    "256 bytes": "x" * 256,
    "a path of 4,000 letters": "/".join(["y" * 200] * 20),
    "a path too long": "/".join(["y" * 200] * 25),
}


def odd_names(works: dict[str, Job], ground: Path) -> tuple[int, Faults]:
    """Work in folders of odd names."""
    tried, faults = 0, Counter()  # type: int, Faults
    for what, name in NAMES.items():
        for kind, job in works.items():
            top = ground / "names"
            shutil.rmtree(top, ignore_errors=True)
            top.mkdir()
            try:
                (top / name).mkdir(parents=True)
            except OSError:
                continue  # no system takes it
            job.prepare(top / name)
            ended = Child(functools.partial(attempt, job, top / name), ground / "said").end()
            found = not_told(ended)
            if ended.code != 0 and "too long" not in ended.said:
                found.append(f"ends with {ended.code}: {ended.said.strip()[-150:]}")
            found += halves(top)
            faults.update(f"{what}, {kind}: {fault}" for fault in found)
            tried += 1
    return tried, faults


def odd_targets(ground: Path) -> tuple[int, Faults]:
    """Give odd names to the command itself: outputs, pictures, records."""
    tried, faults = 0, Counter()  # type: int, Faults
    top = ground / "targets"
    warmed = False
    for what, name in NAMES.items():
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        jobs.SAVING["a figure"].prepare(top)
        picture = top / name
        try:
            shutil.copy(top / "figure.png", picture)
        except OSError:
            picture = top / "figure.png"
        commands = {
            "predict": ["predict", "--", str(picture)],
            "report": ["report", "tiny", "--size", "small", "--records", str(top / "runs.jsonl"),
                       f"--figure={top / name}.png"],
            "benchmark": ["benchmark", "--shape", "1x4x4x4", "--names", "plain", "--rounds", "2",
                          "--device", "cpu", f"--out={top / name}.jsonl"],
            "export": ["export", "--format", "torch-export", f"--out={top / name}.pt2"],
            "evaluate": ["evaluate", f"--model={top / name}", "--data", "cifar10-mini"],
            "experiment": ["experiment", "tiny", "--size", "small", f"--out={top / name}/r.jsonl",
                           "--device", "cpu", "--arms", "none", "--seeds", "0"],
        }  # fmt: skip
        for words in [] if warmed else commands.values():
            jobs.warm(functools.partial(jobs.command, words), ground)
        warmed = True
        for command, words in commands.items():
            ended = Child(functools.partial(jobs.command, words), ground / "said").end()
            found = not_told(ended) + halves(top)
            if command == "predict" and ended.code:
                found.append(f"ends with {ended.code}: {ended.said.strip()[-150:]}")
            faults.update(f"{what}, {command}: {fault}" for fault in found)
            tried += 1
    return tried, faults


def in_the_way(works: dict[str, Job], references: dict[str, Reference]) -> tuple[int, Faults]:
    """Put a folder where each file will be, a file where each folder, and links for both."""
    tried, faults = 0, Counter()  # type: int, Faults
    for kind, reference in references.items():
        names = [n for n in reference.names if not n.endswith(".lock")]
        done = reference.ground / "done"
        shutil.rmtree(done, ignore_errors=True)
        folder = reference.fresh()
        assert reference.start(folder).end().code == 0
        shutil.copytree(folder, done)
        for name in names:
            for what in ("the other kind", "a link", "a link to nowhere", "a circle of links"):
                folder = reference.fresh()
                place, far = folder / name, reference.ground / "far"
                shutil.rmtree(far, ignore_errors=True)
                far.mkdir()
                if place.exists() and what != "a link":
                    continue  # what the work reads is not at stake here
                place.parent.mkdir(parents=True, exist_ok=True)
                _put(place, what, (done / name).is_dir(), far)
                ended = begin(reference, folder).end()
                found = not_told(ended) + halves(folder) + halves(far)
                if what == "a link" and ended.code == 0 and not place.is_symlink():
                    found.append("the link is gone")
                if what == "a link" and ended.code:
                    found.append(f"ends with {ended.code}: {ended.said.strip()[-150:]}")
                faults.update(f"{kind}, {what} for {Path(name).name}: {f}" for f in found)
                tried += 1
    return tried, faults


def _put(place: Path, what: str, is_folder: bool, far: Path) -> None:
    if what == "the other kind":
        place.touch() if is_folder else place.mkdir()
    elif what == "a link":
        if place.exists():
            place.rename(far / "there")
        elif is_folder:
            (far / "there").mkdir()
        else:
            (far / "there").write_bytes(b"")
        place.symlink_to(far / "there")
    elif what == "a link to nowhere":
        place.symlink_to(far / "nowhere")
    else:
        place.symlink_to(place)


# --- all of it ---


def main() -> None:
    """Do the attacks that are asked for, and record each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--works", nargs="+", default=[])
    args = parser.parse_args()
    with site() as url, tempfile.TemporaryDirectory() as name:
        ground = Path(name)
        ground.chmod(0o777)
        works = {
            "training": jobs.TRAIN,
            "downloading": jobs.downloading(url("good")),
            "experimenting": jobs.EXPERIMENT,
            "converting": jobs.CONVERT,
            **jobs.ONCE,
        }
        works = {k: v for k, v in works.items() if not args.works or k in args.works}
        references = {}
        for kind, job in works.items():
            (ground / kind).mkdir()
            (ground / kind).chmod(0o777)
            references[kind] = Reference(job, ground / kind)
        chances = random.Random(args.seed)
        rounds = args.rounds
        light = {k: r for k, r in references.items() if k != "an export"}

        def each(
            act: Callable[..., tuple[int, Faults]], chosen: dict[str, Reference], *more: Any
        ) -> tuple[int, Faults]:
            tried, faults = 0, Counter()  # type: int, Faults
            for kind, reference in chosen.items():
                count, found = act(reference, *more)
                tried += count
                faults.update({f"{kind}: {fault}": n for fault, n in found.items()})
            return tried, faults

        attacks: dict[str, tuple[str, Callable[[], tuple[int, Faults]]]] = {
            "small disks": ("disks", lambda: each(on_small_disks, light)),
            "read-only disks": ("disks", lambda: each(on_read_only_disks, light)),
            "no permission": ("runs", lambda: each(without_permission, light)),
            "folder taken away meanwhile": (
                "runs",
                lambda: each(vanishing, light, rounds, chances),
            ),
            "clock set back meanwhile": (
                "runs",
                lambda: each(clock_set_back, light, rounds, chances),
            ),
            "two or three processes at once": (
                "rounds",
                lambda: each(at_once, light, rounds, chances),
            ),
            "two trainings in one folder": ("rounds", lambda: rivals(ground, 2 * rounds, chances)),
            "odd names": ("runs", lambda: odd_names({k: works[k] for k in light}, ground)),
            "odd names typed in": ("commands", lambda: odd_targets(ground)),
            "files, folders and links in the way": ("runs", lambda: in_the_way(works, light)),
            "disk full at each step of writing": (
                "runs",
                lambda: each(at_each_step, references, (errno.ENOSPC,), 60, chances),
            ),
            "each step refused by the system": (
                "runs",
                lambda: each(at_each_step, light, ANY, 12, chances),
            ),
        }
        for attack, (unit, act) in attacks.items():
            if args.only and attack not in args.only:
                continue
            began = time.monotonic()
            tried, faults = act()
            print(attack, tried, flush=True)
            for fault, number in faults.items():
                print("   ", number, fault, flush=True)
            if not tried:
                print(f"    skipped: {attack} needs root, who may mount disks and be others")
            else:
                recorded.write(
                    "storage",
                    attack,
                    tried=tried,
                    unit=unit,
                    failed=sum(faults.values()),
                    seconds=time.monotonic() - began,
                    works=list(works),
                    faults=dict(faults),
                )


if __name__ == "__main__":
    assert cli
    assert signal
    main()
