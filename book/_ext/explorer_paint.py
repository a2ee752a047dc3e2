"""The weights with which the reader paints, written as a script for the explorer.

The script sets ``cbam.paint``: `shape`, `examples` to start from, and `layers`, the weights of a
small CBAM for every set of weights, reduction and kernel. Two sets there are. ``made`` is written
by hand so that each number can be read as a question; ``fresh`` is what PyTorch starts with.
"""

import json
from typing import Any

import numpy as np
import torch
from docutils import nodes
from numpy.typing import NDArray
from sphinx.util.docutils import SphinxDirective

from cbam_edu import CBAM
from explorer_network import gates
from tables import table

CHANNELS, SIDE = 4, 8
SHAPE = (CHANNELS, SIDE, SIDE)
REDUCTIONS = (1, 2, 4)
KERNELS = (3, 5, 7)
SEED = 0  # of the fresh weights, and of the noise
CENTRES = {3: 1, 5: 3, 7: 3}  # the side of the kernel's middle, for each side of the kernel
MAXIMA, MEANS = 7.2, 3.6  # what the middle's weights add up to, in each of the two planes
SHIFT = -1.0  # the BatchNorm's: a place stays rather shut until the convolution speaks for it

Features = NDArray[np.float64]


def questions(reduction: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return the hand-made MLP: what its hidden units ask, and how they vote.

    Parameters
    ----------
    reduction : {1, 2, 4}
        r; there are 4 / r questions.

    Returns
    -------
    w0, w1 : list of list of float
        Weights (4 / r, 4) of the first layer and (4, 4 / r) of the second; both have no bias.
    """
    size = reduction  # as many channels share a question
    units = range(CHANNELS // reduction)
    mine = [[c // size == u for c in range(CHANNELS)] for u in units]
    w0 = [[(CHANNELS - size) / size if own else -1.0 for own in row] for row in mine]
    w1 = [[1.0 if mine[u][c] else -0.5 for u in units] for c in range(CHANNELS)]
    if reduction == CHANNELS:  # one unit left: it asks for channel 0 alone
        w0, w1 = [[3.0, -1.0, -1.0, -1.0]], [[1.0], [-0.5], [-0.5], [-0.5]]
    return w0, w1


def centre_surround(kernel: int) -> list[list[list[float]]]:
    """Return the hand-made kernel, (2, k, k): a bright middle in a dark ring, which cancel."""
    start = (kernel - CENTRES[kernel]) // 2
    middle = range(start, start + CENTRES[kernel])
    inside = CENTRES[kernel] ** 2
    return [
        [
            [
                total / inside if i in middle and j in middle else -total / (kernel**2 - inside)
                for j in range(kernel)
            ]
            for i in range(kernel)
        ]
        for total in (MAXIMA, MEANS)
    ]


def fresh(reduction: int, kernel: int) -> CBAM:
    """Return the module as PyTorch starts it, with a fixed seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return CBAM(CHANNELS, reduction, kernel).eval()


def made(reduction: int, kernel: int) -> CBAM:
    """Return the module with weights made by hand, to be understood, in evaluation mode."""
    module = fresh(reduction, kernel)
    w0, w1 = questions(reduction)
    state = {
        "channel.mixer.0.weight": w0,
        "channel.mixer.0.bias": [0.0] * len(w0),
        "channel.mixer.2.weight": w1,
        "channel.mixer.2.bias": [0.0] * CHANNELS,
        "spatial.conv.weight": [centre_surround(kernel)],
        "spatial.norm.bias": [SHIFT],
    }
    tensors = {name: torch.tensor(values) for name, values in state.items()}
    module.load_state_dict({**module.state_dict(), **tensors})
    return module


MODULES = {"made": made, "fresh": fresh}


def numbers(values: NDArray[np.float64]) -> list[float]:
    """Return float32 numbers, flat, each with the fewest digits that say which one it is."""
    return [float(str(value)) for value in values.astype(np.float32).ravel()]


def layer(module: CBAM) -> dict[str, Any]:
    """Return a module's weights under the names that ``attention.js`` gives them."""
    found = {name: numbers(values) for name, values in gates(module).items()}
    (scale,), (shift,) = found["scale"], found["shift"]
    kernel = module.spatial.conv.kernel_size[0]
    sizes = {"channels": module.channels, "hidden": len(found["b0"]), "kernel": kernel}
    return sizes | found | {"scale": scale, "shift": shift}


def layers() -> dict[str, dict[int, dict[int, dict[str, Any]]]]:
    """Return the weights of every set, reduction and kernel, in this order of keys."""
    return {
        name: {r: {k: layer(module(r, k)) for k in KERNELS} for r in REDUCTIONS}
        for name, module in MODULES.items()
    }


def silence() -> Features:
    """Return a map of zeros, (C, H, W)."""
    return np.zeros(SHAPE)


def spot() -> Features:
    """One place of channel 0 shouts."""
    features = silence()
    features[0, 2, 5] = 1.0
    return features


def texture() -> Features:
    """Channel 2 murmurs at every place."""
    features = silence()
    features[2] = 0.2 + 0.2 * (np.indices((SIDE, SIDE)).sum(0) % 2)
    return features


def objects() -> Features:
    """Two things with an outline: channel 1 knows the one, channel 3 the other, 0 their edges."""
    features = silence()
    for channel, rows, columns in ((1, slice(1, 4), slice(1, 4)), (3, slice(4, 7), slice(4, 7))):
        features[channel, rows, columns] = 0.9
        features[0, rows, columns] = 0.6
        features[0, rows.start + 1, columns.start + 1] = 0.0  # an outline is hollow
    features[2] = 0.1
    return features


def corners() -> Features:
    """Every channel has the same blob, each in a corner of its own."""
    features = silence()
    for channel, (row, column) in enumerate(((0, 0), (0, 5), (5, 0), (5, 5))):
        features[channel, row : row + 3, column : column + 3] = 0.5
        features[channel, row + 1, column + 1] = 1.0
    return features


def noise() -> Features:
    """Random numbers, half of them negative, as features are before a ReLU."""
    values = np.random.default_rng(SEED).normal(0, 0.4, SHAPE)
    return np.asarray(np.clip(values, -1, 1).round(2))


EXAMPLES: dict[str, tuple[str, Features]] = {
    "objects": ("Two objects", objects()),
    "spot": ("One loud spot", spot()),
    "texture": ("A weak texture", texture()),
    "both": ("Spot and texture", spot() + texture()),
    "corners": ("Four alike, in corners", corners()),
    "noise": ("Noise, half negative", noise()),
    "blank": ("Nothing", silence()),
}


def paint_data() -> str:
    """Return the script that holds the weights of the small CBAM of the painting page."""
    examples = [
        {"name": name, "title": title, "features": [round(float(x), 2) for x in features.flat]}
        for name, (title, features) in EXAMPLES.items()
    ]
    data = {"shape": SHAPE, "examples": examples, "layers": layers()}
    text = json.dumps(data, separators=(",", ":"))
    return f'"use strict";\nvar cbam = globalThis.cbam || {{}};\ncbam.paint = {text};\n'


def rows(features: Features) -> list[list[str]]:
    """Return the steps of the hand-made channel gate on a map, a row each, a number a channel."""
    gate = made(1, 7).channel
    x = torch.tensor(features, dtype=torch.float32)[None]
    with torch.no_grad():
        steps = {
            "mean": (means := x.mean((2, 3))),
            "maximum": (maxima := x.amax((2, 3))),
            "the means' vote": gate.mixer(means),
            "the maxima's vote": gate.mixer(maxima),
            "logit": gate.logits(x),
            "weight, σ(logit)": gate(x),
        }
    return [
        [name, *(f"{v:.2f}".replace("-", "−") for v in step.flatten())]
        for name, step in steps.items()
    ]


def places(features: Features) -> str:
    """Return a sentence on the hand-made module's spatial map, behind its channel gate."""
    module = made(1, 7)
    x = torch.tensor(features, dtype=torch.float32)[None]
    with torch.no_grad():
        values = module.spatial(x * module.channel(x))[0, 0]

    def at(index: int) -> str:
        row, column = divmod(index, SIDE)
        return f"{values[row, column]:.2f} at row {row}, column {column}"

    high, low = int(values.argmax()), int(values.argmin())
    return f"Behind it, the spatial map is largest, {at(high)}, and smallest, {at(low)}."


class PaintExample(SphinxDirective):
    """``{paint-example} NAME``: what the page shows of an example, as a table and a sentence."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return both, computed now."""
        name = self.arguments[0]
        if name not in EXAMPLES:
            raise self.error(f"the example must be one of {', '.join(EXAMPLES)}; got {name!r}")
        features = EXAMPLES[name][1]
        channels = [f"channel {c}" for c in range(CHANNELS)]
        numbers = table(["", *channels], rows(features), channels)
        return [numbers, nodes.paragraph("", places(features))]
