"""Many processes: two of them, on the CPU, do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cbam_edu
import test_train as t
import together
from cbam_edu import cli, distributed, train
from cbam_edu.checkpoint import read_checkpoint
from cbam_edu.data import load
from cbam_edu.data.batches import Batches, share
from cbam_edu.train import evaluate, fit

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words):
    """Run a program in two processes and return what came of it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    return subprocess.run(
        [*TORCHRUN, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )


def ours(text):
    return [line for line in text.splitlines() if line.startswith("cbam-edu: ")]


# Shares


@pytest.mark.parametrize("count", [0, 1, 5, 8, 12, 125])
@pytest.mark.parametrize("shares", [1, 2, 3, 4])
def test_shares_hold_every_position_once(count, shares):
    parts = [share(count, (r, shares)) for r in range(shares)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(("count", "shares"), [(8, 2), (24, 3), (32, 4), (7, 1)])
def test_to_reverse_each_share_is_to_reverse_the_batch(count, shares):
    for r in range(shares):
        mine = share(count, (r, shares))
        assert (mine[::-1] == count - 1 - mine).all()


def test_parts_of_batches_are_the_batches():
    whole = list(Batches(t.toy(), 12, shuffle=True, seed=5))
    parts = [list(Batches(t.toy(), 12, shuffle=True, seed=5, part=(r, 2))) for r in range(2)]
    assert [len(x) for x, _ in whole] == [12] * 5 + [4]
    for step, (x, y) in enumerate(whole):
        for r in range(2):
            mine = share(len(x), (r, 2))
            assert torch.equal(parts[r][step][0], x[mine])
            assert torch.equal(parts[r][step][1], y[mine])


# Two processes against one


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the folder, what each of two processes found, and what the command printed."""
    folder = tmp_path_factory.mktemp("two")
    together.interrupted(folder / "by one, then two")
    done = torchrun(HERE / "together.py", folder)
    assert done.returncode == 0, done.stderr
    found = [torch.load(folder / f"process{r}.pt", weights_only=True) for r in range(2)]
    return folder, found, done.stdout


def close(a, b):
    # Sums over a batch are rounded in another order: some units in the last place a step.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def plain(history):
    """Return a history's numbers, of which only the seconds may differ."""
    names = sorted({name for entry in history for name in entry} - {"seconds"})
    return [[entry[name] for name in names] for entry in history]


@pytest.mark.parametrize("name", together.RECIPES)
def test_two_processes_train_as_one_does(two, name):
    one, (first, second) = together.trained(name), [found[name] for found in two[1]]
    assert len(one["seen"]) == len(first["seen"]) == len(second["seen"])
    for (x, y), *parts in zip(one["seen"], first["seen"], second["seen"], strict=True):
        for r, (part, labels) in enumerate(parts):  # the same images in the same order
            mine = share(len(x), (r, 2))
            assert torch.equal(part, x[mine])
            assert torch.equal(labels, y[mine])
    assert t.same(first["weights"], second["weights"])
    if name == "float16":  # whose rounding is a thousand times coarser
        torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-2, atol=1e-3)
        return
    close(first["weights"], one["weights"])
    assert plain(first["history"]) == plain(second["history"])
    np.testing.assert_allclose(plain(first["history"]), plain(one["history"]), rtol=1e-4)
    for entry, wanted in zip(first["history"], one["history"], strict=True):
        assert entry["train_accuracy"] == wanted["train_accuracy"]
        assert entry["accuracy"] == wanted["accuracy"]


def test_the_weights_did_move():
    for name in together.RECIPES:
        moved = together.trained(name)["weights"]
        start = t.weights(together.Convolutions())
        assert (moved["conv.weight"] - start["conv.weight"]).abs().max() > 0.005, name


def test_a_run_goes_on_in_another_number_of_processes(two):
    folder, found, _ = two
    whole = together.Convolutions()
    history = fit(whole, t.toy(), together.LONG, progress=False)
    one_then_two = found[0]["resumed"]
    two_then_one = together.resumed(folder / "by two, then one")
    for run in (one_then_two, two_then_one):
        close(run["weights"], t.weights(whole))
        np.testing.assert_allclose(plain(run["history"]), plain(history), rtol=1e-4)
    assert t.same(one_then_two["weights"], found[1]["resumed"]["weights"])
    logged = (folder / "by one, then two" / "log.jsonl").read_text().splitlines()
    assert len(logged) == 3


def test_all_processes_end_with_the_first_ones_network(two):
    folder, found, _ = two
    state = read_checkpoint(folder / "norm" / "checkpoint.pt")
    assert list(state["model"]) == list(t.network().state_dict())  # no "module." before the names
    average = {
        key.removeprefix("module."): v for key, v in state["average"].items() if key != "n_averaged"
    }
    for process in found:
        assert t.same(process["norm"]["weights"], average)
    model = t.network()
    model.load_state_dict(average)
    scores = evaluate(model, t.toy(3))
    for process in found:
        accuracy, loss = process["norm"]["scores"]
        assert accuracy == scores.accuracy
        assert loss == pytest.approx(scores.loss, rel=1e-5)


def test_one_process_writes_and_each_has_chances_of_its_own(two):
    first, second = two[1]
    assert (first["written"], second["written"]) == (3, 0)  # before the two epochs, after each
    assert second["seed"] == first["seed"] + 1  # of dropout


def test_what_processes_cannot_do_is_told_to_each(two):
    for process in two[1]:
        odd, pairs, diverged, taken, private = process["told"]
        assert odd == "batch_size must be a multiple of 2, for 2 processes; got 15"
        assert pairs == "batch_size must be a multiple of 4, for 2 processes and mixup; got 18"
        assert diverged.startswith("the loss became ")
        assert "holds a run already" in taken
        assert private.startswith("only 1 of 2 processes see ")
    assert two[1][0]["told"][2] == two[1][1]["told"][2]


# The command


def test_the_command_trains_in_two_processes(two):
    folder, _, printed = two
    head, epoch, end = printed.splitlines()
    assert head.endswith("1,000 images of cifar10-mini, on cpu, in 2 processes")
    assert epoch.startswith("epoch   1/1  loss ")
    assert "of 500 test images" in end
    names = sorted(path.name for path in (folder / "command").iterdir())
    assert names == ["checkpoint.pt", "log.jsonl", "model.safetensors", "record.jsonl"]
    (entry,) = map(json.loads, (folder / "command" / "log.jsonl").read_text().splitlines())
    model = cbam_edu.load_model(folder / "command" / "model.safetensors")
    assert evaluate(model, load("cifar10-mini", "test")).accuracy == entry["accuracy"]


def test_one_process_that_fails_ends_all_and_is_heard(tmp_path):
    (tmp_path / "failing.py").write_text(
        """
import os, sys
from cbam_edu import cli, train
step = train._Run.step
def fail(self, *args):
    if os.environ["RANK"] == "1":
        raise ValueError("photo.jpg is a damaged picture")
    return step(self, *args)
train._Run.step = fail
sys.exit(cli.main())
"""
    )
    words = ["train", "--model", "cbamnet_tiny", "--data", "cifar10-mini", "--device", "cpu"]
    done = torchrun(tmp_path / "failing.py", *words, "--batch-size", 50, "--out", tmp_path / "run")
    assert done.returncode != 0
    first, *rest = ours(done.stderr)
    assert first == "cbam-edu: process 1 of 2: photo.jpg is a damaged picture"
    # torchrun may end the other one before it says so.
    lost = "cbam-edu: process 0 of 2: another process has ended; its own error says why"
    assert rest in ([], [lost])
    assert "epoch" not in done.stdout


@pytest.mark.parametrize(("device", "processes"), [("cuda", 2), ("cuda", 1), ("cpu", 2)])
def test_norms_are_joined_on_gpus_in_a_copy(monkeypatch, device, processes):
    monkeypatch.setattr(train, "world_size", lambda: processes)
    model = t.network()
    joined = train._with_joined_norms(model, torch.device(device))
    kinds = {type(m) for m in model.modules()}
    assert torch.nn.SyncBatchNorm not in kinds
    if (device, processes) != ("cuda", 2):
        assert joined is model
        return
    assert {type(m) for m in joined.modules()} == kinds - {torch.nn.BatchNorm2d} | {
        torch.nn.SyncBatchNorm
    }
    assert t.same(t.weights(joined), t.weights(model))
    assert joined.config == model.config
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(joined.eval()(x), model.eval()(x))


# Joining


@pytest.fixture
def started(monkeypatch):
    """Be the second of two processes, as far as the environment tells."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # some clusters set it for their own ends
    with distributed.processes(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert not distributed.joined()
    assert distributed.speaker() == ""


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "many processes train on cuda or cpu, not on mps"),
        ("cuda", "2 processes need 2 GPUs, this machine has 1; start 1, or take --device cpu"),
    ],
)
def test_devices_that_processes_cannot_have_are_told(started, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message), distributed.processes(torch.device(device)):
        pass


def test_each_process_takes_a_gpu_of_its_own(started, monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", done.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("parted"))
    with distributed.processes(torch.device("cuda")) as device:
        assert done == [device, "nccl"]
    assert device == torch.device("cuda:1")
    assert done[-1] == "parted"
    with distributed.processes(torch.device("cpu")):
        assert done[-1] == "gloo"


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "has ended"),
        (torch.distributed.DistBackendError("NCCL"), "has ended"),
        (RuntimeError("another one"), "another one"),
    ],
)
def test_a_lost_process_is_told_from_other_errors(started, monkeypatch, error, wanted):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    with pytest.raises(RuntimeError, match=wanted), distributed.processes(torch.device("cpu")):
        raise error


def test_a_wrong_option_is_told_by_the_first_process(started, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["train", "--model", "resnet20", "--lr", "-1"]) == cli.WRONG
    told = capsys.readouterr().err
    assert told == "cbam-edu: process 0 of 2: lr must be from 0 to inf, got -1.0\n"


def test_the_first_process_speaks_first(started, monkeypatch):
    slept = []
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    assert distributed.speaker() == "process 1 of 2: "
    assert slept == [distributed.PATIENCE]
    monkeypatch.setenv("RANK", "0")
    assert distributed.speaker() == "process 0 of 2: "
    assert len(slept) == 1
