"""The speed recipe beside airbench94, on one GPU, in turns.

    pip install airbench==0.1.8
    python tests/yardstick.py --out FILE [--runs 3] [--data-dir FOLDER]

airbench94 is K. Jordan's, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024,
arXiv:2404.00498): `airbench.train94`, which compiles nothing. Both warm up before. Counted are

- of ours, as `seconds`: each epoch, from drawing its random choices to the end of its last step on
  the GPU; not the measuring on the test images after each epoch, of which the last one counts;
- of airbench, as `train_seconds`, what it counts itself by the GPU's events: whitening,
  augmentation and training. Its `seconds` add its last measuring, on six views of each test image.

The images are on the GPU already in both. airbench's `accuracy` is of the six views, its
`plain_accuracy` of one, as ours is. FILE gets one line of JSON a run, `experiment.record`'s keys.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cbam_edu import create_model, data
from cbam_edu.data import ImageSet
from cbam_edu.recipe import RECIPES, Recipe
from cbam_edu.records import device_name, record
from cbam_edu.train import fit


def hand_over(images: ImageSet, file: Path) -> None:
    """Write images as airbench keeps what it has downloaded: ``(N, 32, 32, 3) uint8``."""
    pixels = images.images.permute(0, 2, 3, 1).contiguous()
    torch.save({"images": pixels, "labels": images.labels, "classes": images.classes}, file)


def read_table(text: str) -> dict[str, float]:
    """Return what airbench prints of a run, in the rows of its last epoch and its evaluation."""
    cells = ([cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines())
    rows = [row for row in cells if len(row) == 7]
    if len(rows) < 2 or rows[-1][1] != "eval":
        raise ValueError(f"this is not a table of airbench 0.1.8: {text[-500:]!r}")
    *_, last, evaluation = rows
    return {
        "accuracy": float(evaluation[5]),
        "plain_accuracy": float(last[4]),
        "seconds": float(evaluation[6]),
        "train_seconds": float(last[6]),
    }


def ours(recipe: Recipe, training: ImageSet, test: ImageSet, device: torch.device) -> dict:
    """Train ResNet-9 with CBAM; return the record of the run."""
    torch.manual_seed(recipe.seed)
    model = create_model("resnet9", len(training.classes), attention="cbam")
    history = fit(model, training, recipe, test=test, device=device, progress=False)
    images = len(training), len(test)
    return record("yardstick", model, recipe, history, data="cifar10", images=images, device=device)


def theirs(seed: int, device: torch.device) -> dict[str, Any]:
    """Train airbench94 on the files in ``cifar10``, in this folder; return a record like ours."""
    import airbench

    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        model = airbench.train94(run=seed)
    return {
        "study": "yardstick",
        "model": "airbench94",
        "arm": "none",
        "seed": seed,
        **read_table(told.getvalue()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "cifar10",
        "device": device_name(device),
        "versions": {name: importlib.metadata.version(name) for name in ("airbench", "torch")},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The speed recipe beside airbench94, on one GPU.")
    parser.add_argument("--out", type=Path, required=True, help="file to add the records to")
    parser.add_argument("--runs", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("the yardstick needs a GPU for CUDA; there is none here", file=sys.stderr)
        return 2
    if not importlib.util.find_spec("airbench"):
        print("airbench is not installed; pip install airbench==0.1.8", file=sys.stderr)
        return 2
    device, out, speed = torch.device("cuda"), args.out.resolve(), RECIPES["speed"]
    training, test = (data.load("cifar10", split, folder=args.data_dir) for split in data.SPLITS)
    few = training.subset(torch.arange(4 * speed.batch_size))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("cifar10").mkdir()
        hand_over(training, Path("cifar10/train.pt"))
        hand_over(test, Path("cifar10/test.pt"))
        ours(dataclasses.replace(speed, epochs=1), few, test, device)
        theirs(0, device)
        for seed in range(args.runs):
            recipe = dataclasses.replace(speed, seed=seed)
            pair = ours(recipe, training, test, device), theirs(seed, device)
            with open(out, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in pair)
            for line in pair:
                print(f"{line['model']:12}{line['accuracy']:8.2%}{line['seconds']:8.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
