"""The judges of chapter 11 accept what is right, and name the usual mistakes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cbam_edu import attention
from cbam_edu.benchmark import kept_bytes
from cbam_edu.check import ch11
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "11_cost.ipynb")


def test_there_are_seven_exercises() -> None:
    assert len(EXERCISES) == 7


# 11.1


def passes(apart: float, together: float) -> Callable[..., tuple[float, float]]:
    return lambda n, c, h, w, size: (
        apart * n * c * h * w * size,
        together * n * c * h * w * size,
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (passes(4, 3), "One pass is missing"),
        (passes(3, 3), "Passes are missing"),
        (passes(5, 2), "One pass is missing"),
        (passes(5, 1), "Passes are missing"),
        (passes(6, 3), "One pass too many"),
        (passes(5, 4), "One pass too many"),
        (passes(3, 5), "The two numbers are swapped"),
        (passes(5, 7), "That is 7 passes over the map"),
        (lambda n, c, h, w, size: (5 * n * c * h * w, 3 * n * c * h * w), "values, not bytes"),
        (lambda n, c, h, w, size: 5 * n * c * h * w * size, "Return the bytes apart and"),
        (lambda n, c, h, w, size: ("5", "3"), "must be a number, but is a str"),
        (lambda n, c, h, w, size: passes(5, 3)(n, c, h, w, 4), "`size` bytes, which need not be 4"),
        (lambda n, c, h, w, size: passes(5, 3)(1, c, h, w, size), "one image of the batch"),
        (lambda n, c, h, w, size: passes(5, 3)(n, c, h, h, size), "That is 7 passes"),
        (lambda *shape: passes(5, 3)(64, 64, 32, 32, 4), "bytes apart, for (1, 1, 1, 1)"),
        (lambda *shape: tuple(v / 1024 for v in passes(5, 3)(*shape)), "0.01953125 bytes apart"),
        (lambda *shape: (float("nan"), float("nan")), "nan bytes apart"),
        (lambda *shape: {"apart": 5, "together": 3}, "in this order, as a tuple"),
        (passes(8, 3), "That is 8 passes over the map"),
    ],
)
def test_bytes_moved_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch11.bytes_moved, answer, reason, capsys)


def test_bytes_moved_takes_floats_and_lists(capsys: Any) -> None:
    accepts(ch11.bytes_moved, lambda *shape: list(passes(5.0, 3.0)(*shape)), capsys)
    accepts(ch11.bytes_moved, lambda *shape: tuple(map(np.int64, passes(5, 3)(*shape))), capsys)
    waits(ch11.bytes_moved, lambda *shape: None, capsys)
    waits(ch11.bytes_moved, lambda *shape: (20, ...), capsys)


# 11.2


def changed(
    dx: Any = None, dc: Any = None, ds: Any = None
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return the right gradients, but for those that are given as functions."""

    def answer(g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right = ch11._scale_grads(g, x, c, s)
        wrong = (f and f(g, x, c, s) for f in (dx, dc, ds))
        return tuple(r if w is None else w for r, w in zip(right, wrong, strict=True))

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (changed(dx=lambda g, x, c, s: g * c * s), "Here the map itself is added as well"),
        (changed(dx=lambda g, x, c, s: 1 + c * s), "This dx lacks g"),
        (changed(dc=lambda g, x, c, s: (g * x).sum((2, 3), keepdim=True)), "dc lacks s"),
        (changed(dc=lambda g, x, c, s: (x * s).sum((2, 3), keepdim=True)), "dc lacks g"),
        (changed(dc=lambda g, x, c, s: (g * x * s).mean((2, 3), True)), "dc is averaged"),
        (changed(dc=lambda g, x, c, s: g * x * s), "dc has not been summed"),
        (changed(ds=lambda g, x, c, s: (g * x).sum(1, keepdim=True)), "ds lacks c"),
        (changed(ds=lambda g, x, c, s: (g * x * c).mean(1, True)), "ds is averaged"),
        (changed(ds=lambda g, x, c, s: g * x * c), "ds has not been summed"),
        (changed(dc=lambda g, x, c, s: (g * x * s).sum((2, 3))), "dc has shape (1, 2)"),
        (changed(ds=lambda g, x, c, s: -(g * x * c).sum(1, True)), "torch.autograd.grad"),
        (lambda g, x, c, s: g, "Return dx, dc and ds"),
        (lambda g, x, c, s: ch11._scale_grads(g, x, c, s)[::-1], "dx has shape (1, 1, 2, 3)"),
        (changed(dx=lambda g, x, c, s: g), "it should be 0.0001748"),
        (changed(dc=lambda g, x, c, s: (g * x * s).sum((0, 2, 3), True)), "(3, 5, 1, 1)"),
        (changed(dc=lambda g, x, c, s: (g * x * s).sum(1, True)), "dc has shape (1, 1, 2, 3)"),
        (changed(ds=lambda g, x, c, s: (g * x * c).sum(1)), "ds has shape (1, 2, 3)"),
        (changed(dc=lambda g, x, c, s: (g * x * s).amax((2, 3), True)), "it should be 2.864"),
        (
            lambda g, x, c, s: (
                g.mul_(1 + c * s),
                (g * x * s).sum((2, 3), True),
                (g * x * c).sum(1, True),
            ),
            "dc[0, 1, 0, 0] is",
        ),
        (lambda *given: tuple(t.numpy() for t in ch11._scale_grads(*given)), "is a ndarray"),
        (lambda g, x, c, s: torch.autograd.grad(x * (1 + c * s), [x, c, s], g), "require grad"),
    ],
)
def test_scale_backward_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch11.scale_backward, answer, reason, capsys)


def test_scale_backward_takes_autograds_answer(capsys: Any) -> None:
    def by_autograd(g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, c, s = leaves = [t.requires_grad_() for t in inputs]
        return torch.autograd.grad(x * (1 + c * s), leaves, g)

    def in_place(g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> list[Tensor]:
        ds = torch.einsum("nkhw,nkab->nhw", g * x, c)[:, None]
        dc = torch.einsum("nkhw,njhw->nk", g * x, s)[:, :, None, None]
        return [g.mul_(1 + c * s), dc, ds]

    accepts(ch11.scale_backward, by_autograd, capsys)
    accepts(ch11.scale_backward, in_place, capsys)
    waits(ch11.scale_backward, lambda g, x, c, s: (..., ..., ...), capsys)


# 11.3


def colleague(task: Any, wait: Any, clock: Any, rounds: int) -> float:
    start = clock()
    for _ in range(rounds):
        task()
    return float((clock() - start) / rounds)


def of_its_own_clock(task: Any, wait: Any, clock: Any, rounds: int) -> float:
    return ch11._stopwatch()(task, wait, time.perf_counter, rounds)


def all_in_one(task: Any, wait: Any, clock: Any, rounds: int) -> float:
    """Time all calls together, well enough but for the median."""
    task(), task(), wait()
    start = clock()
    for _ in range(rounds):
        task()
    wait()
    return float((clock() - start) / rounds)


@pytest.mark.parametrize(
    ("answer", "reason"), [(wrong, why) for why, wrong in ch11.STOPWATCHES.items()]
)
def test_stopwatch_knows_its_mistakes(answer: ch11.Stopwatch, reason: str, capsys: Any) -> None:
    refuses(ch11.stopwatch, answer, reason, capsys)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (colleague, "All three bugs are still there"),
        (ch11._stopwatch(of=max), "the median of the 5 calls is"),
        (ch11._stopwatch(of=max, warm_up=5), "The task was called 10 times"),
        (lambda *arguments: 1.0, "The task was called 0 times"),
        (lambda *arguments: 1e3 * ch11._stopwatch()(*arguments), "the median of the 5 calls is"),
        (lambda *arguments: "fast", "must be a number, but is a str"),
        (ch11._stopwatch(warm_up=3), "The task was called 8 times"),
        (of_its_own_clock, "The clock that was given was never read"),
        (lambda t, w, c, rounds: ch11._stopwatch()(t, w, c, 5), "called 7 times; it should be 10"),
        (ch11._stopwatch(of=lambda times: statistics.fmean(sorted(times)[1:-1])), "the median of"),
        (ch11._stopwatch(of=lambda times: float("nan")), "It says nan s"),
        (ch11._stopwatch(of=lambda times: times), "must be a number, but is a list"),  # type: ignore[arg-type,return-value]
        (all_in_one, "This is the mean. A few calls were disturbed"),
    ],
)
def test_stopwatch_refuses_what_is_not_asked(
    answer: ch11.Stopwatch, reason: str, capsys: Any
) -> None:
    refuses(ch11.stopwatch, answer, reason, capsys)


def test_stopwatch_takes_other_spellings(capsys: Any) -> None:
    def waits_once_more(task: Any, wait: Any, clock: Any, rounds: int) -> float:
        times = []
        for _ in range(2 + rounds):  # the warm-up is measured as well, and left out
            wait()
            start = clock()
            task()
            wait()
            times.append(clock() - start)
        return float(torch.tensor(times[2:], dtype=torch.float64).quantile(0.5))

    accepts(ch11.stopwatch, waits_once_more, capsys)
    accepts(ch11.stopwatch, ch11._stopwatch(of=lambda v: np.float32(np.median(v))), capsys)  # type: ignore[arg-type,return-value]
    waits(ch11.stopwatch, lambda *arguments: None, capsys)


def test_the_machine_works_on_its_own() -> None:
    machine = ch11.Machine(0)
    machine.task()
    assert machine.clock() == pytest.approx(100.001)  # compiled, and handed over
    machine.wait()
    assert machine.clock() == pytest.approx(100.001 + machine.work[0])
    assert statistics.fmean(machine.work) > 1.5 * statistics.median(machine.work)
    assert ch11.Machine(0).work == machine.work != ch11.Machine(1).work


# 11.4


TIES = {"amax": [[3, 0, 1], [3, 4, 1]], "sums by max(dim=0)": [6, 4, 2]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"amax": [[6, 0, 2], [6, 4, 2]]}, "hands each tied channel the whole gradient"),
        ({"amax": [[6, 0, 2], [0, 4, 0]]}, "all to the first that ties"),
        ({"amax": [[0, 0, 0], [6, 4, 2]]}, "all to the last that ties"),
        ({"amax": [[3, 2, 1], [3, 2, 1]]}, "the gradient of a mean"),
        ({"amax": [[0.5, 0, 0.5], [0.5, 1, 0.5]]}, "These are the shares"),
        ({"amax": [[3, 4, 1], [3, 0, 1]]}, "'amax'[0, 1] is 4; it should be 0"),
        ({"amax": [3, 0, 1]}, "has shape (3,)"),
        ({"sums by max(dim=0)": [3, 4, 1]}, "the column as a whole"),
        ({"sum": 1}, "an answer for each of"),
        ({"amax": [[3, 0], [3, 4, 1]]}, "or of rows of equal length"),
        ({"amax": "3 0 1"}, "must be a list of numbers"),
        ({"amax": [[3, 3], [0, 4], [1, 1]]}, "has shape (3, 2)"),
        ({"amax": [[0, 0, 0], [0, 0, 0]]}, "is 0; it should be 4"),
        ({"amax": [[float("nan")] * 3] * 2}, "is nan; it should be 3"),
        ({"sums by max(dim=0)": 12}, "the column as a whole"),
        ({"sums by max(dim=0)": "6, 4, 2"}, "must be a list of numbers"),
        ({"sums by max(dim=0)": {6, 4, 2}}, "must be a list of numbers"),
    ],
)
def test_tie_gradients_says_why(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch11.tie_gradients, TIES | change, reason, capsys)


def test_tie_gradients_takes_tensors_and_waits(capsys: Any) -> None:
    accepts(ch11.tie_gradients, {k: torch.tensor(v) for k, v in TIES.items()}, capsys)
    accepts(ch11.tie_gradients, {k: np.array(v, np.float32) for k, v in TIES.items()}, capsys)
    waits(ch11.tie_gradients, TIES | {"amax": ...}, capsys)
    waits(ch11.tie_gradients, TIES | {"amax": [[3, ..., 1], [3, 4, 1]]}, capsys)


# 11.5


def reading(
    reached: Callable[..., float] | None = None, verdict: Callable[[float, float, float], str] = str
) -> Callable[..., tuple[float, str]]:
    """Return an answer; `verdict` sees the seconds, and those of memory and arithmetic alone."""

    def answer(
        seconds: float, passes: int, size: float, flops: float, bandwidth: float, rate: float
    ) -> tuple[float, str]:
        moved = passes * size
        value = moved / seconds if reached is None else reached(seconds, passes, size)
        return value, verdict(seconds, moved / bandwidth, flops / rate)

    return answer


def both_together(seconds: float, memory: float, arithmetic: float) -> str:
    if memory + arithmetic < seconds / 2:
        return "neither"
    return "memory" if memory >= arithmetic else "arithmetic"


def right(seconds: float, memory: float, arithmetic: float) -> str:
    if max(memory, arithmetic) < seconds / 2:
        return "neither"
    return "memory" if memory >= arithmetic else "arithmetic"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reading(lambda t, n, b: b / t, right), "the passes are missing"),
        (reading(lambda t, n, b: t / (n * b), right), "seconds a byte"),
        (reading(lambda t, n, b: n * b / t / 1e9, right), "gigabytes a second"),
        (reading(lambda t, n, b: n * b, right), "are not 1.6e+08 bytes a second"),
        (reading(None, lambda t, m, a: "memory" if m > a else "arithmetic"), "it took 65 ms"),
        (reading(None, lambda t, m, a: "memory"), "Not 'memory'"),
        (reading(None, lambda t, m, a: "neither"), "Not 'neither'"),
        (reading(None, lambda t, m, a: "memory" if m > t / 2 else "neither"), "Not 'neither'"),
        (reading(None, lambda t, m, a: "the cache"), "'the cache' is none of them"),
        (lambda *measured: 1.0, "Return the bytes a second and what limits"),
        (reading(None, both_together), "Not 'memory': memory alone would take 4.5 ms"),
        (reading(None, lambda t, m, a: right(t, m * 0.5 / 0.6, a * 0.5 / 0.6)), "Not 'neither'"),
        (reading(None, lambda t, m, a: right(t, m, a).title()), "'Memory' is none of them"),
        (reading(None, lambda t, m, a: [right(t, m, a)]), "['memory'] is none of them"),  # type: ignore[arg-type,return-value]
        (reading(lambda t, n, b: n * b / t / 2**30, right), "gigabytes a second"),
        (lambda *measured: reading(None, right)(*measured)[::-1], "must be a number, but is a str"),
        (reading(lambda t, n, b: 20e9, right), "are not 2e+10 bytes a second"),
        (reading(None, lambda t, m, a: right(t, a, m)), "Not 'arithmetic'"),
        (lambda *measured: "memory", "in this order, as a tuple"),
    ],
)
def test_limit_names_the_mistake(answer: Callable[..., Any], reason: str, capsys: Any) -> None:
    refuses(ch11.limit, answer, reason, capsys)


def test_limit_takes_what_is_right_and_waits(capsys: Any) -> None:
    def by_the_roof(*measured: Any) -> list[Any]:
        seconds, passes, size, flops, bandwidth, rate = measured
        share = np.array([passes * size / bandwidth, flops / rate]) / seconds
        names = ("memory", "arithmetic")
        verdict = names[int(share.argmax())] if share.max() >= 0.5 else "neither"
        return [np.float64(passes) * size / seconds, verdict]

    accepts(ch11.limit, reading(None, right), capsys)
    accepts(ch11.limit, by_the_roof, capsys)
    waits(ch11.limit, lambda *measured: None, capsys)


# 11.6


def kept(module: nn.Module, x: Tensor, weights: bool = False) -> int:
    return kept_bytes(lambda: module(x), [] if weights else list(module.parameters()))


def without_gradients(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return kept(module, x) / x.nbytes


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda module, x: kept(module, x), "These are bytes. Divide"),
        (lambda module, x: kept(module, x) / x.numel(), "bytes for each value"),
        (lambda module, x: kept(module, x, weights=True) / x.nbytes, "the weights are in it"),
        (without_gradients, "with gradients on"),
        (lambda module, x: 1.0, "the plain CBAM does not keep 1 maps"),
        (lambda module, x: "two", "must be a number, but is a str"),
        (lambda module, x: kept(module, x) / (4 * x.numel()), "nn.Tanh on float64 does not keep 2"),
        (lambda module, x: round(kept(module, x) / x.nbytes), "does not keep 2 maps, but 2.08"),
        (lambda module, x: kept(module, x[:1]) / x.nbytes, "nn.Tanh does not keep 0.5 maps, but 1"),
        (lambda module, x: kept(module, x) / 2**20, "nn.Tanh does not keep 0.5 maps"),
        (lambda module, x: kept(module, x) / x.nbytes + 1, "nn.Tanh does not keep 2 maps"),
        (lambda module, x: kept(module, x.detach()), "with gradients on"),
        (lambda module, x: kept_bytes(module(x), []), "'Tensor' object is not callable"),
        (lambda module, x: kept_bytes(module, []), "missing 1 required positional argument"),
        (lambda module, x: float("nan"), "does not keep nan maps"),
    ],
)
def test_kept_maps_names_the_mistake(
    answer: Callable[[nn.Module, Tensor], Any], reason: str, capsys: Any
) -> None:
    refuses(ch11.kept_maps, answer, reason, capsys)


def by_hooks(module: nn.Module, x: Tensor) -> float:
    """Count without the package's tool."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        out = module(x)
    return sum(found.values()) / out.nbytes


def test_kept_maps_takes_what_is_right_and_waits(capsys: Any) -> None:
    accepts(ch11.kept_maps, by_hooks, capsys)
    accepts(ch11.kept_maps, lambda module, x: torch.tensor(kept(module, x) / x.nbytes), capsys)
    waits(ch11.kept_maps, lambda module, x: None, capsys)


# 11.7


class Gated(nn.Module):
    """Both gates by the mean alone; each option makes one mistake, or another right answer."""

    def __init__(self, channels: int = 64, way: str = "right"):
        super().__init__()
        self.way = way
        self.mlp = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Linear(8, channels))
        self.conv = nn.Conv2d(1, 1, 7, padding=3)
        if way == "start at zero":
            nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Any:
        logits = self.mlp(x.mean((2, 3)))[:, :, None, None]
        if self.way == "parallel":
            return x * torch.sigmoid(logits + self.conv(x.mean(1, keepdim=True)))
        c = logits if self.way == "no sigmoid" else logits.sigmoid()
        c = logits.relu() if self.way == "relu" else c
        c = c.detach() if self.way == "detached" else c
        if self.way == "changes x":
            return x.mul_(c).mul_(self.conv(x.mean(1, keepdim=True)).sigmoid())
        y = x * c
        s = self.conv((x if self.way == "both read x" else y).mean(1, keepdim=True)).sigmoid()
        if self.way == "plus x":
            return x + y * s
        if self.way == "in place":
            return y.mul_(s)
        if self.way == "square":
            s = s.reshape(len(x), 1, x.shape[2], x.shape[2])
        if self.way == "this map":
            y = y.reshape(4, 64, 16, 16)
        if self.way == "list":
            return [y * s]
        return x * (c * s) if self.way == "one product" else y * s


class Fixed(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.c = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.s = nn.Parameter(torch.randn(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.c.sigmoid() * self.s.sigmoid()


class HalfFixed(nn.Module):
    """One gate reads the map; the other one is the same for every image."""

    def __init__(self, channels: int, fixed: str):
        super().__init__()
        self.gated, self.constant = Gated(channels, "both read x"), Fixed(channels)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        c = self.gated.mlp(x.mean((2, 3)))[:, :, None, None].sigmoid()
        s = self.gated.conv(x.mean(1, keepdim=True)).sigmoid()
        if self.fixed == "channel":
            return x * self.constant.c.sigmoid() * s
        return x * c * self.constant.s.sigmoid()


class Returns(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda c: attention.CBAM(c), "It makes 8 passes"),
        (lambda c: Gated(c, "one product"), "passes over the big map; at most 6"),
        (lambda c: attention.CBAM(c, order="channel-only"), "the spatial gate is missing"),
        (lambda c: attention.CBAM(c, order="spatial-only"), "the channel gate is missing"),
        (lambda c: Gated(c, "parallel"), "no channel vector times a map"),
        (lambda c: Gated(c, "no sigmoid"), "gates stay between 0 and 1"),
        (lambda c: Gated(c, "plus x"), "gates stay between 0 and 1"),
        (Fixed, "All images get the same factors"),
        (lambda c: HalfFixed(c, "channel"), "All images get the same channel vector"),
        (lambda c: HalfFixed(c, "spatial"), "All images get the same map of places"),
        (lambda c: Returns(lambda x: x.mean((2, 3), keepdim=True)), "the output has shape"),
        (lambda c: Returns(lambda x: x * 0.5), "the channel gate is missing"),
        (lambda c: torch.ones(c), "Return a module, not a Tensor"),
        (lambda c: Gated(c, "detached"), "No gradient reaches mlp.0.weight"),
        (lambda c: Gated(c, "changes x"), "It changes its input"),
        (lambda c: Gated(c, "relu"), "gates stay between 0 and 1"),
        (lambda c: Gated(c, "square"), "The module stops at a map (2, 32, 9, 12)"),
        (lambda c: Gated(c, "this map"), "The module stops at a map (2, 32, 9, 12)"),
        (lambda c: Gated(64), "The module stops at a map (2, 32, 9, 12)"),
        (lambda c: Gated(32), "The module stops at a map (4, 64, 16, 16)"),
        (lambda c: Gated(c, "list"), "the output must be a tensor, but is a list"),
        (lambda c: nn.Identity(), "the channel gate is missing"),
        (lambda c: Gated, "Return a module, not a type"),
        (Gated(64), "Hand over the function"),
    ],
)
def test_lighter_names_the_mistake(answer: Callable[[int], Any], reason: str, capsys: Any) -> None:
    refuses(ch11.lighter, answer, reason, capsys)


@pytest.mark.parametrize("way", ["right", "both read x", "start at zero", "in place"])
def test_lighter_takes_other_designs(way: str, capsys: Any) -> None:
    accepts(ch11.lighter, lambda c: Gated(c, way), capsys)


def test_lighter_takes_a_maximum_instead_of_a_mean_and_waits(capsys: Any) -> None:
    def spatial(x: Tensor) -> Tensor:
        x = x * x.amax((2, 3), keepdim=True).sigmoid()
        return x * x.amax(1, keepdim=True).sigmoid()

    accepts(ch11.lighter, lambda c: Returns(spatial), capsys)
    waits(ch11.lighter, lambda c: None, capsys)
