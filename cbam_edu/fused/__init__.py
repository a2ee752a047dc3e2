"""CBAM by a hand-derived backward pass, which keeps one feature map and makes few passes.

By the clock, CBAM is limited by memory. Autograd keeps x, x c and more for the backward pass, and
walks over a map of full size for each operation. Here the backward pass is written out.

Forward, with places p (H x W of them) and channels k (C of them):

    a_k = mean_p x,  m_k = max_p x,   c = M_c(a, m)
    y = x c,   z_p = [max_k y, mean_k y],   s = M_s(z),   out = y s

Backward, from g, the gradient of out. The gradient of a maximum is shared by all that attain it,
as `torch.amax` does; t_p is how many channels attain max_k y, and n_k how many places attain m.

    ds_p = sum_k g x c              M_s's own graph turns it into [dmax_p, dmean_p]
    dy   = g s + dmean / C + [y = max_k y] dmax / t
    dc_k = sum_p x dy               M_c's own graph turns it into da_k, dm_k
    dx   = c dy + da / (H W) + [x = m] dm / n

What is small (the descriptors a, m, z and their gates) is left to the module's own layers and to
autograd. What is as large as x is done by a backend's six functions (`steps.Backend`), and
nothing of that size but x is kept. Descriptors and gates are float32 at least.

Where an image and the MLP are small enough for a GPU's chip, a, m, c and z are found in one step,
and so are dc, the MLP's gradients and dx (`chip`). Where a residual block's addition and ReLU
follow, a GPU does them together with the product y s (`refine_and_add`). What comes before CBAM
there, BatchNorm, is not drawn in: to train, it needs a pass of its own over x, for its statistics.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu import attention
from cbam_edu.attention import GATES, ChannelAttention, SpatialAttention
from cbam_edu.fused import blocks, chip, gpu, steps
from cbam_edu.fused.convolution import convolve
from cbam_edu.fused.steps import Backend, Call, dense

BACKENDS: list[Backend] = [blocks, gpu]  # the first that serves x is taken
_GLOBAL_HOOKS = [  # on all modules; what asks for them together, torch 2.6 does not have
    getattr(nn.modules.module, f"_global_{when}_hooks")
    for when in ("backward_pre", "backward", "forward_pre", "forward")
]
SMALLEST = 2**17  # values of a map on a CPU; below, the plain form's fewer calls take less time


class CBAM(attention.CBAM):
    """CBAM: ``F' = M_c(F) * F``, then ``F'' = M_s(F') * F'`` (equation 1); fast where it can be.

    Parameters
    ----------
    channels, reduction, kernel_size, order, pooling, mixer, bias, norm, gate
        As in `cbam_edu.attention.CBAM`, the plain form, whose parameters and results it has.
    fused : bool
        Whether to take the hand-derived backward pass and the fused kernels of this module where
        `supports` and the size of the map allow; otherwise, the plain form. A compiler gets the
        plain operations, to fuse by itself, with the convolution of this package.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        order: str = "channel-spatial",
        pooling: Sequence[str] = ("avg", "max"),
        mixer: str = "mlp",
        bias: bool = True,
        norm: bool = True,
        gate: str = "sigmoid",
        fused: bool = True,
    ):
        gates: dict[str, Any] = {"pooling": pooling, "mixer": mixer, "bias": bias, "norm": norm}
        super().__init__(channels, reduction, kernel_size, order=order, gate=gate, **gates)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined feature map: (N, C, H, W) float -> the same shape."""
        if self.fused and supports(self, x):
            if x.is_cuda or (torch.is_grad_enabled() and x.numel() >= SMALLEST):
                return refine(self, x)
            if not torch.is_grad_enabled():
                return _in_place(self, x)
        if self.fused and torch.compiler.is_dynamo_compiling() and _compiles(self, x):
            return _for_a_compiler(self, x)
        return super().forward(x)


# ---- The gates, from what the steps found


def _backend(x: Tensor) -> Backend | None:
    return next((b for b in BACKENDS if b.serves(x)), None)


def _weights_on_chip(channel: ChannelAttention, x: Tensor) -> list[Tensor]:
    """Return the MLP's w1, b1, w2, b2 where `chip` takes it and x; otherwise nothing."""
    if _backend(x) is not gpu or sorted(channel.pooling) != ["avg", "max"]:
        return []
    layers: list[Any] = [*channel.mixer]
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear] or channel.gate != "sigmoid":
        return []
    first, _, last = layers
    if not chip.fits(x, first.weight, last.weight):
        return []
    pairs = ((layer.weight, layer.bias) for layer in (first, last))
    return [v for w, b in pairs for v in (w, w.new_zeros(len(w)) if b is None else b)]


def _channel_map(channel: ChannelAttention, a: Tensor, m: Tensor) -> Tensor:
    """Return M_c from what the pooling found, in the type of `a`."""
    kind = next(channel.parameters()).dtype
    pooled = {"avg": a.to(kind), "max": m.to(kind)}
    logits = channel.mixer(torch.cat([pooled[name] for name in channel.pooling]))
    logits = logits.view(len(channel.pooling), *a.shape).sum(0)
    return GATES[channel.gate](logits.to(a.dtype)[:, :, None, None])


def _spatial_map(spatial: SpatialAttention, z: Tensor) -> Tensor:
    """Return M_s from the maximum and the mean over the channels, in the type of `z`."""
    weight, n = spatial.conv.weight, spatial.norm
    logits = convolve(z.to(weight.dtype), weight)
    if n is not None and spatial.training and logits.numel() == 1:
        logits = F.batch_norm(logits, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
    elif n is not None:
        logits = n(logits)
    return GATES[spatial.gate](logits.to(z.dtype))


# ---- All together


def _in_place(module: attention.CBAM, x: Tensor) -> Tensor:
    """Return what the plain form returns where no gradient is wanted: one map, written twice."""
    y = x * module.channel(x)
    return y.mul_(module.spatial(y))


def _compiles(module: attention.CBAM, x: Tensor) -> bool:
    """Whether `_for_a_compiler` takes x: to train, on a CPU, with the gates as made.

    And in channels_last alone: with contiguous maps, torch 2.11 writes one more map for it, and is
    slower than with the plain convolution.
    """
    if not module.training or module.order != "channel-spatial" or x.device.type != "cpu":
        return False
    attention.check_input(x, module.channels)
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    spatial = module.spatial
    return (
        type(spatial) is SpatialAttention
        and type(spatial.conv) is nn.Conv2d
        and _is_usual(spatial.conv)
    )


def _for_a_compiler(module: attention.CBAM, x: Tensor) -> Tensor:
    """Return what the plain form returns, by its operations but for the convolution.

    A compiler fuses them by itself; but it leaves the convolution's slow gradient as it is.
    """
    y = x * module.channel(x)
    z = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    return y * _spatial_map(module.spatial, z)


def refine(module: attention.CBAM, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return what the plain form returns: (N, C, H, W) float -> the same shape.

    Only for what `supports` says yes to; with a `residual`, only for what `_joins` says yes to, and
    then it is added and the ReLU taken. Sums are taken in another order than in the plain form, so
    numbers agree to rounding; under autocast, the gates are computed in float32 nevertheless.
    """
    x = dense(x, x)
    backend = _backend(x)
    assert backend is not None
    call = Call(backend)
    with torch.autocast(x.device.type, enabled=False):
        if weights := _weights_on_chip(module.channel, x):
            c, z = steps.gates(call, x, *weights)
        else:
            a, m = steps.pool(call, x)
            c = _channel_map(module.channel, a, m)
            z = steps.squeeze(call, x, c, m.detach())
        s = _spatial_map(module.spatial, z)
        if residual is None:
            return steps.scale(call, x, c, s)
        return steps.join(call, x, c, s, residual)


def refine_and_add(module: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """Return ``relu(module(x) + residual)``, the end of a residual block.

    On a GPU, a `CBAM` does both as it multiplies by its last map, and spares 5 of the 8 passes over
    memory that an addition and a ReLU make, forward and backward.

    Parameters
    ----------
    module : Module
        What stands before the addition, be it a `CBAM` or anything else.
    x, residual : Tensor
        (N, C, H, W) float, the module's input and what is added to its output.
    """
    if type(module) is CBAM and module.fused and _joins(module, x, residual):
        return refine(module, x, residual)
    return F.relu(module(x) + residual)


def supports(module: attention.CBAM, x: Tensor) -> bool:
    """Whether `refine` takes this input; where not, the plain form does, or says what is wrong.

    It does not take: another order than channel-spatial, other poolings than avg and max, a device
    without backend; parameters of another type than the input's, unless autocast is on; gates that
    were replaced or that somebody watches by a hook; and whatever traces or transforms the plain
    operations: `torch.compile`, `torch.export`, `torch.func`, forward-mode derivatives, counters.
    """
    if not _is_plain(x) or x.ndim != 4 or not x.is_floating_point():
        return False
    if module.order != "channel-spatial" or any(_GLOBAL_HOOKS):
        return False
    if x.shape[1] != module.channels or 0 in x.shape[1:] or _backend(x) is None:
        return False
    kind = x.dtype
    if torch.is_autocast_enabled(x.device.type) and kind != torch.float64:
        kind = torch.float32
    return _as_made(module, (kind, x.device))


def _is_plain(x: Tensor) -> bool:
    """Whether x is an ordinary tensor, and nothing traces or transforms what is done to it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return False
    return (x.is_cpu or x.is_cuda) and not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _as_made(module: attention.CBAM, kind: tuple[torch.dtype, torch.device]) -> bool:
    """Whether the gates are the ones of the paper, with all parameters of `kind`, and unwatched."""
    channel, spatial = module.channel, module.spatial
    if (type(channel), type(spatial)) != (ChannelAttention, SpatialAttention):
        return False
    if (type(channel.mixer), type(spatial.conv)) != (nn.Sequential, nn.Conv2d):
        return False
    if not {"avg", "max"}.issuperset(channel.pooling) or not _is_usual(spatial.conv):
        return False
    if [type(layer) for layer in channel.mixer] not in _MIXERS:
        return False
    layers = [*channel.mixer, spatial.conv, *([] if spatial.norm is None else [spatial.norm])]
    parameters = (p for layer in layers for p in layer.parameters(recurse=False))
    if any((p.dtype, p.device) != kind for p in parameters):
        return False
    return not any(map(_watched, (channel, channel.mixer, spatial, *layers)))


# Layers that treat each row by itself, so that both poolings can go through them at once.
_MIXERS = [nn.Linear, nn.ReLU, nn.Linear], [nn.Unflatten, nn.Conv1d, nn.Flatten]


def _is_usual(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one that its weight says all about."""
    k = conv.kernel_size[0]
    made = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups
    usual = (k, k), (k // 2, k // 2), (1, 1), (1, 1), 1
    return k % 2 == 1 and made == usual and conv.bias is None and conv.padding_mode == "zeros"


def _watched(module: nn.Module) -> bool:
    """Whether somebody looks at what a module itself takes and returns, or has changed it."""
    m = module
    hooks = m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks
    return any(hooks) or "forward" in vars(m)


def _joins(module: CBAM, x: Tensor, residual: Tensor) -> bool:
    """Whether `refine` takes a residual, too: on a GPU, where nobody waits for the sum's parts."""
    if not _is_plain(x) or _backend(x) is not gpu or not supports(module, x):
        return False
    one, other = ((type(t), t.layout, t.shape, t.dtype, t.device) for t in (x, residual))
    return one == other and not _watched(module)
