"""Interrupt each chapter in the middle, kill it, repeat its cells, and run it again.

::

    python tests/attacks/interrupted.py [--only ATTACK ...] [NOTEBOOK ...]

Each chapter runs in a folder of its own, with a cache and a place for temporary files of its own,
and in quick mode, as in the tests. It goes wrong where a cell that was not stopped ends with an
error or writes to stderr, where what a compared cell prints is not what is stored, or where a file
stays in the reader's folder or cache that the chapter does not promise. `FOLDER` keeps what was
done, so that the attack itself can be interrupted. About an hour on one core.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import recorded
from jupyter_client.manager import KernelManager

sys.path.insert(0, str(recorded.ROOT / "book" / "_ext"))

import notebooks as runner

COMPARED = "# NBVAL_CHECK_OUTPUT"
STOPS = 3  # interrupts, or kills, in a chain
PATIENCE = 300  # seconds for a cell
WORK = Path(tempfile.gettempdir()) / "cbam_edu-interrupted"
ANYWHERE = 25  # cells that are run again in random order, of each chapter


@dataclass
class Outcome:
    """How a cell ended."""

    error: str = ""  # "", or name and words of what it raised
    text: str = ""  # what it printed and returned
    stderr: str = ""
    seconds: float = 0.0


@dataclass
class Room:
    """A reader's folder, cache and temporary folder."""

    root: Path
    places: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reader", "home", "temporary", "cache"):
            self.places[name] = self.root / name
            self.places[name].mkdir()

    def environment(self) -> dict[str, str]:
        """Return the environment of a kernel that knows these places and no other."""
        paths = [str(recorded.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CBAM_EDU_QUICK": "1",
            "CBAM_EDU_DATA": str(self.places["cache"]),
            "HOME": str(self.places["home"]),
            "TMPDIR": str(self.places["temporary"]),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }

    def left(self, *names: str) -> list[str]:
        """Return what lies in these places, but for hidden files and torch's cache."""
        return [
            f"{name}/{path.name}"
            for name in names
            for path in sorted(self.places[name].iterdir())
            if not path.name.startswith((".", "torchinductor_"))  # torch's own cache
        ]


class Kernel:
    """A kernel that can be stopped in the middle of a cell."""

    def __init__(self, room: Room):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.shutdown_wait_time = 60  # seconds to tidy up in, on a busy machine
        self.manager.start_kernel(
            cwd=str(room.places["reader"]), env=room.environment(), stderr=subprocess.DEVNULL
        )
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def interrupt(self) -> None:
        """Press the stop button."""
        self.manager.interrupt_kernel()

    def kill(self) -> None:
        """End it by SIGKILL, at once."""
        self.manager.signal_kernel(signal.SIGKILL)

    def close(self) -> None:
        """End it as a reader does."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=not self.manager.is_alive())

    def run(self, source: str, stop: Callable[[], None] | None = None, after: float = 0) -> Outcome:
        """Run a cell, and `stop` it after so many seconds, unless it ends before."""
        outcome, began = Outcome(), time.monotonic()
        cell = self.client.execute(source, allow_stdin=False)
        while time.monotonic() - began < PATIENCE:
            if stop is not None and time.monotonic() - began >= after:
                stop()
                stop = None
            if not self.manager.is_alive():
                outcome.error = "killed"
                break
            try:
                message = self.client.get_iopub_msg(timeout=0.02)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") == cell and _heard(message, outcome):
                break
        else:
            outcome.error = f"not finished after {PATIENCE} s"
        outcome.seconds = time.monotonic() - began
        return outcome


def _heard(message: dict[str, Any], outcome: Outcome) -> bool:
    """Note what a kernel says of a cell; return whether that was the last of it."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        name = "text" if content["name"] == "stdout" else "stderr"
        setattr(outcome, name, getattr(outcome, name) + content["text"])
    elif kind in ("execute_result", "display_data"):
        outcome.text += content["data"].get("text/plain", "")
    elif kind == "error":
        outcome.error = f"{content['ename']}: {content['evalue']}"
    return kind == "status" and content["execution_state"] == "idle"


@dataclass
class Chapter:
    """A notebook's cells of code."""

    path: Path

    def __post_init__(self) -> None:
        cells = [c for c in nbformat.read(self.path, 4).cells if c.cell_type == "code"]
        self.names = [cell.id for cell in cells]
        self.sources = [cell.source for cell in cells]
        self.stored = [_printed(cell.outputs) for cell in cells]
        self.seconds: list[float] = []

    def compared(self, i: int) -> bool:
        """Say whether what a cell prints is promised."""
        return self.sources[i].startswith(COMPARED)

    def faults(self, i: int, outcome: Outcome) -> list[str]:
        """Say what is wrong with how a cell ended that nobody stopped."""
        found = []
        if outcome.error:
            found.append(f"{self.names[i]}: {outcome.error[:300]}")
        elif self.compared(i) and _bare(outcome.text) != _bare(self.stored[i]):
            found.append(f"{self.names[i]} prints {outcome.text[:300]!r}")
        if outcome.stderr:
            found.append(f"{self.names[i]} writes to stderr: {outcome.stderr[:300]}")
        return found


def _printed(outputs: list[Any]) -> str:
    text = ""
    for output in outputs:
        text += output.get("text", "") + output.get("data", {}).get("text/plain", "")
    return text


def _bare(text: str) -> str:
    return runner.ADDRESS.sub("0x...", text).strip()


def run_all(kernel: Kernel, chapter: Chapter) -> list[str]:
    """Run a chapter from top to bottom; return what went wrong."""
    found = []
    for i, source in enumerate(chapter.sources):
        found += chapter.faults(i, kernel.run(source))
    return found


def run_until(
    kernel: Kernel, chapter: Chapter, moment: tuple[int, float], stop: Callable[[], None] | None
) -> tuple[list[str], str]:
    """Run from the top to a moment, (cell, seconds); return what went wrong and how it ended.

    Where a cell is done sooner than it once was, the next one is stopped at once.
    """
    found, (last, after) = [], moment
    for i, source in enumerate(chapter.sources):
        if i < last or stop is None:
            outcome = kernel.run(source)
            found += chapter.faults(i, outcome)
            if i >= last:
                return found, f"after {chapter.names[i]}"
            continue
        outcome = kernel.run(source, stop, after if i == last else 0.0)
        if outcome.error == "killed" or outcome.error.startswith("KeyboardInterrupt"):
            return found, f"in {chapter.names[i]}"
        if outcome.seconds < (after if i == last else 0.0):
            continue
        if outcome.error:
            found.append(f"{chapter.names[i]}, stopped: {outcome.error[:300]}")
        return found, f"at the end of {chapter.names[i]}"
    return found, "at the end"


def moments(chapter: Chapter, chance: random.Random) -> list[tuple[int, float]]:
    """Draw moments, ascending, of cells after the first two: each second is as likely."""
    weights = [0.0, 0.0, *chapter.seconds[2:]]
    cells = sorted(chance.choices(range(len(weights)), weights, k=STOPS))
    return [(i, chance.random() * chapter.seconds[i]) for i in cells]


@contextmanager
def in_a_room() -> Iterator[Room]:
    """Make a room, and remove it in the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Room(Path(folder).resolve())


def undisturbed(chapter: Chapter, chance: random.Random) -> dict[str, Any]:
    """Run a chapter as it is, and note how long each cell takes."""
    with in_a_room() as room:
        kernel = Kernel(room)
        found = []
        for i, source in enumerate(chapter.sources):
            outcome = kernel.run(source)
            chapter.seconds.append(round(outcome.seconds, 3))
            found += chapter.faults(i, outcome)
        kernel.close()
        found += [f"left: {name}" for name in room.left("reader", "cache", "temporary")]
    return {"tried": 1, "faults": found, "cells": chapter.seconds}


def interrupted(chapter: Chapter, chance: random.Random) -> dict[str, Any]:
    """Interrupt a chapter in cells and between two, each time running all again."""
    with in_a_room() as room:
        kernel = Kernel(room)
        found, where = [], []
        cells = len(chapter.sources)
        stops: list[tuple[tuple[int, float], Callable[[], None] | None]] = [
            ((chance.randrange(2, cells - 1), 0.0), None)
        ]
        stops += [(moment, kernel.interrupt) for moment in moments(chapter, chance)]
        for moment, stop in stops:
            wrong, place = run_until(kernel, chapter, moment, stop)
            found += wrong
            where.append(place)
        found += run_all(kernel, chapter)
        kernel.close()
        found += [f"left: {name}" for name in room.left("reader", "cache", "temporary")]
    return {"tried": len(stops), "faults": found, "where": where}


def killed(chapter: Chapter, chance: random.Random) -> dict[str, Any]:
    """Kill a chapter's kernel, several times, and run all in a new one, in the same folder."""
    with in_a_room() as room:
        found, where = [], []
        for moment in moments(chapter, chance):
            kernel = Kernel(room)
            wrong, place = run_until(kernel, chapter, moment, kernel.kill)
            kernel.close()
            found += wrong
            where.append(place)
        orphans = room.left("temporary")
        kernel = Kernel(room)
        found += run_all(kernel, chapter)
        kernel.close()
        found += [f"left: {name}" for name in room.left("reader", "cache")]
        found += [f"left: {name}" for name in set(room.left("temporary")) - set(orphans)]
        shared = sorted({name.split("/")[1] for name in orphans})
    return {"tried": STOPS, "faults": found, "where": where, "temporary": shared}


def repeated(chapter: Chapter, chance: random.Random) -> dict[str, Any]:
    """Run each cell twice in a row, from top to bottom; then some again, in random order."""
    found, later = [], []
    with in_a_room() as room:
        kernel = Kernel(room)
        for i, source in enumerate(chapter.sources):
            for time_of in ("first", "second"):
                wrong = chapter.faults(i, kernel.run(source))
                found += [f"{text} ({time_of} time)" for text in wrong]
        for i in chance.sample(range(len(chapter.sources)), ANYWHERE):
            outcome = kernel.run(chapter.sources[i])
            if outcome.error or outcome.stderr:  # what it prints may hang on what came before
                later += chapter.faults(i, outcome)
        kernel.close()
        found += [f"left: {name}" for name in room.left("reader", "cache", "temporary")]
    return {"tried": len(chapter.sources), "faults": found, "later": later}


def importing(chapter: Chapter, chance: random.Random) -> dict[str, Any]:
    """Interrupt the first imports, then run all in the same kernel."""
    first = next(i for i, source in enumerate(chapter.sources) if "import torch" in source)
    with in_a_room() as room:
        kernel = Kernel(room)
        moment = first, chance.uniform(0.05, 0.95) * chapter.seconds[first]
        found, place = run_until(kernel, chapter, moment, kernel.interrupt)
        found += run_all(kernel, chapter)[:1]
        kernel.close()
    return {"tried": 1, "faults": found, "where": [f"{place}, after {moment[1]:.2f} s"]}


Attack = Callable[[Chapter, random.Random], dict[str, Any]]
ATTACKS: dict[str, tuple[Attack, str, str]] = {
    "undisturbed": (undisturbed, "chapter run undisturbed, as a yardstick", "chapters"),
    "interrupted": (interrupted, "cell interrupted, all run again in the same kernel", "stops"),
    "killed": (killed, "kernel killed, all run again in a new one", "kills"),
    "repeated": (repeated, "each cell run twice in a row", "cells"),
    "importing": (importing, "first imports interrupted, all run again", "stops"),
}


def attack(path: Path, names: list[str]) -> None:
    """Do to a chapter what is not done yet."""
    chapter, done = Chapter(path), WORK / f"{path.stem}.json"
    results: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    chapter.seconds = results.get("undisturbed", {}).get("cells", [])
    for name in names:
        if name in results:
            continue
        began = time.monotonic()
        chance = random.Random(f"{path.stem} {name}")
        results[name] = ATTACKS[name][0](chapter, chance)
        results[name]["seconds"] = round(time.monotonic() - began, 1)
        done.write_text(json.dumps(results, indent=1))
        print(path.stem, name, results[name]["seconds"], results[name]["faults"], flush=True)


def write(names: list[str], paths: list[Path]) -> None:
    """Write the records of all chapters together."""
    chapters = {path.stem: json.loads((WORK / f"{path.stem}.json").read_text()) for path in paths}
    for name in names:
        of = {stem: results[name] for stem, results in chapters.items() if name in results}
        _, words, unit = ATTACKS[name]
        faults = {stem: result["faults"] for stem, result in of.items() if result["faults"]}
        recorded.write(
            "interrupted",
            words,
            tried=sum(result["tried"] for result in of.values()),
            unit=unit,
            failed=len(faults),  # chapters
            seconds=sum(result["seconds"] for result in of.values()),
            chapters=len(of),
            faults=faults,
            **_explained(faults),
            **_later(of),
        )


def _explained(faults: dict[str, list[str]]) -> dict[str, str]:
    """Return what a reader of the record must know of what went wrong."""
    text = str(faults)
    if not any(words in text for words in ("initialized", "has no attribute", "TORCH_LIBRARY")):
        return {}
    return {
        "explained": "An import of torch, NumPy, SymPy or Matplotlib was cut short; they cannot be "
        "imported again in the same process. The kernel must be started anew."
    }


def _later(of: dict[str, Any]) -> dict[str, Any]:
    """Return how cells fared in random order, which no chapter promises, where they were run so."""
    ends = [result["later"] for result in of.values() if "later" in result]
    if not ends:
        return {}
    return {
        "then again in random order": ANYWHERE * len(ends),
        "stopped there": sum(map(len, ends)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Attack the chapters named, or all of them, and record what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(ATTACKS))
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    options = parser.parse_args(arguments)
    every = sorted(runner.NOTEBOOKS.glob("*.ipynb"))
    paths = [path.resolve() for path in options.notebooks] or every
    names = [name for name in ATTACKS if name in ("undisturbed", *(options.only or ATTACKS))]
    WORK.mkdir(exist_ok=True)
    for path in paths:
        attack(path, names)
    if paths == every:
        write(names, paths)
        shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
