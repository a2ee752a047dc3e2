"""One JSON record a run: what was trained, how, and what came out; and files of records."""

import base64
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import torch
from torch import Tensor, nn

import cbam_edu
from cbam_edu.complexity import count
from cbam_edu.data import ImageSet
from cbam_edu.recipe import Recipe
from cbam_edu.storage import append_lines, explained, open_file

# What decides what a run comes to, in this package: records are compared only where it is the same.
_TRAINING = (
    *("attention.py", "checkpoint.py", "data", "distributed.py", "fused", "measure.py", "models"),
    *("neighbours.py", "recipe.py", "train.py"),
)
# Fields of a recipe that change how it is computed, not what.
_COMPUTING = ("seed", "channels_last", "compile", "deterministic")
Record = dict[str, Any]


def commit() -> str | None:
    """Return the commit of the code that runs, "-dirty" after it where the code was changed.

    None where the package is installed without its repository.
    """
    package = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if not git("ls-files", "attention.py"):  # installed inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def code() -> str:
    """Return a digest of the code that trains: of every file of the package that is part of it."""
    package = Path(__file__).parent
    found = hashlib.sha256()
    for name in _TRAINING:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(package).as_posix()}\n".encode())
            found.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return found.hexdigest()[:16]


def device_name(device: torch.device) -> str:
    """Name a device so that a reader can tell which kind of machine a figure is from."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"MPS ({platform.processor() or platform.machine()})"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def record(
    study: str,
    model: nn.Module,
    recipe: Recipe,
    history: list[dict[str, float]],
    *,
    data: str,
    images: tuple[int, int],
    size: int = 32,
    device: torch.device,
) -> dict[str, Any]:
    """Describe a finished run in one dictionary of plain values, for a line of JSON.

    Parameters
    ----------
    study : str
        What the run belongs to.
    model : torch.nn.Module
        The network, made by `cbam_edu.models.create_model`.
    recipe : Recipe
        How it was trained.
    history : list of dict
        What `cbam_edu.train.fit` returned, the accuracy on test images with it.
    data : str
        The name of the images.
    images : tuple of int
        How many it was trained on and measured on.
    size : int
        The side of an image.
    device : torch.device
        Where.

    Returns
    -------
    dict
        `accuracy` is that of the last epoch, from 0 to 1; `seconds` is the time spent in training
        steps; `multiply_accumulates` is for one image; `code` is a digest of what trains.
    """
    config: dict[str, Any] = vars(model)["config"]
    cost = count(model, (3, size, size))
    last = history[-1]
    return {
        "study": study,
        "model": config["name"],
        "arm": config["attention"] or "none",
        "seed": recipe.seed,
        "accuracy": last["accuracy"],
        "loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "epochs": len(history),
        "seconds": round(sum(entry["seconds"] for entry in history), 1),
        "parameters": cost.parameters,
        "multiply_accumulates": cost.multiply_accumulates,
        "data": data,
        "train_images": images[0],
        "test_images": images[1],
        "device": device_name(device),
        "versions": {
            "cbam_edu": cbam_edu.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "commit": commit(),
        "code": code(),
        "config": config,
        "recipe": asdict(recipe),
    }


def digest(*sets: ImageSet) -> str:
    """Return a digest of images and labels, bit for bit."""
    found = hashlib.sha256()
    for images in sets:
        found.update(images.images.numpy().tobytes())
        found.update(images.labels.numpy().tobytes())
    return found.hexdigest()[:16]


def pack(right: Tensor) -> str:
    """Write ``(N,) bool`` as text, eight a byte."""
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """Read what `pack` wrote: ``(count,) bool``; ValueError for another number of answers."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    if count < 1 or len(bits) != (count + 7) // 8 * 8:
        raise ValueError(f"{len(bits)} bits are no answers to {count} images")
    return bits[:count].astype(bool)


class Broken(NamedTuple):
    """A line of a file that is no whole record: where, and what is wrong with it."""

    path: Path
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.why}; skipped"


_COUNTS = ("seed", "epochs", "parameters", "multiply_accumulates", "train_images", "test_images")
_WORDS = ("study", "size", "model", "arm", "data", "digest", "correct", "device", "code", "command")
_FIELDS: dict[str, Any] = {  # what a whole record has, and of which kind
    **dict.fromkeys(_WORDS, str),
    **dict.fromkeys(_COUNTS, int),
    **dict.fromkeys(("accuracy", "loss", "seconds"), int | float),
    **dict.fromkeys(("versions", "config", "recipe"), dict),
    "commit": str | None,
}

# What is looked into, where it is there, and what it must hold.
_WITHIN: dict[str, dict[str, Any]] = {
    "recipe": {"batch_size": int, "precision": str},
    "versions": {"torch": str},
    "config": {},
    "changes": {},
    "scores": {},
}


def read(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Record], list[Broken]]:
    """Read records, and find the lines that are none, such as one that was cut in half.

    A run that stands in the files more than once, as after a merge, is taken once.

    Raises
    ------
    cbam_edu.storage.StorageError
        Where a file cannot be read.
    """
    records: dict[str, Record] = {}
    broken = []
    for path in map(Path, paths):
        with explained("read", path), open_file(path) as file:
            lines = file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = _whole(line)
            except ValueError as error:
                broken.append(Broken(path, number, str(error)))
            else:
                records.setdefault(json.dumps(record, sort_keys=True), record)
    return list(records.values()), broken


def recorded(study: str, size: str) -> list[Record]:
    """Return the records that come with the book, of a study at a size, by arm and seed.

    Raises
    ------
    ValueError
        Where the study has not been run at that size, or a line of the records is broken.
    """
    folder = _inside("studies")
    path = folder / f"{study}-{size}.jsonl"
    if path not in folder.glob("*.jsonl"):  # a name with ".." in it leads nowhere else
        raise ValueError(
            f"the book has no records of {study}, {size}; cbam-edu experiment {study} --size "
            f"{size} makes them"
        )
    records, broken = read([path])
    if broken:
        raise ValueError("; ".join(map(str, broken)))
    return sorted(records, key=lambda r: (r["arm"], r["seed"]))


def course(run: str) -> list[dict[str, float]]:
    """Return a recorded run's course, one entry an epoch, as `cbam_edu.train.fit` returns it.

    Parameters
    ----------
    run : str
        A study at a size and an arm of it, such as ``"neighbours-resnet20-full_none"``.

    Raises
    ------
    ValueError
        Where the book keeps no course of that run, with those that it keeps.
    """
    folder = _inside("logs")
    known = sorted(path.stem for path in folder.glob("*.jsonl"))
    if run not in known:
        raise ValueError(f"the book has no course of {run!r}, but of {', '.join(known) or 'none'}")
    lines = (folder / f"{run}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _inside(kind: str) -> Path:
    """Return where the book's results of a kind are, such as "studies" or "logs"."""
    package = Path(__file__).parent
    inside = package / "results"  # of an installed package; beside the book, the book has them
    return (inside if inside.is_dir() else package.parent / "book" / "results") / kind


def _whole(line: bytes) -> Record:
    """Return the record in a line, or raise ValueError with what it lacks."""
    try:
        record = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:  # not JSON, or not even text
        raise ValueError(f"no whole line of JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    if missing := sorted(_FIELDS.keys() - record.keys()):
        raise ValueError(f"the record lacks {', '.join(missing)}")
    if wrong := [key for key, kind in _FIELDS.items() if not isinstance(record[key], kind)]:
        raise ValueError(f"the record has what no run has: {_few(record, wrong)}")
    if wrong := [key for key in _COUNTS if record[key] is True or not 0 <= record[key] < 2**63]:
        raise ValueError(f"the record has what no run has: {_few(record, wrong)}")
    for name, kinds in _WITHIN.items():
        inner = record.get(name, {})
        if not isinstance(inner, dict) or any(k not in inner for k in kinds):
            raise ValueError(f"the record lacks {', '.join(kinds) or 'all'} in {name}")
        if wrong := [k for k, kind in kinds.items() if not isinstance(inner[k], kind)]:
            raise ValueError(f"the record has what no run has: {_few(inner, wrong)}")
    scores = record.get("scores", {})
    if wrong := [k for k, v in scores.items() if not isinstance(v, int | float) or v is True]:
        raise ValueError(f"the record has what no run has: {_few(scores, wrong)}")
    numbers = (record["accuracy"], record["loss"], record["seconds"], *scores.values())
    if not all(abs(number) < 1e100 for number in numbers):
        raise ValueError("the record has numbers beyond all measure")
    right = unpack(record["correct"], record["test_images"])
    if round(record["accuracy"] * len(right)) != right.sum():
        raise ValueError(f"accuracy {record['accuracy']} is not that of its {right.sum()} answers")
    return record


def _few(values: Record, names: Sequence[str]) -> str:
    """Show some values, which may be of any length, in a few words."""
    told = (f"{name} {json.dumps(values[name])}" for name in names)
    return ", ".join(text if len(text) < 60 else f"{text[:60]}..." for text in told)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def append(path: Path, record: Record, lock: Path) -> None:
    """Add a record to a file in one piece, after whatever another process has left there."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with filelock.FileLock(lock):
        append_lines(path, line)


def identity(record: Record) -> dict[str, Any]:
    """Return what must be the same in all records that are compared, or in all of one arm."""
    keys = ("study", "size", "model", "data", "digest", "train_images", "test_images", "code")
    arm, changes = record["arm"], record.get("changes", {})
    recipe = {k: v for k, v in record["recipe"].items() if k not in {*_COMPUTING, *changes}}
    of_the_arm = {f"config of {arm}": record["config"], f"changes of {arm}": changes}
    return (
        {k: record[k] for k in keys}
        | {f"recipe.{k}": v for k, v in recipe.items()}
        | of_the_arm
        | {f"recipe.{k} of {arm}": record["recipe"].get(k) for k in changes}
    )


def check_comparable(records: Sequence[Record]) -> None:
    """Raise ValueError, with what differs, where records are not of one study and one way to train.

    They must be of the same study and size, data to the bit, recipe but for the seed, and code that
    trains; an arm must be the same network in all, and a seed of it stand there once.
    """
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for key, value in identity(record).items():
            found.setdefault(key, {}).setdefault(json.dumps(value, sort_keys=True), []).append(
                record
            )
    differences = [
        f"{key}: " + ", ".join(f"{value} ({_which(some)})" for value, some in values.items())
        for key, values in found.items()
        if len(values) > 1
    ]
    if differences:
        raise ValueError(
            f"these records cannot be compared, as they differ in {'; '.join(differences)}. Keep "
            "each kind in a file of its own"
        )
    runs = [(r["arm"], r["seed"]) for r in records]
    if twice := sorted({run for run in runs if runs.count(run) > 1}):
        named = ", ".join(f"{arm} with seed {seed}" for arm, seed in twice)
        raise ValueError(
            f"these records hold runs more than once, and not alike: {named}. Keep one line of each"
        )


def _which(records: Sequence[Record]) -> str:
    named = ", ".join(f"{r['arm']} {r['seed']}" for r in records[:2])
    commits = ", ".join(sorted({str(r["commit"])[:12] for r in records}))
    more = f" and {len(records) - 2} more" if len(records) > 2 else ""
    return f"{named}{more}; commit {commits}"
