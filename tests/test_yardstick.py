"""The yardstick: what it hands to airbench and reads from it, and that it asks for a GPU."""

import importlib.util

import pytest
import torch

import yardstick
from cbam_edu import data

# As airbench 0.1.8 prints a run, the numbers aside.
ROWS = [
    ["run", "epoch", "train_loss", "train_acc", "val_acc", "tta_val_acc", "total_time_seconds"],
    ["0", "0", "2.0100", "0.5000", "0.4000", "", "0.4100"],
    ["", "1", "1.2000", "0.9000", "0.9310", "", "3.7000"],
    ["", "eval", "1.2000", "0.9000", "0.9310", "0.9401", "3.8300"],
]
TABLE = "\n".join("".join(f"|  {cell:>11}  " for cell in row) + "|\n" + "-" * 99 for row in ROWS)


def test_airbenchs_table_is_read():
    assert yardstick.read_table(TABLE) == {
        "accuracy": 0.9401,
        "plain_accuracy": 0.9310,
        "seconds": 3.83,
        "train_seconds": 3.7,
    }
    for other in ("", TABLE.replace("eval", "   9"), "\n".join(TABLE.splitlines()[:3])):
        with pytest.raises(ValueError, match=r"not a table of airbench 0\.1\.8"):
            yardstick.read_table(other)


def test_airbench_gets_the_images_as_it_keeps_them(tmp_path):
    images = data.load("cifar10-mini", "test")
    yardstick.hand_over(images, tmp_path / "test.pt")
    kept = torch.load(tmp_path / "test.pt", weights_only=True)
    assert (kept["images"].shape, kept["images"].dtype) == ((500, 32, 32, 3), torch.uint8)
    assert torch.equal(kept["images"].permute(0, 3, 1, 2), images.images)
    assert torch.equal(kept["labels"], images.labels)
    assert tuple(kept["classes"]) == data.CLASSES


def test_our_record_is_that_of_a_training_run():
    recipe = yardstick.Recipe(epochs=1, batch_size=8, seed=3)
    few, test = (data.load("cifar10-mini", s).subset(torch.arange(8)) for s in data.SPLITS)
    line = yardstick.ours(recipe, few, test, torch.device("cpu"))
    assert (line["study"], line["model"], line["arm"]) == ("yardstick", "resnet9", "cbam")
    assert (line["seed"], line["epochs"], line["train_images"]) == (3, 1, 8)


@pytest.mark.parametrize(("gpu", "told"), [(False, "needs a GPU"), (True, "pip install airbench")])
def test_what_is_lacking_is_told_in_one_line(tmp_path, capsys, monkeypatch, gpu, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert yardstick.main(["--out", str(tmp_path / "lines.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
    assert not list(tmp_path.iterdir())
