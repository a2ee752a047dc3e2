"""Judges of chapter 02, "Pooling: mean against max"."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, shape, tensor

SPOT = {"mean": 0.2, "max": 5.0, "l2": 10.0}  # 2 x 2 places of 5 on 10 x 10 of 0
WIDER = {"mean": 0.05, "max": 5.0, "l2": 10.0}  # the same spot on 20 x 20


@judge
def descriptors(answer: Callable[[Tensor], Tensor]) -> None:
    """Judge `answer(x)`, (N, C, H, W) -> (N, 2C): the means, then the maxima."""
    torch.manual_seed(0)
    for n, c, h, w in ((2, 3, 4, 5), (3, 2, 1, 1), (1, 4, 6, 2)):
        x = torch.randn(n, c, h, w) - 1  # a maximum may be negative
        value = answer(x.clone())
        mean, largest = x.mean((2, 3)), x.amax((2, 3))
        mistakes = {
            "The maxima come first. The order asked for is means, then maxima.": torch.cat(
                [largest, mean], 1
            ),
            "Mean and maximum alternate. Put all means first, then all maxima.": torch.stack(
                [mean, largest], 2
            ).flatten(1),
            "You put them below each other, so that there are 2N rows. Join along "
            "dimension 1.": torch.cat([mean, largest]),
            "You stacked them along a new axis. torch.cat joins along one that is there.": (
                torch.stack([mean, largest], 1)
            ),
            "You pooled along the channels. A descriptor of a channel pools along the places, "
            "dimensions 2 and 3.": torch.cat([x.mean(1), x.amax(1)], 1),
            "These are sums; the mean divides by the number of places.": torch.cat(
                [x.sum((2, 3)), largest], 1
            ),
            "The maximum is taken of the absolute values.": torch.cat(
                [mean, x.abs().amax((2, 3))], 1
            ),
        }
        if h * w > 1:  # on a single place, mean and maximum are one
            known(value, mistakes)
        close(value, torch.cat([mean, largest], 1), "The descriptor")


@judge
def spot_on_a_map(answer: Mapping[str, object]) -> None:
    """Judge six numbers: mean, max and l2 of a spot on a 10 x 10 map and on a 20 x 20 map."""
    wanted = {f"{name}_{side}": v for side, d in ((10, SPOT), (20, WIDER)) for name, v in d.items()}
    if not isinstance(answer, Mapping) or set(answer) != set(wanted):
        raise Wrong(f"Give a number for each of {', '.join(wanted)}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    reasons = {
        "mean": "The mean is the sum, 4 times 5, over the number of places.",
        "max": "The max is the largest value, however many places there are.",
        "l2": "The l2 norm is the root of the sum of squares; it does not divide by the area.",
    }
    for name, right in wanted.items():
        value = answer[name]
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Wrong(f"{name} must be a number, but is a {type(value).__name__}.")
        if not math.isclose(value, right, rel_tol=1e-3):
            raise Wrong(f"{name} is not {float(value):g}. {reasons[name.split('_')[0]]}")


@judge
def mended_descriptors(answer: Callable[[Tensor], Tensor]) -> None:
    """Judge `answer(x)`, (N, C, H, W) -> (2, N, C): mean and maximum, place by place."""
    torch.manual_seed(1)
    for n, c, h, w in ((3, 4, 5, 6), (1, 4, 3, 2)):
        for x in (torch.randn(n, c, h, w), -1 - torch.rand(n, c, h, w)):
            value = answer(x.clone())
            shape(value, (2, n, c), "The result", "First the means, then the maxima.")
            mean, largest = x.mean((2, 3)), x.amax((2, 3))
            known(
                value[0],
                {
                    "The mean is still too small: it is divided by C x H x W numbers, but only "
                    "H x W were added up.": mean / c,
                    "The mean is a sum now.": mean * h * w,
                    "The maxima come first. The order asked for is means, then maxima.": largest,
                },
            )
            if not torch.equal(largest, largest.clamp(min=0)):
                known(
                    value[1],
                    {
                        "The maximum is still never below 0: it starts at 0, and where all numbers "
                        "are negative, the start wins.": largest.clamp(min=0)
                    },
                )
            close(value[0], mean, "The mean")
            close(value[1], largest, "The maximum")
    depths = -1e12 * (1 + torch.rand(2, 3, 3, 3) + torch.arange(1.0, 7).view(2, 3, 1, 1))
    close(
        answer(depths.clone())[1],
        depths.amax((2, 3)),
        "For a map of very negative numbers the maximum",
        "Whichever number the search begins with, a map may lie below it. Begin with the map's "
        "own first place, or with minus infinity.",
    )


@judge
def noise_max(answer: Callable[[int, int], Any]) -> None:
    """Judge `answer(side, trials)`: the mean, over trials, of the largest of side x side noises."""
    for side, trials in ((2, 40_000), (8, 1000), (32, 300)):
        torch.manual_seed(side)
        result = answer(side, trials)
        if isinstance(result, bool):
            raise Wrong("The result must be a number, but is a bool.")
        value = torch.tensor(float(result)) if isinstance(result, Real) else result
        shape(value, (), "The result", "One number: the mean over the trials.")
        torch.manual_seed(side + 1)
        largest = torch.randn(10 * trials, side * side).amax(1)  # more maps: less chance of ours
        expected, spread = float(largest.mean()), float(largest.std())
        allowed = 5 * spread * math.sqrt(1 / trials + 1 / len(largest))
        got = float(result)
        one_axis = float(torch.randn(trials, side).amax(1).mean())
        overall = float(torch.randn(trials * side * side).amax())
        if abs(got - expected) <= allowed:
            continue
        reason = f"For side {side} it is {got:.2f}; about {expected:.2f} was to be expected."
        if got.is_integer():
            reason += " Is it rounded, or a number of something? Return the mean as it is."
        elif abs(got) < 6 / math.sqrt(trials):
            reason += " That looks like the mean of the noise, not like its maximum."
        elif abs(got - one_axis) < 0.15 * one_axis:
            reason += " A map has side x side places, not side."
        elif got > expected + 3 * spread or abs(got - overall) < 0.3:
            reason += " Take the maximum of each map on its own, then the mean over the maps."
        elif abs(got - float(largest.median())) <= allowed:
            reason += " That looks like the median over the maps. Take the mean."
        raise Wrong(reason)


@judge
def soft_pool(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Judge `answer(x, t)`, (N, C, H, W) -> (N, C): t log mean exp(x / t), without overflow."""
    torch.manual_seed(2)
    for n, c, h, w in ((2, 3, 4, 5), (1, 2, 1, 7)):
        x, places = torch.randn(n, c, h, w), h * w
        for t in (0.5, 1.0, 3.0):
            value = answer(x.clone(), t)
            total = t * (x / t).logsumexp((2, 3))
            wanted = total - t * math.log(places)
            mistakes = {
                "That is the log of the sum, which grows with the area. Take the mean of the "
                "exponentials: subtract t log(H W).": total,
                "You subtract log(H W); it must be multiplied by t, too.": total - math.log(places),
                "The last step is missing: multiply the logarithm by t.": wanted / t,
                "You multiplied x by t inside; divide.": (
                    ((x * t).logsumexp((2, 3)) - math.log(places)) / t
                ),
            }
            if t != 1:
                known(value, mistakes)
            else:
                known(value, dict(list(mistakes.items())[:1]))
            close(value, wanted, "The descriptor")
        sharp = answer(100 * x, 0.01)
        if not bool(torch.isfinite(tensor(sharp, "The descriptor")).all()):
            raise Wrong(
                "For large x / t it is not finite: exp overflows. torch.logsumexp subtracts the "
                "largest value first."
            )
        close(sharp, 100 * x.amax((2, 3)), "At t = 0.01 the descriptor", tolerance=1e-2)
