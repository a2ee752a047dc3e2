"""The judges of chapter 00 accept what is right, and name the usual mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cbam_edu.attention import CBAM
from cbam_edu.check import ch00
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

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
        ({"channel map": "(4, 24, 1, 1)"}, "must be a tuple such as (4, 24, 10, 12), but is a str"),
        ({"channel map": (24,)}, "each image and each channel"),
        ({"channel map": (4, 1, 1, 24)}, "each image and each channel"),
        ({"spatial map": (4, 1, 12, 10)}, "each image and each place"),
        ({"output": torch.zeros(4, 24, 10, 12)}, "but is a Tensor"),
        ({"output": (4, 48, 10, 12)}, "has the shape of what goes in"),
    ],
)
def test_shapes_names_the_mistake(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch00.shapes, {**SHAPES, **change}, reason, capsys)


def test_shapes_wants_a_dict_that_is_filled_in(capsys: Any) -> None:
    refuses(ch00.shapes, list(SHAPES.values()), "Give a dict", capsys)
    refuses(ch00.shapes, lambda: SHAPES, "Give a dict", capsys)
    waits(ch00.shapes, {**SHAPES, "output": ...}, capsys)


def test_shapes_takes_lists_and_torch_s_own_sizes(capsys: Any) -> None:
    accepts(ch00.shapes, SHAPES, capsys)
    accepts(ch00.shapes, {name: list(size) for name, size in SHAPES.items()}, capsys)
    accepts(ch00.shapes, {name: torch.Size(size) for name, size in SHAPES.items()}, capsys)


def test_shapes_are_those_of_the_module() -> None:
    module, x = CBAM(24), torch.randn(4, 24, 10, 12)
    seen = (module.channel(x).shape, module.spatial(x).shape, module(x).shape)
    assert [tuple(s) for s in seen] == list(SHAPES.values())


def mistakes(p: Tensor, labels: Tensor) -> Tensor:
    return (p.argmax(1) != labels).nonzero().flatten()


def surest(p: Tensor, labels: Tensor) -> int:
    wrong = mistakes(p, labels)
    return int(wrong[p.amax(1)[wrong].argmax()])


def ahead(p: Tensor, labels: Tensor) -> Tensor:
    """Return how far what the network says is ahead of the true class."""
    return p.amax(1) - p[torch.arange(len(p)), labels]


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda i: torch.tensor([i])])
def test_surest_mistake_takes_a_number_of_any_kind(kind: Any, capsys: Any) -> None:
    accepts(ch00.surest_mistake, lambda p, y: kind(surest(p, y)), capsys)
    from_the_end: Any = lambda p, y: kind(surest(p, y) - len(p))  # noqa: E731
    accepts(ch00.surest_mistake, from_the_end, capsys)


def test_surest_mistake_takes_any_way(capsys: Any) -> None:
    def by_loop(p: Tensor, labels: Tensor) -> int:
        best = max(float(q.max()) for q, k in zip(p, labels, strict=True) if q.argmax() != k)
        return next(i for i, q in enumerate(p) if q.max() == best)

    def by_order(p: Tensor, labels: Tensor) -> Any:
        return next(i for i in p.amax(1).argsort(descending=True) if p[i].argmax() != labels[i])

    def in_numpy(p: Tensor, labels: Tensor) -> Any:
        sure = p.numpy().max(1)
        sure[p.numpy().argmax(1) == labels.numpy()] = 0
        return sure.argmax()

    for way in (by_loop, by_order, in_numpy):
        accepts(ch00.surest_mistake, way, capsys)
    waits(ch00.surest_mistake, lambda p, y: None, capsys)


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
        (lambda p, y: (p.argmax(1) == y).float().softmax(2), "IndexError"),
        (lambda p, y: surest(p, y) + 1, "but image"),
        (lambda p, y: float(surest(p, y)), "not a float"),
        (lambda p, y: [surest(p, y)], "not a list"),
        (lambda p, y: str(surest(p, y)), "not a str"),
        (lambda p, y: p.argmax(), "is no index: there are 40 images"),
        (lambda p, y: surest(*ch00._answers(0)), "but image"),
        (lambda p, y: mistakes(p, y)[-1], "but image"),
        (lambda p, y: mistakes(p, y)[ahead(p, y)[mistakes(p, y)].argmax()], "furthest ahead"),
        (lambda p: surest(p, p.argmax(1)), "takes 1 positional argument but 2 were given"),
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
        (lambda p, y: share(p, y, lambda hits, of: hits // of), "it should be"),
        (lambda p, y: share(p, y, lambda hits, of: hits / of).sort().values, "it should be"),
        (lambda p, y: share(p, y, lambda hits, of: hits / of).numpy(), "must be a tensor"),
        (lambda p, y: share(p, y, lambda hits, of: hits / of)[:, None], "has shape (5, 1)"),
        (lambda p, y: share(p, y, lambda hits, of: hits / of)[:-1], "has shape (4,)"),
        (
            lambda p, y: F.pad(share(p, y, lambda hits, of: hits / of), (0, 5 - p.shape[1])),
            "has shape (5,); it should have (3,)",
        ),
        (
            lambda p, y: share(p, y, lambda hits, of: (1e4 * hits / of).round() / 1e4),
            "The result[0] is 0.45449999; it should be 0.45454545.",
        ),
        (lambda p, y: (p.argmax(1) == y).float(), "has shape (40,)"),
        (lambda p, y: (p.argmax(1) == y).float().mean().expand(p.shape[1]), "it should be"),
        (
            lambda p, y: torch.stack(
                [((p.argmax(1) == k) == (y == k)).float().mean() for k in range(p.shape[1])]
            ),
            "it should be",
        ),
        (lambda p, y: (p.argmax(1) == y)[y == 0].mean(), "could not infer output dtype"),
    ],
)
def test_class_accuracy_names_the_mistake(
    answer: Callable[..., Any], reason: str, capsys: Any
) -> None:
    refuses(ch00.class_accuracy, answer, reason, capsys)


def test_class_accuracy_takes_any_way(capsys: Any) -> None:
    def by_class_vectors(p: Tensor, labels: Tensor) -> Tensor:
        of = F.one_hot(labels, p.shape[1]).double()
        return (of * (p.argmax(1) == labels)[:, None]).sum(0) / of.sum(0)

    def by_confusion(p: Tensor, labels: Tensor) -> Tensor:
        table = torch.zeros(p.shape[1], p.shape[1])
        for truth, said in zip(labels, p.argmax(1), strict=True):
            table[truth, said] += 1
        return table.diag() / table.sum(1)

    for way in (by_class_vectors, by_confusion):
        accepts(ch00.class_accuracy, way, capsys)
    accepts(ch00.class_accuracy, lambda p, y: share(p, y, lambda hits, of: hits / of), capsys)
    waits(ch00.class_accuracy, lambda p, y: ..., capsys)


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
        (lambda m, s: (1 + s * (m - 1)).numpy(), "must be a tensor"),
        (lambda m, s: (1 + s * (m - 1)).to("meta"), "is on meta; leave it on the CPU"),
        (lambda m, s: (m + 1) / 2, "at strength 0["),
        (lambda m, s: 1 + int(s) * (m - 1), "at strength 0.5["),
        (lambda m, s: 1 + s**2 * (m - 1), "at strength 0.5["),
        (lambda m, s: 1 + s * (m.mean() - 1), "has shape ()"),
        (lambda m, s: (m + 1 - s).clamp(max=1), "it should be"),
        (lambda m, s: torch.sigmoid(s * torch.logit(m)), "it should be"),
        (lambda m, s: m if s == 1 else (m + 1) / 2 if s else torch.ones_like(m), "strength 0.2["),
        (lambda m, s: torch.lerp(1.0, m, s), "TypeError"),  # type: ignore[call-overload]
    ],
)
def test_dim_names_the_mistake(
    answer: Callable[[Tensor, float], Any], reason: str, capsys: Any
) -> None:
    refuses(ch00.dim, answer, reason, capsys)


def test_dim_takes_any_way(capsys: Any) -> None:
    accepts(ch00.dim, lambda m, s: torch.lerp(torch.ones_like(m), m, s), capsys)
    accepts(ch00.dim, lambda m, s: s * m + (1 - s), capsys)
    accepts(ch00.dim, lambda m, s: (1 - s) * torch.ones(m.shape) + s * m, capsys)
    waits(ch00.dim, lambda m, s: None, capsys)
