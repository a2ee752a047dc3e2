"""The trained network and photographs to show it, written as a script for the explorer.

Each BatchNorm is folded into the convolution before it, in double precision, so the page computes
with half the layers. All numbers go into one line of base64: little-endian float32, one array after
the other, as `layout` says; a byte for each colour of the photographs.
"""

import base64
import functools
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbam_edu import data, load_pretrained
from cbam_edu.attention import CBAM
from cbam_edu.data import ImageSet
from cbam_edu.explain import AttentionMap, attention_maps

NAME = "resnet20_cbam"
PER_CLASS = 6  # photographs of each class; one of them is a mistake, if there is one
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
    """Return which photographs are on the page: of each class the first, and its first mistake."""
    labels, found = photographs().labels, []
    for label in range(len(photographs().classes)):
        members = (labels == label).nonzero().flatten()
        wrong = members[answers()[members] != label][:1].tolist()
        right = [i for i in members.tolist() if i not in wrong]
        found += right[: PER_CLASS - len(wrong)] + wrong
    return found


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
        "name": NAME,
        "classes": list(photos.classes),
        "mean": list(data.MEAN),
        "std": list(data.STD),
        "accuracy": {"right": right, "of": len(photos)},
        "layout": [[name, list(a.shape)] for name, a in found.items()],
        "weights": _base64(numbers),
        "photographs": {
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
