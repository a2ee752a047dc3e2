"""Training: the loop against one written by hand, and checkpoints that lose nothing."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from cbam_edu import create_model, measure, train
from cbam_edu.checkpoint import read_checkpoint, write_checkpoint
from cbam_edu.data import Augmentation, Batches, ImageSet, batches
from cbam_edu.recipe import RECIPES, make_optimizer
from cbam_edu.storage import StorageError
from cbam_edu.train import (
    CheckpointError,
    DivergenceError,
    Recipe,
    deterministic,
    evaluate,
    fit,
    parameter_groups,
)


def toy(count=64, seed=0):
    """Four classes told apart by which quarter of the image is bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = rng.integers(0, 120, (count, 3, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 130
    return ImageSet("toy", torch.from_numpy(images), torch.from_numpy(labels), ("a", "b", "c", "d"))


class Flat(nn.Module):
    """One linear layer on the pixels: the quarters can be told apart, and it is fast."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(192, 4)

    def forward(self, x):
        return self.linear(x.flatten(1))


def network(**options):
    torch.manual_seed(0)
    return create_model("cbamnet_tiny", 4, dims=(4, 8), attention="cbam", **options)


PLAIN = Recipe(epochs=2, batch_size=16, lr=0.05, crop=0, flip=False, channels_last=False)


def but(**changes):
    return dataclasses.replace(PLAIN, **changes)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_fit_is_the_loop_one_would_write_by_hand():
    data, recipe = toy(), PLAIN
    model, by_hand = Flat(), Flat()
    history = fit(model, data, recipe, progress=False)
    optimizer = torch.optim.SGD(
        [
            {"params": [by_hand.linear.weight], "weight_decay": recipe.weight_decay},
            {"params": [by_hand.linear.bias], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        momentum=0.9,
        nesterov=True,
    )
    batches = Batches(
        data,
        16,
        shuffle=True,
        drop_last=True,
        seed=0,
        augmentation=Augmentation(crop=0, flip=False),
    )
    losses, right, rates = [], [], []
    for step in range(8):
        if step % 4 == 0:
            batches.set_epoch(step // 4)
            iterator = iter(batches)
        x, y = next(iterator)
        done = (step + 1) / 9  # one-cycle: up for a fifth, then down to zero
        lr = 0.05 * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = by_hand(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        right.append((logits.argmax(1) == y).sum().item())
        rates.append(lr)
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())
    assert history[0]["loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert history[1]["loss"] == pytest.approx(sum(losses[4:]) / 4, rel=1e-5)
    assert [entry["epoch"] for entry in history] == [1, 2]
    accuracies = [entry["train_accuracy"] for entry in history]
    assert accuracies == [sum(right[:4]) / 64, sum(right[4:]) / 64]
    assert [entry["lr"] for entry in history] == pytest.approx([rates[3], rates[7]])
    assert all(0 < entry["seconds"] < 60 for entry in history)


def test_schedules():
    line, cosine = but(warmup=0.25, lr=2.0), but(warmup=0.25, lr=2.0, schedule="cosine")
    for recipe in (line, cosine):
        assert recipe.learning_rate(0) == 0
        assert recipe.learning_rate(0.125) == pytest.approx(1)
        assert recipe.learning_rate(0.25) == pytest.approx(2)
        assert recipe.learning_rate(0.625) == pytest.approx(1)
        assert recipe.learning_rate(1) == pytest.approx(0)
    assert line.learning_rate(0.4375) == pytest.approx(1.5)
    assert cosine.learning_rate(0.4375) == pytest.approx(1 + math.cos(math.pi / 4))
    assert but(warmup=0.0, lr=2.0).learning_rate(0) == 2
    assert but(warmup=1.0, lr=2.0).learning_rate(1) == 0


def test_weight_decay_spares_norms_and_biases_and_knows_the_gates():
    model = network()
    recipe = but(weight_decay=1.0, channel_weight_decay=2.0, spatial_weight_decay=3.0)
    decay = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, recipe)
        for p in group["params"]
    }
    for name, p in model.named_parameters():
        wanted = 1.0
        if p.ndim < 2:
            wanted = 0.0
        elif ".channel." in name:
            wanted = 2.0
        elif ".spatial." in name:
            wanted = 3.0
        assert decay.pop(id(p)) == wanted, name
    assert not decay
    values = {g["weight_decay"] for g in parameter_groups(model, but(weight_decay=1.0))}
    assert values == {0.0, 1.0}


def test_evaluate_measures_accuracy_and_loss_and_leaves_the_mode():
    data, model = toy(), network().train()
    scores = evaluate(model, data, batch_size=10)
    assert model.training
    model.eval()
    (x, y), *_ = Batches(data, 64)
    with torch.no_grad():
        logits = model(x)
    assert scores.accuracy == (logits.argmax(1) == y).float().mean().item()
    assert scores.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    evaluate(model, data)
    assert not model.training
    with pytest.raises(ValueError, match="toy has no images"):
        evaluate(model, data.subset(torch.tensor([], dtype=torch.int64)))


def test_evaluation_leaves_each_part_in_the_mode_it_had(monkeypatch):
    """A BatchNorm that is frozen stays so; and whatever stops it, the network can learn on."""
    model = network().train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in model.modules()]
    evaluate(model, toy())
    assert [m.training for m in model.modules()] == modes
    assert not frozen.training

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure.F, "cross_entropy", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, toy())
    assert [m.training for m in model.modules()] == modes


def test_a_cpu_measures_fewer_images_at_a_time():
    for device, size in (("cpu", 125), ("meta", 500)):
        assert measure.evaluation_batches(toy(), torch.device(device)).batch_size == size
        assert measure.evaluation_batches(toy(), torch.device(device), 7).batch_size == 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine"},
        {"mixup": 0.2},
        {"ema": 0.5},
        {"label_smoothing": 0.1, "cutout": 2, "channels_last": True},
    ],
    ids=str,
)
def test_every_ingredient_learns(changes):
    torch.manual_seed(0)
    model = Flat()
    history = fit(model, toy(), but(epochs=6, **changes), test=toy(40, seed=1), progress=False)
    assert history[-1]["accuracy"] > 0.9  # a quarter by chance
    assert (
        history[-1]["accuracy"]
        == evaluate(model, toy(40, seed=1), precision=but(**changes).precision).accuracy
    )


def test_mixup_is_the_mean_of_two_losses():
    data = toy(16)
    plain, mixed = Flat(), Flat()
    one = but(epochs=1, batch_size=16)
    fit(plain, data, one, progress=False)
    entry = fit(mixed, data, dataclasses.replace(one, mixup=1.0), progress=False)[0]
    by_hand = Flat()
    batches = Batches(data, 16, shuffle=True, augmentation=Augmentation(0, False))
    ((x, y),) = batches
    chances = np.random.default_rng((0, 0, 1))
    chances.integers(2**31)
    mix = chances.beta(1.0, 1.0, 1)[0]
    logits = by_hand(mix * x + (1 - mix) * x.flip(0))
    wanted = mix * F.cross_entropy(logits, y) + (1 - mix) * F.cross_entropy(logits, y.flip(0))
    assert entry["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert not same(weights(plain), weights(mixed))


def test_label_smoothing_spreads_the_target():
    entry = fit(Flat(), toy(16), but(epochs=1, batch_size=16, label_smoothing=0.3), progress=False)[
        0
    ]
    ((x, y),) = Batches(toy(16), 16)
    assert entry["loss"] == pytest.approx(
        F.cross_entropy(Flat()(x), y, label_smoothing=0.3).item(), rel=1e-5
    )


@pytest.mark.parametrize("change", [{"crop": 1}, {"flip": True}, {"cutout": 3}], ids=str)
def test_the_recipe_moves_the_images(change):
    plain, moved = Flat(), Flat()
    fit(plain, toy(), but(epochs=1), progress=False)
    fit(moved, toy(), but(epochs=1, **change), progress=False)
    assert not same(weights(plain), weights(moved))


def test_a_network_trains_in_training_mode():
    model = network().eval()
    before = weights(model)
    fit(model, toy(), but(epochs=1), test=toy(seed=1), progress=False)
    mean = next(name for name in before if name.endswith("running_mean"))
    assert not torch.equal(model.state_dict()[mean], before[mean])


def test_the_average_is_what_is_kept():
    model = Flat()
    start = weights(model)
    one_step = but(epochs=1, batch_size=64)
    fit(model, toy(), one_step, progress=False)
    stepped = weights(model)
    averaged = Flat()
    fit(averaged, toy(), dataclasses.replace(one_step, ema=0.9), progress=False)
    # The first update takes the weights as they are; a second moves a tenth of the way.
    assert same(weights(averaged), stepped)
    averaged = Flat()
    fit(averaged, toy(), dataclasses.replace(one_step, batch_size=32, ema=0.9), progress=False)
    model = Flat()
    fit(model, toy(), dataclasses.replace(one_step, batch_size=32), progress=False)
    assert not same(weights(averaged), weights(model))
    assert not same(weights(averaged), start)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own
def test_a_compiled_step_trains_alike():
    plain, compiled = Flat(), Flat()
    fit(plain, toy(), but(epochs=1), progress=False)
    fit(compiled, toy(), but(epochs=1, compile=True), progress=False)
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict(), atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    recipe = but(crop=1, flip=True, deterministic=True)
    runs = []
    for seed in (0, 0, 1):
        model = network()
        fit(model, toy(), dataclasses.replace(recipe, seed=seed), progress=False)
        runs.append(weights(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_training_leaves_the_callers_chances_alone():
    """Else every network that is made after a training begins with the same weights."""
    model = nn.Sequential(nn.Dropout(0.5), Flat())
    torch.manual_seed(7)
    wanted = torch.rand(4)
    torch.manual_seed(7)
    fit(model, toy(), PLAIN, progress=False)
    assert torch.equal(torch.rand(4), wanted)


def test_warnings_about_algorithms_stay_warnings():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for wanted in (False, True):
            with deterministic(wanted):
                assert torch.is_deterministic_algorithms_warn_only_enabled() is not wanted
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_mode_ends_with_the_run():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark  # it may try which algorithm is the fastest
        with deterministic(True):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


RICH = but(
    epochs=3,
    crop=1,
    flip=True,
    cutout=2,
    mixup=0.2,
    ema=0.9,
    deterministic=True,
    precision="bfloat16",
    channels_last=True,
)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = network()
    fit(whole, toy(), RICH, test=toy(seed=1), out=tmp_path / "whole", progress=False)

    interrupted = network()
    from cbam_edu.train import _Run

    step, calls = _Run.step, iter(range(1000))

    def stop_in_the_second_epoch(self, *args):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(_Run, "step", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, toy(), RICH, test=toy(seed=1), out=tmp_path / "cut", progress=False)
    monkeypatch.undo()
    resumed = network()
    torch.manual_seed(99)  # nothing may hang on chances drawn outside
    history = fit(
        resumed,
        toy(),
        RICH,
        test=toy(seed=1),
        out=tmp_path / "cut",
        resume=True,
        progress=False,
    )
    assert same(weights(whole), weights(resumed))
    assert not same(weights(whole), weights(interrupted))
    assert len(history) == 3
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    for log in logs:
        for entry in log:
            del entry["seconds"]
    assert logs[0] == logs[1]


def test_a_network_with_dropout_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    def dropping():
        return nn.Sequential(nn.Dropout(0.5), Flat())

    whole, first, second = dropping(), dropping(), dropping()
    fit(whole, toy(), PLAIN, progress=False)
    save, calls = train._Run.save, []

    def stop_in_the_second_epoch(self, folder):
        if len(self.history) == 2:  # it was trained, and is not yet recorded
            raise KeyboardInterrupt
        calls.append(save(self, folder))

    monkeypatch.setattr(train._Run, "save", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(first, toy(), PLAIN, out=tmp_path, progress=False)
    monkeypatch.undo()
    assert len(calls) == 2  # before the first epoch and after it
    torch.manual_seed(99)
    fit(second, toy(), PLAIN, out=tmp_path, resume=True, progress=False)
    assert same(weights(whole), weights(second))


def test_a_run_killed_in_an_epoch_is_resumed(tmp_path):
    """A real process, ended by SIGKILL while it trains."""
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import test_train as t
step = t.fit.__globals__["_Run"].step
calls = iter(range(1000))
def die(self, *args):
    if next(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)
if sys.argv[3] == "die":
    t.fit.__globals__["_Run"].step = die
t.fit(t.network(), t.toy(), t.RICH, out=sys.argv[1], resume=True, progress=False)
"""
    here = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), here, "die"], check=False)
    assert killed.returncode == -9
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    resumed, whole = network(), network()
    fit(resumed, toy(), RICH, out=tmp_path, resume=True, progress=False)
    fit(whole, toy(), RICH, progress=False)
    assert same(weights(resumed), weights(whole))


def test_resuming_nothing_starts_afresh(tmp_path):
    model = Flat()
    history = fit(model, toy(), PLAIN, out=tmp_path / "new", resume=True, progress=False)
    assert len(history) == 2
    again = Flat()
    finished = fit(again, toy(), PLAIN, out=tmp_path / "new", resume=True, progress=False)
    assert finished == history  # nothing left to do
    assert same(weights(again), weights(model))


def test_a_run_is_not_overwritten(tmp_path):
    fit(Flat(), toy(), PLAIN, out=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already; resume it"):
        fit(Flat(), toy(), PLAIN, out=tmp_path, progress=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins_at_the_same_moment_is_not_overwritten(tmp_path, monkeypatch, resume):
    joined, path = train.all_sum, tmp_path / "checkpoint.pt"

    def another_begins(there):
        monkeypatch.undo()  # after this process has looked, and before it writes
        fit(Flat(), toy(), but(lr=0.2), out=tmp_path, progress=False)
        return joined(there)

    monkeypatch.setattr(train, "all_sum", another_begins)
    message = "holds a run already" if not resume else "is of another run"
    with pytest.raises(CheckpointError, match=message):
        fit(Flat(), toy(), PLAIN, out=tmp_path, resume=resume, progress=False)
    assert train.read_checkpoint(path)["identity"]["lr"] == 0.2


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(network(), toy(), PLAIN, out=tmp_path, progress=False)
    for model, recipe, message in (
        (network(), but(lr=0.1), r"lr: 0\.05 there, 0\.1 asked for"),
        (create_model("resnet20", 4), PLAIN, "name: 'cbamnet_tiny' there, 'resnet20' asked for"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fit(model, toy(), recipe, out=tmp_path, resume=True, progress=False)
    other = dataclasses.replace(toy(), name="other")
    with pytest.raises(CheckpointError, match="data: 'toy' there, 'other' asked for"):
        fit(network(), other, PLAIN, out=tmp_path, resume=True, progress=False)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    fit(Flat(), toy(), PLAIN, out=tmp_path, progress=False)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(CheckpointError, match="does not fit this network"):
        fit(other, toy(), PLAIN, out=tmp_path, resume=True, progress=False)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint has run code",))


@pytest.mark.parametrize("spoil", ["truncated", "text", "other format", "code"])
def test_a_damaged_checkpoint_is_told(tmp_path, spoil):
    fit(Flat(), toy(), but(epochs=1), out=tmp_path, progress=False)
    path = tmp_path / "checkpoint.pt"
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif spoil == "text":
        path.write_text("no checkpoint")
    elif spoil == "other format":
        torch.save({"format": 2}, path)
    else:
        torch.save({"format": 1, "bomb": _Bomb()}, path)
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        fit(Flat(), toy(), but(epochs=1), out=tmp_path, resume=True, progress=False)


def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from cbam_edu.train import _Run, read_checkpoint

    step = _Run.step

    def spoiled(self, x, y, lr, mix):
        return step(self, x * math.nan if len(self.history) else x, y, lr, mix)

    monkeypatch.setattr(_Run, "step", spoiled)
    with pytest.raises(DivergenceError, match=r"became nan in epoch 2.*A lower lr \(now 0.05\)"):
        fit(Flat(), toy(), PLAIN, out=tmp_path, progress=False)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert len(state["history"]) == 1
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_a_disk_that_takes_no_more_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    """From the second epoch on, the system itself refuses every file of more than a megabyte."""
    resource = pytest.importorskip("resource")
    from cbam_edu.train import _Run, read_checkpoint

    epoch, limits = _Run.epoch, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, progress):
        if self.history:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        return epoch(self, progress)

    monkeypatch.setattr(_Run, "epoch", limited)
    # With its momentum 1.6 MB, written in pieces of which the last ones fail.
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000), nn.Linear(1000, 4))
    try:
        with pytest.raises(StorageError, match=r"checkpoint.pt: the file is larger than this disk"):
            fit(model, toy(), but(epochs=3), out=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(read_checkpoint(tmp_path / "checkpoint.pt")["history"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_a_run_stopped_between_its_last_two_files_has_both_in_the_end(tmp_path, monkeypatch):
    from cbam_edu import checkpoint

    calls, write_file = [], checkpoint.replace_file

    def stopped(path, write):
        calls.append(path.name)
        if len(calls) == 6:  # of two files each before the first epoch, after it and after the last
            raise KeyboardInterrupt
        write_file(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replace_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit(Flat(), toy(), PLAIN, out=tmp_path, progress=False)
    assert len(set(calls)) == 2
    history = fit(Flat(), toy(), PLAIN, out=tmp_path, resume=True, progress=False)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert log == history


def test_a_network_that_cannot_learn_the_images_is_told(tmp_path):
    with pytest.raises(ValueError, match="gives 3 numbers for 4 classes; make it with num_classes"):
        fit(create_model("cbamnet_tiny", 3, dims=(4, 8)), toy(), PLAIN, progress=False)
    for model in (Flat().requires_grad_(False), nn.Flatten()):
        with pytest.raises(ValueError, match=r"^Fl.* has no parameter that can be trained$"):
            fit(model, toy(), PLAIN, out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_told():
    with pytest.raises(ValueError, match=r"precision must be one of float32, .*; got 'fp16'"):
        evaluate(Flat(), toy(), precision="fp16")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot make the folder"):
        fit(Flat(), toy(), PLAIN, out=tmp_path / "file" / "run", progress=False)


def test_one_line_an_epoch(capsys):
    fit(Flat(), toy(), PLAIN, test=toy(seed=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1/2  loss ")
    assert "train" in lines[0]
    assert "test" in lines[0]
    fit(Flat(), toy(), PLAIN)
    assert "test" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw"),
        ({"schedule": "step"}, "schedule must be one of one-cycle, cosine"),
        ({"precision": "half"}, "precision must be one of float32"),
        ({"seed": -1}, "seed must be an integer from 0 up"),
        ({"crop": 1.0}, "crop must be an integer from 0 up"),
        ({"lr": -0.1}, "lr must be from 0 to inf"),
        ({"lr": math.nan}, "lr must be from 0 to inf"),
        ({"lr": None}, "lr must be from 0 to inf, got None"),
        ({"momentum": "0.9"}, "momentum must be from 0 to 1, got '0.9'"),
        ({"warmup": 1.1}, "warmup must be from 0 to 1"),
        ({"ema": 2}, "ema must be from 0 to 1"),
        ({"spatial_weight_decay": -1}, "spatial_weight_decay must be from 0"),
    ],
)
def test_wrong_recipes_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


# What waits for a GPU: a number is read, or a result's shape hangs on numbers, or a tensor is made
# of numbers on the CPU (torch.tensor), to be sent over.
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.lift_fresh.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
}


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator in WAITING
        return operator(*args, **(kwargs or {}))


def waits(monkeypatch, recipe, images):
    """Count them in an epoch on so many images, and in measuring on as many."""
    monkeypatch.setattr(batches, "BLOCK", 32)
    run = train._Run(network(), toy(images), recipe, torch.device("cpu"))
    test = measure.evaluation_batches(toy(images), torch.device("cpu"), 16)
    with Waits() as counted:
        run.epoch(progress=False)
        measure.measure(run.evaluated, test, recipe.precision)
    return counted.count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "schedule": "cosine"},
        {"crop": 1, "flip": True, "cutout": 2, "channels_last": True},
        {"mixup": 0.2, "ema": 0.9, "label_smoothing": 0.1},
        {"precision": "float16", "ema": 0.9},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(monkeypatch, changes):
    few, many = (waits(monkeypatch, but(**changes), images) for images in (32, 96))
    assert few == many > 0  # those of an epoch: its order and chances, its loss and rights


def test_the_test_above_sees_what_waits(monkeypatch):
    step = train._Run.step

    def sending(self, x, y, lr, mix):
        return step(self, x * torch.tensor(2.0), y, lr, mix)

    def reading(self, *args):
        loss, logits = step(self, *args)
        return loss if loss.item() > 0 else -loss, logits

    for mutant in (sending, reading):
        monkeypatch.setattr(train._Run, "step", mutant)
        few, many = (waits(monkeypatch, PLAIN, images) for images in (32, 96))
        assert many - few == 4  # steps more


def test_the_optimizer_is_sgd_in_one_pass_in_every_memory_format():
    """A fused step that took a gradient of another memory order would take it wrongly."""
    for channels_last in (False, True):
        recipe = but(channels_last=channels_last, lr=0.1)
        plain, fused = network(), network()
        if channels_last:
            plain.to(memory_format=torch.channels_last)
            fused.to(memory_format=torch.channels_last)
        by_hand = torch.optim.SGD(
            parameter_groups(plain, recipe), lr=0.1, momentum=0.9, nesterov=True, foreach=False
        )
        optimizer = make_optimizer(fused, recipe)
        assert all(group["fused"] for group in optimizer.param_groups)
        for step in range(3):
            torch.manual_seed(step)
            x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
            for model, each in ((plain, by_hand), (fused, optimizer)):
                each.zero_grad()
                F.cross_entropy(model(x), y).backward()
                each.step()
        torch.testing.assert_close(fused.state_dict(), plain.state_dict(), atol=1e-6, rtol=1e-4)


def test_the_average_follows_by_its_decay_and_takes_counts_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = train.Average(model, 0.75)
    start = weights(average.module)
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.add_(4)
    average.follow(first=False)
    moved = weights(average.module)
    for name, value in start.items():
        wanted = value + (4 if name.endswith("num_batches_tracked") else 1)
        torch.testing.assert_close(moved[name], wanted)
    average.follow(first=True)
    assert same(weights(average.module), weights(model))
    assert not any(t.requires_grad for pair in average.numbers for t in pair)


def test_the_average_begins_once_and_goes_on_in_the_next_epoch(monkeypatch):
    firsts = []
    follow = train.Average.follow
    monkeypatch.setattr(
        train.Average, "follow", lambda self, first: (firsts.append(first), follow(self, first))
    )
    fit(Flat(), toy(), but(ema=0.9), progress=False)
    assert firsts == [True] + [False] * 7


def test_an_average_is_resumed_where_it_was(tmp_path):
    recipe = but(ema=0.9, epochs=3)
    whole, cut = Flat(), Flat()
    fit(whole, toy(), recipe, progress=False)
    run = train._Run(cut, toy(), recipe, torch.device("cpu"))
    run.open(tmp_path, resume=False)
    run.history.append(run.epoch(progress=False))
    run.save(tmp_path)
    resumed = Flat()
    fit(resumed, toy(), recipe, out=tmp_path, resume=True, progress=False)
    assert same(weights(whole), weights(resumed))


def test_a_step_is_compiled_once_for_all_seeds(monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    for seed in range(3):
        torch.manual_seed(seed)
        model = create_model("cbamnet_tiny", 4, dims=(4, 8), attention="cbam")
        recipe = but(epochs=1, compile=True, seed=seed, crop=1, channels_last=True)
        fit(model, toy(), recipe, test=toy(seed=1), progress=False)
        assert counters["stats"]["unique_graphs"] == 1
    other = create_model("cbamnet_tiny", 4, dims=(4, 8), attention="se")
    fit(other, toy(), but(epochs=1, compile=True), progress=False)
    assert counters["stats"]["unique_graphs"] == 2  # so the count does count


def test_runs_side_by_side_do_not_touch_each_other(tmp_path):
    """Two processes at once, in one folder, end with the bits of a run alone."""
    code = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import test_train as t
model = t.network()
t.fit(model, t.toy(), t.RICH, out=f"run_{sys.argv[2]}", progress=False)
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in t.weights(model).values())).hexdigest())
"""
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", code, here]
    both = [
        subprocess.Popen([*words, str(i)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in both]
    alone = network()
    fit(alone, toy(), RICH, progress=False)
    bits = b"".join(v.numpy().tobytes() for v in weights(alone).values())
    assert told == [hashlib.sha256(bits).hexdigest() + "\n"] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_0", "run_1"]


def test_the_speed_recipe_learns():
    assert RECIPES["default"] == Recipe()
    changes = {
        "batch_size": 32,
        "epochs": 8,
        "compile": False,
        "crop": 1,
        "flip": False,
        "cutout": 2,
    }
    recipe = dataclasses.replace(RECIPES["speed"], **changes)
    model = create_model("resnet9", 4, dims=(8, 8, 16, 16), attention="cbam")
    history = fit(model, toy(128), recipe, progress=False)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > 0.8  # a quarter by chance


class _Dropped(nn.Module):
    """Dropout alone, before one linear layer; keeps what it dropped in each step."""

    def __init__(self):
        super().__init__()
        self.net, self.masks = Flat(), []

    def forward(self, x):
        kept = F.dropout(torch.ones_like(x), training=self.training)
        self.masks.append(kept)
        return self.net(x * kept)


def test_dropout_has_other_chances_in_each_epoch_and_seed():
    runs = [_Dropped() for _ in range(3)]
    for model, seed in zip(runs, (0, 0, 1), strict=True):
        fit(model, toy(16), but(epochs=3, seed=seed), progress=False)
    first, again, other = (model.masks for model in runs)
    assert all(map(torch.equal, first, again))
    drawn = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_a_terminal_has_a_bar_an_epoch(monkeypatch, terminal, progress):
    bars = []

    def bar(batches, text, *, leave, disable):
        bars.append((text, leave, disable))
        return batches

    monkeypatch.setattr(train, "tqdm", bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    fit(Flat(), toy(16), but(epochs=3), progress=progress)
    hidden = not (terminal and progress)
    assert bars == [(f"epoch {n}", False, hidden) for n in (1, 2, 3)]


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_one_process_takes_batches_of_an_odd_number(mixup):
    [entry] = fit(Flat(), toy(15), but(epochs=1, batch_size=5, mixup=mixup), progress=False)
    assert math.isfinite(entry["loss"])


def test_only_float16_scales_its_loss(tmp_path):
    for precision in ("float32", "bfloat16", "float16"):
        recipe = but(epochs=1, precision=precision)
        fit(Flat(), toy(16), recipe, out=tmp_path / precision, progress=False)
        state = read_checkpoint(tmp_path / precision / "checkpoint.pt")
        assert bool(state["scaler"]) == (precision == "float16")


def _spoil_momentum(state):
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)


def _spoil_history(state):
    del state["history"][0]["lr"]


@pytest.mark.parametrize("spoil", [_spoil_momentum, _spoil_history])
def test_parts_of_a_checkpoint_that_do_not_fit_are_refused(tmp_path, spoil):
    fit(Flat(), toy(16), but(epochs=1), out=tmp_path, progress=False)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    spoil(state)
    write_checkpoint(tmp_path, state)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        fit(Flat(), toy(16), but(epochs=1), out=tmp_path, resume=True, progress=False)


def test_a_history_of_many_epochs_is_whole():
    entry = {"lr": 0.1, "loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0}
    history = [{"epoch": n, **entry} for n in range(1, 400)]
    train._check_history(json.loads(json.dumps(history)))
    with pytest.raises(ValueError, match="not one entry of numbers for each epoch"):
        train._check_history(history[1:])


@pytest.fixture
def one_of_two(monkeypatch):
    """Make this process the r-th of two, of which the other one adds `other` to each sum."""

    def pretend(r, other=0):
        buffers = []
        monkeypatch.setattr(train, "world_size", lambda: 2)
        monkeypatch.setattr(train, "rank", lambda: r)
        monkeypatch.setattr(train, "DistributedDataParallel", lambda model: model)
        monkeypatch.setattr(train, "all_sum", lambda t: t + other)
        monkeypatch.setattr(train, "broadcast_buffers", buffers.append)
        return buffers

    return pretend


def test_two_processes_share_a_batch_evenly_and_mixups_pairs_whole(one_of_two):
    one_of_two(0)
    fit(Flat(), toy(12), but(epochs=1, batch_size=6), progress=False)
    fit(Flat(), toy(12), but(epochs=1, batch_size=4, mixup=1.0), progress=False)
    for size, mixup, message in (
        (5, 0.0, "a multiple of 2, for 2 processes; got 5"),
        (6, 1.0, "a multiple of 4, for 2 processes and mixup; got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(Flat(), toy(12), but(batch_size=size, mixup=mixup), progress=False)


def test_the_sums_of_an_epoch_are_those_of_both_processes(one_of_two):
    entries = []
    for other in (0, 3):
        buffers = one_of_two(0, other)
        entries += fit(Flat(), toy(32), but(epochs=1), progress=False)
        assert len(buffers) == 1
    alone, together = entries
    assert together["loss"] - alone["loss"] == pytest.approx(3 / (2 * 2), rel=1e-4)
    assert together["train_accuracy"] - alone["train_accuracy"] == pytest.approx(3 / 32)


def test_each_process_has_its_own_chances_of_dropout_and_the_first_alone_writes(
    one_of_two, tmp_path
):
    masks = []
    for r in (0, 1):
        one_of_two(r)
        model = _Dropped()
        fit(model, toy(16), but(epochs=2), out=tmp_path / str(r), progress=False)
        masks += model.masks
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert (tmp_path / "0" / "checkpoint.pt").exists()
    assert not (tmp_path / "1" / "checkpoint.pt").exists()
    assert not (tmp_path / "1" / "log.jsonl").exists()


def test_a_checkpoint_that_only_one_process_sees_is_told(one_of_two, tmp_path):
    fit(Flat(), toy(16), but(epochs=1), out=tmp_path, progress=False)
    one_of_two(0)
    with pytest.raises(CheckpointError, match=r"only 1 of 2 processes see .*checkpoint\.pt"):
        fit(Flat(), toy(16), but(epochs=1), out=tmp_path, resume=True, progress=False)
    one_of_two(0, other=1)
    fit(Flat(), toy(16), but(epochs=1), out=tmp_path, resume=True, progress=False)


def test_the_chances_of_a_seed_stay_what_they_were():
    model = _Dropped()
    fit(model, toy(16), but(epochs=1), progress=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1_910_792_744)
        assert torch.equal(model.masks[0], F.dropout(torch.ones(16, 3, 8, 8)))


def test_without_a_recipe_the_usual_one_is_taken(monkeypatch):
    monkeypatch.setattr(train, "Recipe", lambda: but(epochs=3))
    assert len(fit(Flat(), toy(16), progress=False)) == 3


@pytest.mark.parametrize("last", [True, False])
def test_the_network_is_in_the_order_in_memory_that_is_asked_for(last):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 4))
    fit(model, toy(16), but(epochs=1, channels_last=last), progress=False)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == last
