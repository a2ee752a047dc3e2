"""Choose the learning rate of the small studies: plain networks, on images of the training set.

    python tests/tuning.py --out book/results/checks/tuning.jsonl

Each is trained as a small study trains it, on the images that it trains on, and measured on 5,000
other training images; no test image is looked at. One line of JSON a run.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from cbam_edu import create_model, data
from cbam_edu.records import code, device_name
from cbam_edu.studies import STUDIES, Study
from cbam_edu.train import evaluate, fit

STUDIED = ("variants", "neighbours-resnet20", "neighbours-resnet9")
RATES = (0.1, 0.2, 0.4)


def held_out(training: data.ImageSet, study: Study) -> tuple[data.ImageSet, data.ImageSet]:
    """Return a small study's training images, and 5,000 others of the training set."""
    per_class = study.sizes["small"].images
    assert per_class is not None
    rest, chosen = training.holdout(per_class)
    return chosen, rest.holdout(500)[1]


def main() -> None:
    """Try every rate on every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    training = data.load("cifar10", "train")
    assert isinstance(training, data.ImageSet)
    lines = []
    for name in STUDIED:
        study = STUDIES[name]
        size = study.sizes["small"]
        images, others = held_out(training, study)
        for rate in RATES:
            recipe = dataclasses.replace(size.recipe, lr=rate)
            torch.manual_seed(recipe.seed)
            model = create_model(size.model, **study.options("none", size))
            fit(model, images, recipe, progress=False)
            scores = evaluate(model, others, precision=recipe.precision)
            line = {"study": name, "model": size.model, "lr": rate, **scores._asdict()}
            line |= {"images": len(others), "device": device_name(torch.device("cpu"))}
            lines.append(line | {"torch": torch.__version__, "code": code()})
            print(line, flush=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
