"""Judges of chapter 05, "CBAM and its order"."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cbam_edu.attention import CBAM, ORDERS, ChannelAttention, SpatialAttention
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, written
from cbam_edu.complexity import count

Gate = Callable[[Tensor], Tensor]
Formula = Callable[[Tensor, Gate, Gate], Tensor]


def _right(x: Tensor, channel: Gate, spatial: Gate) -> Tensor:
    x = x * channel(x)
    return x * spatial(x)


def _swapped(x: Tensor, channel: Gate, spatial: Gate) -> Tensor:
    x = x * spatial(x)
    return x * channel(x)


def _channel_twice(x: Tensor, channel: Gate, spatial: Gate) -> Tensor:
    x = x * channel(x)
    return _right(x, channel, spatial)


BUGS: dict[str, Formula] = {
    "none": _right,
    "both gates read F": lambda x, c, s: x * c(x) * s(x),
    "spatial before channel": _swapped,
    "x added at the end": lambda x, c, s: _right(x, c, s) + x,
    "channel gate applied twice": _channel_twice,
}
MISTAKES: dict[str, Formula] = {
    "Both gates read F: the spatial gate must read F', which the channel gate has already "
    "multiplied.": BUGS["both gates read F"],
    "The order is swapped: the spatial gate came first, and the channel gate read its result.": (
        _swapped
    ),
    "You added x at the end. Equation 1 adds nothing; the residual block around it does.": BUGS[
        "x added at the end"
    ],
    "The channel gate was applied twice: it read F, and then F' as well.": _channel_twice,
    "The channel map was multiplied in twice: F' = M_c(F) * F has it already.": lambda x, c, s: (
        x * c(x) ** 2 * s(x * c(x))
    ),
    "The second line multiplies F. It should multiply F', so the channel map got lost.": (
        lambda x, c, s: x * s(x * c(x))
    ),
    "This is F'. The spatial gate has not multiplied it yet.": lambda x, c, s: x * c(x),
    "This is M_s(F') * F' without the channel gate: F' was never made.": lambda x, c, s: x * s(x),
    "This is the product of the two maps. The feature map itself is missing.": lambda x, c, s: (
        c(x) * s(x * c(x))
    ),
    "You added: x * (M_c + M_s). In equation 1 both maps multiply, and the second gate reads what "
    "the first one left.": lambda x, c, s: x * (c(x) + s(x)),
}


@judge
def refine(answer: Formula) -> None:
    """Judge `answer(x, channel, spatial)`: equation 1 from two gates that return their maps."""
    for seed, (n, c, h, w) in enumerate(((2, 8, 6, 5), (1, 16, 1, 7), (3, 4, 9, 9))):
        torch.manual_seed(seed)
        gates = ChannelAttention(c, 2), SpatialAttention(3, norm=False)
        x = 3 * torch.randn(n, c, h, w)
        with torch.no_grad():
            kept = x.clone()
            value = answer(x, *gates)
            if not torch.equal(x, kept):
                raise Wrong(
                    "It changed its input in place (x *= ...). Write x = x * ..., or the caller, "
                    "and autograd, lose F."
                )
            known(value, {why: wrong(x, *gates) for why, wrong in MISTAKES.items()})
            close(value, _right(x, *gates), "F''")


def _filled_in(answer: Mapping[str, Any], wanted: list[str]) -> None:
    if not isinstance(answer, Mapping) or set(answer) != set(wanted):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(map(repr, wanted))}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError


def _silent(order: str = "channel-spatial") -> CBAM:
    module = CBAM(32, order=order)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module.eval()


@judge
def silent_factors(answer: Mapping[str, Any]) -> None:
    """Judge the predicted shape and factors of CBAMs whose weights are all zero."""
    x = torch.ones(2, 32, 5, 9)
    with torch.no_grad():
        one, parallel = _silent()(x), _silent("parallel")(x)
        three, channel = _silent()(_silent()(one)), _silent("channel-only")(x)
    wanted = {
        "one": (one, "Each gate is the sigmoid of 0. There are two of them, and they multiply."),
        "three in a row": (three, "The first leaves a quarter, the second a quarter of that."),
        "parallel": (parallel, "There the logits add up first, and there is one sigmoid only."),
        "channel-only": (channel, "There is one gate only."),
    }
    _filled_in(answer, ["shape", *wanted])
    shape = answer["shape"]
    if not isinstance(shape, tuple | list) or tuple(shape) != tuple(one.shape):
        raise Wrong(
            f"'shape' is not {shape}. CBAM only multiplies, so what comes out has the shape of "
            "what goes in: (N, C, H, W)."
        )
    for name, (out, why) in wanted.items():
        if not abs(number(answer[name], repr(name)) - out.mean().item()) <= 1e-3:
            raise Wrong(f"{name!r} is not {answer[name]}. {why}")


class Suspect(nn.Module):
    """A module that says it is CBAM; its gates are sound, its `forward` may not be.

    Attributes
    ----------
    channel, spatial : nn.Module
        The gates, each of which returns its map.
    """

    def __init__(self, formula: Formula, channels: int = 16):
        super().__init__()
        self.channel = ChannelAttention(channels, 4)
        self.spatial = SpatialAttention()
        self._formula = formula

    def forward(self, x: Tensor) -> Tensor:
        """Return what should be the refined map: (N, 16, H, W) float -> the same shape."""
        return self._formula(x, self.channel, self.spatial)


_GUILTY = {
    "A": "both gates read F",
    "B": "x added at the end",
    "C": "none",
    "D": "channel gate applied twice",
    "E": "spatial before channel",
}


def suspects() -> dict[str, Suspect]:
    """Return five modules for 16 channels, in eval mode; all but one have a bug of `BUGS`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return {letter: Suspect(BUGS[bug]).eval() for letter, bug in _GUILTY.items()}


@judge
def named(answer: Mapping[str, Any]) -> None:
    """Judge which bug, of `BUGS`, each of the `suspects` has."""
    _filled_in(answer, list(_GUILTY))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 8, 8, generator=generator)
    for letter, suspect in suspects().items():
        claim = answer[letter]
        if not isinstance(claim, str) or claim not in BUGS:
            names = ", ".join(map(repr, BUGS))
            raise Wrong(f"For suspect {letter}, choose one of {names}; {claim!r} is none of them.")
        if claim != _GUILTY[letter]:
            with torch.no_grad():
                claimed = BUGS[claim](x, suspect.channel, suspect.spatial)
                gap = (suspect(x) - claimed).abs().max()
            raise Wrong(
                f"Suspect {letter} is not {claim!r}: that formula, computed with its own gates, "
                f"differs from its output by up to {gap:.2g}."
            )


@judge
def hears_shut_channel(answer: Callable[[nn.Module, Tensor], bool]) -> None:
    """Judge `answer(module, x)`: whether a channel that is shut still moves the output."""
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(3, 16, 8, 8)
        if _verdict(answer(CBAM(16, 4), x.clone())):
            raise Wrong(
                "It says that a sound CBAM hears a shut channel. Is the channel really shut, with "
                "the factor 0, and are all others held open at the same factors both times?"
            )
        deaf = {
            "a module whose spatial gate reads F": Suspect(BUGS["both gates read F"]),
            "the order spatial-channel, whose spatial gate comes first": CBAM(
                16, 4, order="spatial-channel"
            ),
        }
        for what, module in deaf.items():
            if not _verdict(answer(module, x.clone())):
                raise Wrong(
                    f"It does not notice {what}. Shout into the shut channel, and compare the "
                    "whole output: channel 0 itself is 0 both times."
                )


def _verdict(value: Any) -> bool:
    if isinstance(written(value), Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, bool | np.bool_):
        raise Wrong(f"It must return True or False, but returns a {type(value).__name__}.")
    return bool(value)


def _cost(order: str) -> tuple[int, int]:
    return count(CBAM(64, order=order), (64, 32, 32))[:2]


@judge
def cost(answer: Callable[[str], Any]) -> None:
    """Judge `answer(order)`: parameters and multiply-accumulates of CBAM(64) on one 32 x 32 map."""
    for order in ORDERS:
        value = written(answer(order))
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise Wrong("Return two numbers, the parameters and the multiply-accumulates.")
        parameters, macs = _cost(order)
        names = "'parameters'", "'multiply-accumulates'"
        got = number(value[0], names[0]), number(value[1], names[1])
        if got == (macs, parameters):
            raise Wrong("The two numbers are swapped: the parameters come first.")
        if got[0] != parameters:
            has = {"channel-only": "no spatial gate", "spatial-only": "no channel gate"}
            raise Wrong(
                f"{order!r} does not have {got[0]:,.0f} parameters. It has "
                f"{has.get(order, 'both gates')}; biases and BatchNorm's weight and bias count."
            )
        if got[1] == 2 * macs:
            raise Wrong(
                "These are FLOPs, a multiplication and an addition counted singly. Halve them."
            )
        if order != "spatial-only" and got[1] == macs - 2 * 64 * 4:
            raise Wrong("The shared MLP runs twice, on the means and on the maxima.")
        if got[1] != macs:
            raise Wrong(
                f"{order!r} does not do {got[1]:,.0f} multiply-accumulates on one map of "
                "64 x 32 x 32. The 7 x 7 convolution works at every place, the MLP once a "
                "descriptor."
            )
