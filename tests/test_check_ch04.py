"""The judges of chapter 04 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers.cbam as timm_cbam
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import SpatialAttention
from cbam_edu.check import ch04
from notebook_cells import NOTEBOOKS, exercises, refuses

EXERCISES = exercises(NOTEBOOKS / "04_spatial_attention.ipynb")
RIGHT = {
    "descriptor": (8, 2, 14, 14),
    "map": (8, 1, 14, 14),
    "refined": (8, 64, 14, 14),
    "parameters": 52,
}


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amax(1, keepdim=True), x.mean(1, keepdim=True)


def test_there_are_six_exercises() -> None:
    assert len(EXERCISES) == 6


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: torch.stack([x.amax((2, 3)), x.mean((2, 3))], 1), "pooled over the places"),
        (lambda x: torch.cat([x.amax(1), x.mean(1)], 1), "keepdim=True"),
        (lambda x: torch.cat(pooled(x)), "2N"),
        (lambda x: torch.stack(pooled(x), 1), "an axis too many"),
        (lambda x: torch.cat(pooled(x)[::-1], 1), "The mean comes first"),
        (
            lambda x: torch.cat([pooled(x)[0], x.sum(1, keepdim=True)], 1),
            "The second map is a sum",
        ),
        (
            lambda x: torch.cat([x.abs().amax(1, keepdim=True), pooled(x)[1]], 1),
            "absolute values",
        ),
        (lambda x: torch.cat([pooled(x)[0], x.median(1, keepdim=True)[0]], 1), "the descriptor["),
        (lambda x: x, "the descriptor has shape"),
        (lambda x: x.sum(9), "IndexError"),
    ],
)
def test_descriptor_names_the_mistake(
    answer: Callable[[Tensor], Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch04.descriptor, answer, reason, capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"descriptor": (8, 128, 14, 14)}, "pool over all 64 channels"),
        ({"descriptor": (8, 64, 2)}, "as the channel gate does"),
        ({"map": (8, 14, 14)}, "broadcasts"),
        ({"map": (8, 2, 14, 14)}, "one channel of the two"),
        ({"map": (8, 1, 10, 10)}, "without padding"),
        ({"map": (3, 1)}, "Which axis"),
        ({"refined": (8, 1, 14, 14)}, "That is the map"),
        ({"refined": 64}, "must be a shape"),
        ({"parameters": 50}, "BatchNorm learns two numbers more"),
        ({"parameters": 54}, "no parameters"),
        ({"parameters": 1602}, "not 64 channels"),
        ({"parameters": 7}, "Count 2 k k"),
        ({"surprise": 1}, "Give a value for each"),
    ],
)
def test_prediction_names_the_mistake(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch04.prediction, {**RIGHT, **change}, reason, capsys)


def test_prediction_is_that_of_the_gate() -> None:
    x, gate = torch.randn(8, 64, 14, 14), SpatialAttention(5)
    seen = {
        "descriptor": tuple(torch.cat(pooled(x), 1).shape),
        "map": tuple(gate(x).shape),
        "refined": tuple((gate(x) * x).shape),
        "parameters": sum(p.numel() for p in gate.parameters()),
    }
    assert seen == RIGHT
    assert ch04.prediction(seen)


def spatial_map(
    x: Tensor,
    weight: Tensor,
    order: int = 1,
    padding: int | None = None,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Tensor:
    padding = weight.shape[2] // 2 if padding is None else padding
    return gate(F.conv2d(torch.cat(pooled(x)[::order], 1), weight, padding=padding))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"order": -1}, "wrong order"),
        ({"padding": 0}, "smaller than the features"),
        ({"padding": 1}, "depends on k"),
        ({"gate": lambda z: z.softmax(0)}, "compete with each other"),
        ({"gate": lambda z: z.softmax(0), "order": -1}, "wrong order"),
        ({"gate": lambda z: z}, "These are the logits"),
        ({"gate": lambda z: z.flatten(1).softmax(1).reshape(z.shape)}, "places of an image"),
        ({"gate": F.hardsigmoid}, "the map["),
    ],
)
def test_mended_names_the_bug_that_is_left(
    options: dict[str, Any], reason: str, capsys: Any
) -> None:
    refuses(ch04.mended, lambda x, weight: spatial_map(x, weight, **options), reason, capsys)


def test_mended_refuses_the_function_with_three_bugs(capsys: Any) -> None:
    def broken(x: Tensor, weight: Tensor) -> Tensor:
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.softmax(F.conv2d(maps, weight), dim=0)

    refuses(ch04.mended, broken, "smaller than the features", capsys)


def gradient(layer: Any, row: int, column: int, size: int, draw: Any = torch.randn) -> Tensor:
    maps = draw(1, 2, size, size, requires_grad=True)
    return torch.autograd.grad(layer(maps)[0, 0, row, column], maps)[0][0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda *a: gradient(*a).sum(0) != 0, "may cancel"),
        (lambda *a: (gradient(*a) > 0).any(0), "either sign"),
        (lambda *a: (gradient(*a) != 0).sum(), "has shape ()"),
        (lambda *a: (gradient(*a) != 0).any(0).int(), "True and False"),
        (lambda f, r, c, s: (gradient(f, c, r, s) != 0).any(0), "swapped"),
        (lambda f, r, c, s: torch.ones(s, s).bool(), "that one output only"),
    ],
)
def test_places_seen_names_the_mistake(
    answer: Callable[..., Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch04.places_seen, answer, reason, capsys)


def carried(
    state: dict[str, Tensor], dims: tuple[int, ...] = (1,), statistics: bool = True
) -> SpatialAttention:
    weight = state["conv.conv.weight"]
    gate = SpatialAttention(weight.shape[2])
    norm = {k[8:]: v for k, v in state.items() if k.startswith("conv.bn.")}
    if not statistics:
        norm |= {"running_mean": torch.zeros(1), "running_var": torch.ones(1)}
    gate.conv.load_state_dict({"weight": weight.flip(dims)})
    gate.norm.load_state_dict(norm)  # type: ignore[union-attr]
    return gate


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda s: carried(s, ()), "Swap them"),
        (lambda s: carried(s, (1, 2, 3)), "places of the kernel, too"),
        (lambda s: carried(s, (2, 3)), "must change places"),
        (lambda s: carried(s, statistics=False), "running mean and variance"),
        (lambda s: carried(s).state_dict(), "Return a SpatialAttention"),
        (lambda s: SpatialAttention(s["conv.conv.weight"].shape[2]), "the map for k = 7["),
        (lambda s: SpatialAttention().load_state_dict(s), "RuntimeError"),
    ],
)
def test_from_mean_first_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch04.from_mean_first, answer, reason, capsys)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_the_stored_solution_carries_timm_s_own_weights(kernel_size: int) -> None:
    torch.manual_seed(0)
    theirs = timm_cbam.SpatialAttn(kernel_size)
    x = torch.randn(4, 8, 9, 7)
    theirs(x)  # moves the running statistics
    space: dict[str, Any] = {"torch": torch}
    exec(EXERCISES[4].solution, space)
    ours = space["from_mean_first"](theirs.state_dict()).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x) * x, theirs.eval()(x))


# 4.6


def halves(above: float, below: float, both: bool = True, axis: int = 2) -> Tensor:
    """Return a kernel with one number in its upper three rows and another in its lower three."""
    kernel = torch.zeros(1, 2, 7, 7)
    kernel.narrow(axis, 0, 3).fill_(above)
    kernel.narrow(axis, 4, 3).fill_(below)
    return kernel if both else kernel * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)


def one_row() -> Tensor:
    """A kernel that only looks three places up and three places down."""
    kernel = torch.zeros(1, 2, 7, 7)
    kernel[0, 1, 0, 3], kernel[0, 1, 6, 3] = 2.0, -2.0
    return kernel


def with_noise() -> Tensor:
    torch.manual_seed(0)
    return halves(1.0, -1.0) + 0.01 * torch.randn(1, 2, 7, 7)


@pytest.mark.parametrize(
    "kernel", [halves(0.1, -0.1), halves(1.0, -1.0, both=False), one_row(), with_noise()]
)
def test_top_from_bottom_takes_every_kernel_that_does_it(kernel: Tensor, capsys: Any) -> None:
    assert ch04.top_from_bottom(kernel)
    assert ch04.top_from_bottom(nn.Parameter(kernel))
    assert capsys.readouterr().out == "✓ Right.\n" * 2


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (halves(-1.0, 1.0), "upside down"),
        (halves(1.0, -1.0, axis=3), "tells left from right"),
        (torch.ones(1, 2, 7, 7), "same logits"),
        (torch.zeros(1, 2, 7, 7), "same logits"),
        (halves(1.0, 0.0), "should be below 0"),
        (halves(0.0, -1.0), "should be above 0"),
        (halves(1.0, -1.0)[0], "has shape (2, 7, 7)"),
        (halves(1.0, -1.0) / 0, "not finite"),
        ([1.0], "must be a tensor"),
    ],
)
def test_top_from_bottom_names_the_mistake(kernel: Any, reason: str, capsys: Any) -> None:
    refuses(ch04.top_from_bottom, kernel, reason, capsys)
