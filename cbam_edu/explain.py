"""Look inside: the attention maps of every layer of a network."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cbam_edu.attention import ChannelAttention, SpatialAttention


class AttentionMap(NamedTuple):
    """The maps of one attention layer for a batch.

    Attributes
    ----------
    name : str
        The layer's name in the network, such as ``"stages.0.0.attention"``.
    channel : Tensor or None
        M_c, ``(N, C, 1, 1)``; None where the layer has no channel gate.
    spatial : Tensor or None
        M_s, ``(N, 1, H, W)``; None where the layer has no spatial gate.
    """

    name: str
    channel: Tensor | None
    spatial: Tensor | None


def attention_maps(model: nn.Module, x: Tensor) -> list[AttentionMap]:
    """Run a network on a batch and return what its gates answered, in the order of the layers.

    Works for every network whose gates are called as modules, which those of a CBAM in parallel
    are not: there the logits are added before they become one map.

    Parameters
    ----------
    model : torch.nn.Module
        Any network with `ChannelAttention` or `SpatialAttention` in it. Its mode stays as it is.
    x : Tensor
        The network's input, ``(N, 3, H, W) float``.

    Raises
    ------
    ValueError
        Where the network has no such gate.
    """
    maps: dict[str, dict[str, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, ChannelAttention | SpatialAttention):
            layer, _, _ = name.rpartition(".")
            kind = "channel" if isinstance(module, ChannelAttention) else "spatial"

            def keep(
                _m: nn.Module, _x: object, out: Tensor, layer: str = layer, kind: str = kind
            ) -> None:
                maps.setdefault(layer, {})[kind] = out.detach()

            hooks.append(module.register_forward_hook(keep))
    if not hooks:
        raise ValueError(f"{type(model).__name__} has no channel or spatial attention to look at")
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [AttentionMap(name, m.get("channel"), m.get("spatial")) for name, m in maps.items()]
