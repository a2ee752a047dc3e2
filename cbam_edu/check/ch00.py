"""Judges of chapter 00, "Start here"."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from cbam_edu.attention import CBAM
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, shape, tensor

INPUT = (4, 24, 10, 12)


def _true_shapes() -> dict[str, tuple[int, ...]]:
    module, x = CBAM(INPUT[1]).eval(), torch.zeros(INPUT)
    with torch.no_grad():
        maps = {"channel map": module.channel(x), "spatial map": module.spatial(x)}
        return {name: tuple(m.shape) for name, m in {**maps, "output": module(x)}.items()}


def _why(name: str, given: tuple[Any, ...], right: Mapping[str, tuple[int, ...]]) -> str:
    """Return a sentence for a wrong shape of `name`."""
    n, c, h, w = INPUT
    twin = {"channel map": "spatial map", "spatial map": "channel map"}.get(name, "")
    if twin and given == right[twin]:
        return f"That is the shape of the {twin}. The channels are axis 1, the places axes 2 and 3."
    if name == "output":
        return "CBAM only multiplies: what comes out has the shape of what goes in."
    if given == INPUT:
        return "A map is smaller than the features: it says the same for much of them."
    if given in ((n, c), (n, h, w)):
        return (
            "The axes are right, but those along which the map is repeated are kept, with length 1."
        )
    if given and given[0] == 1:
        return "Each image gets a map of its own, so axis 0 keeps its length."
    if name == "channel map":
        return "It has one number for each image and each channel, whatever the place."
    return "It has one number for each image and each place, whatever the channel."


@judge
def shapes(answer: Mapping[str, Any]) -> None:
    """Judge the shapes predicted for the maps and the output of a CBAM whose input is `INPUT`."""
    right = _true_shapes()
    if not isinstance(answer, Mapping) or set(answer) != set(right):
        raise Wrong(f"Give a dict with a shape for each of {', '.join(map(repr, right))}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    for name, wanted in right.items():
        given = answer[name]
        if not isinstance(given, tuple | list):
            raise Wrong(
                f"{name!r} must be a tuple such as {INPUT}, but is a {type(given).__name__}."
            )
        if tuple(given) != wanted:
            why = _why(name, tuple(given), right)
            raise Wrong(f"The shape of {name!r} is not {tuple(given)}. {why}")


def _answers(seed: int, n: int = 40, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Return probabilities, (n, classes), and labels, (n,), of which every class has some."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    labels = labels[torch.randperm(n, generator=generator)]
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 2 * torch.rand(n, generator=generator)
    return logits.softmax(1), labels


def _index(value: Any, n: int) -> int:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    if value is None or value is ...:
        raise NotImplementedError
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = type(value).__name__
        if isinstance(value, Tensor):
            kind = f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
        raise Wrong(f"Return one whole number, the index of an image, not a {kind}.")
    value = int(value)  # NumPy has whole numbers of its own
    if not -n <= value < n:
        raise Wrong(f"{value} is no index: there are {n} images, so it runs from 0 to {n - 1}.")
    return value % n


@judge
def surest_mistake(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """Judge `answer(p, labels)`, (N, K), (N,) -> the index of the most confident mistake."""
    for seed in (0, 1, 2, 9):  # of the last, the widest lead is not the surest mistake
        p, labels = _answers(seed)
        given = _index(answer(p.clone(), labels.clone()), len(p))
        sure, said = p.max(1)
        wrong = (said != labels).nonzero().flatten()
        right = int(wrong[sure[wrong].argmax()])
        if given == right:
            continue
        if given == int(sure[wrong].argmax()):
            raise Wrong(
                f"You returned {given}, the position among the {len(wrong)} mistakes. Which of all "
                f"{len(p)} images is that? Index the numbers of the mistakes with it."
            )
        if said[given] == labels[given]:
            loud = "the highest probability of all, but it" if given == int(sure.argmax()) else ""
            raise Wrong(
                f"Image {given} has {loud or 'an answer that'} is right. Only mistakes count."
            )
        if given == int(wrong[sure[wrong].argmin()]):
            raise Wrong(f"Image {given} is the mistake of which the network is least sure.")
        if given == int(wrong[p[wrong, labels[wrong]].argmax()]):
            raise Wrong(
                f"Image {given} is the mistake whose true class has the highest probability. Look "
                "at the probability of what the network says."
            )
        if given == int(wrong[(sure - p[torch.arange(len(p)), labels])[wrong].argmax()]):
            raise Wrong(
                f"Image {given} is the mistake where what the network says is furthest ahead of "
                "the true class. Look at the probability of what it says alone."
            )
        raise Wrong(
            f"Image {given} is a mistake with a probability of {sure[given]:.2f}, but image "
            f"{right} is one with {sure[right]:.2f}."
        )


@judge
def class_accuracy(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Judge `answer(p, labels)`, (N, K), (N,) -> (K,): the accuracy in each class."""
    for seed, (n, classes) in enumerate(((40, 5), (33, 3))):
        p, labels = _answers(seed, n, classes)
        value = tensor(answer(p.clone(), labels.clone()), "The result")
        said = p.argmax(1)
        right = said == labels
        hits = torch.bincount(labels[right], minlength=classes).double()
        members, named = (torch.bincount(v, minlength=classes).double() for v in (labels, said))
        shape(value, (classes,), "The result", "One number for each class.")
        known(
            value,
            {
                "These are counts. Divide each by the number of images of its class.": hits,
                "You divided by the number of all images. Divide by that of the class.": hits / n,
                "You divided by how often the network says the class. The question is about the "
                "images that belong to it.": hits / named,
                "These are the shares of mistakes. Take the right answers.": 1 - hits / members,
                "These are per cent. Give shares, from 0 to 1.": 100 * hits / members,
                "This is how often the network says each class, right or wrong.": named / n,
                "This is the mean probability of the true class. Count right answers "
                "instead.": torch.stack([p[labels == k, k].mean() for k in range(classes)]),
            },
        )
        close(value, hits / members, "The result")


@judge
def dim(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Judge `answer(gate_map, strength)`: a straight line from 1, at 0, to the map, at 1."""
    generator = torch.Generator().manual_seed(0)
    for size in ((2, 6, 1, 1), (3, 1, 4, 5)):
        gate = 0.05 + 0.9 * torch.rand(size, generator=generator)
        for strength in (0.5, 0.0, 1.0, 0.2):
            kept = gate.clone()
            value = answer(gate, strength)
            if not torch.equal(gate, kept):
                raise Wrong("It changed the map in place. Return a new tensor.")
            _usual_mistakes(value, gate, strength)
            close(value, 1 + strength * (gate - 1), f"The result at strength {strength:g}")


def _usual_mistakes(value: Any, gate: Tensor, strength: float) -> None:
    """Name the usual mistakes of `dim`, where they differ from what is right."""
    right = 1 + strength * (gate - 1)
    mistakes = {
        "At strength 0 this shuts the gate: 0 instead of 1.": strength * gate,
        "It goes the wrong way round: strength 0 gives the map, strength 1 gives 1.": gate
        + strength * (1 - gate),
        "A power of the map has the right ends, but is no straight line between them: at "
        "strength 0.5 the result must be the midpoint of the map and 1.": gate**strength,
        "You added the open part without turning the map down: strength times the map is "
        "missing.": gate + (1 - strength),
        "The result does not depend on the strength.": gate,
    }
    known(value, {why: m for why, m in mistakes.items() if not torch.allclose(m, right)})
