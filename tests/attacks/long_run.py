"""Train for 200 epochs, and do everything else 200 times: does anything grow?

::

    python tests/attacks/long_run.py [ATTACK ...]

Memory is the process's own (RssAnon, in MiB), after Python's garbage is collected; "with files" are
also the libraries' pages (VmRSS), which the system takes back when it likes. Times are the
process's own on the processor, beside those of a fixed piece of work that is done after each epoch:
other programs slow down both. About 15 minutes on one core.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import recorded
import torch
from torch import nn

from cbam_edu import (
    add_attention,
    cli,
    create_model,
    data,
    load_model,
    load_pretrained,
    plot,
    remove_attention,
    save_model,
    train,
)
from cbam_edu.complexity import count
from cbam_edu.convert import convert
from cbam_edu.data import Augmentation, Batches, ImageSet, normalise
from cbam_edu.explain import attention_maps, grad_cam
from cbam_edu.export import export
from cbam_edu.train import Recipe, evaluate, fit

SUBJECT = "long_run"
EPOCHS = ROUNDS = 200
WARM = 20  # epochs or rounds before anything is compared: allocators and caches fill
HEAVY = 60  # rounds of what takes seconds
TORCHS = ", without this library"
GROWTH = 0.01  # of memory: what is still flat
Sample = dict[str, float]


def sample() -> Sample:
    """Return what this process has of everything that could grow."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {
        "memory": int(kilobytes["RssAnon"]) / 1024,
        "with files": int(kilobytes["VmRSS"]) / 1024,
        "objects": len(gc.get_objects()),
        "tensors": sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def trend(values: Sequence[float]) -> dict[str, float]:
    """Return medians of the first and last quarter after warming up, and the slope in between.

    The slope is the straight line's, over all of them, in percent of the median, with its 95 %
    interval: normal, of independent errors.
    """
    y = np.asarray(values[WARM:], float)
    quarter, n = len(y) // 4, len(y)
    first, last = float(np.median(y[:quarter])), float(np.median(y[-quarter:]))
    x = np.linspace(-0.5, 0.5, n)
    scale = 100 / float(np.median(y))
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    error = float(np.sqrt(rest @ rest / (n - 2) / (x @ x)))
    low, high = np.quantile(y, (0.25, 0.75))
    return {
        "first": round(first, 4),
        "last": round(last, 4),
        "change %": round(100 * (last / first - 1), 3) if first else 0.0,
        "slope %": round(scale * slope, 3),
        "slope low %": round(scale * (slope - 1.96 * error), 3),
        "slope high %": round(scale * (slope + 1.96 * error), 3),
        "quartiles apart %": round(scale * float(high - low), 3),
    }


def grown(trends: Mapping[str, dict[str, float]]) -> list[str]:
    """Name what is not flat: memory within 1 %, counts exactly, times within their own noise."""
    found = []
    for name, t in trends.items():
        if name == "memory":
            flat = abs(t["change %"]) <= 100 * GROWTH
        elif name == "time":
            flat = abs(t["change %"]) <= max(1.0, t["quartiles apart %"])
        else:
            flat = t["first"] == t["last"]
        if not flat:
            found.append(f"{name}: {t['first']} to {t['last']}")
    return found


def columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Turn samples into one series for each thing."""
    return {name: [s[name] for s in samples] for name in samples[0]}


def yardstick() -> float:
    """Do a fixed piece of work, such as training does; return its time on the processor."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 16, 32, 32, generator=generator)
    weight = torch.randn(16, 16, 3, 3, generator=generator)
    began = time.process_time()
    for _ in range(40):
        torch.conv2d(x, weight, padding=1).relu_().sum()
    return time.process_time() - began


# The attacks: each returns how many rounds there were, what grew, and the trends.
Found = tuple[int, list[str], dict[str, Any]]


def training() -> Found:
    """Train a small network on the miniature, evaluated and kept after every epoch."""
    images = data.load("cifar10-mini", "train"), data.load("cifar10-mini", "test")
    torch.manual_seed(0)
    model = create_model("cbamnet_tiny", 10, dims=(8, 16))
    recipe = Recipe(epochs=EPOCHS, batch_size=50, lr=0.1, cutout=8, mixup=0.2, ema=0.99)
    samples, clock = [], [time.process_time()]
    save, left = train._Run.save, set()

    def noting(self: Any, folder: Path) -> None:
        save(self, folder)
        spent = time.process_time() - clock[0]
        if not self.history:  # the checkpoint before the first epoch
            clock[0] = time.process_time()
            return
        left.add(tuple(sorted(path.name for path in folder.iterdir())))
        size = (folder / "checkpoint.pt").stat().st_size
        work = yardstick()
        samples.append({**sample(), "time": spent / work, "processor": spent, "checkpoint": size})
        if len(samples) % 20 == 0:
            print(len(samples), samples[-1], flush=True)
        clock[0] = time.process_time()

    train._Run.save = noting  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        history = fit(model, images[0], recipe, test=images[1], out=folder, progress=False)
    series = columns(samples)
    # A line of history is a few numbers more in each checkpoint: counted, and taken off.
    growth = (series["checkpoint"][-1] - series["checkpoint"][WARM]) / (EPOCHS - WARM - 1)
    details = {name: trend(values) for name, values in series.items()}
    apart = ("checkpoint", "processor", "objects", "with files")
    judged = {k: t for k, t in details.items() if k not in apart}
    per = (details["objects"]["last"] - details["objects"]["first"]) / (0.75 * (EPOCHS - WARM))
    wrong = grown(judged)
    if len(left) != 1:
        wrong.append(f"files beside the checkpoint: {left}")
    if growth > 200:
        wrong.append(f"a checkpoint is larger by {growth:.0f} bytes after each epoch")
    if per > 2:
        wrong.append(f"{per:.1f} Python objects more after each epoch")
    return EPOCHS, wrong, {
        **details,
        "bytes of checkpoint an epoch": round(growth, 1),
        "objects an epoch": round(per, 2),
        "accuracy": history[-1]["accuracy"],
    }  # fmt: skip


def picture(folder: Path) -> Path:
    """Write one photograph of the miniature as a file."""
    from PIL import Image

    pixels = data.load("cifar10-mini", "test")
    assert isinstance(pixels, ImageSet)
    path = folder / "picture.png"
    Image.fromarray(pixels.images[0].permute(1, 2, 0).numpy()).save(path)
    return path


def silently(*words: str) -> None:
    """Run the command line in this process, without its words."""
    before, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  (closed below)
    try:
        assert cli.main(words) == 0
    finally:
        sys.stdout.close()
        sys.stdout = before


def tasks(folder: Path) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Yield what people do: a name, the work, and how often."""
    test = data.load("cifar10-mini", "test")
    assert isinstance(test, ImageSet)
    few = test.subset(torch.arange(20))
    x, y = normalise(few.images), few.labels
    model = load_pretrained("resnet20_cbam")
    path, out, kept = picture(folder), folder / "x.pt2", folder / "model.safetensors"
    weights = convert(model.state_dict(), target="timm", rename_network=False)
    tiny = create_model("cbamnet_tiny", 10, dims=(8, 16))
    quick = Recipe(epochs=1, batch_size=20, lr=0.01)
    aug = Augmentation(cutout=8)

    def surgery() -> nn.Module:
        changed = add_attention(create_model("resnet8"), "cbam", input_size=(3, 32, 32))
        return remove_attention(changed)

    def resumed() -> None:
        with tempfile.TemporaryDirectory() as name:
            fit(tiny, few, quick, out=name, progress=False)
            fit(tiny, few, quick, out=name, resume=True, progress=False)

    def compiled(model: nn.Module) -> None:
        torch.compiler.reset()
        torch.compile(model, backend="eager")(x)

    def saved() -> None:
        save_model(model, kept)
        load_model(kept)

    yield "predict", lambda: silently("predict", str(path)), ROUNDS
    yield "evaluate", lambda: evaluate(model, few), ROUNDS
    yield "attention maps", lambda: attention_maps(model, x), ROUNDS
    yield "Grad-CAM", lambda: grad_cam(model, x, y, model.stages[-1]), ROUNDS  # type: ignore[index,arg-type]
    yield "convert", lambda: convert(weights, rename_network=False), ROUNDS
    yield "save and load", saved, ROUNDS
    yield "add and remove attention", surgery, ROUNDS
    yield "count", lambda: count(model), ROUNDS
    yield "a figure", lambda: plot.images(few.images[:8]).savefig(folder / "x.png"), ROUNDS
    yield "batches", lambda: [*Batches(test, 100, augmentation=aug, shuffle=True)], ROUNDS
    yield "train and resume", resumed, ROUNDS
    # What grows here, if it does so without this library, too, is torch's.
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).eval()
    yield f"compile{TORCHS}", lambda: compiled(plain), HEAVY
    yield "compile", lambda: compiled(tiny.eval()), HEAVY
    yield f"export{TORCHS}", lambda: torch.export.export(plain, (x,)).run_decompositions(), HEAVY
    yield "export", lambda: export(tiny, out, "torch-export"), HEAVY


def rounds() -> Found:
    """Do each of the other things again and again, in one process."""
    wrong, details, tried = [], {}, 0
    with tempfile.TemporaryDirectory() as name:
        for task, work, times in tasks(Path(name)):
            samples = []
            for i in itertools.count():
                work()
                samples.append(sample())
                if i + 1 == times:
                    break
            tried += times
            trends = {k: trend(v) for k, v in columns(samples).items()}
            details[task] = {k: [t["first"], t["last"]] for k, t in trends.items()}
            per = (trends["objects"]["last"] - trends["objects"]["first"]) / (0.75 * (times - WARM))
            judged = {k: t for k, t in trends.items() if k not in ("objects", "with files")}
            found = grown(judged) + [f"objects: {per:.1f} a round"] * (per > 2)
            wrong += [f"{task}, {text}" for text in found]
            print(task, details[task], found, flush=True)
    return tried, wrong, details


ATTACKS: dict[str, tuple[Callable[[], Found], str, str]] = {
    "training": (training, "one training of 200 epochs", "epochs"),
    "rounds": (rounds, "the rest of the library, again and again in one process", "rounds"),
}


def main(arguments: list[str] | None = None) -> None:
    """Do the attacks named, or all of them, and record what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    options = parser.parse_args(arguments)
    recorded.write_all(SUBJECT, ATTACKS, options.attacks)


if __name__ == "__main__":
    main()
