"""What test_distributed.py runs in each of two processes: torchrun ... together.py FOLDER."""

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import test_train as t
from cbam_edu import cli, train
from cbam_edu.distributed import processes, rank
from cbam_edu.train import DivergenceError, _Run, evaluate, fit

# No BatchNorm and no dropout: so one process and two must agree to rounding.
RECIPES = {
    "plain": t.but(crop=1, flip=True),
    "mixup": t.but(mixup=0.5, cutout=2, label_smoothing=0.1, ema=0.9, channels_last=True),
    "adamw": t.but(optimizer="adamw", lr=0.01, schedule="cosine", batch_size=24),
    "float16": t.but(precision="float16"),
}
LONG = t.but(epochs=3, crop=1, flip=True, mixup=0.5, ema=0.9)


class Convolutions(torch.nn.Module):
    """A network that is not linear, without BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.linear = torch.nn.Linear(256, 4)

    def forward(self, x):
        return self.linear(self.conv(x).relu().flatten(1))


def trained(name, **options):
    """Return the batches, weights and history of one run, for a file."""
    model, seen, step = Convolutions(), [], _Run.step

    def watched(self, x, y, lr, mix):
        seen.append((x.contiguous(), y))
        return step(self, x, y, lr, mix)

    _Run.step = watched
    try:
        recipe = RECIPES[name]
        history = fit(model, t.toy(), recipe, test=t.toy(37, seed=1), progress=False, **options)
    finally:
        _Run.step = step
    return {"seen": seen, "weights": t.weights(model), "history": history}


def interrupted(folder):
    """Leave a run of three epochs that was stopped in its second one."""
    step, calls = _Run.step, []

    def stopped(self, *args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    _Run.step = stopped
    try:
        fit(Convolutions(), t.toy(), LONG, out=folder, progress=False)
    except KeyboardInterrupt:
        return
    finally:
        _Run.step = step


def resumed(folder):
    model = Convolutions()
    history = fit(model, t.toy(), LONG, out=folder, resume=True, progress=False)
    return {"weights": t.weights(model), "history": history}


def told(recipe, out=None, error=ValueError):
    try:
        fit(t.Flat(), t.toy(), recipe, out=out, progress=False)
    except error as refused:
        return str(refused)


def main(folder):
    result = {name: trained(name) for name in RECIPES}
    result["resumed"] = resumed(folder / "by one, then two")
    interrupted(folder / "by two, then one")
    write, written = train.write_checkpoint, []
    train.write_checkpoint = lambda *args: written.append(write(*args))
    step, seeds = _Run.step, []
    _Run.step = lambda *args: seeds.append(torch.initial_seed()) or step(*args)
    model = t.network()  # with BatchNorm
    fit(model, t.toy(), t.but(ema=0.5), out=folder / "norm", progress=False)
    _Run.step = step
    result |= {"written": len(written), "seed": seeds[-1]}
    scores = evaluate(model, t.toy(3), batch_size=2)  # one batch has nothing for process 1
    result["norm"] = {"weights": t.weights(model), "scores": tuple(scores)}
    result["told"] = [
        told(t.but(batch_size=15)),
        told(t.but(batch_size=18, mixup=1.0)),
        told(dataclasses.replace(t.PLAIN, lr=1e30), error=DivergenceError),
        told(LONG, out=folder / "norm"),
    ]
    private = folder / f"private {rank()}"  # as on two machines with disks of their own
    if rank() == 0:
        private.mkdir()
        (private / "checkpoint.pt").touch()
    dist.barrier()
    try:
        fit(t.Flat(), t.toy(), t.PLAIN, out=private, resume=True, progress=False)
    except ValueError as error:
        result["told"].append(str(error))
    torch.save(result, folder / f"process{rank()}.pt")


def command(folder):
    """Do what `-m cbam_edu train` does."""
    words = ["--model", "cbamnet_tiny", "--data", "cifar10-mini", "--device", "cpu"]
    words += ["--batch-size", "250", "--epochs", "1", "--out", str(folder / "command")]
    return cli.main(["train", *words])


if __name__ == "__main__":
    with processes(torch.device("cpu")):
        main(Path(sys.argv[1]))
        code = command(Path(sys.argv[1]))
    sys.exit(code)
