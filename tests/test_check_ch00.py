"""The judges of chapter 00 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cbam_edu.attention import CBAM
from cbam_edu.check import ch00
from notebook_cells import NOTEBOOKS, exercises, refuses

EXERCISES = exercises(NOTEBOOKS / "00_start_here.ipynb")
SHAPES = {
    "channel map": (4, 24, 1, 1),
    "spatial map": (4, 1, 10, 12),
    "output": (4, 24, 10, 12),
}


def test_there_are_four_exercises() -> None:
    assert len(EXERCISES) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channel map": (4, 1, 10, 12)}, "the shape of the spatial map"),
        ({"spatial map": (4, 24, 1, 1)}, "the shape of the channel map"),
        ({"channel map": (4, 24, 10, 12)}, "A map is smaller"),
        ({"channel map": (4, 24)}, "with length 1"),
        ({"spatial map": (4, 10, 12)}, "with length 1"),
        ({"spatial map": (1, 1, 10, 12)}, "Each image gets a map of its own"),
        ({"channel map": (4, 12, 1, 1)}, "each image and each channel"),
        ({"spatial map": (4, 2, 10, 12)}, "each image and each place"),
        ({"spatial map": ()}, "each image and each place"),
        ({"output": (4, 1, 10, 12)}, "CBAM only multiplies"),
        ({"output": 24}, "must be a tuple"),
        ({"surprise": (1,)}, "a shape for each of"),
    ],
)
def test_shapes_names_the_mistake(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch00.shapes, {**SHAPES, **change}, reason, capsys)


def test_shapes_wants_a_dict_that_is_filled_in(capsys: Any) -> None:
    refuses(ch00.shapes, list(SHAPES.values()), "Give a dict", capsys)
    assert not ch00.shapes({**SHAPES, "output": ...})
    assert capsys.readouterr().out.startswith("○")


def test_shapes_are_those_of_the_module() -> None:
    module, x = CBAM(24), torch.randn(4, 24, 10, 12)
    seen = (module.channel(x).shape, module.spatial(x).shape, module(x).shape)
    assert [tuple(s) for s in seen] == list(SHAPES.values())


def mistakes(p: Tensor, labels: Tensor) -> Tensor:
    return (p.argmax(1) != labels).nonzero().flatten()


def surest(p: Tensor, labels: Tensor) -> int:
    wrong = mistakes(p, labels)
    return int(wrong[p.amax(1)[wrong].argmax()])


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda i: torch.tensor([i])])
def test_surest_mistake_takes_a_number_of_any_kind(kind: Any) -> None:
    assert ch00.surest_mistake(lambda p, y: kind(surest(p, y)))
    assert ch00.surest_mistake(lambda p, y: kind(surest(p, y) - len(p)))  # counted from the end


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda p, y: p.amax(1).argmax(), "the highest probability of all, but it is right"),
        (lambda p, y: (p.argmax(1) == y).nonzero()[0], "has an answer that is right"),
        (lambda p, y: p.amax(1)[mistakes(p, y)].argmax(), "the position among the"),
        (lambda p, y: mistakes(p, y)[p.amax(1)[mistakes(p, y)].argmin()], "least sure"),
        (
            lambda p, y: mistakes(p, y)[p[mistakes(p, y), y[mistakes(p, y)]].argmax()],
            "whose true class has the highest",
        ),
        (lambda p, y: mistakes(p, y)[p.amax(1)[mistakes(p, y)].argsort()[-2]], "but image"),
        (
            lambda p, y: p.amax(1)[mistakes(p, y)].amax(),
            "not a Tensor of torch.float32 and shape ()",
        ),
        (mistakes, "one whole number"),
        (lambda p, y: True, "one whole number"),
        (lambda p, y: len(p), "is no index"),
        (lambda p, y: p[y, y, y], "IndexError"),
    ],
)
def test_surest_mistake_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch00.surest_mistake, answer, reason, capsys)


def share(p: Tensor, labels: Tensor, divide: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return `divide` of the right answers in each class and of the images of each class."""
    right, classes = p.argmax(1) == labels, p.shape[1]
    hits = torch.bincount(labels[right], minlength=classes)
    return divide(hits.float(), torch.bincount(labels, minlength=classes))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda p, y: share(p, y, lambda hits, _: hits), "These are counts"),
        (lambda p, y: share(p, y, lambda hits, _: hits / len(p)), "the number of all images"),
        (
            lambda p, y: share(
                p, y, lambda hits, _: hits / p.argmax(1).bincount(minlength=p.shape[1])
            ),
            "how often the network says the class",
        ),
        (lambda p, y: share(p, y, lambda hits, of: 1 - hits / of), "shares of mistakes"),
        (lambda p, y: share(p, y, lambda hits, of: 100 * hits / of), "per cent"),
        (lambda p, y: p.argmax(1).bincount(minlength=p.shape[1]) / len(p), "right or wrong"),
        (
            lambda p, y: torch.stack([p[y == k, k].mean() for k in range(p.shape[1])]),
            "mean probability of the true class",
        ),
        (lambda p, y: share(p, y, lambda hits, of: hits / of).mean(), "One number for each class"),
        (lambda p, y: share(p, y, lambda hits, of: hits / of).tolist(), "must be a tensor"),
        (lambda p, y: share(p, y, lambda hits, of: (hits + 1) / of), "The result[0] is"),
    ],
)
def test_class_accuracy_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch00.class_accuracy, answer, reason, capsys)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda m, s: s * m, "shuts the gate"),
        (lambda m, s: (1 - s) * m + s, "the wrong way round"),
        (lambda m, s: m**s, "no straight line"),
        (lambda m, s: m + (1 - s), "added the open part"),
        (lambda m, s: m, "does not depend on the strength"),
        (lambda m, s: m.mul_(s).add_(1 - s), "in place"),
        (lambda m, s: torch.ones_like(m), "at strength 0.5["),
        (lambda m, s: (1 + s * (m - 1)).flatten(1), "has shape"),
        (lambda m, s: 1, "must be a tensor"),
    ],
)
def test_dim_names_the_mistake(
    answer: Callable[[Tensor, float], Any], reason: str, capsys: Any
) -> None:
    refuses(ch00.dim, answer, reason, capsys)
