"""A study that takes a second, records of runs that never were, and what runs in a process."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import asdict, replace

import numpy as np
import torch

from cbam_edu import cli, experiment
from cbam_edu.recipe import Recipe
from cbam_edu.records import pack
from cbam_edu.studies import STUDIES, Size, Study, Table

RECIPE = Recipe(epochs=2, batch_size=25, lr=0.05)
SIZE = Size("cbamnet_tiny", RECIPE, 2, 5, options={"dims": (4, 8)})
ARMS = {"none": {}, "c & s": {"attention": "cbam"}}
TABLES = {"gates": Table("Are gates better?", "none", ("c & s",))}
TINY = Study("Does it help?", ARMS, TABLES, {"small": SIZE}, data="cifar10-mini")
RUNS = [(arm, seed) for seed in range(SIZE.seeds) for arm in ARMS]
# Long enough for a kill to fall into an epoch, between two, or between runs.
LONG = replace(TINY, sizes={"small": replace(SIZE, recipe=replace(RECIPE, epochs=4), images=40)})


def a_record(arm="none", seed=0, right=None, **changes):
    """Return a whole record of `TINY`, as if a run had named these test images rightly."""
    right = np.arange(10) % 2 == 0 if right is None else np.asarray(right)
    options = {"attention": None, **ARMS.get(arm, {"attention": arm})}
    record = {
        "study": "tiny",
        "model": SIZE.model,
        "arm": arm,
        "seed": seed,
        "accuracy": float(right.mean()),
        "loss": 1.5,
        "train_accuracy": 0.5,
        "epochs": RECIPE.epochs,
        "seconds": 1.2,
        "parameters": 510 if arm == "none" else 714,
        "multiply_accumulates": 184_400,
        "data": "cifar10-mini",
        "train_images": 50,
        "test_images": len(right),
        "device": "CPU (x86_64, 1 threads)",
        "versions": {"cbam_edu": "0.1.0", "numpy": "2.0", "python": "3.11.7", "torch": "2.11.0"},
        "commit": "0123456789abcdef",
        "code": "c0de",
        "config": {"name": SIZE.model, "num_classes": 10, **options, "dims": [4, 8]},
        "recipe": asdict(replace(RECIPE, seed=seed)),
        "size": "small",
        "digest": "d1ge57",
        "correct": pack(torch.from_numpy(right)),
        "command": f"cbam-edu experiment tiny --size small --arms '{arm}' --seeds {seed}",
    }
    return record | changes


# Processes that are forked from one that has everything imported: each starts in no time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["cbam_edu.experiment", "cbam_edu.cli", "ptflops", "pytest"])


def start(work, *args):
    """Start a process that does `work`, and return it with a pipe that it tells things through."""
    mine, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(its, *args))
    process.start()
    its.close()
    return process, mine


def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_recorded(path, record, lock):
    with open(path, "ab") as file:
        file.write(json.dumps(record).encode()[:700])
    killed()


DEATHS = {  # when: what a process calls then
    "before training": (experiment, "fit", killed),
    "while a checkpoint is written": (os, "replace", killed),
    "when trained": (experiment, "append", killed),
    "when half recorded": (experiment, "append", half_recorded),
    "when recorded": (shutil, "rmtree", killed),
    "when all is recorded": (experiment, "_tidy", killed),
}


def do(pipe, out, study=LONG, death=None):
    """Do a study in a process of its own, which may be told when to die."""
    torch.set_num_threads(1)
    STUDIES["tiny"] = study
    if death:
        setattr(*DEATHS[death])
    pipe.send("begun")
    experiment.experiment("tiny", "small", out, tell=pipe.send)


def command(pipe, words, errors):
    """Do what the command line does; the exit code is the process's."""
    torch.set_num_threads(1)
    STUDIES["tiny"] = LONG
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(errors, "w") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pipe.send("begun")
    raise SystemExit(cli.main(words))
