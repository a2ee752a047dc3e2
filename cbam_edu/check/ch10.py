"""Judges of chapter 10, "What does it look at?"."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, shape, tensor
from cbam_edu.explain import grad_cam


def _mistaken(value: Any, mistakes: Mapping[str, Tensor], right: Tensor) -> None:
    """Name the mistake, unless on these numbers it happens to come to the right result."""
    others = {
        why: wrong
        for why, wrong in mistakes.items()
        if wrong.shape != right.shape or not torch.allclose(wrong, right, rtol=1e-3)
    }
    known(value, others)


# ---- 10.1


def _weighted(activations: Tensor, weights: Tensor) -> Tensor:
    return (weights * activations).sum(1)


@judge
def cam(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """Judge `answer(activations, gradients)`: Grad-CAM's maps, ``(N, h, w)``."""
    for seed, dims in enumerate(((2, 3, 4, 5), (3, 6, 2, 2), (1, 2, 3, 3))):
        generator = torch.Generator().manual_seed(seed)
        a, g = (torch.randn(dims, generator=generator, dtype=torch.float64) for _ in "ag")
        weights = g.mean((2, 3), keepdim=True)
        raw = _weighted(a, weights)
        right = raw.relu()
        value = answer(a.clone(), g.clone())
        _mistaken(
            value,
            {
                "The negative sums are still there. They speak against the class; the ReLU cuts "
                "them off.": raw,
                "This cuts before the sum: each channel by itself. What speaks for the class and "
                "what speaks against it must meet first; the ReLU is the last step.": (weights * a)
                .relu()
                .sum(1),
                "This cuts the weights. Channels that speak against the class count, with their "
                "negative weights; the ReLU is the last step.": _weighted(a, weights.relu()).relu(),
                "This takes the absolute value of the sums, so that what speaks against the class "
                "is bright as well. Equation 2 has a ReLU.": raw.abs(),
                "The gradient is averaged over the channels. Each channel has its own weight, the "
                "mean over its places, which are axes 2 and 3.": _weighted(
                    a, g.mean(1, keepdim=True)
                ).relu(),
                "The gradient is averaged over the images as well. Each image has weights of its "
                "own.": _weighted(a, g.mean((0, 2, 3), keepdim=True)).relu(),
                "Here each place keeps its own gradient: that is HiResCAM (Draelos and Carin, "
                "2020). Grad-CAM has one weight a channel, the mean over the places.": (
                    _weighted(a, g).relu()
                ),
                "The weights are sums over the places. Equation 1 divides by their number, Z.": (
                    right * g[0, 0].numel()
                ),
                "The channels are averaged. Equation 2 adds them.": right / a.shape[1],
                "The two are swapped: the gradients are averaged to weights, and the activations "
                "are weighted.": _weighted(g, a.mean((2, 3), keepdim=True)).relu(),
                "The axis of the channels is still there. Return (N, h, w).": right[:, None],
                "The maps are divided by their largest values. That is for drawing; return them as "
                "the equations have them.": right / right.amax((1, 2), keepdim=True),
            },
            right,
        )
        close(value, right, "The result")


# ---- 10.2


def _highest(maps: Tensor) -> Tensor:
    return maps == maps.amax((1, 2), keepdim=True)


@judge
def pointing(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """Judge `answer(maps, masks)`: the pointing game, where places that tie share."""
    generator = torch.Generator().manual_seed(0)
    for dims, levels in (((5, 4, 6), 0), ((8, 3, 3), 3), ((4, 5, 2), 1)):
        maps = torch.rand(dims, generator=generator)
        if levels:  # with ties; with one level, the map is the same everywhere
            maps = (maps * levels).floor()
        masks = torch.rand(dims, generator=generator) < 0.4
        highest, flat = _highest(maps), masks.flatten(1)
        inside = (highest & masks).sum((1, 2))
        right = inside / highest.sum((1, 2))
        value = tensor(answer(maps.clone(), masks.clone()), "The result")
        wrong = {
            "Where places tie, this takes the first of them, as argmax does. Those that tie share: "
            "an empty map gets what chance gets.": flat.gather(
                1, maps.flatten(1).argmax(1, keepdim=True)
            )[:, 0].float(),
            "Where places tie, this gives the whole point if one of them lies in the mask. Give "
            "the part of them that does.": (inside > 0).float(),
            "Where places tie, this gives the point only if all of them lie in the mask. Give the "
            "part of them that does.": (right == 1).float(),
            "This takes the highest place of all images together. Each image has its own.": (
                ((maps == maps.max()) & masks).sum((1, 2)) / (maps == maps.max()).sum()
            ),
            "This divides by the size of the mask. Divide by how many places are the highest.": (
                inside / flat.sum(1)
            ),
            "This counts the highest places in the mask. Return the part of them: divide by how "
            "many there are.": inside.float(),
            "This is the energy inside the mask. The pointing game asks for the highest place "
            "alone.": (maps * masks).sum((1, 2)) / maps.sum((1, 2)),
        }
        _mistaken(value.float(), wrong, right)
        if value.ndim == 0:
            raise Wrong("This is one number for all images. Return one for each, (N,).")
        close(value.float(), right, "The result")


# ---- 10.3

SAME, FACTOR, ANOTHER = "the same", "a factor", "another"
_CAM = "Grad-CAM of the last stage, "
CHANGES: dict[str, tuple[str, str]] = {  # what is done: what comes of it, and why
    f"{_CAM}the head's weights replaced by random ones": (
        ANOTHER,
        "The gradient of a logit goes through the head, and there the weights of the channels come "
        "from.",
    ),
    "M_s of the last block, the head's weights replaced by random ones": (
        SAME,
        "The head comes after the gate. What comes later cannot change what was computed before.",
    ),
    f"{_CAM}the head's biases replaced by random ones": (
        SAME,
        "A bias is added to the logit. It does not stand in the logit's gradient.",
    ),
    f"{_CAM}the head's weights doubled": (
        FACTOR,
        "All gradients double, so all weights of the channels double, and the map with them.",
    ),
    f"{_CAM}asked about another class": (
        ANOTHER,
        "Another logit has another row of the head, and so other weights for the channels.",
    ),
    "M_s of the last block, the image in a batch with other images": (
        SAME,
        "In evaluation mode BatchNorm uses what it has stored; no image sees another.",
    ),
}


@judge
def changes(answer: Mapping[str, Any]) -> None:
    """Judge what becomes of maps when something is done to the network."""
    if not isinstance(answer, Mapping) or set(answer) != set(CHANGES):
        raise Wrong("Keep the six questions as they are, as the keys of a dict.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    kinds = SAME, FACTOR, ANOTHER
    for question, (right, why) in CHANGES.items():
        if not isinstance(answer[question], str) or answer[question] not in kinds:
            names = ", ".join(map(repr, kinds))
            raise Wrong(f"{question}: answer with one of {names}, not {answer[question]!r}.")
        if answer[question] != right:
            raise Wrong(f"{question}: not {answer[question]!r}. {why}")


# ---- 10.4


class _Network(nn.Module):
    """Two convolutions with BatchNorm and a head: small, and in training mode."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh())
        self.head = nn.Linear(5, 4)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
            for name, buffer in self.named_buffers():
                if "running" in name:
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.first(x)).square().mean((2, 3)))
        return out


def _variant(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    layer: nn.Module,
    *,
    training: bool = False,
    softmax: bool = False,
    axes: tuple[int, ...] = (2, 3),
    cut: bool = True,
    asks: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return a Grad-CAM with mistakes; every change of the defaults is one."""
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _given, out: kept.append(out))
    logits = model.train(training)(x)
    hook.remove()
    scores = logits.softmax(1) if softmax else logits
    chosen = asks(scores, classes) if asks else scores.gather(1, classes[:, None])
    (gradient,) = torch.autograd.grad(chosen.sum(), kept[0])
    maps = (gradient.mean(axes, keepdim=True) * kept[0].detach()).sum(1)
    return F.relu(maps) if cut else maps


_MODE = (
    "The network runs in training mode: BatchNorm then mixes the images of the batch. Call "
    "model.eval() first, and give back the mode that it had."
)
_SOFTMAX = (
    "The gradient is that of the probability. Where it is close to 1 there is hardly any gradient "
    "left; take the logit."
)
_AXES = "The gradient is averaged over the channels. Average it over the places, axes 2 and 3."
BUGS: dict[str, Callable[..., Tensor]] = {
    _MODE: partial(_variant, training=True),
    _SOFTMAX: partial(_variant, softmax=True),
    _AXES: partial(_variant, axes=(1,)),
    f"Two bugs are left. {_MODE} {_SOFTMAX}": partial(_variant, training=True, softmax=True),
    f"Two bugs are left. {_MODE} {_AXES}": partial(_variant, training=True, axes=(1,)),
    f"Two bugs are left. {_SOFTMAX} {_AXES}": partial(_variant, softmax=True, axes=(1,)),
    "The mode, the softmax and the axes of the mean: all three are still wrong.": partial(
        _variant, training=True, softmax=True, axes=(1,)
    ),
    "The ReLU is gone. It was right: the negative sums are cut off.": partial(_variant, cut=False),
    "It explains the class that the network names. It is asked about `classes`.": partial(
        _variant, asks=lambda scores, classes: scores.amax(1)
    ),
    "It explains the first class. It is asked about `classes`, one for each image.": partial(
        _variant, asks=lambda scores, classes: scores[:, 0]
    ),
    "It explains all classes together. It is asked about `classes`, one for each image.": partial(
        _variant, asks=lambda scores, classes: scores
    ),
    "Each image is asked about the classes of all images: logits[:, classes] has (N, N) numbers. "
    "Take one of each row, as gather does.": partial(
        _variant, asks=lambda scores, classes: scores[:, classes]
    ),
    "The gradient is that of the logarithm of the probability, in which all classes are. Take the "
    "logit.": partial(_variant, asks=lambda s, c: s.log_softmax(1).gather(1, c[:, None])),
}


@judge
def repaired(answer: Callable[[nn.Module, Tensor, Tensor, nn.Module], Any]) -> None:
    """Judge `answer(model, x, classes, layer)`: Grad-CAM that leaves the network as it was."""
    for seed, part in ((15, "last"), (10, "first"), (7, "last")):  # none of them names class 0
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 3, 9, 11, generator=generator)
        classes = torch.tensor([0, 3, 1])
        model = _Network(seed)
        before = copy.deepcopy(model.state_dict())
        value = answer(model, x.clone(), classes, model.get_submodule(part))
        right, hooks = _fresh(grad_cam, seed, x, classes, part), _hooks(model)
        wrong = {why: _fresh(bug, seed, x, classes, part) for why, bug in BUGS.items()}
        _mistaken(value, wrong, right)
        close(value, right, "The map", tolerance=1e-4)
        if hooks:
            raise Wrong(
                f"The maps are right, but {hooks} hook is left in the network. Keep what "
                "register_forward_hook returns, and call its remove()."
            )
        if any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()):
            raise Wrong(
                "The maps are right, but BatchNorm's stored means have changed: somewhere the "
                "network ran in training mode."
            )
        if not model.training:
            raise Wrong(
                "The maps are right, but the network was in training mode and is now in evaluation "
                "mode. Note model.training first, and give it back."
            )
        model.eval()
        answer(model, x, classes, model.get_submodule(part))
        if model.training:
            raise Wrong(
                "The network was in evaluation mode and is now in training mode. Give it back the "
                "mode that it had, whichever it was."
            )


def _fresh(explain: Callable[..., Tensor], seed: int, x: Tensor, classes: Tensor, p: str) -> Tensor:
    """Run `explain` on a network of its own, since a wrong one may change it."""
    model = _Network(seed)
    return explain(model, x.clone(), classes, model.get_submodule(p)).detach()


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


# ---- 10.5

Explain = Callable[[nn.Module, Tensor], Tensor]


def _by_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Explain by the gradient of the named logit: 0 wherever the network cannot see."""
    pixels = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).amax(1).sum(), pixels)
    return gradient.abs().sum(1)


def _by_picture(_model: nn.Module, x: Tensor) -> Tensor:
    """Explain nothing: draw the picture."""
    return x.abs().sum(1)


def _flat(_model: nn.Module, x: Tensor) -> Tensor:
    return torch.full((len(x), *x.shape[2:]), 0.3)  # no 1: a mean and a quotient would be equal


def _both(model: nn.Module, x: Tensor) -> Tensor:
    return _by_gradient(model, x) / 2 + _by_picture(model, x) / 100


class _Half(nn.Module):
    """A network that does not see one half of its pictures."""

    def __init__(self, model: nn.Module, left: bool = False):
        super().__init__()
        self.model, self.left = model, left

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(_covered(x, self.left))
        return out


def _covered(x: Tensor, left: bool = False) -> Tensor:
    middle = x.shape[3] // 2
    seen = torch.ones_like(x)
    if left:
        seen[..., :middle] = 0
    else:
        seen[..., middle:] = 0
    return x * seen


def _part(maps: Tensor, left: bool = False) -> Tensor:
    middle = maps.shape[2] // 2
    half = maps[..., :middle] if left else maps[..., middle:]
    return half.sum((1, 2)) / maps.sum((1, 2))


@judge
def unseen(answer: Callable[[Explain, nn.Module, Tensor], Any]) -> None:
    """Judge `answer(explain, model, x)`: the part of maps that lies where nothing was seen."""
    for seed, (n, h, w) in enumerate(((3, 9, 12), (2, 8, 8))):
        x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(seed))
        for explain in (_flat, _both, _by_gradient, _by_picture):
            model = _Network(seed).eval()
            before = copy.deepcopy(model.state_dict())
            value = tensor(answer(explain, model, x.clone()), "The result").detach()
            maps = explain(_Half(model), x)
            right, middle = _part(maps), w // 2
            covered = explain(model, _covered(x))
            wrong = {
                "The network was not blindfolded: it saw the whole picture.": _part(
                    explain(model, x)
                ),
                "The picture was covered, and the network not blindfolded. An explainer that draws "
                "the picture must not pass: hand it the whole one.": _part(covered),
                "Network and picture are both covered. Hand the whole picture to `explain`: one "
                "that draws the picture must not pass.": _part(explain(_Half(model), _covered(x))),
                "This is the part in the left half, which the network saw.": _part(maps, left=True),
                "The left half was covered, and the right one measured. Cover the columns from "
                "W // 2 on.": _part(explain(_Half(model, left=True), x)),
                "This is the sum in the right half. Divide it by the sum of the whole map.": (
                    maps[..., middle:].sum((1, 2))
                ),
                "This is the mean in the right half. Return the sum there over the sum of the "
                "whole map.": maps[..., middle:].mean((1, 2)),
                "This divides the right half by the left one. Divide it by the whole.": (
                    _part(maps) / _part(maps, left=True)
                ),
            }
            _mistaken(value, wrong, right)
            shape(value, (n,), "The result", "Return one number for each image.")
            close(value, right, "The result", tolerance=1e-4)
            changed = any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
            if changed or _hooks(model) or model.training:
                raise Wrong("The model must be left as it was: weights, mode and hooks.")
