"""What CBAM costs in time and memory, beside others' implementations, in one run.

All are timed in turns, so that whatever disturbs the machine hits all alike. A layer's times are
also given in copies: the time of ``y.copy_(x)``, which reads and writes one feature map. Memory is
what is kept for the backward pass, and the most that there is at a time, beside what there was.
"""

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from cbam_edu import attention, fused
from cbam_edu.models import create_model
from cbam_edu.neighbours import check_name
from cbam_edu.recipe import autocast
from cbam_edu.records import device_name


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
        raise ValueError("timm is not here; pip install timm, or choose other names") from error
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


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the most memory that `run` has at a time, beside what there was before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - before)
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiled:
        run()
    recorded = profiled.profiler
    assert recorded is not None
    changes = [e.nbytes() for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(changes), default=0)


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
        the map's reads and writes by bandwidth; for training also ``kept_maps`` and ``peak_maps``,
        the memory kept for the backward pass and the most there is, in feature maps.
    """
    for name in names:
        check_name("implementation", name, list(IMPLEMENTATIONS))
    torch.compiler.reset()  # what it compiled for other shapes would make it give up, or generalise
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    upstream, target = torch.randn_like(x), torch.empty_like(x)
    inputs = x.detach().requires_grad_()
    tasks: dict[Any, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    memory = {}
    for name, way in itertools.product(names, ways):
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.default_generator.manual_seed(0)
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
        kept = kept_bytes(functools.partial(run, inputs), wanted[1:])
        memory[name, way] = kept, peak_bytes(training, device)
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
            **_machine(device, rounds),
        }
        if mode == "training":
            kept, peak = memory[name, way]
            line |= {"kept_maps": round(kept / x.nbytes, 3), "peak_maps": round(peak / x.nbytes, 3)}
        records.append(line)
    return records


def compare_networks(
    name: str,
    *,
    names: Sequence[str] = ("none", "plain", "fused", "timm"),
    ways: Sequence[str] = WAYS,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    channels_last: bool = True,
    batch_size: int = 128,
    rounds: int = 15,
) -> list[dict[str, Any]]:
    """Time a training step, without the optimizer's, of a network with and without CBAM.

    Parameters
    ----------
    name : str
        One of `cbam_edu.models.list_models`.
    names : sequence of {"none", "plain", "fused", "timm", "authors", "common"}
        Whose CBAM the network has; "none" for the network without.
    ways, device, rounds
        As in `compare`.
    precision : {"float32", "bfloat16", "float16"}
        Of the forward pass, by autocast.
    channels_last : bool
        Memory format of the network and of its images.
    batch_size : int
        Images a step, of the network's usual size.

    Returns
    -------
    list of dict
        For each name and way: median and quartiles in ``milliseconds``, how many times the median
        without CBAM that is, ``times_none`` (where "none" is among the names), and
        ``peak_megabytes``, the most memory at a time.
    """
    for arm in names:
        check_name("implementation", arm, ["none", *IMPLEMENTATIONS])
    torch.compiler.reset()  # as in `compare`
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tasks: dict[tuple[str, str], Callable[[], object]] = {}
    for arm, way in itertools.product(names, ways):
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.default_generator.manual_seed(0)
            model = _network(name, arm)
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        side = model.image_size
        x = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=layout)
        y = torch.arange(batch_size, device=device) % 10
        run = torch.compile(model) if way == "compiled" else model
        weights = list(model.parameters())

        def step(
            run: Callable[[Tensor], Tensor] = run,
            weights: list[nn.Parameter] = weights,
            x: Tensor = x,
            y: Tensor = y,
        ) -> object:
            with autocast(device, precision):
                logits = run(x)
            return torch.autograd.grad(F.cross_entropy(logits.float(), y), weights)

        step()  # compiles
        tasks[arm, way] = step
    peaks = {task: peak_bytes(step, device) for task, step in tasks.items()}
    times = in_turns(tasks, rounds)
    records = []
    for (arm, way), seconds in times.items():
        line = {
            "model": name,
            "batch_size": batch_size,
            "precision": precision,
            "channels_last": channels_last,
            "implementation": arm,
            "way": way,
            "mode": "training",
            **_quartiles(seconds),
            "peak_megabytes": round(peaks[arm, way] / 1e6, 1),
            **_machine(device, rounds),
        }
        if ("none", way) in times:
            alone = statistics.median(times["none", way])
            line["times_none"] = round(statistics.median(seconds) / alone, 3)
        records.append(line)
    return records


def _network(name: str, arm: str) -> nn.Module:
    """Make a network with the CBAM of an implementation, or with none."""
    model = create_model(name, attention=None if arm == "none" else "cbam").train()
    if arm != "none":
        for path, layer in list(model.named_modules()):
            if isinstance(layer, attention.CBAM):
                model.set_submodule(path, IMPLEMENTATIONS[arm](layer.channels))
    return model


def _machine(device: torch.device, rounds: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
