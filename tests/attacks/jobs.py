"""What is attacked while it runs: everything of the library that writes a user's files.

A job prepares a folder, works in it, and says what of it is not whole or not right.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ground import Child

import test_data_sources as served
import tiny_study
from cbam_edu import cli, data, studies
from cbam_edu.checkpoint import read_checkpoint, write_checkpoint
from cbam_edu.convert import convert
from cbam_edu.data.sources import download
from cbam_edu.export import export
from cbam_edu.models import create_model, load_model, save_model
from cbam_edu.records import read
from toy_cifar10 import EDITION

torch.set_num_threads(1)
TINY = ["--recipe", "default", "--batch-size", "25", "--device", "cpu"]
SIZE = replace(tiny_study.SIZE, recipe=replace(tiny_study.RECIPE, epochs=3))
STUDY = replace(tiny_study.TINY, sizes={"small": SIZE})


class Job(NamedTuple):
    """Something that writes files.

    Attributes
    ----------
    prepare : callable
        Puts into the empty folder what is there before.
    work : callable
        Does it all, in a child, again where it was done before; returns an exit code.
    whole : callable
        Raises unless what stands under its final name in the folder is whole, at any moment.
    content : callable
        Returns what must be in the folder at the end, however it came to it.
    """

    prepare: Callable[[Path], object]
    work: Callable[[Path], int | None]
    whole: Callable[[Path], object]
    content: Callable[[Path], Any]


def warm(work: Callable[[], object], ground: Path) -> None:
    """Import what some work imports as it goes, so that children which do it begin at once."""
    found = ground / "modules"

    def noted() -> None:
        with contextlib.suppress(Exception):
            work()
        found.write_text("\n".join(sys.modules))

    Child(noted, ground / "said").end(300)
    for name in found.read_text().split("\n"):
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _nothing(folder: Path) -> None:
    pass


def _bits(weights: Any) -> str:
    """Return a digest of numbers in whatever holds them, to the last bit."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key, inner in sorted(value.items(), key=lambda pair: str(pair[0])):
                found.update(str(key).encode())
                add(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                add(inner)
        else:
            found.update(repr(value).encode())

    add(weights)
    return found.hexdigest()


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "seconds"}


# --- training ---


_SETS = dict(zip(data.SPLITS, STUDY.images(SIZE), strict=True))
_SETS["test"] = _SETS["test"].holdout([10] * 10)[1]


def _some(name: str, split: str = "train", **_: Any) -> Any:
    return _SETS[split]


def train(folder: Path, *more: str) -> int:
    """Train a small network by the command, in the folder's ``run``."""
    data.load = _some  # type: ignore[assignment]
    cli.create_model = functools.partial(create_model, dims=(4, 8))
    words = ["train", "--model", "cbamnet_tiny", "--attention", "cbam", "--data", "cifar10-mini"]
    return cli.main([*words, *TINY, "--epochs", "4", "--out", str(folder / "run"), *more])


def _train_whole(folder: Path) -> None:
    run = folder / "run"
    if (run / "checkpoint.pt").exists():
        read_checkpoint(run / "checkpoint.pt")
    for name in ("log.jsonl", "record.jsonl"):
        if (run / name).exists():
            for line in (run / name).read_text().splitlines():
                json.loads(line)
    if (run / "model.safetensors").exists():
        load_model(run / "model.safetensors")


def _train_content(folder: Path) -> Any:
    state = read_checkpoint(folder / "run/checkpoint.pt")
    log = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    record = json.loads((folder / "run/record.jsonl").read_text())
    history = [_timeless(entry) for entry in state.pop("history")]
    return {
        "state": _bits(state),
        "weights": _bits(load_model(folder / "run/model.safetensors").state_dict()),
        "history": history,
        "log as history": history == [_timeless(entry) for entry in log],
        # Others may work on the code meanwhile.
        "record": {k: v for k, v in _timeless(record).items() if k not in ("commit", "code")},
    }


# --- downloading ---


def downloading(url: str) -> Job:
    """Fetch the toy CIFAR-10 from an address."""

    def work(folder: Path) -> int:
        sources = {"sources": [url], "edition": EDITION, "slowest": 0.0, "timeout": 20.0}
        cli.data.download = functools.partial(download, **sources)  # type: ignore[assignment]
        return cli.main(["download", "--data-dir", str(folder / "cache")])

    def whole(folder: Path) -> None:
        for path in (folder / "cache" / served.BINARY).glob("*.bin"):
            assert path.read_bytes() == served.FILES[path.stem], f"{path.name} is not whole"

    def content(folder: Path) -> bool:
        return bool(served.is_right(folder / "cache"))

    return Job(_nothing, work, whole, content)


# --- experimenting ---


def _experiment(folder: Path) -> int:
    studies.STUDIES["tiny"] = STUDY
    out = str(folder / "runs.jsonl")
    return cli.main(["experiment", "tiny", "--size", "small", "--out", out, "--device", "cpu"])


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs.jsonl"
    found, broken = read([path]) if path.exists() else ([], [])
    assert not broken, broken
    assert len({(r["arm"], r["seed"]) for r in found}) == len(found), "a run stands there twice"
    assert len(found) == len(path.read_text().splitlines()) if found else True
    return found


def _experiment_content(folder: Path) -> Any:
    keys = ("arm", "seed", "accuracy", "loss", "correct", "train_accuracy", "config", "recipe")
    return sorted(json.dumps([record[key] for key in keys]) for record in _records(folder))


# --- converting ---


def _foreign(folder: Path) -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", 10, attention="cbam", dims=(16, 32, 64, 128))
    torch.save(convert(model.state_dict(), target="authors"), folder / "theirs.pt")
    save_model(model, folder / "model.safetensors", which="old")


def _convert(folder: Path) -> None:
    theirs = torch.load(folder / "theirs.pt", weights_only=True)
    model = create_model("resnet18", 10, attention="cbam", dims=(16, 32, 64, 128))
    model.load_state_dict(convert(theirs, "authors"), strict=False)  # type: ignore[arg-type]
    save_model(model, folder / "model.safetensors", which="new")


def _one_model(folder: Path) -> str:
    return str(vars(load_model(folder / "model.safetensors"))["about"]["which"])


# --- saving: over and over, so that most moments fall into a writing ---


def _for_a_while(write: Callable[[int], object]) -> None:
    end, number = time.monotonic() + 0.4, 0
    while time.monotonic() < end:
        number += 1
        write(number)
    write(-1)


def _old_model(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(create_model("resnet20", attention="cbam"), folder / "model.safetensors", number=0)


def _save(folder: Path) -> None:
    model = load_model(folder / "model.safetensors")
    _for_a_while(lambda i: save_model(model, folder / "model.safetensors", number=i))


def _number(folder: Path) -> Any:
    return vars(load_model(folder / "model.safetensors"))["about"]["number"]


def _state(number: int) -> dict[str, Any]:
    return {
        "identity": {},
        "model": {"weights": torch.full((300_000,), float(number))},
        "optimizer": {},
        "scaler": {},
        "average": None,
        "history": [{"epoch": number}],
    }


def _checkpoints(folder: Path) -> None:
    _for_a_while(lambda i: write_checkpoint(folder, _state(i)))


def _checkpoint_whole(folder: Path) -> Any:
    state = read_checkpoint(folder / "checkpoint.pt")
    assert set(state["model"]["weights"].tolist()) == {float(state["history"][0]["epoch"])}
    json.loads((folder / "log.jsonl").read_text())
    return state["history"]


def command(words: list[str]) -> int:
    """Do what the command line does, with a small study among the others."""
    studies.STUDIES["tiny"] = STUDY
    return cli.main(words)


def _report(folder: Path) -> int:
    studies.STUDIES["tiny"] = STUDY
    words = ["report", "tiny", "--size", "small", "--records", str(folder / "runs.jsonl")]
    return cli.main([*words, "--figure", str(folder / "figure.png")])


def _report_ground(folder: Path) -> None:
    lines = [
        json.dumps(tiny_study.a_record(arm, seed, [i % (seed + 2) == 0 for i in range(10)]))
        for arm, seed in tiny_study.RUNS
    ]
    (folder / "runs.jsonl").write_text("\n".join(lines) + "\n")
    _old_picture(folder)


def _old_picture(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (400, 300), "white").save(folder / "figure.png")


def _picture_whole(folder: Path) -> None:
    from PIL import Image

    with Image.open(folder / "figure.png") as picture:
        picture.load()


def _picture(folder: Path) -> bool:
    from PIL import Image

    with Image.open(folder / "figure.png") as picture:
        return picture.size != (400, 300)


def _old_export(folder: Path) -> None:
    torch.manual_seed(0)
    model = create_model("cbamnet_tiny", 10, dims=(4, 8))
    save_model(model, folder / "model.safetensors")
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, folder / "model.pt2")


def _export(folder: Path) -> None:
    model = load_model(folder / "model.safetensors")
    export(model, folder / "model.pt2", "torch-export")


def _export_whole(folder: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO((folder / "model.pt2").read_bytes()))
    return len(program.state_dict) > 0


def _benchmark(folder: Path) -> int:
    words = ["benchmark", "--shape", "1x4x4x4", "--names", "plain", "--rounds", "2"]
    return cli.main([*words, "--device", "cpu", "--out", str(folder / "times.jsonl")])


def _times_whole(folder: Path) -> list[Any]:
    path = folder / "times.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _old_times(folder: Path) -> None:
    (folder / "times.jsonl").write_text('{"old": true}\n')


def _times(folder: Path) -> bool:
    lines = _times_whole(folder)
    return lines[0] == {"old": True} and len(lines) > 1


TRAIN = Job(_nothing, lambda folder: train(folder, "--resume"), _train_whole, _train_content)
EXPERIMENT = Job(_nothing, _experiment, _records, _experiment_content)
CONVERT = Job(_foreign, _convert, _one_model, _one_model)
SAVING = {
    "a network": Job(_old_model, _save, _number, _number),
    "a checkpoint": Job(
        lambda folder: write_checkpoint(folder, _state(0)),
        _checkpoints,
        _checkpoint_whole,
        _checkpoint_whole,
    ),
    "a figure": Job(_report_ground, _report, _picture_whole, _picture),
    "an export": Job(_old_export, _export, _export_whole, _export_whole),
    "times": Job(_old_times, _benchmark, _times_whole, _times),
}
# The same, once: for errors, of which each is met at a step of its own.
ONCE = {
    "a network": SAVING["a network"]._replace(
        work=lambda folder: save_model(
            load_model(folder / "model.safetensors"), folder / "model.safetensors", number=-1
        )
    ),
    "a checkpoint": SAVING["a checkpoint"]._replace(
        work=lambda folder: write_checkpoint(folder, _state(-1))
    ),
    **{kind: SAVING[kind] for kind in ("a figure", "an export", "times")},
}
