"""Judges of chapter 04, "Spatial attention from scratch"."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, shape, tensor

SHAPES = {"descriptor": (8, 2, 14, 14), "map": (8, 1, 14, 14), "refined": (8, 64, 14, 14)}
PARAMETERS = 2 * 5 * 5 + 2  # of a gate with a kernel of 5 and BatchNorm


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amax(1, keepdim=True), x.mean(1, keepdim=True)


@judge
def descriptor(answer: Callable[[Tensor], Tensor]) -> None:
    """Judge `answer(x)`, (N, C, H, W) -> (N, 2, H, W): maximum and mean over the channels."""
    torch.manual_seed(0)
    for n, c, h, w in ((2, 5, 4, 3), (3, 1, 2, 2), (1, 4, 1, 6)):
        x = torch.randn(n, c, h, w) - 1  # a maximum may be negative
        value = answer(x.clone())
        largest, mean = _pooled(x)
        mistakes = {
            "You pooled over the places. A descriptor of a place pools over the channels, "
            "dimension 1.": torch.stack([x.amax((2, 3)), x.mean((2, 3))], 1),
            "There are two maps, but they lie end to end along the rows: without keepdim=True "
            "there is no channel axis to join along.": torch.cat([x.amax(1), x.mean(1)], 1),
            "The maps stand below each other along the batch, so that there are 2N. Join along "
            "dimension 1.": torch.cat([largest, mean]),
            "There is an axis too many. torch.cat joins along an axis that is there; torch.stack "
            "makes a new one.": torch.stack([largest, mean], 1),
        }
        if c > 1:
            mistakes |= {
                "The mean comes first. The order asked for is maximum, then mean.": torch.cat(
                    [mean, largest], 1
                ),
                "The second map is a sum; the mean divides by the number of channels.": torch.cat(
                    [largest, mean * c], 1
                ),
                "The maximum is taken of the absolute values.": torch.cat(
                    [x.abs().amax(1, keepdim=True), mean], 1
                ),
            }
        known(value, mistakes)
        close(value, torch.cat([largest, mean], 1), "the descriptor")


@judge
def prediction(answer: Mapping[str, object]) -> None:
    """Judge three shapes and a number of parameters, for features (8, 64, 14, 14) and k = 5."""
    wanted = (*SHAPES, "parameters")
    if not isinstance(answer, Mapping) or set(answer) != set(wanted):
        raise Wrong(f"Give a value for each of {', '.join(wanted)}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    for name, right in SHAPES.items():
        _predicted_shape(name, answer[name], right)
    _predicted_parameters(answer["parameters"])


def _predicted_shape(name: str, value: Any, right: tuple[int, ...]) -> None:
    if not isinstance(value, tuple | list | torch.Size):
        raise Wrong(f"{name} must be a shape, such as (8, 64, 14, 14), but is {value!r}.")
    got = tuple(value)
    reasons = {
        (8, 128, 14, 14): "Maximum and mean pool over all 64 channels; one map remains of each.",
        (8, 64, 2): "That pools over the places, as the channel gate does.",
        (8, 2, 1, 1): "The places stay: nothing has been pooled over them.",
        (8, 14, 14): "The axis of the channels stays, with size 1, so that the map broadcasts.",
        (8, 1, 10, 10): "That is without padding; the gate pads by k // 2 = 2.",
        (8, 2, 10, 10): "The descriptor comes before the convolution, so no border is lost.",
        (8, 64, 1, 1): "That is a channel map. A spatial map has one number a place.",
        (8, 1, 1, 1): "A spatial map has one number a place.",
    }
    if name == "map":
        reasons[8, 2, 14, 14] = "The convolution makes one channel of the two."
        reasons[8, 64, 14, 14] = "All channels of a place share one number."
    if name == "refined":
        reasons[8, 1, 14, 14] = "That is the map. Refined features are the features times the map."
    if got != right:
        plain = all(isinstance(length, int) for length in got)
        why = reasons.get(
            got if plain else (), "Which axis does the pooling remove, and which stay?"
        )
        raise Wrong(f"{name} is not {got}. {why}")


def _predicted_parameters(value: Any) -> None:
    reasons = {
        50: "That is the kernel; BatchNorm learns two numbers more.",
        51: "The convolution has no bias, and BatchNorm learns two numbers.",
        53: "The convolution has no bias.",
        54: "Running mean and running variance are measured, not learnt: they are no parameters.",
        25: "The kernel has one 5 x 5 sheet for each of the two maps, and there is BatchNorm.",
        27: "The kernel has one 5 x 5 sheet for each of the two maps.",
        100: "That is for k = 7.",
        64 * 25: "The convolution sees 2 maps, not 64 channels.",
        64 * 25 + 2: "The convolution sees 2 maps, not 64 channels.",
    }
    if number(value, "parameters") != PARAMETERS:
        why = reasons.get(
            int(value) if value == value else 0,
            "Count 2 k k for the kernel, and what BatchNorm learns.",
        )
        raise Wrong(f"parameters is not {value}. {why}")


@judge
def mended(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Judge `answer(x, weight)`: the spatial map of (N, C, H, W), with (1, 2, k, k) weights."""
    torch.manual_seed(1)
    for n, k in ((3, 3), (2, 7), (1, 5)):
        x, weight = torch.randn(n, 4, 9, 8), torch.randn(1, 2, k, k) / k
        value = answer(x.clone(), weight.clone())
        largest, mean = _pooled(x)
        right = F.conv2d(torch.cat([largest, mean], 1), weight, padding=k // 2)
        swapped = F.conv2d(torch.cat([mean, largest], 1), weight, padding=k // 2)
        bare = F.conv2d(torch.cat([largest, mean], 1), weight)
        batch = (
            "The images still compete with each other: a softmax over dimension 0 makes the maps "
            "of a batch sum to 1 at each place."
        )
        order = (
            "The two maps are still in the wrong order: weight[:, 0] is for the maximum, "
            "weight[:, 1] for the mean."
        )
        if tuple(tensor(value, "the map").shape) == tuple(bare.shape):
            raise Wrong(
                "The map is smaller than the features: the convolution has no padding. "
                "Keep the size for every odd k."
            )
        if value.shape[:2] == right.shape[:2] and value.shape != right.shape:
            raise Wrong(
                f"For k = {k} the map is {tuple(value.shape[2:])} where the features are (9, 8). "
                "The padding that keeps the size depends on k."
            )
        known(value, {batch: right.softmax(0)} if n > 1 else {})
        known(
            value,
            {
                order: swapped.sigmoid(),
                f"{order} {batch}": swapped.softmax(0),
                "These are the logits; a gate that lets each place decide for itself is "
                "missing.": right,
                "Now the places of an image compete. A sigmoid looks at every logit on its "
                "own.": right.flatten(1).softmax(1).reshape(right.shape),
            },
        )
        close(value, right.sigmoid(), "the map")


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def _layers() -> list[tuple[nn.Module, int, str]]:
    """Return layers from two maps to one, how far each sees, and what is special about it."""
    torch.manual_seed(2)
    mixed = nn.Conv2d(2, 1, 3, padding=1, bias=False)
    opposed = nn.Conv2d(2, 1, 5, padding=2, bias=False)
    negative = nn.Conv2d(2, 1, 7, padding=3)
    with torch.no_grad():
        opposed.weight[:, 1] = -opposed.weight[:, 0]
        negative.weight.copy_(-negative.weight.abs())
        sides = nn.Conv2d(2, 1, 5, padding=2, bias=False)
        sides.weight[:, 0, :, 3:] = sides.weight[:, 1, :, :2] = 0
    two = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 1, 5, padding=2), nn.Sigmoid()
    )
    return [
        (mixed, 1, "a convolution with k = 3"),
        (negative, 3, "a convolution with k = 7, all of its weights negative"),
        (opposed, 2, "a convolution whose two sheets are each other's negative"),
        (two, 3, "a convolution with k = 3 and then one with k = 5"),
        (nn.Sequential(_Square(), sides), 2, "a layer whose two sheets look to different sides"),
    ]


@judge
def places_seen(answer: Callable[[nn.Module, int, int, int], Tensor]) -> None:
    """Judge `answer(layer, row, column, size)` -> (size, size) bool: what one output sees."""
    for layer, reach, name in _layers():
        for row, column, size in ((5, 6, 12), (0, 2, 9), (8, 8, 9)):
            value = answer(layer, row, column, size)
            shape(value, (size, size), "the result", "True or False for each place.")
            if value.dtype != torch.bool:
                raise Wrong(f"The result holds {value.dtype}; it should hold True and False.")
            places = torch.arange(size)
            wanted = ((places - row).abs() <= reach)[:, None] & ((places - column).abs() <= reach)
            if torch.equal(value, wanted):
                continue
            text = f"For {name}, at ({row}, {column}) of {size} x {size} places"
            if torch.equal(value, wanted.T):
                raise Wrong(f"{text} row and column are swapped.")
            if bool((wanted & ~value).any()):
                why = (
                    "Gradients of either sign count, and those of either map; they must not be "
                    "added, for they may cancel. Use a random input, at which no gradient happens "
                    "to be 0."
                )
                raise Wrong(
                    f"{text} you mark {int(value.sum())} places, but {int(wanted.sum())} have an "
                    f"influence. {why}"
                )
            raise Wrong(
                f"{text} you mark {int(value.sum())} places, but only {int(wanted.sum())} have an "
                "influence. Send back the gradient of that one output only."
            )


def _mean_first_state(k: int) -> dict[str, Tensor]:
    """Return the weights of a spatial gate as timm stores them, made up at random."""
    return {
        "conv.conv.weight": torch.randn(1, 2, k, k) / k,
        "conv.bn.weight": torch.rand(1) + 0.5,
        "conv.bn.bias": torch.randn(1),
        "conv.bn.running_mean": torch.randn(1),
        "conv.bn.running_var": torch.rand(1) + 0.5,
        "conv.bn.num_batches_tracked": torch.tensor(7),
    }


def _map(state: Mapping[str, Tensor], maps: Tensor, measured: bool = True) -> Tensor:
    """Return the map of a gate with the weights `state` over `maps`, (N, 2, H, W)."""
    weight, gamma, beta, mean, variance, _ = state.values()
    if not measured:
        mean, variance = torch.zeros(1), torch.ones(1)
    logits = F.conv2d(maps, weight, padding=weight.shape[2] // 2)
    return F.batch_norm(logits, mean, variance, gamma, beta).sigmoid()


@judge
def from_mean_first(answer: Callable[[dict[str, Tensor]], Any]) -> None:
    """Judge `answer(state)`: the `SpatialAttention` whose map is that of timm's gate."""
    torch.manual_seed(3)
    for k in (7, 3):
        state = _mean_first_state(k)
        gate = answer({name: value.clone() for name, value in state.items()})
        if gate is None or gate is ...:
            raise NotImplementedError
        if not isinstance(gate, nn.Module):
            raise Wrong(f"Return a SpatialAttention, not a {type(gate).__name__}.")
        x = torch.randn(2, 6, 9, 8)
        with torch.no_grad():
            value = gate.eval()(x)
        shape(value, (2, 1, 9, 8), f"the map for k = {k}")
        largest, mean = _pooled(x)
        theirs, ours = torch.cat([mean, largest], 1), torch.cat([largest, mean], 1)
        turned = {**state, "conv.conv.weight": state["conv.conv.weight"].flip(1, 2, 3)}
        known(
            value,
            {
                "The kernel's two sheets meet the wrong maps: timm's first is for the mean. "
                "Swap them.": _map(state, ours),
                "The running mean and variance are not carried over.": _map(state, theirs, False),
                "You flipped the places of the kernel, too. Only the order of the two sheets, "
                "dimension 1, differs.": _map(turned, ours),
                "You flipped the places of the kernel. The two sheets, dimension 1, must change "
                "places.": _map(
                    {**state, "conv.conv.weight": state["conv.conv.weight"].flip(2, 3)}, ours
                ),
            },
        )
        close(value, _map(state, theirs), f"the map for k = {k}")


@judge
def top_from_bottom(answer: Tensor) -> None:
    """Judge a kernel (1, 2, 7, 7) that, by its padding alone, tells above from below."""
    shape(answer, (1, 2, 7, 7), "kernel")
    logits = F.conv2d(torch.ones(1, 2, 8, 8), answer.detach().float(), padding=3)[0, 0]
    upper, lower = logits[:3], logits[5:]
    if not bool(logits.isfinite().all()):
        raise Wrong("The kernel holds numbers that are not finite.")
    if bool((lower > 0).all() and (upper < 0).all()):
        return
    if bool((lower < 0).all() and (upper > 0).all()):
        raise Wrong("It is upside down: it opens above and shuts below. Change the sign.")
    left, right = logits[:, :3], logits[:, 5:]
    if bool((left.sign() == -right.sign()).all() and left.any()):
        raise Wrong("It tells left from right. Rows are dimension 2 of the kernel, columns 3.")
    if torch.allclose(logits, logits.flip(0), atol=1e-4):
        raise Wrong(
            "Above and below get the same logits: as far as the frame of zeros can show it, the "
            "kernel's upper half is the mirror image of its lower half."
        )
    at = "lower three rows, which should be above 0, " if (lower <= 0).any() else ""
    at += "and in the " if at and (upper >= 0).any() else ""
    at += "upper three rows, which should be below 0, " if (upper >= 0).any() else ""
    raise Wrong(
        f"In the {at}some places are not: the logits run from {lower.min():.3g} to "
        f"{lower.max():.3g} below and from {upper.min():.3g} to {upper.max():.3g} above."
    )
