"""Look inside: the attention maps of every layer of a network, and Grad-CAM."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import ChannelAttention, SpatialAttention
from cbam_edu.measure import evaluating


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


def grad_cam(model: nn.Module, x: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
    """Return where a layer's output speaks for a class.

    R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, equations 1 and 2: the layer's maps, each weighted with its mean
    gradient, added, and negative sums cut off.

    Parameters
    ----------
    model : torch.nn.Module
        Maps `x` to logits ``(N, classes)``; run in evaluation mode, and left as it was.
    x : Tensor
        The network's input, ``(N, 3, H, W) float``.
    classes : Tensor
        ``(N,) int64``, the class that each image is asked about.
    layer : torch.nn.Module
        A part of the network that is called once and returns ``(N, C, h, w)``, such as
        ``model.stages[-1]``.

    Returns
    -------
    Tensor
        ``(N, h, w) float``, from 0 up; as large as the layer's maps, for `resize`.

    Raises
    ------
    ValueError
        Where the layer is not called once, its output is not four-dimensional, the logits do not
        depend on it, or the network has no such class.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _input: object, out: object) -> Tensor | None:
        if not isinstance(out, Tensor):
            return None
        seen.append(out)
        return out.clone()  # to go on with: what follows may write into it

    hook = layer.register_forward_hook(keep)
    try:
        # x needs a gradient, lest frozen weights leave no graph at all.
        with evaluating(model), torch.enable_grad():
            logits = model(x.detach().requires_grad_())
            if classes.min() < 0 or classes.max() >= logits.shape[1]:
                raise ValueError(
                    f"classes must lie between 0 and {logits.shape[1] - 1}, for a network of "
                    f"{logits.shape[1]} outputs; got {classes.min()} to {classes.max()}"
                )
            chosen = logits.gather(1, classes[:, None]).sum()
    finally:
        hook.remove()
    name = type(layer).__name__
    if len(seen) != 1 or seen[0].ndim != 4:
        shapes = ", ".join(str(tuple(s.shape)) for s in seen) or "no tensor"
        raise ValueError(
            f"the layer must be called once and return (N, C, h, w); {name} returned {shapes}"
        )
    (gradient,) = torch.autograd.grad(chosen, seen, allow_unused=True)
    if gradient is None:
        raise ValueError(f"the logits do not depend on what the layer, {name}, returned")
    weights = gradient.mean((2, 3), keepdim=True)
    return F.relu((weights * seen[0].detach()).sum(1))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps, ``(N, h, w)``, to ``(N, *size)`` by bilinear interpolation."""
    larger = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    return larger[:, 0]
