"""One JSON record a run: what was trained, how, and what came out."""

import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import cbam_edu
from cbam_edu.complexity import count
from cbam_edu.train import Recipe


def commit() -> str | None:
    """Return the commit of the code that runs, "-dirty" after it where the code was changed.

    None where the package is installed without its repository.
    """
    package = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if not git("ls-files", "attention.py"):  # installed inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """Name a device so that a reader can tell which kind of machine a figure is from."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"MPS ({platform.processor() or platform.machine()})"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def record(
    study: str,
    model: nn.Module,
    recipe: Recipe,
    history: list[dict[str, float]],
    *,
    data: str,
    images: tuple[int, int],
    size: int = 32,
    device: torch.device,
) -> dict[str, Any]:
    """Describe a finished run in one dictionary of plain values, for a line of JSON.

    Parameters
    ----------
    study : str
        What the run belongs to.
    model : torch.nn.Module
        The network, made by `cbam_edu.create_model`.
    recipe : Recipe
        How it was trained.
    history : list of dict
        What `cbam_edu.train.fit` returned, the accuracy on test images with it.
    data : str
        The name of the images.
    images : tuple of int
        How many it was trained on and measured on.
    size : int
        The side of an image.
    device : torch.device
        Where.

    Returns
    -------
    dict
        `accuracy` is that of the last epoch, from 0 to 1; `seconds` is the time spent in training
        steps; `multiply_accumulates` is for one image.
    """
    config: dict[str, Any] = vars(model)["config"]
    cost = count(model, (3, size, size))
    last = history[-1]
    return {
        "study": study,
        "model": config["name"],
        "arm": config["attention"] or "none",
        "seed": recipe.seed,
        "accuracy": last["accuracy"],
        "loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "epochs": len(history),
        "seconds": round(sum(entry["seconds"] for entry in history), 1),
        "parameters": cost.parameters,
        "multiply_accumulates": cost.multiply_accumulates,
        "data": data,
        "train_images": images[0],
        "test_images": images[1],
        "device": device_name(device),
        "versions": {
            "cbam_edu": cbam_edu.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "commit": commit(),
        "config": config,
        "recipe": asdict(recipe),
    }
