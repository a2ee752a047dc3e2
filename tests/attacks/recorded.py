"""Where the attacks of this folder write what came of them: ``book/results/reliability``."""

import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import filelock
import torch

import cbam_edu
from cbam_edu.records import commit, device_name
from cbam_edu.storage import make_folder, replace_file

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book/results/reliability"


def command() -> str:
    """Return the command that runs, as it is typed in the repository's folder."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix()
    return shlex.join(["python", script, *sys.argv[1:]])


def write(
    subject: str, attack: str, *, tried: int, unit: str, failed: int, seconds: float, **details: Any
) -> None:
    """Put one attack's record into ``subject.jsonl``, in place of an older one of the same attack.

    Parameters
    ----------
    subject : str
        The file: "properties", "mutants", "faults", "servers", "files" and so on.
    attack : str
        What was done, in the words in which the book's table names it.
    tried : int
        How often.
    unit : str
        Of what, in the plural: "kills", "examples".
    failed : int
        How many times the library did not do what it promises.
    seconds : float
        How long it took altogether.
    **details
        Further plain values.
    """
    path = make_folder(RESULTS) / f"{subject}.jsonl"
    record = {
        "attack": attack,
        "tried": tried,
        "unit": unit,
        "failed": failed,
        "seconds": round(seconds, 1),
        **details,
        "command": command(),
        "device": device_name(torch.device("cpu")),
        "versions": {
            "cbam_edu": cbam_edu.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "commit": commit(),
    }
    lock = Path(tempfile.gettempdir()) / "cbam_edu-attacks.lock"  # two attacks may end at once
    with filelock.FileLock(lock):
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        lines = [line for line in lines if json.loads(line)["attack"] != attack]
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False))
        text = "\n".join(lines) + "\n"
        replace_file(path, lambda file: file.write(text.encode()))


Attack = Callable[[], tuple[int, list[str], dict[str, Any]]]


def write_all(
    subject: str, attacks: Mapping[str, tuple[Attack, str, str]], names: list[str]
) -> None:
    """Do the attacks named, or all of them, and record each.

    An attack gives how often it tried, what went wrong, and further plain values. With it stand the
    words in which the book's table names it, and the unit.
    """
    for name in names or attacks:
        attack, words, unit = attacks[name]
        began = perf_counter()
        tried, wrong, details = attack()
        seconds = perf_counter() - began
        print(f"{words}: {tried} {unit}, {len(wrong)} wrong, {seconds:.0f} s {wrong}", flush=True)
        told = {"tried": tried, "unit": unit, "failed": len(wrong), "seconds": seconds}
        write(subject, words, **told, **details, wrong=wrong)
