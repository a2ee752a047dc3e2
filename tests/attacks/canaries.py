"""Readers that are bad on purpose, each in one way: the watch must find all of them out."""

import contextlib
import ctypes
import io
import os
import pickle
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from watch import WARMING, Attack

_LIBRARY = ctypes.CDLL(None)


class _Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: object, *args: object):
        self.call = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def code_of_a_pickle(function: object, *args: object) -> bytes:
    """Return a pickle that calls a function when it is loaded."""
    return pickle.dumps(_Call(function, *args))


def _run_a_pickle(rng: random.Random, folder: Path) -> None:
    pickle.loads(code_of_a_pickle(os.system, "true"))  # what must never be done


def _extract(rng: random.Random, folder: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        tar.extractall(folder, filter="fully_trusted")  # what must never be done


def _open_and_write(rng: random.Random, folder: Path) -> None:
    (folder.parent / "kept").write_text("touched")


def _write_unseen(rng: random.Random, folder: Path) -> None:
    # As a library in C does it: Python reports nothing.
    _LIBRARY.truncate(os.fsencode(folder.parent / "kept"), 1)


def _swallow(rng: random.Random, folder: Path) -> None:
    with contextlib.suppress(BaseException):
        os.system("true")


def _run_text(rng: random.Random, folder: Path) -> None:
    compile("1 + 1", "text of the file", "eval")


def _hang(rng: random.Random, folder: Path) -> None:
    time.sleep(600 if (folder / "warm").exists() else 0)


def _loop(rng: random.Random, folder: Path) -> None:
    while (folder / "warm").exists():
        pass


def _grow(rng: random.Random, folder: Path) -> None:
    kept = []
    for _ in range(60 if (folder / "warm").exists() else 0):
        kept.append(b"x" * 50_000_000)
        time.sleep(0.02)


def _die(rng: random.Random, folder: Path) -> None:
    if (folder / "warm").exists():
        os.abort()


def _complain_at_length(rng: random.Random, folder: Path) -> None:
    raise ValueError("hostile.bin: first line\nTraceback (most recent call last)")


def _complain_of_nothing(rng: random.Random, folder: Path) -> None:
    raise ValueError("something is wrong")


def _stumble(rng: random.Random, folder: Path) -> None:
    {}["missing"]  # type: ignore[misc]


def _warmed(
    attempt: Callable[[random.Random, Path], object],
) -> Callable[[random.Random, Path], object]:
    """Behave as long as nobody looks."""

    def later(rng: random.Random, folder: Path) -> None:
        attempt(rng, folder)
        (folder / f"{len(list(folder.iterdir()))}").touch()
        if len(list(folder.iterdir())) == WARMING:
            (folder / "warm").touch()

    return later


def _bad(attempt: Callable[[random.Random, Path], object]) -> Attack:
    def make(rng: random.Random, folder: Path) -> Callable[[], object]:
        return lambda: attempt(rng, folder)

    return Attack("a bad reader", "inputs", make, (ValueError,), names="hostile")


# What is bad, and what the watch must say of it.
CANARIES: dict[str, tuple[Attack, str]] = {
    "a pickle is loaded": (_bad(_run_a_pickle), "not allowed: pickle.find_class"),
    "an archive is extracted as it says": (_bad(_extract), "not allowed: open"),
    "a file outside is written": (_bad(_open_and_write), "not allowed: open"),
    "a command is run and its fault hidden": (_bad(_swallow), "not allowed: os.system"),
    "a file outside is cut by C": (_bad(_write_unseen), "changed outside"),
    "text is compiled": (_bad(_run_text), "not allowed: compile"),
    "an undocumented exception": (_bad(_stumble), "KeyError"),
    "a page of text for an error": (_bad(_complain_at_length), "more than a sentence"),
    "an endless wait": (_bad(_warmed(_hang)), "no answer, and hardly any"),
    "an endless loop": (_bad(_warmed(_loop)), "more than 5 s"),
    "3 GB of memory": (_bad(_warmed(_grow)), "more than 1000 MB"),
    "the process dies": (_bad(_warmed(_die)), "the process ended with -6"),
    "an error that names nothing": (_bad(_complain_of_nothing), "does not name"),
}
