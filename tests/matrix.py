"""Every network with every attention, in two types of numbers and by two ways, at three sizes.

    python tests/matrix.py [--models NAME ...] [--shard 1/4] [--out FILE]

Each network is run forward and backward in training mode, two images at a time, eagerly and as
recorded by `torch.export` for all sizes at once. Right is: logits and maps of the shapes that the
input's size says, a finite gradient of its own shape for every parameter, and the same results
both ways. In float32 it then leaves by ONNX, and onnxruntime must give its logits.

One line of JSON a network, attention, type and way is written as soon as it is known; run again,
the program goes on where it stopped. Shards need a file each; join them with `cat`.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.complexity import count
from cbam_edu.export import FORMATS, TOLERANCE, export, trace
from cbam_edu.models import (
    CBAMNet,
    CIFARResNet,
    MobileNet,
    ResNet,
    ResNet9,
    create_model,
    list_models,
)
from cbam_edu.neighbours import ATTENTIONS, check_name
from cbam_edu.storage import make_folder, replace_file

ARMS = ("none", *ATTENTIONS)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = {"float32": ("eager", "torch.export", "onnx"), "bfloat16": ("eager", "torch.export")}
SIZES = ((32, 32), (97, 131), (224, 224))
STRIDES = {  # of the map after each stage
    CBAMNet: (2, 4, 8),
    ResNet9: (1, 2, 4, 8),
    CIFARResNet: (1, 2, 4),
    ResNet: (4, 8, 16, 32),
    MobileNet: (4, 8, 16, 32),
}
# Both ways run the same operations in the same order, and gave the same bits where this was
# written; elsewhere a gradient's parts may be added in another order: some roundings.
CLOSE = {"float32": 1e-6, "bfloat16": 2**-7}
ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "book/results/checks/matrix.jsonl"


def expected_maps(model: nn.Module, height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width of each stage's map: the image's over the stride, rounded up."""
    strides = STRIDES[type(model)][: len(model.stages)]
    return [(-(-height // s), -(-width // s)) for s in strides]


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Return every parameter's gradient; the classes 0 and 1 are wanted of the two images."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = F.cross_entropy(logits.float(), torch.arange(2))
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def pass_eagerly(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run forward and backward, check shapes and numbers; return logits and gradients."""
    maps = model.forward_features(images)
    logits = model.forward_head(maps[-1])
    wanted = expected_maps(model, *images.shape[2:])
    assert [tuple(m.shape[2:]) for m in maps] == wanted, f"maps {[m.shape for m in maps]}"
    assert {len(m) for m in maps} == {2}
    assert maps[-1].shape[1] == model.head.in_features
    assert logits.shape == (2, model.head.out_features), f"logits {tuple(logits.shape)}"
    found = gradients(model, logits)
    for name, parameter in model.named_parameters():
        assert found[name].shape == parameter.shape, f"gradient of {name}: {found[name].shape}"
    return {"logits": logits.detach(), **found}


def check_numbers(results: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Raise unless all are finite, and of the network's type."""
    for name, tensor in results.items():
        assert tensor.dtype == dtype, f"{name} is {tensor.dtype}"
        assert tensor.isfinite().all(), f"{name} is not finite"


def check_close(got: dict[str, Tensor], wanted: dict[str, Tensor], close: float) -> None:
    """Raise unless equal: logits to `close` of the largest, gradients of the largest of all."""
    assert got.keys() == wanted.keys(), f"not both have {got.keys() ^ wanted.keys()}"
    largest = max((t.abs().max().item() for n, t in wanted.items() if n != "logits"), default=0.0)
    for name, tensor in wanted.items():
        scale = tensor.abs().max().item() if name == "logits" else largest
        assert got[name].shape == tensor.shape, f"{name}: {tuple(got[name].shape)}"
        difference = (got[name] - tensor).abs().max().item()
        assert difference <= close * scale, f"{name} differs by {difference:.1e} of {scale:.1e}"


def attempt(run: Any, *args: Any) -> tuple[Any, str, float]:
    """Call; return the result, "ok" or what went wrong in a line, and the seconds."""
    start, result, verdict = time.perf_counter(), None, "ok"
    try:
        result = run(*args)
    except Exception as error:  # whatever it is, it is the result
        reason = str(error).strip().partition("\n")[0]
        verdict = f"{type(error).__name__}: {reason}"
    return result, verdict, time.perf_counter() - start


def as_onnx(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Export to a file, and return what runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(model, path)
        return FORMATS["onnx"].read(path.read_bytes())


def every_way(
    model: nn.Module, dtype: str, sizes: tuple[tuple[int, int], ...]
) -> dict[str, dict[str, Any]]:
    """Return for each way what came out at each size, and the seconds it took."""
    kind, generator = TYPES[dtype], torch.Generator().manual_seed(0)
    model = model.to(kind).train()
    program, recorded, recording = attempt(lambda: trace(model).module())
    verdicts: dict[str, dict[str, str]] = {way: {} for way in WAYS[dtype]}
    seconds = {"eager": 0.0, "torch.export": recording}

    def eagerly(images: Tensor) -> dict[str, Tensor]:
        results = pass_eagerly(model, images)
        check_numbers(results, kind)
        return results

    def as_recorded(images: Tensor, wanted: dict[str, Tensor] | None) -> None:
        assert recorded == "ok", recorded
        assert wanted is not None, "there is nothing to compare with: it failed eagerly"
        logits = program(images)
        results = {"logits": logits.detach(), **gradients(program, logits)}
        check_numbers(results, kind)
        check_close(results, wanted, CLOSE[dtype])

    batches = [torch.randn(2, 3, *size, generator=generator).to(kind) for size in sizes]
    for size, images in zip(sizes, batches, strict=True):
        name = "{}x{}".format(*size)
        wanted, verdicts["eager"][name], spent = attempt(eagerly, images)
        seconds["eager"] += spent
        _, verdicts["torch.export"][name], spent = attempt(as_recorded, images, wanted)
        seconds["torch.export"] += spent
    if "onnx" in verdicts:
        run, left, seconds["onnx"] = attempt(as_onnx, model.eval())

        def by_onnx(images: Tensor) -> None:
            assert left == "ok", left
            with torch.no_grad():
                check_close({"logits": run(images)}, {"logits": model(images)}, TOLERANCE)

        for size, images in zip(sizes, batches, strict=True):
            _, verdicts["onnx"]["{}x{}".format(*size)], spent = attempt(by_onnx, images)
            seconds["onnx"] += spent
    return {way: {"sizes": verdicts[way], "seconds": round(seconds[way], 1)} for way in verdicts}


Key = tuple[str, str, str, str]


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the lines of a file, if it is there, by network, attention, type and way."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(r["model"], r["attention"], r["dtype"], r["way"]): r for r in records}


def passed(record: dict[str, Any]) -> bool:
    """Return whether all three sizes are there and ok."""
    wanted = {f"{height}x{width}" for height, width in SIZES}
    return record["sizes"].keys() == wanted and set(record["sizes"].values()) == {"ok"}


def groups(models: list[str]) -> list[tuple[str, str, str]]:
    """Return every network with every attention in every type, the heaviest networks last."""
    cost = {name: count(create_model(name, attention=None)) for name in models}
    ordered = sorted(models, key=lambda name: cost[name].multiply_accumulates)
    return list(itertools.product(ordered, ARMS, TYPES))


def table(records: dict[Key, dict[str, Any]], models: list[str]) -> str:
    """Return how many are right of each network and attention."""
    lines = [f"{'':18}" + "".join(f"{arm:>9}" for arm in ARMS)]
    for name in models:
        line = f"{name:18}"
        for arm in ARMS:
            cells = [records.get((name, arm, d, way)) for d, ways in WAYS.items() for way in ways]
            right = sum(v == "ok" for r in cells if r for v in r["sizes"].values())
            line += f"{f'{right}/{len(cells) * len(SIZES)}':>9}"
        lines.append(line)
    return "\n".join(lines)


def version() -> dict[str, str]:
    """Return torch's version and the last commit of the networks, "-dirty" if they changed."""

    def git(*words: str) -> str:
        rooms = [f"cbam_edu/{room}" for room in ("attention.py", "neighbours.py", "models")]
        words = ("git", *words, "--", *rooms)
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    dirty = "-dirty" if git("status", "--porcelain") else ""
    return {"torch": torch.__version__, "commit": git("log", "-1", "--format=%H") + dirty}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RECORDED, help="the file of results")
    parser.add_argument("--models", nargs="+", default=list_models(), help="default: all")
    parser.add_argument("--shard", default="1/1", help="such as 2/4: the second quarter")
    args = parser.parse_args(words)
    for name in args.models:
        check_name("model", name, list_models())
    shard, shards = map(int, args.shard.split("/"))
    make_folder(args.out.parent)
    now, records = version(), read(args.out)
    todo = groups(args.models)[shard - 1 :: shards]
    for number, (name, arm, dtype) in enumerate(todo, 1):
        keys = [(name, arm, dtype, way) for way in WAYS[dtype]]
        known = [records[key] for key in keys if key in records]
        if len(known) == len(keys) and all(now.items() <= r.items() and passed(r) for r in known):
            continue
        torch.manual_seed(0)
        model = create_model(name, num_classes=10, attention=None if arm == "none" else arm)
        results = every_way(model, dtype, SIZES)
        for key in keys:
            fields = dict(zip(("model", "attention", "dtype", "way"), key, strict=True))
            records[key] = fields | results[key[-1]] | now
        text = "".join(json.dumps(records[key]) + "\n" for key in sorted(records))
        replace_file(args.out, lambda file, text=text: file.write(text.encode()))
        wrong = [k for k in keys if not passed(records[k])]
        spent = sum(records[k]["seconds"] for k in keys)
        print(f"{number}/{len(todo)} {name} {arm} {dtype}: {spent:.0f} s", *wrong, flush=True)
    print(table(records, args.models))
    chosen = [records[(*group, way)] for group in todo for way in WAYS[group[-1]]]
    wrong = [record for record in chosen if not passed(record)]
    for record in wrong:
        print(json.dumps(record))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
