"""The trained network and photographs to show it, written as a script for the explorer.

Each BatchNorm is folded into the convolution before it, in double precision, so the page computes
with half the layers. All numbers go into one line of base64: little-endian float32, one array after
the other, as `layout` says; a byte for each colour of the photographs.
"""

import base64
import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from docutils import nodes
from numpy.typing import NDArray
from PIL import Image
from sphinx.util.docutils import SphinxDirective
from torch import Tensor, nn

import tables
from cbam_edu import data, load_pretrained
from cbam_edu.attention import CBAM
from cbam_edu.data import ImageSet
from cbam_edu.explain import AttentionMap, attention_maps

NAME = "resnet20_cbam"
PER_CLASS = 6  # photographs of each class; one of them is a mistake, if there is one
FIRST = 44  # of them, the one that the page begins with: a horse that it is not too sure of
DIGITS = 5  # of the mean maps: what the last bits are depends on the machine

Arrays = dict[str, NDArray[np.float64]]


@functools.cache
def network() -> nn.Module:
    """Return the trained network, in evaluation mode."""
    return load_pretrained(NAME).eval()


@functools.cache
def photographs() -> ImageSet:
    """Return the 500 test photographs that the chapters use as well."""
    found = data.load("cifar10-mini", "test")
    assert isinstance(found, ImageSet)
    return found


@functools.cache
def answers() -> Tensor:
    """Return what the network names each of the photographs: (500,) int64."""
    with torch.no_grad():
        return network()(data.normalise(photographs().images)).argmax(1)


@functools.cache
def chosen() -> list[int]:
    """Return which photographs are on the page: the first of each class, one of them a mistake."""
    labels, found = photographs().labels, []
    for label in range(len(photographs().classes)):
        members = (labels == label).nonzero().flatten()
        wrong = members[answers()[members] != label][:1].tolist()
        right = members[answers()[members] == label].tolist()
        found += right[: PER_CLASS - len(wrong)] + wrong
    return found


@functools.cache
def mean_maps() -> list[AttentionMap]:
    """Return every gate's mean map over all the photographs, as `AttentionMap` of one image."""

    def mean(maps: Tensor | None) -> Tensor:
        assert maps is not None
        return maps.double().mean(0, keepdim=True).round(decimals=DIGITS)

    found = attention_maps(network(), data.normalise(photographs().images))
    return [AttentionMap(m.name, mean(m.channel), mean(m.spatial)) for m in found]


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().numpy()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two numbers a channel that a BatchNorm comes to in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
    return scale, _array(norm.bias) - _array(norm.running_mean) * scale


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Arrays:
    """Return weight (C_out, C_in, k, k) and bias (C_out) of a convolution and its BatchNorm."""
    scale, shift = _scale_and_shift(norm)
    return {"weight": _array(conv.weight) * scale[:, None, None, None], "bias": shift}


def gates(attention: CBAM) -> Arrays:
    """Return the weights of a block's gates by the names that attention.js has for them."""
    first, _, last = attention.channel.mixer
    norm = attention.spatial.norm
    assert norm is not None
    scale, shift = _scale_and_shift(norm)
    return {
        "w0": _array(first.weight),  # type: ignore[arg-type]
        "b0": _array(first.bias),  # type: ignore[arg-type]
        "w1": _array(last.weight),  # type: ignore[arg-type]
        "b1": _array(last.bias),  # type: ignore[arg-type]
        "conv": _array(attention.spatial.conv.weight[0]),
        "scale": scale,
        "shift": shift,
    }


def arrays() -> Arrays:
    """Return all of the network's numbers by name, and the mean maps beside them."""
    model: Any = network()
    parts = {"stem": fold(model.conv, model.bn)}
    blocks = [block for stage in model.stages for block in stage]
    for index, (block, mean) in enumerate(zip(blocks, mean_maps(), strict=True)):
        parts[f"block{index}.conv1"] = fold(block.conv1, block.bn1)
        parts[f"block{index}.conv2"] = fold(block.conv2, block.bn2)
        parts[f"block{index}.gates"] = gates(block.attention)
        assert mean.channel is not None
        assert mean.spatial is not None
        parts[f"block{index}.mean"] = {
            "channel": _array(mean.channel.flatten()),
            "spatial": _array(mean.spatial[0, 0]),
        }
    parts["head"] = {"weight": _array(model.head.weight), "bias": _array(model.head.bias)}
    return {f"{part}.{name}": a for part, found in parts.items() for name, a in found.items()}


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def content() -> dict[str, Any]:
    """Return what the script holds."""
    found = arrays()
    numbers = np.concatenate([a.ravel() for a in found.values()]).astype("<f4")
    photos, indices = photographs(), chosen()
    right = int((answers() == photos.labels).sum())
    return {
        "classes": list(photos.classes),
        "mean": list(data.MEAN),
        "std": list(data.STD),
        "accuracy": {"right": right, "of": len(photos)},
        "layout": [[name, list(a.shape)] for name, a in found.items()],
        "weights": _base64(numbers),
        "photographs": {
            "first": FIRST,
            "indices": indices,
            "labels": photos.labels[indices].tolist(),
            "answers": answers()[indices].tolist(),
            "pixels": _base64(photos.images[indices].numpy()),
        },
    }


@functools.cache
def network_data() -> str:
    """Return the script that holds the trained network's weights and the images to look at."""
    start = "var cbam = globalThis.cbam || {};\nglobalThis.cbam = cbam;\n"
    return f'"use strict";\n{start}cbam.networkData = {json.dumps(content())};\n'


# ---- The page where it cannot run: one photograph and what the gates say to it

STYLE = Path(__file__).resolve().parents[1] / "explorer" / "look.css"
CELL, GAP, LINE = 96, 12, 18  # of the drawing, in its own units


def ramp() -> NDArray[np.float64]:
    """Return the colours of the page's scale in light mode, evenly spaced in value: (n, 3)."""
    match = re.search(r"--look-ramp: ([^;]+);", STYLE.read_text("utf-8"))
    assert match
    codes = match[1].replace("#", "").split(", ")
    return np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in codes], float)


def colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return values between 0 and 1 as colours: (H, W) -> (H, W, 3)."""
    stops = ramp()
    at = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, at, stops[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _picture(pixels: NDArray[np.uint8], place: int, label: str) -> str:
    """Return a picture (H, W, 3) with a label under it, at its place in two rows of five."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode("ascii")
    x, y = place % 5 * (CELL + GAP), place // 5 * (CELL + 2 * LINE)
    return (
        f'<image x="{x}" y="{y}" width="{CELL}" height="{CELL}" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{content}"/>'
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="none" stroke="#728190"/>'
        f'<text x="{x}" y="{y + CELL + LINE}">{label}</text>'
    )


def still() -> tuple[str, str, list[list[str]]]:
    """Return a drawing of the first photograph and its spatial maps, a sentence, and a table."""
    photos, index = photographs(), chosen()[FIRST]
    x = data.normalise(photos.images[[index]])
    maps = attention_maps(network(), x)
    with torch.no_grad():
        probabilities = network()(x).softmax(1)[0]
    pictures = [_picture(photos.images[index].permute(1, 2, 0).numpy(), 0, "photograph")]
    rows = []
    for i, found in enumerate(maps, 1):
        assert found.channel is not None
        assert found.spatial is not None
        pictures.append(_picture(colours(_array(found.spatial[0, 0])), i, f"block {i}"))
        ranges = [f"{m.min():.2f} to {m.max():.2f}" for m in (found.spatial, found.channel)]
        rows.append([str(i), " × ".join(map(str, found.spatial.shape[2:])), *ranges])
    best = [int(label) for label in probabilities.argsort(descending=True)[:3]]
    shares = [f"{photos.classes[k]} {probabilities[k]:.1%}".replace("%", " %") for k in best]
    truth = photos.classes[int(photos.labels[index])]
    sentence = (
        f"Test photograph {index}, a {truth}, and the spatial maps of the nine blocks, from 0, "
        f"white, to 1, dark. The network's three likeliest classes: {', '.join(shares)}."
    )
    width, height = 5 * (CELL + GAP) - GAP, 2 * (CELL + 2 * LINE)
    drawing = (
        f'<svg class="look-still" viewBox="-1 -1 {width + 2} {height}" role="img" '
        f'aria-label="{sentence}" font-size="13" fill="currentColor">{"".join(pictures)}</svg>'
    )
    return drawing, sentence, rows


class NetworkStill(SphinxDirective):
    """What the page on the trained network begins with, for where it cannot run."""

    def run(self) -> list[nodes.Node]:
        """Return the drawing, a sentence and a table of the maps' ranges."""
        self.env.note_dependency(str(STYLE))
        drawing, sentence, rows = still()
        headings = ["block", "places", "spatial map", "channel map"]
        return [
            nodes.raw("", drawing, format="html"),
            nodes.paragraph("", sentence),
            tables.table(headings, rows, set(headings)),
        ]
