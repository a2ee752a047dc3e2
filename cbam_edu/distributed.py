"""Many processes: what torchrun started, joined by PyTorch's own engine.

Nothing distributed is written here. Without torchrun there is one process, and no function below
does anything.
"""

import contextlib
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = 3  # seconds for which the other processes leave the word to the first


class LostProcessError(RuntimeError):
    """Another process has ended, so this one cannot go on."""


def joined() -> bool:
    """Say whether this process works together with others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if joined() else 0


def world_size() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if joined() else 1


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of all processes' `x`, in place; each waits for it."""
    if joined():
        dist.all_reduce(x)
    return x


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first: BatchNorm's running statistics."""
    if joined():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _started() -> int:
    """Return how many processes torchrun started; 1 where it did not start this one."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    return int(os.environ["WORLD_SIZE"]) if launched else 1


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and part at the end; once in a program.

    Where they are joined already, nothing is done. After an error nothing is closed: the process
    is to end, and torchrun then ends the others.

    Parameters
    ----------
    device : torch.device
        Where to train: on GPUs, one for each process, which NCCL connects, or on the CPU, by gloo.

    Yields
    ------
    torch.device
        The device of this process.

    Raises
    ------
    ValueError
        If there are more processes than GPUs, or the device is of another kind.
    """
    if joined() or _started() == 1:
        yield device
        return
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"many processes train on cuda or cpu, not on {device.type}")
    if device.type == "cuda" and here > (gpus := torch.cuda.device_count()):
        raise ValueError(
            f"{here} processes need {here} GPUs, this machine has {gpus}; start {gpus}, or take "
            "--device cpu"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostProcessError("another process has ended; its own error says why") from error
        raise
    dist.destroy_process_group()


def speaker() -> str:
    """Return how this process names itself before it tells an error: "", or "process 1 of 2: ".

    An error that all have, such as a wrong option, should be told once. So the first process
    speaks at once, whereupon torchrun ends the others; one that still lives after `PATIENCE`
    seconds has an error of its own.
    """
    if (count := _started()) == 1:
        return ""
    number = int(os.environ["RANK"])
    if number > 0:
        time.sleep(PATIENCE)
    return f"process {number} of {count}: "
