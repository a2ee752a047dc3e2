"""Judges of chapter 12, "Variants"."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import POOLINGS, ChannelAttention, SpatialAttention
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, shape, tensor, truth, written

Answer = Callable[..., Any]


def _random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _through(value: Tensor, what: str) -> None:
    """Raise `Wrong` if no gradient can come through `value`."""
    if not value.requires_grad:
        raise Wrong(
            f"No gradient comes through {what}, so nothing before it could learn. Is there a "
            "detach() or a torch.no_grad()?"
        )


# ---- 12.1


def _by_one_shift(x: Tensor) -> Tensor:
    m = x.amax()
    return m + (x - m).exp().sum((2, 3)).log()


@judge
def lse(answer: Callable[[Tensor], Any]) -> None:
    """Judge `answer(x)`, (N, C, H, W) -> (N, C): log-sum-exp over the places, at any scale."""
    for seed, size in enumerate(((2, 3, 4, 5), (1, 2, 1, 1), (3, 2, 2, 6))):
        x = _random(*size, seed=seed)
        value, right = answer(x.clone()), x.logsumexp((2, 3))
        known(
            value,
            {
                "This is the log of the mean of the exponentials. lse takes the sum.": (
                    right - math.log(size[2] * size[3])
                ),
                "This pools over the channels. lse pools over the places of each channel.": (
                    x.logsumexp(1)
                ),
                "The maximum that was taken out has not been added again.": (
                    right - x.amax((2, 3))
                ),
                "The logarithm is missing.": x.exp().sum((2, 3)),
            }
            if size[2] * size[3] > 1
            else {},
        )
        close(value, right, "the descriptor", "Compare it with x.logsumexp((2, 3)).")
    far = _random(2, 3, 4, 5) + torch.tensor([1000.0, -1000.0, 0.0]).view(1, 3, 1, 1)
    followed = 1 * far.clone().requires_grad_()
    value, right = tensor(answer(followed), "the descriptor"), far.logsumexp((2, 3))
    shape(value, (2, 3), "the descriptor")
    _through(value, "the descriptor")
    if torch.equal(value, _by_one_shift(far)):
        raise Wrong(
            "One shift for the whole map: beside a channel around 1000, one around -1000 becomes "
            "the log of 0. Take the maximum of each channel."
        )
    if bool(value.isinf().any() or value.isnan().any()):
        raise Wrong(
            f"For channels around 1000, -1000 and 0 it says {value[0].tolist()}. Take a number out "
            "of each channel's exponents, so that the largest of them is 0."
        )
    close(value, right, "the descriptor of large and small channels", tolerance=1e-4)


# ---- 12.2

_KERNELS = {8: 3, 16: 3, 32: 3, 64: 3, 128: 5, 256: 5, 2: 1}  # C: k, by equation 12


def _one_kernel(module: Any, channels: int) -> Tensor:
    if not isinstance(written(module), nn.Module):
        raise Wrong(f"Return a module, not a {type(module).__name__}.")
    found = list(module.parameters())
    if len(found) != 1:
        raise Wrong(
            f"For {channels} channels the module has {len(found)} parameter tensors; it should "
            "have one: the kernel, without a bias."
        )
    return found[0]


def _why_not(k: int, channels: int) -> str:
    """Say which mistake leads to a kernel of length `k`."""
    if k % channels == 0:
        return "One kernel is for all channels, and slides along them."
    if k % 2 == 0:
        return "An even kernel has no middle: an even number becomes odd by adding 1."
    if k in _odd_and_even(math.log2(channels) / 2 + 1):
        return (
            "b is divided by gamma as well: (log2(C) + b) / gamma. And what follows the point is "
            "cut off, not rounded up."
        )
    if k in _odd_and_even((math.log(channels) + 1) / 2):
        return (
            "So it is with the natural logarithm, with one length for all, or with 1 taken off an "
            "even number. Equation 12 takes the logarithm to base 2, and 1 is added."
        )
    return "Cut off what follows the point of (log2(C) + 1) / 2, and add 1 to an even number."


def _odd_and_even(value: float) -> tuple[int, int]:
    t = int(value)
    return t, t if t % 2 else t + 1


@judge
def channel_map(answer: Callable[[int], Any]) -> None:
    """Judge `answer(channels)`: a module, (N, C, H, W) -> ECA's channel map (N, C, 1, 1)."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the function, channel_map, not a module that it makes.")
    for channels, k in _KERNELS.items():
        module = answer(channels)
        kernel = _one_kernel(module, channels)
        if kernel.numel() != k:
            raise Wrong(
                f"The kernel for {channels} channels has {kernel.numel()} weights; it should have "
                f"{k}. {_why_not(kernel.numel(), channels)}"
            )
        with torch.no_grad():
            kernel.copy_(_random(k, seed=channels).reshape(kernel.shape) + 1)
            x = _random(3, channels, 4, 5, seed=1) * 3
            value = module(x.clone())
            _map_of(x, kernel.reshape(1, 1, k), value)
        _through(module(x), "the map to the kernel")


def _map_of(x: Tensor, kernel: Tensor, value: Any) -> None:
    """Raise `Wrong` unless `value` is the channel map that `kernel` makes of `x`."""
    n, c, k = x.shape[0], x.shape[1], kernel.shape[2]
    means = x.mean((2, 3))
    rows = F.conv1d(means[:, None], kernel, padding=k // 2).reshape(n, c, 1, 1)
    one_row = F.conv1d(means.reshape(1, 1, n * c), kernel, padding=k // 2).reshape(n, c, 1, 1)
    over_images = F.conv1d(means.T[:, None], kernel, padding=k // 2)[:, 0].T[:, :, None, None]
    if isinstance(value, Tensor) and tuple(value.shape) == tuple(x.shape):
        raise Wrong("This has the shape of the features. Return the map, (N, C, 1, 1).")
    if k > 1:
        known(
            value,
            {
                "All images lie in one row: the last channels of one image listen to the first of "
                "the next. Give each image a row of its own.": one_row.sigmoid(),
                "The kernel slides over the images, not over the channels.": over_images.sigmoid(),
            },
        )
    known(
        value,
        {
            "These are the logits. The sigmoid is missing.": rows,
            "This is a softmax: the channels share one cake. ECA has a sigmoid.": rows.softmax(1),
            "It reads the maximum. ECA reads the mean alone.": F.conv1d(
                x.amax((2, 3))[:, None], kernel, padding=k // 2
            )
            .reshape(n, c, 1, 1)
            .sigmoid(),
        },
    )
    close(value, rows.sigmoid(), "the map", "Slide the kernel along the channels' means.")


# ---- 12.3

MEANS = {
    "c.softmax(0)": 1 / 2,
    "c.softmax(1)": 1 / 8,
    "s.softmax(1)": 1.0,
    "s.softmax(2)": 1 / 4,
    "s.flatten(1).softmax(1)": 1 / 16,
}
NO_GATE = "no gate at all"


@judge
def softmax_means(answer: Mapping[str, Any]) -> None:
    """Judge the predicted means of softmaxes over several axes, and which of them is constant."""
    names = [*MEANS, NO_GATE]
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(map(repr, names))}.")
    for value in answer.values():
        written(value)
    for name, right in MEANS.items():
        mean = number(answer[name], repr(name))
        if not abs(mean - right) <= 1e-6:
            raise Wrong(f"{name!r} has not the mean {mean:.4g}. {_why_mean(name, mean)}")
    if not isinstance(answer[NO_GATE], str) or answer[NO_GATE] not in MEANS:
        raise Wrong(f"{NO_GATE!r} is one of the five names above, not {answer[NO_GATE]!r:.60}.")
    if answer[NO_GATE] != "s.softmax(1)":
        raise Wrong(
            f"{answer[NO_GATE]!r} follows the logits. Which one says the same for every input, "
            "because nothing competes along its axis?"
        )


def _why_mean(name: str, value: float) -> str:
    whole = {"c": (8, "channels"), "s": (16, "places")}[name[0]]
    if abs(value - 1 / (2 * whole[0])) < 1e-6:
        return "That would be over the whole batch; the axis does not join the images."
    if abs(value - 1 / whole[0]) < 1e-6:
        return f"That would be over all {whole[0]} {whole[1]}."
    if abs(value - 0.5) < 1e-6:
        return "That is the mean of undecided sigmoids, or of a softmax over the 2 images."
    if abs(value - 1) < 1e-6:
        return "The entries along the axis add up to 1; that is their sum, not their mean."
    return "Along the axis the entries add up to 1; divide by how many there are."


# ---- 12.4


@judge
def residual_parallel(answer: Answer) -> None:
    """Judge `answer(x, channel, spatial)`: F + F * sigmoid(the two gates' logits added)."""
    for seed, size in enumerate(((2, 6, 5, 4), (1, 4, 3, 7))):
        torch.manual_seed(seed)
        channel = ChannelAttention(size[1], 2).eval()
        spatial = SpatialAttention(3).eval()
        weights = [*channel.parameters(), *spatial.parameters()]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(3)
            x = _random(*size, seed=seed + 1) * 2
            c, s = channel.logits(x), spatial.logits(x)
            given = x.clone()
            value = answer(given, channel, spatial)
            known(value, _joined_wrongly(x, c, s, spatial))
            right = x + x * torch.sigmoid(c + s)
            close(value, right, "the output", "It should be x + x * sigmoid(both logits added).")
        if not torch.equal(given, x):
            raise Wrong("The output is right, but x has been changed: others may need it.")
        value = answer(x.clone(), channel, spatial)
        _through(value, "the output")
        if None in torch.autograd.grad(value.sum(), weights, allow_unused=True):
            raise Wrong("No gradient reaches the gates' weights. Is there a detach()?")


def _joined_wrongly(
    x: Tensor, c: Tensor, s: Tensor, spatial: SpatialAttention
) -> dict[str, Tensor]:
    product = c.sigmoid() * s.sigmoid()
    refined = x * c.sigmoid()
    return {
        "This is CBAM's parallel order. In BAM the map itself stays: add x.": x * (c + s).sigmoid(),
        "This multiplies the logits, as the authors' code does: two noes make a yes. The paper "
        "adds them.": x + x * (c * s).sigmoid(),
        "These are two sigmoids, multiplied. Add the logits, then take one sigmoid.": (
            x + x * product
        ),
        "These are two sigmoids, added. Add the logits, then take one sigmoid.": (
            x + x * (c.sigmoid() + s.sigmoid())
        ),
        "The sigmoid is missing.": x + x * (c + s),
        "There are sigmoids in the sigmoid: calling a gate gives its map. Add up what `logits` "
        "gives.": x + x * (c.sigmoid() + s.sigmoid()).sigmoid(),
        "This is the map of the gates, M. It multiplies x, and then x is added.": (
            (c + s).sigmoid().expand_as(x)
        ),
        "This is 1 + M. It multiplies x.": (1 + (c + s).sigmoid()).expand_as(x),
        "Only the channel gate is in it.": x + x * c.sigmoid(),
        "Only the spatial gate is in it.": x + x * s.sigmoid(),
        "x and the factors are added. The factors multiply x, and then x is added.": (
            x + (c + s).sigmoid()
        ),
        "The spatial gate reads the map that the channel gate has changed. Both read x.": (
            x + x * (c + spatial.logits(refined)).sigmoid()
        ),
        "This is CBAM, one gate after the other, with x added.": (
            x + refined * spatial.logits(refined).sigmoid()
        ),
    }


# ---- 12.5

_POOLS: dict[str, tuple[Callable[[Tensor], Tensor], bool, str]] = {
    # name: the pooling, whether it depends on the size, what to think of
    "the mean": (
        POOLINGS["avg"],
        False,
        "Do you compare a map with its own repetition, and allow for rounding?",
    ),
    "the maximum": (POOLINGS["max"], False, "Repeated places hold nothing larger."),
    "lp": (POOLINGS["lp"], True, "It grows with the side. Is your map zero everywhere?"),
    "lse": (POOLINGS["lse"], True, "It grows by the log of the number of places."),
    "lp divided by sqrt(HW)": (
        lambda x: POOLINGS["lp"](x) / math.sqrt(x.shape[2] * x.shape[3]),
        False,
        "Only its rounding changes; allow for that.",
    ),
    "lse less ln(HW)": (
        lambda x: POOLINGS["lse"](x) - math.log(x.shape[2] * x.shape[3]),
        False,
        "Only its rounding changes; allow for that.",
    ),
    "the number of places above 0": (
        lambda x: (x > 0).sum((2, 3)).to(x.dtype),
        True,
        "Are there places above 0 on your map?",
    ),
    "the spread": (
        lambda x: x.std((2, 3)),
        True,
        "It divides by n - 1. Is your map the same everywhere, your map large, or your tolerance "
        "wide?",
    ),
    "the place at the top left": (
        lambda x: x[:, :, 0, 0],
        False,
        "Repeat each place where it stands; do not draw a new map, and do not pad.",
    ),
    "the difference of two neighbours": (
        lambda x: x[:, :, 0, 1] - x[:, :, 0, 0],
        True,
        "After the repetition the two are equal. A tiling of the whole map is another thing.",
    ),
}


@judge
def depends_on_size(answer: Callable[[Callable[[Tensor], Tensor]], Any]) -> None:
    """Judge `answer(pool)`: whether the descriptor changes when each place is repeated 2 x 2."""
    for name, (pool, right, why) in _POOLS.items():
        value = answer(pool)
        said = truth(value)
        if said is None:
            raise Wrong(f"Return True or False; for {name} it returned {value!r:.60}.")
        if said != right:
            fact = "depends on the size" if right else "does not depend on the size"
            raise Wrong(f"{name[0].upper()}{name[1:]} {fact}. {why}")


# ---- 12.6


@judge
def gate(answer: Callable[[Tensor], Any]) -> None:
    """Judge `answer(logits)`, (N, C, 1, 1) -> factors of mean 1 that compete within an image."""
    for seed, size in enumerate(((3, 4, 1, 1), (2, 16, 1, 1), (1, 1, 1, 1), (4, 64, 1, 1))):
        logits = _random(*size, seed=seed).double()
        factors = answer(logits.clone())
        shape(factors, size, "the factors")
        _factors_of_mean_1(logits, factors)
        if size[1] > 1:
            _competes(answer, logits, factors)
        if size[0] > 1:
            _alone(answer, logits, factors)
        _through(tensor(answer(1 * logits.clone().requires_grad_()), "the factors"), "the factors")


def _factors_of_mean_1(logits: Tensor, factors: Tensor) -> None:
    channels = logits.shape[1]
    if not bool(factors.isfinite().all()):
        raise Wrong("Some factors are not finite numbers.")
    if bool((factors <= 0).any()):
        raise Wrong(f"1. A factor is {factors.min():.3g}; every factor must be positive.")
    means = factors.mean((1, 2, 3))
    if bool((means - 1).abs().max() > 1e-4):
        known(
            factors,
            {
                "2. This is the sigmoid: its mean is wherever the logits put it.": logits.sigmoid(),
                "2. Divided by the sum, the mean is 1/C: multiply by the number of channels.": (
                    factors / factors.sum(1, keepdim=True)
                ),
            },
        )
        why = (
            "Over the whole batch the mean is 1, but not image by image: take the mean over "
            "the channels alone."
            if abs(float(factors.mean()) - 1) < 1e-4
            else f"For {channels} channels it should be 1."
        )
        raise Wrong(f"2. The factors of the first image have the mean {means[0]:.3g}. {why}")
    order = logits.flatten(1).argsort(1)
    if bool((factors.flatten(1).gather(1, order).diff(dim=1) <= 0).any()):
        raise Wrong("3. In some image a larger logit does not get a larger factor.")


def _competes(answer: Callable[[Tensor], Any], logits: Tensor, factors: Tensor) -> None:
    raised = logits.clone()
    raised[0, 0] += 0.5
    change = (answer(raised) - factors)[0, 1:]
    if bool((change >= 0).any()):
        raise Wrong(
            "4. One logit rose by 0.5, and the factor of another channel of this image did not "
            f"fall: it changed by {change.max():.3g}."
        )


def _alone(answer: Callable[[Tensor], Any], logits: Tensor, factors: Tensor) -> None:
    other = logits.clone()
    other[1:] = other[1:] * 2 + 1
    if not torch.allclose(answer(other)[:1], factors[:1], rtol=1e-6):
        raise Wrong("5. The first image's factors change when another image of the batch does.")
    if not torch.allclose(answer(logits[:1]), factors[:1], rtol=1e-6):
        raise Wrong("5. The first image's factors are others when it is alone in the batch.")
