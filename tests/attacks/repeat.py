"""Do the same thing twice, in every way that could make a difference, and compare the bits.

::

    python tests/attacks/repeat.py [ATTACK ...]

The real CIFAR-10 is needed, in ``$CBAM_EDU_DATA`` or the cache. About 40 minutes on one core.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import recorded
import torch
from PIL import Image
from torch import Tensor, nn

from cbam_edu import (
    complexity,
    create_model,
    data,
    list_models,
    load_pretrained,
    save_model,
    train,
)
from cbam_edu.convert import convert
from cbam_edu.data import Augmentation, FolderBatches, ImageSet, load
from cbam_edu.experiment import answers
from cbam_edu.explain import attention_maps, grad_cam
from cbam_edu.export import export
from cbam_edu.localise import deletion_scores
from cbam_edu.neighbours import ATTENTIONS
from cbam_edu.train import Recipe, evaluate, fit, read_checkpoint

SUBJECT = "repeat"
BASE = Recipe(epochs=4, batch_size=64, lr=0.1)
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"crop": 0, "flip": False, "channels_last": False},
    "augmented": {"cutout": 8, "deterministic": True},
    "mixup and average": {"mixup": 0.2, "ema": 0.9, "label_smoothing": 0.1},
    "adamw, cosine": {"optimizer": "adamw", "lr": 0.002, "schedule": "cosine"},
    "bfloat16": {"precision": "bfloat16", "deterministic": True},
    "float16": {"precision": "float16"},
}
NETWORKS = ("cbam", "se", "eca", "bam", "resnet9", "dropout")
SEEDS = (0, 1, 2)
Case = tuple[str, str, int]  # network, recipe, seed


class Dropping(nn.Module):
    """A network that draws chances of its own while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = create_model("cbamnet_tiny", 10, dims=(8, 16))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.drop(x))


def network(name: str, seed: int) -> nn.Module:
    """Return a network with the weights of a seed."""
    torch.manual_seed(seed)
    if name == "dropout":
        return Dropping()
    if name == "resnet9":
        return create_model("resnet9", 10, dims=(8, 16, 16, 32), attention="cbam")
    return create_model("cbamnet_tiny", 10, dims=(8, 16), attention=name)


def recipe_of(case: Case, **changes: Any) -> Recipe:
    """Return the recipe of a case."""
    _, name, seed = case
    return dataclasses.replace(BASE, seed=seed, **{**RECIPES[name], **changes})


def photographs() -> tuple[ImageSet, ImageSet]:
    """Return 256 real training and 100 test images."""
    return tuple(
        load("cifar10", split, download=False).subset(torch.arange(count))  # type: ignore[return-value]
        for split, count in (("train", 256), ("test", 100))
    )


def cases() -> list[Case]:
    """Return every network with every recipe and seed."""
    return list(itertools.product(NETWORKS, RECIPES, SEEDS))


def of_each() -> list[Case]:
    """Return twelve cases, each network and each recipe twice."""
    count = len(NETWORKS)
    pairs = [(i, (i + shift) % count) for shift in (0, 2) for i in range(count)]
    return [(NETWORKS[i], list(RECIPES)[j], 0) for i, j in pairs]


def fingerprint(value: Any) -> str:
    """Return a digest of every bit of nested tensors and numbers, without times."""
    sha = hashlib.sha256()

    def take(part: Any) -> None:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(
                part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(part, dict):
            for key, inner in part.items():
                if key != "seconds":
                    sha.update(str(key).encode())
                    take(inner)
        elif isinstance(part, list | tuple):
            for inner in part:
                take(inner)
        else:
            sha.update(repr(part).encode())

    take(value)
    return sha.hexdigest()


def end(folder: Path) -> str:
    """Return the digest of a finished run: weights, optimizer, average, scaler, history."""
    return fingerprint(read_checkpoint(folder / "checkpoint.pt"))


def trained(case: Case, images: tuple[ImageSet, ImageSet], **changes: Any) -> str:
    """Train a case from its beginning, and return the digest of all that is left."""
    with tempfile.TemporaryDirectory() as folder:
        model = network(case[0], case[2])
        recipe = recipe_of(case, **changes)
        fit(model, images[0], recipe, test=images[1], out=folder, progress=False)
        return end(Path(folder))


def pollute(seed: int) -> None:
    """Draw from every generator that the process has."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.rand(seed)
    random.random()
    np.random.rand(seed)


def elsewhere(work: str, of: Sequence[Any], **environment: str) -> list[str]:
    """Do some work on each of some values in another process; return what it found of each."""
    words = [sys.executable, __file__, "--work", work]
    done = subprocess.run(
        words,
        input=json.dumps(of),
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def train_all(of: list[list[Any]]) -> list[str]:
    """Train cases; the work of another process."""
    pollute(12)
    images = photographs()
    return [trained((str(a), str(b), int(c)), images) for a, b, c in of]


def create_all(of: list[list[str]]) -> list[str]:
    """Make networks; the work of another process."""
    return [created(name, attention) for name, attention in of]


def created(name: str, attention: str) -> str:
    """Return the digest of a new network's weights, of seed 3."""
    torch.manual_seed(3)
    return fingerprint(create_model(name, attention=attention or None).state_dict())


def killed_at(of: list[Any]) -> list[str]:
    """Train a case until a step, and die there; the work of another process."""
    case, folder, steps = (str(of[0]), str(of[1]), int(of[2])), str(of[3]), int(of[4])
    step, left = train._Run.step, iter(range(steps))

    def dying(self: Any, *args: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    train._Run.step = dying  # type: ignore[method-assign,assignment]
    images = photographs()
    model = network(case[0], case[2])
    recipe = recipe_of(case)
    fit(model, images[0], recipe, test=images[1], out=folder, resume=True, progress=False)
    return ["finished"]


WORK: dict[str, Callable[[Any], list[str]]] = {
    "train": train_all,
    "create": create_all,
    "kill": killed_at,
}


def differing(names: Sequence[Any], one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the names of those whose digests differ."""
    pairs = zip(names, one, other, strict=True)
    return [" ".join(map(str, name)) for name, a, b in pairs if a != b]


# The attacks: each returns how many were tried, which differ, and further details.
Found = tuple[int, list[str], dict[str, Any]]


def in_one_process() -> Found:
    """Train every case twice in this process."""
    images, of = photographs(), cases()
    one = [trained(case, images) for case in of]
    pollute(99)
    two = [trained(case, images) for case in of]
    assert len(set(one)) == len(of), "cases are not all different, so equality says nothing"
    FIRST.update(zip(of, one, strict=True))
    return len(of), differing(of, one, two), {}


FIRST: dict[Case, str] = {}


def first(of: list[Case]) -> list[str]:
    """Return the digests of cases trained in this process, once."""
    images = photographs()
    for case in of:
        if case not in FIRST:
            FIRST[case] = trained(case, images)
    return [FIRST[case] for case in of]


def in_other_processes() -> Found:
    """Train every case in another process with other hashes and polluted generators."""
    of = cases()
    there = elsewhere("train", of, PYTHONHASHSEED="7", TZ="Asia/Kathmandu")
    return len(of), differing(of, first(of), there), {}


@contextlib.contextmanager
def stopping_after(epochs: int) -> Iterator[None]:
    """Stop a run once its checkpoint has so many epochs."""
    save = train._Run.save

    def stop(self: Any, folder: Path) -> None:
        save(self, folder)
        if len(self.history) == epochs:
            raise KeyboardInterrupt

    train._Run.save = stop  # type: ignore[method-assign]
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        train._Run.save = save  # type: ignore[method-assign]


def resumed() -> Found:
    """Stop a case of each network and each recipe after each epoch, and go on from there."""
    images, of = photographs(), of_each()
    wrong, tried = [], 0
    for case, wanted in zip(of, first(of), strict=True):
        for epochs in range(BASE.epochs):
            with tempfile.TemporaryDirectory() as name:
                options: dict[str, Any] = {"test": images[1], "out": name, "progress": False}
                with stopping_after(epochs):
                    fit(network(case[0], 0), images[0], recipe_of(case), **options)
                pollute(7 + epochs)
                again = network(case[0], 5)  # other weights: all must come from the checkpoint
                fit(again, images[0], recipe_of(case), resume=True, **options)
                tried += 1
                if end(Path(name)) != wanted:
                    wrong.append(f"{case}, after epoch {epochs}")
    return tried, wrong, {}


def stopped_each_epoch() -> Found:
    """Stop each case of one seed after every epoch, one after the other."""
    images, of = photographs(), [case for case in cases() if case[2] == 0]
    wrong = []
    for case, wanted in zip(of, first(of), strict=True):
        with tempfile.TemporaryDirectory() as name:
            options: dict[str, Any] = {"test": images[1], "out": name, "progress": False}
            for epochs in range(BASE.epochs + 1):
                with stopping_after(epochs):
                    again = network(case[0], 0 if epochs == 0 else 5)
                    fit(again, images[0], recipe_of(case), resume=True, **options)
            if end(Path(name)) != wanted:
                wrong.append(str(case))
    return len(of), wrong, {"stops each": BASE.epochs}


def killed() -> Found:
    """Kill processes in random steps, three times a run, each going on where the last one died."""
    chance = random.Random(0)
    of = chance.sample(cases(), 6)
    wrong, kills = [], 0
    for case, wanted in zip(of, first(of), strict=True):
        with tempfile.TemporaryDirectory() as name:
            for _ in range(3):
                steps = chance.randrange(1, 7)  # four an epoch
                words = [sys.executable, __file__, "--work", "kill"]
                given = json.dumps([*case, name, steps])
                done = subprocess.run(words, input=given, text=True, capture_output=True)
                if done.returncode not in (0, -signal.SIGKILL):
                    wrong.append(f"{case}: {done.stderr[-300:]}")
                kills += done.returncode == -signal.SIGKILL
            images = photographs()
            again = network(case[0], 5)
            recipe = recipe_of(case)
            fit(again, images[0], recipe, test=images[1], out=name, resume=True, progress=False)
            if end(Path(name)) != wanted:
                wrong.append(str(case))
    return kills, wrong, {"runs": len(of)}


def in_other_ways() -> Found:
    """Train compiled, in another memory format, with 16-bit numbers: each way twice."""
    images = photographs()
    ways = [
        {"compile": compiled, "channels_last": last, "precision": precision}
        for compiled, last in ((False, False), (False, True), (True, True))
        for precision in ("float32", "bfloat16")
    ]
    wrong, seen = [], set()
    for way in ways:
        digests = []
        for _ in range(2):
            torch.compiler.reset()
            digests.append(trained(("cbam", "augmented", 0), images, **way))
        seen.add(digests[0])
        if digests[0] != digests[1]:
            wrong.append(str(way))
    return len(ways), wrong, {"ways that differ from each other": len(seen)}


def threads() -> Found:
    """Train with one thread and with two, each twice, and say how far they are apart."""
    images, of = photographs(), of_each()
    before, wrong, unequal, far = torch.get_num_threads(), [], [], 0.0
    for case in of:
        found: dict[int, list[str]] = {}
        ends: dict[int, Tensor] = {}
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            model = network(case[0], 0)
            history = fit(model, images[0], recipe_of(case), progress=False)
            found.setdefault(count, []).append(fingerprint([model.state_dict(), history]))
            ends[count] = torch.cat([p.detach().flatten() for p in model.parameters()])
        wrong += [f"{case}, {n} threads" for n, (a, b) in found.items() if a != b]
        if found[1][0] != found[2][0]:
            unequal.append(f"{case[0]}, {case[1]}")
            far = max(far, ((ends[1] - ends[2]).norm() / ends[1].norm()).item())
    torch.set_num_threads(before)
    details = {"one thread differs from two in": unequal, "furthest, of the weights' length": far}
    return 2 * len(of), wrong, details


def states() -> str:
    """Return a digest of every generator that the process has."""
    numpys: Any = np.random.get_state()
    return fingerprint([torch.get_rng_state(), random.getstate(), torch.from_numpy(numpys[1])])


def generators() -> Found:
    """Look whether what does not say that it draws leaves the caller's generators alone."""
    images, wrong, tried = photographs(), [], 0
    x, y = data.normalise(images[1].images[:8]), images[1].labels[:8]
    model = load_pretrained("resnet20_cbam")
    dropping = Dropping().train()
    weights = convert(model.state_dict(), target="timm", rename_network=False)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        work: dict[str, Callable[[], object]] = {
            f"fit, {case[0]}, {case[1]}": functools.partial(
                fit, made, images[0], recipe_of(case, epochs=1), progress=False
            )
            for case in of_each()
            for made in [network(case[0], 0)]
        }
        work |= {
            "evaluate": lambda: evaluate(dropping, images[1]),
            "attention maps": lambda: attention_maps(model, x),
            "Grad-CAM": lambda: grad_cam(model, x, y, list(model.children())[-3]),
            "export": lambda: export(model, path / "x.pt2", "torch-export"),
            "convert": lambda: convert(weights, rename_network=False),
            "count": lambda: complexity.count(dropping),
            "load": lambda: load_pretrained("resnet20_cbam"),
            "save": lambda: save_model(model, path / "x.safetensors"),
            "shapes": lambda: data.shapes(20, 3),
            "holdout": lambda: images[0].holdout(2, seed=1),
            "batches": lambda: list(data.in_batches(images[0], 20, shuffle=True, seed=1)),
            "deletion": lambda: deletion_scores(model, images[1].subset(torch.arange(8)), 0),
        }
        for what, do in work.items():
            for seed in SEEDS:
                pollute(50 + seed)
                before = states()
                do()
                tried += 1
                wrong += [f"{what}, {seed}"] * (states() != before)
    return tried, wrong, {"functions": sorted({name.split(",")[0] for name in work})}


def picture_folder(root: Path, images: ImageSet) -> Path:
    """Write images as a folder of pictures."""
    for split in ("train", "val"):
        for i, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            folder = root / split / images.classes[int(label)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
    return root


def workers() -> Found:
    """Read a folder of pictures with 0, 1 and 2 processes: batches and trained networks."""
    wrong, tried = [], 0
    with tempfile.TemporaryDirectory() as name:
        root = picture_folder(Path(name), photographs()[0])
        for seed in SEEDS:
            batches: dict[int, list[str]] = {}
            for count in (0, 1, 2):
                pollute(20 + count)
                part = load(str(root), "train", size=32, workers=count)
                assert isinstance(part, data.PictureFolder)
                made = FolderBatches(part, 48, augmentation=Augmentation(), shuffle=True, seed=seed)
                for epoch in (0, 1, 0):
                    made.set_epoch(epoch)
                    batches.setdefault(count, []).append(fingerprint(list(made)))
                model = network("cbam", seed)
                recipe = dataclasses.replace(BASE, epochs=2, seed=seed)
                history = fit(model, part, recipe, test=part, progress=False)
                batches[count].append(fingerprint([model.state_dict(), history]))
            assert len(set(batches[0])) == 3  # epochs differ, one is there twice
            for count in (1, 2):
                tried += len(batches[0])
                pairs = zip(batches[0], batches[count], strict=True)
                wrong += [f"seed {seed}, {count} workers, {i}" for i, (a, b) in enumerate(pairs)
                          if a != b]  # fmt: skip
    return tried, wrong, {}


def new_networks() -> Found:
    """Make every network with every attention, here and in a process with other hashes."""
    of = [(name, attention or "") for name in list_models() for attention in (None, *ATTENTIONS)]
    one = []
    for name, attention in of:
        pollute(40)
        one.append(created(name, attention))
    wrong = differing(of, one, elsewhere("create", of, PYTHONHASHSEED="7"))
    return len(of), wrong, {"different ones": len(set(one))}


def records() -> Found:
    """Repeat the quickest run of each recorded study by the command in its record."""
    wrong, commands = [], []
    studies = sorted((recorded.ROOT / "book/results/studies").glob("*-small.jsonl"))
    for path in studies:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        record = min(lines, key=lambda line: float(line["seconds"]))
        words = shlex.split(record["command"])
        commands.append(record["command"])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "again.jsonl"
            program = [sys.executable, "-m", "cbam_edu", *words[1:], "--out", str(out)]
            subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
            again = json.loads(out.read_text("utf-8"))
        keys = [k for k in record if k not in ("seconds", "commit", "versions", "device", "code")]
        wrong += [f"{path.name}: {key}" for key in keys if again.get(key) != record[key]]
    return len(studies), wrong, {"commands": commands}


def bundled() -> Found:
    """Evaluate the bundled network on all test images in every way, image by image."""
    test = load("cifar10", "test", download=False)
    assert isinstance(test, ImageSet)
    model = load_pretrained("resnet20_cbam")
    lines = (recorded.ROOT / "book/results/resnet20.jsonl").read_text("utf-8").splitlines()
    accuracy = next(r for r in map(json.loads, lines) if r["arm"] == "cbam")["accuracy"]
    wanted = round(accuracy * len(test))
    right = answers(model, test, "float32")[0]
    wrong: list[str] = []
    counts = {"as evaluate does it": int(right.sum())}
    for way, forward, threads_, last in evaluations(model, test):
        torch.set_num_threads(threads_)
        size = int(way.split()[0])
        found = []
        with torch.no_grad():
            for x, y in data.in_batches(test, size, channels_last=last):
                found.append(forward(x).argmax(1) == y)
        now = torch.cat(found)
        counts[way] = int(now.sum())
        if int((now != right).sum()):
            wrong.append(f"{way}: {int((now != right).sum())} images are judged otherwise")
    torch.set_num_threads(1)
    wrong += [f"{way}: {n} right, {wanted} recorded" for way, n in counts.items() if n != wanted]
    return len(counts), wrong, {"images": len(test), "right": wanted, "by way": counts}


Forward = Callable[[Tensor], Tensor]


def evaluations(model: nn.Module, test: ImageSet) -> Iterator[tuple[str, Forward, int, bool]]:
    """Yield ways to evaluate a network: name, function, threads, memory format."""
    ways = [(1, 1, False), *itertools.product((100, 1000), (1, 2), (False, True))]
    for size, count, last in ways:
        layout = "channels last" if last else "channels first"
        plain = load_pretrained("resnet20_cbam")
        if last:
            plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield f"{size} images at a time, {count} threads, {layout}", plain, count, last
    compiled = torch.compile(load_pretrained("resnet20_cbam"))
    yield "1000 images at a time, compiled", compiled, 1, False
    example = (torch.zeros(2, 3, 32, 32),)
    batch = torch.export.Dim("batch", min=2, max=2048)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch},))
    yield "1000 images at a time, exported", program.module(), 1, False


ATTACKS: dict[str, tuple[Callable[[], Found], str, str]] = {
    "process": (in_one_process, "trained twice in one process", "runs"),
    "processes": (
        in_other_processes,
        "trained again in another process, with other hashes and generators in use",
        "runs",
    ),
    "resumed": (resumed, "stopped after an epoch and resumed", "runs"),
    "stopped": (stopped_each_epoch, "stopped after every epoch and resumed each time", "runs"),
    "killed": (killed, "killed in the middle of an epoch and resumed", "kills"),
    "ways": (in_other_ways, "trained compiled, channels last, in 16 bits: each twice", "ways"),
    "threads": (threads, "trained with one thread and with two: each twice", "pairs"),
    "generators": (generators, "the caller's generators left as they were", "calls"),
    "workers": (workers, "pictures read by 0, 1 and 2 other processes", "comparisons"),
    "networks": (new_networks, "networks made again in another process", "networks"),
    "records": (records, "recorded runs repeated by their commands", "runs"),
    "bundled": (bundled, "the bundled network on the 10,000 test images", "ways"),
}


def main(arguments: list[str] | None = None) -> None:
    """Do the attacks named, or all of them, and record what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", choices=list(WORK), help="what another process is to do")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    options = parser.parse_args(arguments)
    if options.work:
        print(json.dumps(WORK[options.work](json.load(sys.stdin))))
        return
    recorded.write_all(SUBJECT, ATTACKS, options.attacks)


if __name__ == "__main__":
    main()
