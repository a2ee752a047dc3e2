"""How long CBAM takes, beside others' implementations and beside a copy of its input, in one run.

All are timed in turns, so that whatever disturbs the machine hits all alike. Times are given in
milliseconds and in copies: the time of ``y.copy_(x)``, which reads and writes one feature map.
"""

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from cbam_edu import attention, fused
from cbam_edu.experiment import device_name
from cbam_edu.neighbours import check_name


class AuthorsCBAM(nn.Module):
    """The operations of the CBAM authors' code (Jongchan/attention-module, MODELS/cbam.py)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> the same shape."""
        place = x.shape[2:]
        logits = self.mlp(F.avg_pool2d(x, place)) + self.mlp(F.max_pool2d(x, place))
        x = x * torch.sigmoid(logits)[:, :, None, None].expand_as(x)
        maps = torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.norm(self.conv(maps)))


class CommonCBAM(nn.Module):
    """The operations of the copies that are most common (such as luuuyi/CBAM.PyTorch)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        down = nn.Conv2d(channels, hidden, 1, bias=False)
        self.mlp = nn.Sequential(down, nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> the same shape."""
        logits = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(logits)
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.conv(maps))


def _timm(channels: int) -> nn.Module:
    try:
        from timm.layers.cbam import CbamModule
    except ImportError as error:
        raise ImportError("to be measured beside timm, install it: pip install timm") from error
    return CbamModule(channels)


IMPLEMENTATIONS: dict[str, Callable[[int], nn.Module]] = {
    "plain": attention.CBAM,
    "fused": fused.CBAM,
    "timm": _timm,
    "authors": AuthorsCBAM,
    "common": CommonCBAM,
}
WAYS = ("eager", "compiled")
MODES = ("forward", "training")


def kept_bytes(run: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Return how many bytes a forward pass keeps for its backward pass, beside the weights."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in parameters}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()  # held until all is counted, so that no address is used twice
    del out
    return sum(kept.values())


def _quartiles(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "milliseconds": round(1e3 * middle, 4),
        "low": round(1e3 * low, 4),
        "high": round(1e3 * high, 4),
    }


def in_turns(
    tasks: dict[Any, Callable[[], object]], rounds: int, number: int = 1
) -> dict[Any, list[float]]:
    """Time every task once a round, `rounds` times; return the seconds of each.

    Parameters
    ----------
    tasks : dict of callables
        What is timed; each is called twice before, to warm up.
    rounds : int
        How often.
    number : int
        Calls in a row that make one time, for tasks of microseconds.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("task()", globals={"task": task}, num_threads=threads)
        for name, task in tasks.items()
    }
    for timer in timers.values():
        timer.timeit(2)
    times: dict[Any, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(number).mean)
    return times


def compare(
    shape: tuple[int, int, int, int],
    *,
    names: Sequence[str] = tuple(IMPLEMENTATIONS),
    ways: Sequence[str] = WAYS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    rounds: int = 15,
    number: int = 1,
) -> list[dict[str, Any]]:
    """Time implementations of CBAM on one feature map, in training mode.

    Parameters
    ----------
    shape : tuple of int
        (N, C, H, W).
    names : sequence of {"plain", "fused", "timm", "authors", "common"}
        Which.
    ways : sequence of {"eager", "compiled"}
        How; compiled is by `torch.compile`.
    dtype, device, channels_last
        Of the feature map.
    rounds, number : int
        As in `in_turns`.

    Returns
    -------
    list of dict
        For each name, way and mode ("forward": without gradients; "training": forward and
        backward): median and quartiles in ``milliseconds``, the median in ``copies`` of the map,
        the map's reads and writes by bandwidth; for training also ``kept_maps``, the bytes that
        are kept for the backward pass, in feature maps.
    """
    for name in names:
        check_name("implementation", name, list(IMPLEMENTATIONS))
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    upstream, target = torch.randn_like(x), torch.empty_like(x)
    inputs = x.detach().requires_grad_()
    tasks: dict[Any, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    kept = {}
    for name, way in itertools.product(names, ways):
        torch.manual_seed(0)
        module = IMPLEMENTATIONS[name](shape[1]).to(device, dtype).train()
        run = torch.compile(module) if way == "compiled" else module
        wanted = [inputs, *module.parameters()]

        def forward(run: Callable[[Tensor], Tensor] = run) -> Tensor:
            with torch.no_grad():
                return run(x)

        def training(
            run: Callable[[Tensor], Tensor] = run, wanted: list[Tensor] = wanted
        ) -> object:
            return torch.autograd.grad(run(inputs), wanted, upstream)

        tasks[name, way, "forward"], tasks[name, way, "training"] = forward, training
        training()  # compiles
        kept[name, way] = kept_bytes(functools.partial(run, inputs), wanted[1:])
    times = in_turns(tasks, rounds, number)
    copy = statistics.median(times.pop("copy"))
    records = []
    for (name, way, mode), seconds in times.items():
        line = {
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "channels_last": channels_last,
            "implementation": name,
            "way": way,
            "mode": mode,
            **_quartiles(seconds),
            "copies": round(statistics.median(seconds) / copy, 2),
            "copy_gigabytes_per_second": round(2 * x.nbytes / copy / 1e9, 1),
            "rounds": rounds,
            "device": device_name(device),
            "torch": torch.__version__,
        }
        if mode == "training":
            line["kept_maps"] = round(kept[name, way] / x.nbytes, 3)
        records.append(line)
    return records
