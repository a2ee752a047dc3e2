"""The judges of chapter 04 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.layers.cbam as timm_cbam
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import SpatialAttention
from cbam_edu.check import ch04
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

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
        (lambda x: torch.cat([pooled(x)[0]] * 2, 1), "the descriptor["),
        (lambda x: torch.cat([x.max(1, keepdim=True), pooled(x)[1]], 1), "TypeError"),
        (lambda x: torch.cat([x.amax(1, keepdim=True), x.mean(1)], 1), "number of dimensions"),
        (pooled, "must be a tensor, but is a tuple"),
        (lambda x: torch.cat(pooled(x), 1).permute(0, 2, 3, 1), "has shape (2, 4, 3, 2)"),
        (lambda x: torch.cat([pooled(x)[0], x.sum(1, keepdim=True) / 5], 1), "it should be"),
        (lambda x: torch.cat(pooled(x.relu()), 1), "the descriptor["),
        (lambda x: torch.cat(pooled(x), 1).sigmoid(), "the descriptor["),
        (lambda x: torch.cat(pooled(x), 1).view(2, 2, 4, 3), "is invalid for input of size"),
    ],
)
def test_descriptor_names_the_mistake(
    answer: Callable[[Tensor], Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch04.descriptor, answer, reason, capsys)


def test_descriptor_takes_any_right_spelling(capsys: Any) -> None:
    accepts(ch04.descriptor, lambda x: torch.cat(pooled(x), 1), capsys)
    accepts(ch04.descriptor, lambda x: torch.stack([x.amax(1), x.mean(1)], 1), capsys)
    accepts(ch04.descriptor, lambda x: torch.hstack([x.max(1, True)[0], x.mean(1, True)]), capsys)
    waits(ch04.descriptor, lambda x: None, capsys)


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
        ({"parameters": "52"}, "parameters must be a number, but is a str"),
        ({"parameters": [52]}, "parameters must be a number, but is a list"),
        ({"parameters": torch.ones(2)}, "parameters must be a number, but is a Tensor"),
        ({"parameters": float("nan")}, "parameters is not nan"),
        ({"map": ([8], 1, 14, 14)}, "Which axis"),
        ({"map": "(8, 1, 14, 14)"}, "must be a shape"),
    ],
)
def test_prediction_names_the_mistake(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch04.prediction, {**RIGHT, **change}, reason, capsys)


@pytest.mark.parametrize("answer", [52, list(RIGHT.values()), max])
def test_prediction_wants_a_dict(answer: Any, capsys: Any) -> None:
    refuses(ch04.prediction, answer, "Give a value for each", capsys)


def test_prediction_takes_sizes_and_numbers_of_any_kind(capsys: Any) -> None:
    accepts(ch04.prediction, RIGHT | {"map": torch.Size((8, 1, 14, 14))}, capsys)
    accepts(ch04.prediction, RIGHT | {"refined": [8, 64, 14, 14]}, capsys)
    accepts(ch04.prediction, RIGHT | {"parameters": np.int64(52)}, capsys)
    accepts(ch04.prediction, RIGHT | {"parameters": torch.tensor(52)}, capsys)
    waits(ch04.prediction, RIGHT | {"map": ...}, capsys)


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
        ({"gate": torch.tanh}, "the map["),
        ({"gate": lambda z: z.sigmoid().sigmoid()}, "the map["),
        ({"gate": lambda z: z.softmax(1)}, "the map["),
        ({"gate": lambda z: z.sigmoid()[:, 0]}, "the map has shape (3, 9, 8)"),
        ({"gate": lambda z: z.sigmoid() > 0.5}, "the map["),
        ({"gate": lambda z: z.sigmoid().numpy()}, "must be a tensor"),
        ({"padding": 7}, "depends on k"),
        ({"padding": 0, "gate": lambda z: F.pad(z.sigmoid(), (1, 1, 1, 1))}, "the map["),
    ],
)
def test_mended_names_the_bug_that_is_left(
    options: dict[str, Any], reason: str, capsys: Any
) -> None:
    refuses(ch04.mended, lambda x, weight: spatial_map(x, weight, **options), reason, capsys)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, weight: spatial_map(x, weight.flip(1)), "wrong order"),
        (lambda x, weight: spatial_map(x, weight.flip(2, 3)), "the map["),
        (lambda x, weight: x * spatial_map(x, weight), "the map has shape (3, 4, 9, 8)"),
        (lambda x, weight: SpatialAttention(weight.shape[2], norm=False)(x), "the map["),
    ],
)
def test_mended_refuses_other_mistakes(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch04.mended, answer, reason, capsys)


def test_mended_takes_any_right_spelling(capsys: Any) -> None:
    def by_layer(x: Tensor, weight: Tensor) -> Tensor:
        layer = nn.Conv2d(2, 1, weight.shape[2], padding="same", bias=False)
        layer.weight = nn.Parameter(weight)
        return torch.sigmoid(layer(torch.cat(pooled(x), 1)))

    def by_hand(x: Tensor, weight: Tensor) -> Tensor:
        k = weight.shape[2]
        patches = F.unfold(torch.cat(pooled(x), 1), k, padding=k // 2)
        return (weight.flatten() @ patches).reshape(len(x), 1, *x.shape[2:]).sigmoid()

    accepts(ch04.mended, spatial_map, capsys)
    accepts(ch04.mended, by_layer, capsys)
    accepts(ch04.mended, by_hand, capsys)
    waits(ch04.mended, lambda x, weight: None, capsys)


def test_mended_refuses_the_function_with_three_bugs(capsys: Any) -> None:
    def broken(x: Tensor, weight: Tensor) -> Tensor:
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.softmax(F.conv2d(maps, weight), dim=0)

    refuses(ch04.mended, broken, "smaller than the features", capsys)


def gradient(layer: Any, row: int, column: int, size: int, draw: Any = torch.randn) -> Tensor:
    maps = draw(1, 2, size, size, requires_grad=True)
    return torch.autograd.grad(layer(maps)[0, 0, row, column], maps)[0][0]


def by_kernel_size(layer: Any, row: int, column: int, size: int) -> Tensor:
    near = [(torch.arange(size) - at).abs() <= layer.kernel_size[0] // 2 for at in (row, column)]
    return near[0][:, None] & near[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda *a: gradient(*a).sum(0) != 0, "may cancel"),
        (lambda *a: (gradient(*a) > 0).any(0), "either sign"),
        (lambda *a: (gradient(*a) != 0).sum(), "has shape ()"),
        (lambda *a: (gradient(*a) != 0).any(0).int(), "True and False"),
        (lambda f, r, c, s: (gradient(f, c, r, s) != 0).any(0), "swapped"),
        (lambda f, r, c, s: torch.ones(s, s).bool(), "that one output only"),
        (lambda *a: (gradient(*a) != 0).all(0), "those of either map"),
        (lambda *a: gradient(*a)[0] != 0, "whose two sheets look to different sides"),
        (lambda *a: gradient(*a)[1] != 0, "whose two sheets look to different sides"),
        (lambda *a: (gradient(*a, torch.zeros) != 0).any(0), "Use a random input"),
        (lambda *a: (gradient(*a).abs() > 0.01).any(0), "you mark 47 places, but 49"),
        (lambda *a: gradient(*a) != 0, "has shape (2, 12, 12)"),
        (lambda f, r, c, s: (gradient(f, r, c, 12) != 0).any(0), "it should have (9, 9)"),
        (lambda *a: (gradient(*a) != 0).any(0).nonzero(), "has shape (9, 2)"),
        (lambda *a: (gradient(*a) != 0).any(0).numpy(), "must be a tensor"),
        (lambda *a: (gradient(*a) == 0).all(0), "you mark 135 places, but 9"),
        (by_kernel_size, "AttributeError"),
    ],
)
def test_places_seen_names_the_mistake(
    answer: Callable[..., Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch04.places_seen, answer, reason, capsys)


def test_places_seen_takes_any_right_way(capsys: Any) -> None:
    def by_trying(layer: nn.Module, row: int, column: int, size: int) -> Tensor:
        torch.manual_seed(0)
        maps, seen = torch.randn(1, 2, size, size), torch.zeros(size, size, dtype=torch.bool)
        with torch.no_grad():
            before = layer(maps)[0, 0, row, column]
            for place in range(2 * size * size):
                louder = maps.clone()
                louder.view(-1)[place] += 1
                changed = layer(louder)[0, 0, row, column] != before
                seen.view(-1)[place % (size * size)] |= changed
        return seen

    accepts(ch04.places_seen, lambda *a: (gradient(*a) != 0).any(0), capsys)
    accepts(ch04.places_seen, lambda *a: gradient(*a).abs().sum(0) > 0, capsys)
    accepts(ch04.places_seen, by_trying, capsys)
    waits(ch04.places_seen, lambda *a: None, capsys)


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
        (lambda s: carried(s, (0,)), "Swap them"),
        (lambda s: SpatialAttention, "not a type"),
        (lambda s: carried(s).forward, "not a method"),
        (lambda s: carried(s).conv, "stopped with RuntimeError"),
        (lambda s: carried({k: v.abs() for k, v in s.items()}), "the map for k = 7["),
        (lambda s: carried(s | {"conv.bn.weight": torch.ones(1)}), "the map for k = 7["),
        (lambda s: nn.Sequential(carried(s), nn.Sigmoid()), "the map for k = 7["),
        (lambda s: nn.Sequential(carried(s), nn.Flatten()), "has shape (2, 72)"),
        (lambda s: carried({k.removeprefix("conv."): v for k, v in s.items()}), "KeyError"),
    ],
)
def test_from_mean_first_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch04.from_mean_first, answer, reason, capsys)


def test_from_mean_first_takes_any_right_way(capsys: Any) -> None:
    def by_hand(state: dict[str, Tensor]) -> SpatialAttention:
        weight = state["conv.conv.weight"]
        gate = SpatialAttention(weight.shape[-1])
        with torch.no_grad():
            gate.conv.weight.copy_(torch.cat([weight[:, 1:], weight[:, :1]], 1))
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(gate.norm, name).copy_(state[f"conv.bn.{name}"])
        return gate

    accepts(ch04.from_mean_first, carried, capsys)
    accepts(ch04.from_mean_first, by_hand, capsys)
    waits(ch04.from_mean_first, lambda state: None, capsys)


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
    accepts(ch04.top_from_bottom, kernel, capsys)
    accepts(ch04.top_from_bottom, nn.Parameter(kernel), capsys)
    waits(ch04.top_from_bottom, ..., capsys)


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
        (halves(1.0, -1.0).numpy(), "must be a tensor"),
        (nn.Conv2d(2, 1, 7), "must be a tensor"),
        (halves(1.0, -1.0).transpose(0, 1), "has shape (2, 1, 7, 7)"),
        (halves(1.0, -1.0) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1), "same logits"),
        (halves(1.0, -1.0)[..., 2:5, :], "it should have (1, 2, 7, 7)"),
        (halves(1.0, 1.0), "same logits"),
    ],
)
def test_top_from_bottom_names_the_mistake(kernel: Any, reason: str, capsys: Any) -> None:
    refuses(ch04.top_from_bottom, kernel, reason, capsys)
