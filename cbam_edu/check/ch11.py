"""Judges of chapter 11, "What does it cost?"."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cbam_edu
from cbam_edu import attention
from cbam_edu.benchmark import kept_bytes
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, shape, written

# ---- What answers are made of


def _near(value: float, wanted: float, tolerance: float = 1e-3) -> bool:
    return abs(value - wanted) <= tolerance * abs(wanted)


def _several(value: Any, what: list[str]) -> list[Any]:
    """Return the answer's parts, one for each of `what`."""
    if not isinstance(written(value), tuple | list) or len(value) != len(what):
        raise Wrong(f"Return {', '.join(what[:-1])} and {what[-1]}, in this order, as a tuple.")
    return [written(part) for part in value]


# ---- 11.1


@judge
def bytes_moved(answer: Callable[[int, int, int, int, int], Any]) -> None:
    """Judge `answer(n, c, h, w, size)`: bytes of BatchNorm and ReLU, apart and in one loop."""
    for n, c, h, w, size in ((1, 1, 1, 1, 4), (64, 64, 32, 32, 4), (3, 16, 7, 5, 2)):
        parts = _several(answer(n, c, h, w, size), ["the bytes apart", "the bytes together"])
        apart, together = (number(part, "each of the two") for part in parts)
        one = n * c * h * w * size
        if (apart, together) == (3 * one, 5 * one):
            raise Wrong("The two numbers are swapped: apart moves more than together.")
        for value, passes, what in ((apart, 5, "apart"), (together, 3, "together")):
            if value == passes * one:
                continue
            found = value / one
            why = {
                4 * passes / size: "Each value has `size` bytes, which need not be 4.",
                passes / n: "That is one image of the batch.",
                passes / size: "These are values, not bytes: each has `size` bytes.",
                passes - 1: "One pass is missing. Training reads x twice: a mean and a variance "
                "must be known before the first value can be normalised.",
                passes - 2: "Passes are missing. BatchNorm reads x twice and writes once; has "
                "everything that is read and written been counted?",
                passes + 1: "One pass too many. ReLU reads one map and writes one; in one loop it "
                "finds its value in a register.",
            }.get(found, f"That is {found:.4g} passes over the map.")
            raise Wrong(f"{value:,.12g} bytes {what}, for {(n, c, h, w)} of {size} bytes? {why}")


# ---- 11.2


def _scale_grads(g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dc = (g * x * s).sum((2, 3), keepdim=True)
    return g * (1 + c * s), dc, (g * x * c).sum(1, keepdim=True)


@judge
def scale_backward(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> None:
    """Judge `answer(g, x, c, s)`: the gradients dx, dc, ds of out = x (1 + c s)."""
    for seed, (n, c, h, w) in enumerate(((1, 2, 2, 3), (3, 5, 4, 2))):
        generator = torch.Generator().manual_seed(seed)
        shapes = (n, c, h, w), (n, c, h, w), (n, c, 1, 1), (n, 1, h, w)
        g, x, c_, s = (torch.randn(v, generator=generator, dtype=torch.float64) for v in shapes)
        given = (t.clone() for t in (g, x, c_, s))
        dx, dc, ds = _several(answer(*given), ["dx", "dc", "ds"])
        right = _scale_grads(g, x, c_, s)
        known(
            dx,
            {
                "dx = g c s is the gradient of x c s. Here the map itself is added as well.": g
                * c_
                * s,
                "This dx lacks g, the gradient that comes from above.": 1 + c_ * s,
            },
        )
        known(
            dc,
            {
                "dc lacks s: along the path through c, s is a factor.": (g * x).sum(
                    (2, 3), keepdim=True
                ),
                "dc lacks g, the gradient that comes from above.": (x * s).sum(
                    (2, 3), keepdim=True
                ),
                "dc is averaged over the places. Each place adds its share: take the sum.": (
                    right[1] / (h * w)
                ),
                "dc has not been summed: c is one number for all places of a channel, and each "
                "place adds its share.": g * x * s,
            },
        )
        known(
            ds,
            {
                "ds lacks c: along the path through s, c is a factor.": (g * x).sum(
                    1, keepdim=True
                ),
                "ds is averaged over the channels. Each channel adds its share: take the sum.": (
                    right[2] / c
                ),
                "ds has not been summed: s is one number for all channels of a place.": g * x * c_,
            },
        )
        for value, wanted, name in zip((dx, dc, ds), right, ("dx", "dc", "ds"), strict=True):
            close(value, wanted, name, "Compare it with torch.autograd.grad.")


# ---- 11.3


class Machine:
    """A machine that never was, with a device beside it: its times are the same for everybody.

    `task` hands work to the device and returns at once; the first two calls also compile, which
    keeps the caller. `wait` returns when the device has finished. `clock` tells the seconds.

    Parameters
    ----------
    seed : int
        Of the seconds that each call's work takes.
    """

    LAUNCH, COMPILE, WARM_UP = 0.001, 100.0, 2

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        work = 1 + torch.rand(1000, generator=generator, dtype=torch.float64)
        work[5::7] *= 20  # somebody else wants the machine
        self.work: list[float] = work.tolist()
        self.now, self.free, self.calls, self.readings = 0.0, 0.0, 0, 0

    def task(self) -> None:
        """Hand the next piece of work to the device."""
        self.now += self.LAUNCH + self.COMPILE * (self.calls < self.WARM_UP)
        self.free = max(self.free, self.now) + self.work[self.calls]
        self.calls += 1

    def wait(self) -> None:
        """Return when the device has finished all its work."""
        self.now = max(self.now, self.free)

    def clock(self) -> float:
        """Return the seconds since the machine was there."""
        self.readings += 1
        return self.now


Stopwatch = Callable[[Callable[[], None], Callable[[], None], Callable[[], float], int], float]


def _stopwatch(
    of: Callable[[list[float]], float] = statistics.median,
    warm_up: int = Machine.WARM_UP,
    before: bool = True,
    after: bool = True,
) -> Stopwatch:
    """Return a stopwatch; every change of the defaults is a mistake."""

    def seconds(
        task: Callable[[], None],
        wait: Callable[[], None],
        clock: Callable[[], float],
        rounds: int,
    ) -> float:
        for _ in range(warm_up):
            task()
        times = []
        for _ in range(rounds):
            if before:
                wait()
            start = clock()
            task()
            if after:
                wait()
            times.append(clock() - start)
        return of(times)

    return seconds


STOPWATCHES: dict[str, Stopwatch] = {
    "It stops the clock while the device still works: it measures how long it takes to hand the "
    "work over. Wait before the clock is read.": _stopwatch(after=False),
    "The work of the warm-up was still running when the clock started. Wait before the first "
    "reading, too.": _stopwatch(before=False),
    "The warm-up counts: two of the calls compiled. Call the task twice before you measure.": (
        _stopwatch(warm_up=0)
    ),
    "One call is no warm-up here: the second one compiles as well.": _stopwatch(warm_up=1),
    "This is the mean. A few calls were disturbed by others and pull it up; take the median.": (
        _stopwatch(of=statistics.fmean)
    ),
    "This is the mean, and it has the warm-up in it. Warm up first, then take the median.": (
        _stopwatch(of=statistics.fmean, warm_up=0)
    ),
    "All three bugs are still there: it does not warm up, does not wait for the device, and takes "
    "the mean.": _stopwatch(of=statistics.fmean, warm_up=0, before=False, after=False),
    "Of an even number of times this takes the lower one of the middle two, as torch.median does. "
    "Take the mean of the two.": _stopwatch(of=statistics.median_low),
    "Of an even number of times this takes the upper one of the middle two. Take the mean of the "
    "two.": _stopwatch(of=statistics.median_high),
    "The times are not sorted: the one in the middle of the list is no median.": _stopwatch(
        of=lambda times: times[len(times) // 2]
    ),
    "This is the fastest call. It tells what luck can do; the median is what one gets.": (
        _stopwatch(of=min)
    ),
    "This is the time of all calls together. Take the median of single calls.": _stopwatch(of=sum),
}


@judge
def stopwatch(answer: Stopwatch) -> None:
    """Judge `answer(task, wait, clock, rounds)`: the median seconds of a call, fairly measured."""
    runs = ((0, 5), (1, 8), (2, 11), (3, 20))
    machines = {run: Machine(run[0]) for run in runs}
    values = {run: number(_measured(answer, m, run[1]), "The time") for run, m in machines.items()}
    for why, wrong in STOPWATCHES.items():
        if all(_near(values[run], _measured(wrong, Machine(run[0]), run[1])) for run in runs):
            raise Wrong(why)
    for (seed, rounds), machine in machines.items():
        if machine.calls != rounds + Machine.WARM_UP:
            raise Wrong(
                f"The task was called {machine.calls} times; it should be "
                f"{rounds + Machine.WARM_UP}: twice to warm up, then rounds={rounds} times."
            )
        if not machine.readings:
            raise Wrong("The clock that was given was never read: this machine has its own time.")
        value, right = values[seed, rounds], _measured(_stopwatch(), Machine(seed), rounds)
        if not _near(value, right, 1e-6):
            raise Wrong(
                f"It says {value:.4g} s; the median of the {rounds} calls is {right:.4g} s. Is "
                "each call timed alone, from a device at rest until the device has finished?"
            )


def _measured(stopwatch: Stopwatch, machine: Machine, rounds: int) -> float:
    return stopwatch(machine.task, machine.wait, machine.clock, rounds)


# ---- 11.4


@judge
def tie_gradients(answer: Mapping[str, Any]) -> None:
    """Judge the predicted gradients through a maximum over channels that ties."""
    names = ["amax", "sums by max(dim=0)"]
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(map(repr, names))}.")
    if any(value is ... or value is None for value in tree_leaves(dict(answer))):
        raise NotImplementedError
    y = torch.tensor([[3.0, 1.0, 3.0], [3.0, 2.0, 3.0]], requires_grad=True)
    above = torch.tensor([6.0, 4.0, 2.0])
    (shared,) = torch.autograd.grad(y.amax(0), y, above)
    given, sums = (_rows(answer[name], repr(name)) for name in names)
    known(
        given,
        {
            "This hands each tied channel the whole gradient, so more goes down than came from "
            "above. Those that tie share it.": (y == y.amax(0)).float() * above,
            "This gives all to the first that ties, as max(dim=0) may do. amax is fair: those that "
            "tie share.": torch.tensor([[6.0, 0.0, 2.0], [0.0, 4.0, 0.0]]),
            "This gives all to the last that ties. amax is fair: those that tie share.": (
                torch.tensor([[0.0, 0.0, 0.0], [6.0, 4.0, 2.0]])
            ),
            "This is the gradient of a mean: half to each. A maximum gives nothing to those below "
            "it: look at place 1.": (above / 2).expand(2, 3),
            "These are the shares. Multiply them by the gradient from above.": shared / above,
        },
    )
    close(given, shared, "'amax'")
    if not torch.equal(sums.flatten(), above):
        raise Wrong(
            f"'sums by max(dim=0)' is not {sums.tolist()}. Whoever wins a tie, the column as a "
            "whole gets what came from above."
        )


def _rows(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"{what} must be a list of numbers, or of rows of equal length.") from error


# ---- 11.5


@judge
def limit(answer: Callable[..., Any]) -> None:
    """Judge `answer(seconds, passes, map_bytes, flops, bandwidth, rate)`: what is reached, and why.

    Right is the bytes moved a second, and "memory" or "arithmetic" where the larger of the two
    least times is at least half of the time measured; otherwise "neither".
    """
    cases = {
        "memory": (0.010, 10, 16e6, 1e8, 20e9, 100e9),
        "arithmetic": (0.060, 2, 16e6, 4.8e9, 20e9, 100e9),
        "neither": (0.065, 10, 16e6, 1e8, 20e9, 100e9),
    }
    many = {
        "memory": [
            (0.002, 3, 8e6, 5e7, 20e9, 100e9),
            (0.1, 40, 32e6, 4e9, 15e9, 80e9),
            (0.01, 11, 10e6, 1e8, 20e9, 100e9),  # 55 %
        ],
        "arithmetic": [(0.3, 6, 64e6, 2.5e10, 20e9, 100e9), (0.02, 30, 8e6, 2e9, 20e9, 100e9)],
        "neither": [
            (0.0005, 8, 16e3, 3e4, 20e9, 100e9),
            (0.5, 3, 16e6, 1e10, 20e9, 100e9),
            (0.01, 9, 10e6, 1e8, 20e9, 100e9),  # 45 %
            (0.01, 5, 16e6, 4e8, 20e9, 100e9),  # 40 % each, which do not add up
        ],
    }
    for verdict, case in cases.items():
        for seconds, passes, size, flops, bandwidth, rate in (case, *many[verdict]):
            parts = _several(
                answer(seconds, passes, size, flops, bandwidth, rate),
                ["the bytes a second", "what limits"],
            )
            reached, wanted = number(parts[0], "The bytes a second"), passes * size / seconds
            if _near(reached, size / seconds) and passes != 1:
                raise Wrong("Every pass moves the map once more: the passes are missing.")
            if _near(reached, seconds / (passes * size)):
                raise Wrong("These are seconds a byte. Turn the fraction round.")
            if _near(reached, wanted / 1e9) or _near(reached, wanted / 2**30):
                raise Wrong("These are gigabytes a second. Return bytes a second.")
            if not _near(reached, wanted):
                raise Wrong(
                    f"{passes} passes over {size:,.0f} bytes in {seconds:g} s are not {reached:.4g}"
                    " bytes a second."
                )
            if not isinstance(parts[1], str) or parts[1] not in cases:
                names = ", ".join(map(repr, cases))
                raise Wrong(f"What limits is one of {names}; {parts[1]!r} is none of them.")
            if parts[1] != verdict:
                least = passes * size / bandwidth, flops / rate
                raise Wrong(
                    f"Not {parts[1]!r}: memory alone would take {1e3 * least[0]:.3g} ms, "
                    f"arithmetic alone {1e3 * least[1]:.3g} ms, and it took {1e3 * seconds:.3g} ms."
                )


# ---- 11.6


@judge
def kept_maps(answer: Callable[[nn.Module, Tensor], Any]) -> None:
    """Judge `answer(module, x)`: how many maps of the size of x are kept for the backward pass."""
    torch.manual_seed(0)
    x = torch.randn(2, 64, 32, 32, requires_grad=True)
    twice = x.detach().double().requires_grad_()  # as many values, twice as many bytes
    modules = {
        "nn.Tanh": (nn.Tanh(), x),
        "nn.Conv2d": (nn.Conv2d(64, 64, 3, padding=1), x),
        "the plain CBAM": (attention.CBAM(64), x),
        "the fused CBAM": (cbam_edu.CBAM(64), x),
        "nn.Tanh on float64": (nn.Tanh(), twice),
    }
    for name, (module, given) in modules.items():
        value = number(answer(module, given), "The number of maps")
        weights = list(module.parameters())
        run = partial(module, given)
        kept, with_weights = kept_bytes(run, weights), kept_bytes(run, [])
        if value == 0:
            raise Wrong("It found nothing kept. Is the forward pass run with gradients on?")
        if _near(value, kept):
            raise Wrong("These are bytes. Divide by the bytes of x.")
        if _near(value, kept / given.numel()):
            raise Wrong("These are bytes for each value of x. A value has more than one byte.")
        if _near(value, with_weights / given.nbytes) and not _near(with_weights, kept):
            raise Wrong(
                f"For {name}, the weights are in it. They are there in any case: leave them out."
            )
        if not _near(value, kept / given.nbytes, 0.02):
            raise Wrong(f"{name} does not keep {value:.3g} maps, but {kept / given.nbytes:.3g}.")


# ---- 11.7

MOST_PASSES = 6


class _Passes(TorchDispatchMode):
    """Counts reads and writes of tensors as large as a map; a view moves nothing."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.total = size, 0

    def _big(self, values: Any) -> int:
        tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
        return sum(t.untyped_storage().nbytes() >= self.size for t in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        aliases = [value.alias_info for value in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            read = {name: value for name, value in given.items() if name != "out"}
            self.total += self._big((args, read)) + self._big(out)
        return out


def _a_map(seed: int) -> Tensor:
    """Return a map (4, 64, 16, 16) without zeros, whose images, channels and places differ."""
    sizes = (4, 64, 16, 16), (4, 64, 1, 1), (4, 1, 16, 16)
    generator = torch.Generator().manual_seed(seed)
    x = sum(torch.randn(size, generator=generator) for size in sizes)
    return torch.where(torch.as_tensor(x).abs() < 0.1, 0.1, x)


@judge
def lighter(answer: Callable[[int], Any]) -> None:
    """Judge `answer(channels)`: a module with both gates that makes at most six passes forward."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the function, lighter, not a module that it makes.")
    moves = dict.fromkeys(("channels", "places", "images", "channel gate", "spatial gate"), False)
    for seed in range(5):  # a single fresh module may be dead by chance, as behind a ReLU
        torch.manual_seed(seed)
        module, x = written(answer(64)), _a_map(seed) * (20 if seed % 2 else 1)
        if not isinstance(module, nn.Module):
            raise Wrong(f"Return a module, not a {type(module).__name__}.")
        with torch.no_grad():
            for parameter in module.parameters():  # so that no start at zero hides a gate
                parameter.add_(0.1 * torch.randn(parameter.shape))
            given = x.clone()
            with _Passes(x.nbytes) as passes:
                out = _run(module, given)
            shape(out, tuple(x.shape), "the output")
            if not torch.equal(given, x):
                raise Wrong("It changes its input, which others may need. Make a map of its own.")
            _gates(out / x, moves)
    for what, why in {
        "channels": "All channels get the same factor: the channel gate is missing.",
        "places": "All places get the same factor: the spatial gate is missing.",
        "images": "All images get the same factors. Compute them from the map.",
        "channel gate": "All images get the same channel vector. Compute it from the map.",
        "spatial gate": "All images get the same map of places. Compute it from the feature map.",
    }.items():
        if not moves[what]:
            raise Wrong(why)
    if passes.total > MOST_PASSES:
        raise Wrong(
            f"It makes {passes.total} passes over the big map; at most {MOST_PASSES} are allowed. "
            "List them as in section 4, and ask of each whether the gates need it."
        )
    _learns(module, x)
    other = torch.randn(2, 32, 9, 12)
    shape(_run(answer(32), other), tuple(other.shape), "the output for lighter(32)")


def _run(module: nn.Module, x: Tensor) -> Any:
    try:
        return module(x)
    except Exception as error:
        raise Wrong(
            f"The module stops at a map {tuple(x.shape)} with {type(error).__name__}: {error}"
        ) from error


def _learns(module: nn.Module, x: Tensor) -> None:
    """Raise `Wrong` where a parameter has a say in the output, and no gradient."""
    out = module(x)
    if out.requires_grad:
        out.sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            with torch.no_grad():
                parameter.add_(1 + torch.rand(parameter.shape))
                changed = not torch.equal(module(x), out)
            if changed:
                raise Wrong(
                    f"No gradient reaches {name}, so it would never learn. Is there a detach() or "
                    "a torch.no_grad()?"
                )


def _gates(factors: Tensor, moves: dict[str, bool]) -> None:
    """Raise `Wrong` unless the factors are gates; note along which axes they differ."""
    low, high = float(factors.min()), float(factors.max())
    if low < 0 or high > 1 + 1e-5:
        raise Wrong(
            f"The factors out / x run from {low:.3g} to {high:.3g}; gates stay between 0 and 1."
        )
    s = torch.linalg.svdvals(factors.flatten(2))
    if bool((s[:, 1] > 1e-3 * s[:, 0]).any()):
        raise Wrong(
            "An image's factors are no channel vector times a map of places (their rank is above "
            "1). Multiply by one gate, then by the other."
        )
    for name, axis in (("images", 0), ("channels", 1)):
        moves[name] |= bool(factors.std(axis).max() > 1e-4)
    moves["places"] |= bool(factors.flatten(2).std(2).max() > 1e-4)
    whole = factors.mean((1, 2, 3), keepdim=True)  # each gate, whatever the other's scale
    for name, others in (("channel gate", (2, 3)), ("spatial gate", 1)):
        moves[name] |= bool((factors.mean(others, keepdim=True) / whole).std(0).max() > 1e-4)
