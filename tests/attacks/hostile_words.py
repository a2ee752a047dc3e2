"""Attacks on what reads text: records, names, options, command lines and the environment."""

import contextlib
import functools
import io
import json
import os
import random
import string
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hostile_data import SAMPLES, clear, odd_thing
from hostile_models import FOLDER, WEIGHTS
from mutations import as_json, strange, tree_changed
from safetensors.torch import save

import cbam_edu.benchmark
import cbam_edu.experiment
from cbam_edu import cli, data
from cbam_edu.complexity import count
from cbam_edu.data import DownloadError, sources
from cbam_edu.data.folder import transform
from cbam_edu.measure import Scores
from cbam_edu.models import create_model, load_pretrained
from cbam_edu.recipe import Recipe
from cbam_edu.records import course, pack, read, recorded
from cbam_edu.report import summarise, write
from cbam_edu.storage import StorageError, cache_dir
from watch import Attack


class Told(Exception):
    """What the command line said before it ended with 1 or 2."""


def _a_record(arm: str, seed: int) -> dict[str, Any]:
    right = torch.arange(20) % 3 <= seed % 2
    return dict.fromkeys(("digest", "device", "code", "command", "data"), "x") | {
        "study": "neighbours-resnet20",
        "size": "small",
        "model": "resnet20",
        "arm": arm,
        "seed": seed,
        "epochs": 2,
        "parameters": 10,
        "multiply_accumulates": 10,
        "train_images": 100,
        "test_images": 20,
        "correct": pack(right),
        "loss": 1.0,
        "accuracy": right.double().mean().item(),
        "seconds": 3.5,
        "commit": None,
        "versions": {"torch": "2"},
        "config": {"name": "resnet20"},
        "recipe": asdict(Recipe()),
        "scores": {"channel: centre": 0.5},
        "changes": {},
    }


LINES = [_a_record(arm, seed) for arm in ("none", "cbam") for seed in (0, 1)]


def _records(rng: random.Random, folder: Path) -> Callable[[], object]:
    path = folder / "hostile.jsonl"
    clear(path)
    if rng.random() < 0.002:
        odd_thing(rng, path, b"")
        return functools.partial(_report, path)
    lines = [json.dumps(line).encode() for line in LINES]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        lines[at] = as_json(rng, tree_changed(rng, json.loads(json.dumps(LINES[at]))))
    if rng.random() < 0.0005:
        lines.append(b'{"study": "' + b"x" * 10_000_000 + b'"}')
    path.write_bytes(b"\n".join(lines))
    return functools.partial(_report, path)


def _report(path: Path) -> None:
    found, broken = read([path])
    for one in broken:
        assert "\n" not in str(one), "a broken line is told in several"
        assert len(str(one)) < 2000, "a broken line is told at length"
    write(summarise("neighbours-resnet20", "small", found))


def _names(rng: random.Random, folder: Path) -> Callable[[], object]:
    word = rng.choice(("neighbours-resnet20", "resnet20_cbam", "../../x", str(folder), "", "a\0b"))
    parts = [
        rng.choice((word, "..", "/", rng.choice(string.printable[:94]), "\udcff", "~"))
        for _ in "123"
    ]
    name: Any = "".join(parts) if rng.random() < 0.95 else strange(rng)
    name = name.replace("\n", "") if isinstance(name, str) else name
    reader = rng.choice((course, load_pretrained, recorded, data.load))
    more = ("full",) if reader is recorded else ()
    return functools.partial(_named, reader, name, *more)


def _named(reader: Callable[..., Any], *names: Any) -> None:
    if not isinstance(names[0], str):
        raise ValueError("no name")  # a type checker says so
    reader(*names)


OPTIONS = ("attention", "attention_options", "dims", "stride_on", "num_classes", "x", "blocks")
INSIDE = ("reduction", "kernel_size", "pooling", "bias", "norm", "gate", "order", "x", "channels")
FIELDS = tuple(asdict(Recipe()))


def _options(rng: random.Random, folder: Path) -> Callable[[], object]:
    kind = rng.randrange(3)
    if kind == 0:
        chosen = {name: _value(rng) for name in rng.sample(FIELDS, rng.choice((1, 1, 2, 4)))}
        return functools.partial(Recipe, **chosen)
    if kind == 1:
        options: dict[str, Any] = {n: _value(rng) for n in rng.sample(OPTIONS, rng.choice((1, 2)))}
        name = rng.choice(("cbamnet_tiny", "resnet8", "mobilenet_1.0", _value(rng)))
        return functools.partial(_on_meta, create_model, name, **options)
    inner = {n: _value(rng) for n in rng.sample(INSIDE, rng.choice((1, 2)))}
    name = rng.choice(("cbam", "se", "eca", "bam", "channel", "spatial"))
    options = {"attention": name, "attention_options": inner}
    return functools.partial(_on_meta, create_model, "cbamnet_tiny", dims=(4, 8), **options)


def _value(rng: random.Random) -> Any:
    right = (
        "cbam",
        "sgd",
        "cosine",
        "1x1",
        True,
        2,
        8,
        0.5,
        (4, 8),
        [4],
        {"reduction": 2},
        ("avg",),
    )
    return rng.choice(right) if rng.random() < 0.4 else strange(rng)


def _on_meta(make: Callable[..., Any], *args: Any, **options: Any) -> None:
    with torch.device("meta"):
        make(*args, **options)


WORDS_OF: dict[str, list[str]] = {
    "train": ["--model", "cbamnet_tiny", "--data", "cifar10-mini", "--epochs", "1", "--out", "run"],
    "evaluate": ["--model", "m.safetensors", "--data", "cifar10-mini", "--device", "cpu"],
    "predict": ["--model", "m.safetensors", "--top", "2", "a.png"],
    "export": ["--model", "m.safetensors", "--out", "out.onnx", "--format", "onnx"],
    "complexity": ["resnet20", "--size", "32", "--attention", "cbam"],
    "benchmark": ["--shape", "1x4x2x2", "--rounds", "2", "--names", "plain", "--out", "b.jsonl"],
    "experiment": [
        "recipe",
        "--size",
        "small",
        "--shard",
        "1/2",
        "--seeds",
        "0",
        "--out",
        "e.jsonl",
    ],
    "report": ["neighbours-resnet20", "--size", "small", "--records", "r.jsonl"],
    "download": ["--data-dir", "empty"],
}
EXTRA = [f"--{name.replace('_', '-')}" for name in FIELDS] + ["--resume", "--validate", "--workers"]
EXTRA += [
    "--recipe",
    "--study",
    "--figure",
    "--batch",
    "--compile",
    "--help",
    "--data-dir",
    "--bad",
]
ODD_WORDS = [
    "",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "inf",
    "1e999",
    "9" * 30,
    "x",
    "\udcff",
    "a" * 300,
    "é",
]
ODD_WORDS += ["a" * 5000, "1/0", "0x9", "{}", "%s", "@a.png", "fifo", "nowhere", "circle", "empty"]
ODD_WORDS += ["m.safetensors", "f.safetensors", "a.png", "r.jsonl", "/dev/null", "cpu", "cuda:99"]
ODD_WORDS += [
    "meta",
    "cbam",
    "\x1b[31m",
    "a\nb",
    "1x1x1x1",
    "2" * 5000,
    "٣",
    "1_0",
    "~nobody",
    "speed",
]


def _command(rng: random.Random, folder: Path) -> Callable[[], object]:
    for path in folder.iterdir():
        if path.name not in _KEPT:
            clear(path)
    name = rng.choice(list(WORDS_OF))
    words = [name, *WORDS_OF[name]]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(words) + 1)
        kind = rng.randrange(5)
        if kind == 0 and len(words) > 1:
            del words[min(at, len(words) - 1)]
        elif kind <= 2 and at < len(words):
            words[at] = rng.choice(ODD_WORDS)
        elif kind == 3:
            words[at:at] = [rng.choice(EXTRA), rng.choice(ODD_WORDS)]
        else:
            words.insert(at, rng.choice(ODD_WORDS + EXTRA))
    return functools.partial(_typed, words)


def _typed(words: list[str]) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in said, "a page of text"
    if code:
        lines = said.strip().splitlines() or [""]
        assert said.startswith("usage: ") or lines[-1].startswith("cbam-edu: "), "not told"
        raise Told(lines[-1][:1900])


_KEPT = {"m.safetensors", "f.safetensors", "a.png", "r.jsonl", "fifo", "circle", "empty"}


def _stage(folder: Path) -> None:
    """Lay out the files that words name, and put stubs where a command would work for minutes."""
    os.chdir(folder)
    transform(8)  # imports for seconds
    from hostile_models import ABOUT

    for name, about in (("m", ABOUT), ("f", FOLDER)):
        Path(f"{name}.safetensors").write_bytes(save(WEIGHTS, {"cbam_edu": json.dumps(about)}))
    Path("a.png").write_bytes(SAMPLES[4])
    Path("r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    Path("empty").mkdir()
    os.mkfifo("fifo")
    Path("circle").symlink_to("circle")
    os.environ["CBAM_EDU_DATA"] = str(folder / "empty")
    entry = {"epoch": 1, "lr": 0.1, "loss": 1.0, "train_accuracy": 0.1, "seconds": 0.1}
    cost = count(create_model("cbamnet_tiny", 3, dims=(2, 2)), (3, 32, 32))
    line = {"implementation": "x", "way": "eager", "mode": "training", "device": "cpu"}
    line |= {"milliseconds": 1.0, "low": 1.0, "high": 1.0}
    done: dict[str, Any] = {
        "fit": lambda *a, **k: [entry | {"accuracy": 0.1, "test_loss": 1.0}],
        "evaluate": lambda *a, **k: Scores(0.5, 1.0),
        "count": lambda *a, **k: cost,
        "record": lambda *a, **k: {"accuracy": 0.5},
        "export": lambda model, out, kind: float(Path(out).write_bytes(b"")),
    }
    for name, stub in done.items():
        setattr(cli, name, stub)
    cbam_edu.benchmark.compare = lambda *a, **k: [line]  # type: ignore[assignment]
    cbam_edu.benchmark.compare_networks = lambda *a, **k: [line]  # type: ignore[assignment]
    planned = cbam_edu.experiment.planned
    cbam_edu.experiment.experiment = lambda name, size, out, arms, seeds, shard, **k: len(  # type: ignore[assignment]
        planned(name, size, arms=arms, seeds=seeds, shard=shard)
    )
    mini = {split: data.load("cifar10-mini", split) for split in data.SPLITS}
    data._READERS["cifar10-mini"] = data._READERS["shapes"] = lambda split, *_: mini[split]
    data.download = sources.download = functools.partial(
        sources.download, sources=(), progress=False
    )


ENVIRONMENT = (
    "CBAM_EDU_DATA",
    "XDG_CACHE_HOME",
    "HOME",
    "COLUMNS",
    "LINES",
    "CBAM_EDU_QUICK",
    "LANG",
)
ENVIRONMENT += ("TRITON_INTERPRET", "NO_COLOR", "PYTHONIOENCODING", "RANK", "WORLD_SIZE")
VALUES = [w for w in ODD_WORDS if not w.startswith("/")] + [
    "~",
    "~/x",
    "1",
    "-5",
    "fifo/x",
    "a.png/x",
]


def _environment(rng: random.Random, folder: Path) -> Callable[[], object]:
    for path in folder.iterdir():
        if path.name not in _KEPT:
            clear(path)
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ["HOME"] = str(folder)
    for name in rng.sample(ENVIRONMENT, rng.choice((1, 2, 3))):
        os.environ[name] = rng.choice(VALUES)
    os.environ["HOME"] = os.environ["HOME"] or "home"  # else it is that of who runs this
    return functools.partial(_in_it, rng.choice(("download", "evaluate", "report", "models")))


def _in_it(command: str) -> None:
    cache_dir()
    _typed([command, *(["neighbours-resnet20", "--help"] if command == "report" else [])])


WORDS: dict[str, Attack] = {
    "records": Attack(
        "records, JSON", "files", _records, (ValueError, StorageError), longest=20_000
    ),
    "names": Attack(
        "names of results and networks",
        "names",
        _names,
        (ValueError, FileNotFoundError, StorageError, DownloadError),
        lambda folder: os.environ.update(CBAM_EDU_DATA=str(folder)),
        longest=20_000,
    ),
    "options": Attack(
        "options of networks, layers and recipes", "options", _options, (ValueError,)
    ),
    "commands": Attack("command lines", "command lines", _command, (Told,), _stage),
    "environment": Attack("environment variables", "settings", _environment, (Told,), _stage),
}
