"""Judges of chapter 03, channel attention."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cbam_edu.attention import ChannelAttention
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, between, close, judge, number, shape, tensor, written

Mlp = Callable[[Tensor], Tensor]


def _mistakes(x: Tensor, mlp: Mlp, linear: Mlp) -> dict[str, Tensor]:
    """Return what the usual mistakes give, (N, C), each under a sentence that names it.

    `linear` is `mlp` without its ReLU.
    """
    avg, top = x.mean((2, 3)), x.amax((2, 3))
    a, m = mlp(avg), mlp(top)
    right = (a + m).sigmoid()
    return {
        "The ReLU between the two layers is missing: without it the MLP is one matrix.": (
            linear(avg) + linear(top)
        ).sigmoid(),
        "There is a ReLU after the second layer too, so no logit is negative and no gate can "
        "shut; the ReLU stands only between the layers.": (a.relu() + m.relu()).sigmoid(),
        "You took the sigmoid of each vote and added the maps, which reach from 0 to 2; add the "
        "logits first, then take one sigmoid.": a.sigmoid() + m.sigmoid(),
        "You averaged two maps; add the logits first, then take one sigmoid.": (
            a.sigmoid() + m.sigmoid()
        )
        / 2,
        "You averaged the two logits; equation 2 adds them.": ((a + m) / 2).sigmoid(),
        "You added the two descriptors before the MLP; each goes through it alone, and the "
        "outputs are added.": mlp(avg + top).sigmoid(),
        "The map uses the average descriptor alone; the maximum has no vote.": a.sigmoid(),
        "The map uses the maximum descriptor alone; the average has no vote.": m.sigmoid(),
        "The average votes twice and the maximum never.": (a + a).sigmoid(),
        "The maximum votes twice and the average never.": (m + m).sigmoid(),
        "The map went through a second sigmoid, which squeezes it into 0.5 to 0.73; one is "
        "enough.": right.sigmoid(),
        "These are the logits; the sigmoid at the end is missing.": a + m,
        "You took a softmax, which makes the channels share a sum of 1; the gate is a sigmoid.": (
            a + m
        ).softmax(1),
        "You summed over the places instead of averaging.": (mlp(x.sum((2, 3))) + m).sigmoid(),
    }


def _map(value: Any, x: Tensor, mlp: Mlp, linear: Mlp) -> None:
    """Check that `value` is the map of `x`, (N, C, 1, 1), and name the mistake if it is not."""
    n, c, h, w = x.shape
    value = tensor(value, "The map")
    if tuple(value.shape) == (n, c):
        raise Wrong(
            f"The map has shape {(n, c)}; it should have {(n, c, 1, 1)}, to be multiplied with "
            "(N, C, H, W). Add two axes with [:, :, None, None]."
        )
    if tuple(value.shape) == (n, 1, h, w):
        raise Wrong(
            f"The map has shape {(n, 1, h, w)}: you pooled over the channels. Pool over the "
            "places, axes 2 and 3, so that one number a channel is left."
        )
    if tuple(value.shape) == (n, c, h, w):
        raise Wrong(
            f"The result has shape {(n, c, h, w)}, that of the features. Return the map itself, "
            f"{(n, c, 1, 1)}; multiplying is not the gate's task."
        )
    shape(value, (n, c, 1, 1), "The map")
    flat = value.detach().flatten(1).to(x.dtype)
    wanted = (mlp(x.mean((2, 3))) + mlp(x.amax((2, 3)))).sigmoid()
    if torch.allclose(flat, wanted, rtol=1e-4, atol=1e-5):
        return
    known(flat, _mistakes(x, mlp, linear))
    between(flat, 0, 1, "The map", "A gate ends with a sigmoid.")
    close(flat, wanted, "The map", "Go through section 1 step by step and compare.")


@judge
def channel_map(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3.1: ``answer(x, w0, w1)`` is equation 2, (N, C, H, W) -> (N, C, 1, 1)."""
    generator = torch.Generator().manual_seed(3)
    for n, c, hidden, height, width in [
        (2, 6, 3, 4, 5),
        (3, 5, 1, 1, 7),
        (5, 8, 4, 3, 3),
        (1, 4, 2, 6, 6),
    ]:
        x = torch.randn(n, c, height, width, generator=generator)
        x += 2 * torch.randn(n, c, 1, 1, generator=generator)  # so that each hidden unit wakes up
        w0 = torch.randn(hidden, c, generator=generator)
        w1 = torch.randn(c, hidden, generator=generator)

        def mlp(d: Tensor, w0: Tensor = w0, w1: Tensor = w1) -> Tensor:
            return (d @ w0.T).relu() @ w1.T

        def linear(d: Tensor, w0: Tensor = w0, w1: Tensor = w1) -> Tensor:
            return d @ w0.T @ w1.T

        _map(answer(x.clone(), w0.clone(), w1.clone()), x, mlp, linear)


def _made(answer: Any, *sizes: float) -> nn.Module:
    """Return the gate that the learner's class makes."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the class itself, not a gate that was made of it.")
    gate = written(answer(*sizes))
    if not isinstance(gate, nn.Module):
        raise Wrong(f"A gate must be an nn.Module, but this is a {type(gate).__name__}.")
    return gate


def _layers(gate: nn.Module, channels: int, hidden: int) -> list[tuple[Mlp, Mlp]]:
    """Return the MLPs that the gate's parameters may make up, each with and without its ReLU.

    The parameters are known by their shapes, so `channels` must differ from `hidden`, and the order
    in which the layers were made is free. Linear layers and 1 x 1 convolutions are both welcome;
    so are bare matrices that are multiplied from the right, which is the second of the two.
    """
    parameters = list(gate.parameters())
    matrices = [p.detach().flatten(1) for p in parameters if p.ndim > 1]
    biases = [p.detach() for p in parameters if p.ndim == 1]
    if not matrices:
        raise Wrong(
            "The gate has no weights that PyTorch knows of. Make its layers in __init__ and keep "
            "them on self, in an nn.Sequential or each under its own name."
        )
    if len(matrices) == 4 and sum(len(m) == channels for m in matrices) == 2:
        raise Wrong(
            "The gate has two MLPs, one a descriptor: twice the parameters. Make one and call it "
            "twice."
        )
    widths = [len(m) for m in matrices]
    units = sum(widths) - channels
    if len(matrices) == 2 and channels in widths and units != hidden:
        raise Wrong(
            f"With {channels} channels the hidden layer has {units} units; it should have "
            f"{hidden}, max(1, channels // reduction) with the reduction that is passed."
        )
    matrices.sort(key=lambda m: m.shape != (hidden, channels))
    if [tuple(m.shape) for m in matrices] != [(hidden, channels), (channels, hidden)]:
        raise Wrong(
            f"The layers have {widths} outputs; the MLP should have two layers, with "
            f"{[hidden, channels]} outputs for {channels} channels."
        )
    if sorted(len(b) for b in biases) != sorted([hidden, channels]):
        lengths = [len(b) for b in biases]
        found = f"vectors of the lengths {lengths}" if lengths else "no biases"
        raise Wrong(
            f"Besides its matrices the gate has {found}; the layers should have one bias each, "
            f"{[hidden, channels]}, as nn.Linear has by default: leave bias=True."
        )
    b0, b1 = sorted(biases, key=lambda b: len(b) != hidden)
    return [_mlp(w0, b0, w1, b1) for w0, w1 in (matrices, [m.T for m in reversed(matrices)])]


def _mlp(w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor) -> tuple[Mlp, Mlp]:
    return (
        lambda d: (d @ w0.T + b0).relu() @ w1.T + b1,
        lambda d: (d @ w0.T + b0) @ w1.T + b1,
    )


def _computes(gate: nn.Module, channels: int, hidden: int, generator: torch.Generator) -> None:
    """Check the map of `gate` on a batch, and on a single image of another size."""
    for n, h, w in ((6, 4, 3), (1, 2, 5)):
        # Large features: small logits would make mistakes look alike.
        x = 5 * torch.randn(n, channels, h, w, generator=generator)
        with torch.no_grad():
            value = tensor(gate(x.clone()), "The map")
            usual, from_the_right = _layers(gate, channels, hidden)
            try:
                _map(value, x, *usual)
            except Wrong as wrong:
                try:
                    _map(value, x, *from_the_right)
                except Wrong:
                    raise wrong from None


def _has_gradient(*values: Tensor) -> None:
    if not all(value.requires_grad for value in values):
        raise Wrong(
            "The gate cannot learn: its map, or one of its parameters, has no gradient. Is there a "
            "no_grad, a detach, an item or a requires_grad_(False)?"
        )


def _learns(gate: nn.Module, channels: int) -> None:
    """Check that the gradient of the map reaches every weight and bias of `gate`."""
    value = tensor(gate(torch.ones(2, channels, 3, 3)), "The map")
    names, parameters = zip(*gate.named_parameters(), strict=True)
    _has_gradient(value, *parameters)
    gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise Wrong(f"No gradient reaches {name}. Is there a detach, or a .data?")


def _gate(answer: type[nn.Module]) -> None:
    """Check a class ``answer(channels, reduction)`` against equation 2, for several sizes."""
    generator = torch.Generator().manual_seed(4)
    for channels, reduction in [(32, 4), (8, 16), (64, 16), (14, 5)]:
        gate = _made(answer, channels, reduction)
        _computes(gate, channels, max(1, channels // reduction), generator)
        _learns(gate, channels)


@judge
def shared_mlp(answer: type[nn.Module]) -> None:
    """Exercise 3.2: a class, ``answer(channels, reduction)``, that computes equation 2."""
    _gate(answer)


@judge
def mended_gate(answer: type[nn.Module]) -> None:
    """Exercise 3.4: the same as exercise 3.2, without the three faults."""
    _gate(answer)


@judge
def parameter_counts(answer: Sequence[int]) -> None:
    """Exercise 3.3: the numbers of parameters of four channel gates."""
    if not isinstance(answer, list | tuple) or len(answer) != 4:
        raise Wrong("counts should be a list of four whole numbers.")
    if any(count is ... or count is None for count in answer):
        raise NotImplementedError
    gates = [
        ChannelAttention(64, 16),
        ChannelAttention(64, 16, bias=False),
        ChannelAttention(8, 16),
        ChannelAttention(64, mixer="conv1d", bias=False),
    ]
    wanted = [sum(p.numel() for p in gate.parameters()) for gate in gates]
    reasons = [
        {
            512: "These are the two matrices; the biases are missing: h + C more.",
            516: "One of the biases is missing: h + C = 4 + 64.",
            576: "One of the biases is missing: h + C = 4 + 64.",
            1160: "That is two MLPs; the two descriptors share one.",
            290: "That is one layer and a half; there are two matrices, C x h and h x C.",
            256: "That is one matrix; there are two, C x h and h x C.",
            8320: "That is two square layers; the hidden layer has 64 // 16 = 4 units.",
        },
        {
            580: "That is with biases.",
            256: "That is one matrix; there are two, C x h and h x C.",
            1024: "That is two MLPs; the two descriptors share one.",
            8192: "That is two square layers; the hidden layer has 64 // 16 = 4 units.",
        },
        {
            8: "With h = 0 the gate would be dead; h is at least 1.",
            16: "These are the two matrices; the biases are missing: h + C more.",
            17: "One of the biases is missing: h + C = 1 + 8.",
            24: "One of the biases is missing: h + C = 1 + 8.",
            0: "With h = 0 the gate would be dead; h is at least 1.",
        },
        {
            5: "(log2(64) + 1) / 2 is 3.5; the rule of section 10 brings it to 3.",
            4: "The kernel's length is odd, and there is no bias.",
            9: "A 1-D kernel of length k has k weights, not k x k.",
            192: "One kernel slides along all channels; it is not made anew for each.",
            64: "The number of weights is the kernel's length, whatever the channels.",
        },
    ]
    for place, (count, right, told) in enumerate(zip(answer, wanted, reasons, strict=True), 1):
        if isinstance(count, bool) or count != right:
            reason = told.get(count, "") if type(count) is int else "Write a whole number."
            raise Wrong(f"Number {place} is not {count!r}. {reason}".strip())


@judge
def spreads(answer: Callable[[Tensor], Any]) -> None:
    """Exercise 3.5: how a map (N, C, 1, 1) spreads between images and between channels."""
    generator = torch.Generator().manual_seed(5)
    random = torch.rand(7, 5, 1, 1, generator=generator)
    one = torch.rand(1, 3, 1, 1, generator=generator)
    maps = {
        "a random map": random,
        "a map that is the same for every image": one.expand(6, 3, 1, 1),
        "the map of a single image": one,
    }
    for sort, m in maps.items():
        found = answer(m.clone())
        if not isinstance(written(found), list | tuple) or len(found) != 2:
            raise Wrong("spreads should return two numbers, between_images and between_channels.")
        flat = m.flatten(1)
        images, channels = (
            float(flat.std(0, correction=0).mean()),
            float(flat.mean(0).std(correction=0)),
        )
        named = {
            "between_images": (images, _wrong_images(flat) if len(m) > 1 else {}),
            "between_channels": (channels, _wrong_channels(flat) if len(m) > 1 else {}),
        }
        for (name, (right, mistakes)), given in zip(named.items(), found, strict=True):
            if isinstance(given, Tensor | np.ndarray) and len(given.flatten()) != 1:
                raise Wrong(f"{name} should be one number, but has {len(given.flatten())}.")
            value = number(given, name)
            if abs(value - right) <= 1e-5:
                continue
            for sentence, mistake in mistakes.items():
                if abs(value - mistake) <= 1e-5:
                    raise Wrong(f"{name} is wrong for {sort}. {sentence}")
            raise Wrong(f"{name} is {value:.4f} for {sort}; it should be {right:.4f}.")


def _wrong_images(flat: Tensor) -> dict[str, float]:
    return {
        "You took the standard deviation over the channels; images are axis 0.": float(
            flat.std(1, correction=0).mean()
        ),
        "You took it over everything at once, so that differences between channels count too.": (
            float(flat.std(correction=0))
        ),
        "You averaged over the channels first, which lets them cancel; average last.": float(
            flat.mean(1).std(correction=0)
        ),
        "Pass correction=0 to std.": float(flat.std(0).mean()),
        "The two numbers are swapped.": float(flat.mean(0).std(correction=0)),
    }


def _wrong_channels(flat: Tensor) -> dict[str, float]:
    return {
        "You took the standard deviation in each image and averaged last; average over the images "
        "first.": float(flat.std(1, correction=0).mean()),
        "You took it over everything at once, so that differences between images count too.": (
            float(flat.std(correction=0))
        ),
        "Pass correction=0 to std.": float(flat.mean(0).std()),
        "The two numbers are swapped.": float(flat.std(0, correction=0).mean()),
    }


def _learnt(gate: nn.Module, channels: int) -> float:
    """Train `gate` to tell two kinds of images apart; return how far apart its maps of them are."""
    generator = torch.Generator().manual_seed(7)
    kind = torch.tensor([-1.0, 1.0]).repeat(8)
    x = torch.randn(16, channels, 4, 3, generator=generator) + kind[:, None, None, None]
    wanted = (0.5 + 0.4 * kind)[:, None].expand(16, channels)
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(60):
        loss = (gate(x).flatten(1) - wanted).square().mean()
        _has_gradient(loss)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        m = gate(x).flatten(1)
    return float((m[kind > 0].mean(0) - m[kind < 0].mean(0)).abs().max())


def _starts(m: Tensor, start: float) -> None:
    """Check that the map `m`, (N, C), of an untrained gate is `start` throughout."""
    if m.max() - m.min() > 0.02:
        raise Wrong(
            f"Before training the map should be {start} everywhere; for start = {start} it runs "
            f"from {m.min():.2f} to {m.max():.2f}. Which matrix must be zero, so that the image "
            "has no say yet?"
        )
    found, z = float(m.mean()), torch.logit(torch.tensor(start))
    mistakes = {
        "The last bias counts twice, once in each vote: halve it.": (2 * z).sigmoid(),
        "You put start itself into the logits; ask for the z with sigmoid(z) = start.": (
            torch.tensor(2 * start).sigmoid()
        ),
        "Your logit is start, or a second sigmoid follows; ask for the z with sigmoid(z) = "
        "start.": torch.tensor(start).sigmoid(),
        "The logits are 0, so the gate is half open.": torch.tensor(0.5),
    }
    if abs(found - start) > 0.01:
        for why, wrong in mistakes.items():
            if abs(found - float(wrong)) <= 0.001:
                raise Wrong(f"For start = {start} the map is {found:.2f}. {why}")
        raise Wrong(f"For start = {start} the map is {found:.2f} before training.")


@judge
def open_gate(answer: type[nn.Module]) -> None:
    """Exercise 3.6: ``answer(channels, reduction, start)``, whose map is `start` at first."""
    generator = torch.Generator().manual_seed(6)
    for channels, reduction, start in [(32, 4, 0.95), (8, 16, 0.8), (64, 16, 0.3)]:
        torch.manual_seed(8)  # the learner's first weights are the same at each try
        gate = _made(answer, channels, reduction, start)
        x = 5 * torch.randn(6, channels, 4, 3, generator=generator)
        with torch.no_grad():
            value = tensor(gate(x.clone()), "The map")
            shape(value, (6, channels, 1, 1), "The map")
            _starts(value.flatten(1), start)
        hidden = max(1, channels // reduction)
        _layers(gate, channels, hidden)
        if channels > 8 and _learnt(gate, channels) < 0.02:  # one hidden unit may be shut by chance
            raise Wrong(
                "The gate starts as it should, but it cannot learn to look at the image: after 60 "
                "steps its maps are the same for all. If every hidden unit is 0 at the start, only "
                "the last bias gets a gradient. Start the first layer at random, and leave all "
                "layers trainable."
            )
        with torch.no_grad():
            for parameter in gate.parameters():  # any weights: is it equation 2?
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        _computes(gate, channels, hidden, generator)
