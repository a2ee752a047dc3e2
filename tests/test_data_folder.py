"""Folders of pictures: the usual transforms, the same images however they are read."""

import dataclasses
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import cbam_edu
from cbam_edu import data
from cbam_edu.cli import main
from cbam_edu.data import folder
from cbam_edu.data.batches import Augmentation, share
from cbam_edu.data.folder import (
    MEAN,
    STD,
    FolderBatches,
    FolderError,
    load_folder,
    transform,
)
from cbam_edu.storage import StorageError
from cbam_edu.train import CheckpointError, Recipe, evaluate, fit

COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 50), "red": (210, 40, 30)}
AUGMENTED = {"augmentation": Augmentation(), "shuffle": True, "seed": 7}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Make three classes told apart by colour: 8 pictures each to train on, 3 to measure on."""
    root = tmp_path_factory.mktemp("made") / "colours"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (40 + 3 * i, 60 - 4 * i, 3)  # wide, square and tall
                pixels = np.clip(colour + rng.normal(0, 25, shape), 0, 255).astype(np.uint8)
                kind = "png" if i == 0 else "jpg"
                Image.fromarray(pixels).save(root / split / name / f"{i}.{kind}")
    return root


def pictures(tree, split="train", workers=0, size=32):
    return load_folder(tree, split, size=size, workers=workers)


def everything(batches):
    xs, ys = zip(*batches, strict=True)
    return torch.cat(xs), torch.cat(ys)


def opened(path):
    return Image.open(path).convert("RGB")


def test_a_tree_is_listed(tree):
    training, test = pictures(tree), pictures(tree, "test")
    assert (len(training), len(test)) == (24, 9)
    assert training.classes == test.classes == ("blue", "green", "red")
    assert training.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert training.paths[9].endswith("green/1.jpg")
    assert (training.name, training.size) == ("colours", 32)
    same = data.load(str(tree), "train", workers=1)
    assert (same.size, same.paths, same.workers) == (224, training.paths, 1)
    assert 1 <= load_folder(tree).workers <= 4


def test_what_is_hidden_is_not_listed(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "colours")
    train = tmp_path / "colours" / "train"
    shutil.copytree(train / "red", train / ".ipynb_checkpoints")
    (train / "green" / "._1.jpg").write_bytes(b"what macOS leaves beside a file")
    listed = load_folder(tmp_path / "colours")
    assert listed.classes == ("blue", "green", "red")
    assert torch.equal(listed.labels, pictures(tree).labels)
    assert [p.rpartition("train")[2] for p in listed.paths] == [
        p.rpartition("train")[2] for p in pictures(tree).paths
    ]


def test_val_is_taken_before_test_and_test_where_it_is_alone(tree, tmp_path):
    for name in ("test", "val"):  # first the one alone
        (tmp_path / name / "only").mkdir(parents=True)
        opened(tree / "train" / "red" / "0.png").save(tmp_path / name / "only" / "a.png")
        assert f"/{name}/" in load_folder(tmp_path, "test").paths[0].replace("\\", "/")


def test_test_images_are_the_usual_ones(tree):
    test = pictures(tree, "test")
    x, y = everything(FolderBatches(test, 4))
    usual = v2.Compose(
        [
            v2.Resize(37),  # 32 * 256 / 224
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    wanted = torch.stack([usual(opened(path)) for path in test.paths])
    torch.testing.assert_close(x, wanted)
    assert torch.equal(y, test.labels)


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_are_the_usual_ones(tree, flip):
    training = pictures(tree)
    options = {"augmentation": Augmentation(flip=flip), "seed": 3}
    x, y = everything(FolderBatches(training, 8, **options))
    assert torch.equal(y, training.labels)
    usual = [v2.RandomResizedCrop(32, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))]
    usual = v2.Compose([*usual, *([v2.RandomHorizontalFlip(0.5)] if flip else [])])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    for index in range(24):
        seed = np.random.SeedSequence((3, 0, index)).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            image = v2.functional.pil_to_tensor(usual(opened(training.paths[index])))
        torch.testing.assert_close(x[index], (image / 255 - mean) / std)


def test_a_flip_is_by_chance_and_can_be_switched_off(tree):
    # One picture whose left is dark and whose right is bright, under any crop.
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    path = tree.parent / "ramp.png"
    Image.fromarray(ramp).save(path)
    one = pictures(tree)
    many = dataclasses.replace(one, paths=(str(path),) * 100, labels=torch.zeros(100).long())
    for flip in (True, False):
        x, _ = everything(FolderBatches(many, 50, augmentation=Augmentation(flip=flip)))
        mirrored = int((x[..., :16].mean((1, 2, 3)) > x[..., 16:].mean((1, 2, 3))).sum())
        assert (30 < mirrored < 70) if flip else mirrored == 0


def test_each_epoch_has_its_own_order_and_images(tree):
    batches = FolderBatches(pictures(tree), 8, **AUGMENTED)
    first, again = everything(batches), everything(batches)
    assert torch.equal(first[0], again[0])
    batches.set_epoch(1)
    second = everything(batches)
    assert not torch.equal(first[1], second[1])
    still = FolderBatches(pictures(tree), 8, augmentation=Augmentation())
    one = everything(still)[0]
    still.set_epoch(1)
    assert not torch.equal(one, everything(still)[0])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_neither_workers_nor_processes_nor_resuming_change_an_image(tree):
    plain = FolderBatches(pictures(tree), 9, drop_last=True, **AUGMENTED)
    epochs = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        epochs.append(list(plain))
    read_ahead = FolderBatches(pictures(tree, workers=2), 9, drop_last=True, **AUGMENTED)
    for epoch in range(2):
        read_ahead.set_epoch(epoch)
        for (x, y), (wanted, labels) in zip(read_ahead, epochs[epoch], strict=True):
            assert torch.equal(x, wanted)
            assert torch.equal(y, labels)
    for r in range(2):
        part = FolderBatches(pictures(tree), 9, drop_last=True, part=(r, 2), **AUGMENTED)
        part.set_epoch(1)  # as a resumed run does
        for (x, y), (wanted, labels) in zip(part, epochs[1], strict=True):
            mine = share(9, (r, 2))
            assert torch.equal(x, wanted[mine])
            assert torch.equal(y, labels[mine])


def test_a_share_without_pictures_is_left_out(tree):
    parts = [list(FolderBatches(pictures(tree, "test"), 4, part=(r, 2))) for r in range(2)]
    assert [[len(x) for x, _ in part] for part in parts] == [[2, 2], [2, 2, 1]]


def test_reading_draws_nothing_from_torchs_generator(tree):
    before = torch.get_rng_state()
    everything(FolderBatches(pictures(tree), 8, **AUGMENTED))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_reader_can_be_sent_to_a_process_that_is_spawned(tree):
    reader = FolderBatches(pictures(tree), 8, **AUGMENTED).loader.dataset
    copied = pickle.loads(pickle.dumps(reader))
    assert torch.equal(copied[0, [3, 4]], reader[0, [3, 4]])


def test_batches_have_the_memory_format_asked_for(tree):
    for channels_last in (False, True):
        (x, _), *_ = FolderBatches(pictures(tree), 8, channels_last=channels_last)
        wanted = torch.channels_last if channels_last else torch.contiguous_format
        assert x.is_contiguous(memory_format=wanted)


def test_holdout_splits_each_class(tree):
    training = pictures(tree).subset(torch.arange(4, 24))  # 4 of the first class, 8 of the others
    rest, held = training.holdout([1, 2, 3])
    assert torch.bincount(held.labels).tolist() == [1, 2, 3]
    assert torch.bincount(rest.labels).tolist() == [3, 6, 5]
    assert set(rest.paths) | set(held.paths) == set(training.paths)
    assert held.paths == training.holdout([1, 2, 3])[1].paths
    with pytest.raises(ValueError, match=r"per_class must be below 4, .* of class 'blue'"):
        training.holdout(4)


# Training


def network(size=3):
    torch.manual_seed(0)
    return cbam_edu.create_model("cbamnet_tiny", size, dims=(4, 8))


RECIPE = Recipe(epochs=3, batch_size=8, lr=0.02)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_is_resumed_to_the_same_bits_with_other_workers(tree, tmp_path, monkeypatch):
    whole, cut, resumed = network(), network(), network()
    test = pictures(tree, "test")
    history = fit(whole, pictures(tree), RECIPE, test=test, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] == evaluate(whole, test, batch_size=2).accuracy
    save = cbam_edu.train._Run.save

    def stop_after_an_epoch(self, folder):
        save(self, folder)
        if self.history:
            raise KeyboardInterrupt

    monkeypatch.setattr(cbam_edu.train._Run, "save", stop_after_an_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, pictures(tree), RECIPE, out=tmp_path, progress=False)
    monkeypatch.undo()
    options = {"out": tmp_path, "resume": True, "progress": False}
    fit(resumed, pictures(tree, workers=2), RECIPE, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="size: 32 there, 48 asked for"):
        fit(network(), pictures(tree, size=48), RECIPE, **options)


def test_what_makes_no_sense_for_a_folder_is_refused(tree):
    for change in ({"crop": 2}, {"cutout": 8}):
        recipe = dataclasses.replace(RECIPE, **change)
        with pytest.raises(ValueError, match="crop and cutout are for images in memory"):
            fit(network(), pictures(tree), recipe, progress=False)


def test_other_classes_to_measure_on_are_refused(tree):
    test = pictures(tree, "test")
    other = dataclasses.replace(test, classes=("blue", "red", *(f"new{i}" for i in range(7))))
    wanted = (
        "of colours, are not those that were trained; lacking: green; unknown: "
        "new0, new1, new2, new3, new4 and 2 more"
    )
    with pytest.raises(ValueError, match=wanted):
        fit(network(), pictures(tree), RECIPE, test=other, progress=False)
    turned = dataclasses.replace(test, classes=test.classes[::-1])
    with pytest.raises(ValueError, match="lacking: none; unknown: none"):
        fit(network(), pictures(tree), RECIPE, test=turned, progress=False)


# Errors


def test_what_is_no_tree_is_told(tree, tmp_path):
    with pytest.raises(FolderError, match=r"has no folder train in it; wanted: FOLDER/train/CLASS"):
        load_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FolderError, match=r"has no folder val or test in it"):
        load_folder(tmp_path, "test")
    with pytest.raises(FolderError, match="Couldn't find any class folder"):
        load_folder(tmp_path)
    shutil.copytree(tree / "train" / "red", tmp_path / "train" / ".hidden")
    with pytest.raises(FolderError, match=r"train holds nothing, and a network needs two classes"):
        load_folder(tmp_path)
    shutil.copytree(tree / "train" / "red", tmp_path / "train" / "red")
    with pytest.raises(FolderError, match=r"train holds red, and a network needs two classes"):
        load_folder(tmp_path)
    (tmp_path / "val" / ".hidden").mkdir(parents=True)
    with pytest.raises(FolderError, match=r"val holds nothing"):
        load_folder(tmp_path, "test")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FolderError, match="no valid file for the classes empty"):
        load_folder(tmp_path)
    shutil.copy(tree / "train" / "red" / "1.jpg", tmp_path / "train" / "empty" / "._1.jpg")
    with pytest.raises(FolderError, match="no valid file for the classes empty"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"unknown data set 'cifar11'; did you mean cifar10.*nor"):
        data.load("cifar11")
    with pytest.raises(ValueError, match="size must be a positive integer, got 0"):
        load_folder(tree, size=0)
    with pytest.raises(ValueError, match="workers must be an integer from 0 up, got -1"):
        load_folder(tree, workers=-1)
    for option in ("size", "workers"):
        with pytest.raises(ValueError, match="size and workers are for a folder of pictures, not"):
            data.load("cifar10-mini", **{option: 2})


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_named(tree, workers):
    good = pictures(tree, workers=workers)
    whole = (tree / "train" / "red" / "1.jpg").read_bytes()
    for content, message in (
        (b"text", "is not a picture that can be read"),
        (whole[:-300], "is a damaged picture: image file is truncated"),
        (None, "it does not exist"),
    ):
        path = tree.parent / "bad.jpg"
        path.unlink(missing_ok=True)
        if content:
            path.write_bytes(content)
        bad = dataclasses.replace(good, paths=(*good.paths[:-1], str(path)))
        kind = ValueError if content else StorageError
        with pytest.raises(kind, match=message) as told:
            everything(FolderBatches(bad, 8))
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)


def test_a_missing_torchvision_is_told(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FolderError, match=r'cannot be used here.*pip install "cbam_edu\[folder\]"'):
        load_folder(tree)


# The command


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["--data", str(tree), "--size", "32", "--workers", "0", "--device", "cpu"]
    words += ["--batch-size", "8", "--epochs", "2", "--lr", "0.02", "--out", str(out)]
    assert main(["train", "--model", "cbamnet_tiny", *words]) == 0
    return out


def test_a_trained_network_knows_its_images(tree, trained):
    model = cbam_edu.load_model(trained / "model.safetensors")
    assert model.about["classes"] == ["blue", "green", "red"]
    assert (model.about["data"], model.about["size"]) == ("colours", 32)
    assert (model.about["mean"], model.about["std"]) == (list(MEAN), list(STD))
    record = json.loads((trained / "record.jsonl").read_text())
    assert (record["data"], record["train_images"], record["test_images"]) == ("colours", 24, 9)
    assert record["accuracy"] == evaluate(model, pictures(tree, "test")).accuracy


def test_evaluate_and_predict_see_what_training_saw(tree, trained, capsys):
    file = str(trained / "model.safetensors")
    words = ["--data", str(tree), "--device", "cpu", "--workers", "0"]
    assert main(["evaluate", "--model", file, *words]) == 0
    scores = evaluate(cbam_edu.load_model(file), pictures(tree, "test"))
    told = f"{scores.accuracy:.2%} of 9 test images of colours, loss {scores.loss:.4f}\n"
    assert capsys.readouterr().out == told
    test = pictures(tree, "test")
    assert main(["predict", "--model", file, *test.paths]) == 0
    (x, _), *_ = FolderBatches(test, 9)
    with torch.no_grad():
        chances = cbam_edu.load_model(file)(x).softmax(1)
    for path, row, line in zip(
        test.paths, chances, capsys.readouterr().out.splitlines(), strict=True
    ):
        best = int(row.argmax())
        assert line.startswith(f"{path}: {test.classes[best]} {row[best]:.1%}, ")


def test_validation_holds_out_a_tenth_of_each_class(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(tree), "--size", "32", "--workers", "0", "--device", "cpu"]
    words += ["--batch-size", "7", "--epochs", "1", "--validate", "--seed", "4"]
    assert main(["train", "--model", "resnet20", *words]) == 0
    assert "of 3 validation images" in capsys.readouterr().out
    record = json.loads((tmp_path / "runs/colours_resnet20_none_4/record.jsonl").read_text())
    assert (record["train_images"], record["test_images"]) == (21, 3)


@pytest.mark.parametrize("size", [32, 64])
def test_the_cost_is_that_of_the_images(tree, tmp_path, size):
    words = ["--data", str(tree), "--size", str(size), "--workers", "0", "--device", "cpu"]
    words += ["--batch-size", "24", "--epochs", "1", "--out", str(tmp_path)]
    assert main(["train", "--model", "resnet20", *words]) == 0
    record = json.loads((tmp_path / "record.jsonl").read_text())
    model = cbam_edu.create_model("resnet20", 3)
    cost = cbam_edu.complexity.count(model, (3, size, size))
    assert record["multiply_accumulates"] == cost.multiply_accumulates


def test_networks_and_images_of_two_kinds_do_not_mix(tree, trained, capsys):
    file = str(trained / "model.safetensors")
    for words, message in (
        (["--model", file, "--data", "cifar10-mini"], "measure it on a folder of pictures"),
        (["--data", str(tree), "--workers", "0"], "measure it on cifar10 or cifar10-mini"),
        (["--data", "shapes"], "lacking: airplane"),
    ):
        assert main(["evaluate", *words, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_the_transform_for_224_pixels_is_that_of_imagenet():
    shortened, resize, crop, _ = transform(224).transforms
    assert shortened(usual := Image.new("RGB", (1600, 100))) is usual  # but what nobody has
    assert (resize.size, crop.size) == ([256], (224, 224))


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("long", "first", "last"), [(160, 0, 160), (161, 0, 160), (400, 120, 280)])
def test_the_middle_of_a_sliver_is_what_is_measured(tall, long, first, last):
    pixels = np.random.default_rng(0).integers(0, 256, (10, long, 3), np.uint8)
    middle = pixels[:, first:last]
    if tall:
        pixels, middle = pixels.swapaxes(0, 1), middle.swapaxes(0, 1)
    pixels, middle = (Image.fromarray(np.ascontiguousarray(v)) for v in (pixels, middle))
    usual = v2.Compose([v2.Resize(round(8 * 256 / 224)), v2.CenterCrop(8), v2.PILToTensor()])
    assert torch.equal(transform(8)(pixels), usual(middle))
    assert np.array_equal(folder._shortened(pixels), middle)
