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
autograd. What is as large as x is done by a backend's six functions, and nothing of that size but x
is kept. Descriptors and gates are float32 at least.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from cbam_edu import attention, fused_blocks, fused_triton
from cbam_edu.attention import GATES, ChannelAttention, SpatialAttention

SMALLEST = 2**17  # values of a map on a CPU; below, the plain form's fewer calls take less time


class CBAM(attention.CBAM):
    """CBAM: ``F' = M_c(F) * F``, then ``F'' = M_s(F') * F'`` (equation 1); fast where it can be.

    Parameters
    ----------
    channels, reduction, kernel_size, order, pooling, mixer, bias, norm, gate
        As in `cbam_edu.attention.CBAM`, the plain form, whose parameters and results it has.
    fused : bool
        Whether to take the hand-derived backward pass and the fused kernels of this module where
        `supports` and the size of the map allow; otherwise, the plain form.
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
        return super().forward(x)


# ---- What is as large as x


class Backend(Protocol):
    """What a device has to compute on feature maps; x and g are (N, C, H, W), of one format.

    Everything else is float32, or float64 where x is: c ``(N, C, 1, 1)``; s, maxima, ds, dmax,
    dmean and ties ``(N, 1, H, W)``; m, dc, da, dm ``(N, C)``. The names are the module's, above.
    """

    def serves(self, x: Tensor) -> bool:
        """Whether x is of a device and of a type that the backend knows."""

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and m."""

    def squeeze(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maximum and the mean of x c over the channels."""

    def scale(self, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        """Return x c s."""

    def gate_grads(self, g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return ds and the part of dc that comes from g s."""

    def map_grads(
        self, x: Tensor, c: Tensor, maxima: Tensor, dmax: Tensor, dmean: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rest of dc, t and n."""

    def input_grad(
        self, g: Tensor, x: Tensor, c: Tensor, s: Tensor, maxima: Tensor, dmax: Tensor,
        dmean: Tensor, m: Tensor, dm: Tensor, da: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return dx; dmax, dmean, dm and da are already divided by t, C, n and H W."""


BACKENDS: list[Backend] = [fused_blocks, fused_triton]  # the first that serves x is taken


def _backend(x: Tensor) -> Backend | None:
    return next((b for b in BACKENDS if b.serves(x)), None)


def _dense(t: Tensor, x: Tensor) -> Tensor:
    """Return `t` in the format that x is worked on: channels_last where x is, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# ---- The three steps on big maps, with their backward passes


class _Call:
    """One forward pass. Its backward passes leave here what `_Pool`'s, the last, makes dx of."""

    by_autograd = False  # once a graph of the gradients was wanted, steps may come without others
    g: Tensor
    c: Tensor
    s: Tensor
    maxima: Tensor
    dmax: Tensor  # divided by t
    dmean: Tensor  # divided by C
    n: Tensor

    def __init__(self, backend: Backend):
        self.backend = backend

    def is_plain(self) -> bool:
        """Whether each step's gradients are to be found by autograd, from the step's formula."""
        self.by_autograd |= torch.is_grad_enabled()
        return self.by_autograd


class _Pool(torch.autograd.Function):
    """x -> a, m. Its backward pass returns the whole of dx, the others none of it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor) -> tuple[Tensor, Tensor]:
        a, m = call.backend.pool(x)
        ctx.call = call
        ctx.save_for_backward(x, m)
        return a, m

    @staticmethod
    def backward(ctx: Any, da: Tensor, dm: Tensor) -> tuple[Tensor | None, ...]:
        (x, m), v = ctx.saved_tensors, ctx.call
        if v.is_plain():
            return None, *_by_autograd(_pool, [x], (da, dm))
        shares = v.dmax, v.dmean, m, dm / v.n, da / (x.shape[2] * x.shape[3])
        dx = v.backend.input_grad(v.g, x, v.c, v.s, v.maxima, *shares)
        del v.g
        return None, dx


class _Squeeze(torch.autograd.Function):
    """x, c -> z. The maxima m are there for the backward pass, which counts who attains them."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, c: Tensor, m: Tensor) -> Tensor:
        z = torch.cat(call.backend.squeeze(x, c), 1)
        ctx.call = call
        ctx.save_for_backward(x, c, m, z)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, m, z), v = ctx.saved_tensors, ctx.call
        if v.is_plain():
            return None, *_by_autograd(_squeeze, [x, c], dz), None
        v.maxima, dmax, dmean = z.detach()[:, :1], dz[:, :1], dz[:, 1:]
        dc, ties, v.n = v.backend.map_grads(x, c, v.maxima, dmax, dmean, m)
        v.dmax, v.dmean = dmax / ties, dmean / x.shape[1]
        return None, None, dc.view_as(c), None


class _Scale(torch.autograd.Function):
    """x, c, s -> out."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, c, s)
        return call.backend.scale(x, c, s)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, s), v = ctx.saved_tensors, ctx.call
        if v.is_plain():
            return None, *_by_autograd(_scale, [x, c, s], g)
        g = _dense(g, x)
        if x.requires_grad:
            v.g, v.c, v.s = g, c.detach(), s.detach()
        ds, dc = v.backend.gate_grads(g, x, c, s)
        return None, None, dc.view_as(c), ds


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.mean((2, 3)), wide.amax((2, 3))


def _squeeze(x: Tensor, c: Tensor) -> Tensor:
    y = x * c
    return torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)


def _scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return (x * c * s).to(x.dtype)


def _by_autograd(
    formula: Callable[..., Any], inputs: list[Tensor], grads: Any
) -> list[Tensor | None]:
    """Return the gradients of a step's inputs, with a graph of their own where one is wanted."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        here = [t.view_as(t) for t in inputs]  # so that it does not follow how c came from x
        wanted = [t for t in here if t.requires_grad]
        found = iter(torch.autograd.grad(formula(*here), wanted, grads, create_graph=graph))
    return [next(found) if t.requires_grad else None for t in here]


# ---- The gates, from what the steps found


class _Convolution(torch.autograd.Function):
    """The convolution of 2 maps to 1, whose gradient for the input is again a convolution.

    On a CPU, torch's own way to that gradient takes many times as long.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        return _convolve(z, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        z, weight = ctx.saved_tensors
        dz = _convolve(g, weight.flip(2, 3).transpose(0, 1))
        return dz, _weight_grad(z, weight, g) if ctx.needs_input_grad[1] else None


# A CPU computes 16 channels at once, or as many places as it has channels to fill: 8 neighbouring
# places are made 8 channels, whose kernels are the same one, shifted, in rows of k + 7.
NEIGHBOURS = 8


def _neighbours(z: Tensor) -> int:
    return NEIGHBOURS if z.is_cpu and z.shape[3] >= 2 * NEIGHBOURS else 1


def _padded(z: Tensor, k: int) -> Tensor:
    """Return the map with a margin for the kernel, its rows a whole number of neighbourhoods."""
    margin = k // 2
    return F.pad(z, (margin, margin + -z.shape[3] % _neighbours(z), margin, margin))


def _convolve(z: Tensor, weight: Tensor) -> Tensor:
    """Return ``conv2d(z, weight, padding=k // 2)``."""
    many, (outs, ins, k, _), (n, _, h, w) = _neighbours(z), weight.shape, z.shape
    if many == 1:
        return F.conv2d(z, weight.contiguous(), padding=k // 2)
    shifted = torch.stack([F.pad(weight, (j, many - 1 - j)) for j in range(many)], 1)
    kernels = shifted.view(outs * many, ins, k, k + many - 1)
    out = F.conv2d(_padded(z, k), kernels, stride=(1, many)).view(n, outs, many, h, -1)
    return out.permute(0, 1, 3, 4, 2).reshape(n, outs, h, -1)[..., :w]


def _weight_grad(z: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Return the gradient of the weight where `g` is that of ``_convolve(z, weight)``."""
    many, (_, ins, k, _), (n, _, h, w) = _neighbours(z), weight.shape, g.shape
    if many == 1:
        return conv2d_weight(z, weight.shape, g, padding=k // 2)
    g = F.pad(g, (0, -w % many)).view(n, h, -1, many).permute(0, 3, 1, 2)
    kernels = many, ins, k, k + many - 1
    found = conv2d_weight(_padded(z, k), kernels, g, stride=(1, many))
    return torch.stack([found[j, :, :, j : j + k] for j in range(many)]).sum(0, keepdim=True)


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
    logits = _Convolution.apply(z.to(weight.dtype), weight)
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


def refine(module: attention.CBAM, x: Tensor) -> Tensor:
    """Return what the plain form returns: (N, C, H, W) float -> the same shape.

    Only for what `supports` says yes to. Sums are taken in another order than in the plain form, so
    numbers agree to rounding; under autocast, the gates are computed in float32 nevertheless.
    """
    x = _dense(x, x)
    backend = _backend(x)
    assert backend is not None
    call = _Call(backend)
    with torch.autocast(x.device.type, enabled=False):
        a, m = _Pool.apply(call, x)
        c = _channel_map(module.channel, a, m)
        s = _spatial_map(module.spatial, _Squeeze.apply(call, x, c, m.detach()))
        return _Scale.apply(call, x, c, s)


def supports(module: attention.CBAM, x: Tensor) -> bool:
    """Whether `refine` takes this input; where not, the plain form does, or says what is wrong.

    It does not take: another order than channel-spatial, other poolings than avg and max, a device
    without backend; parameters of another type than the input's, unless autocast is on; gates that
    were replaced or that somebody watches by a hook; and whatever traces or transforms the plain
    operations: `torch.compile`, `torch.export`, `torch.func`, forward-mode derivatives, counters.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.ndim != 4 or not (x.is_cpu or x.is_cuda):
        return False
    if x.layout != torch.strided or not x.is_floating_point() or _transformed():
        return False
    if module.order != "channel-spatial" or not {"avg", "max"}.issuperset(module.channel.pooling):
        return False
    if x.shape[1] != module.channels or 0 in x.shape[1:] or _backend(x) is None:
        return False
    kind = x.dtype
    if torch.is_autocast_enabled(x.device.type) and kind != torch.float64:
        kind = torch.float32
    return _as_made(module, (kind, x.device))


def _transformed() -> bool:
    """Whether something looks at every operation, or differentiates by another way."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _as_made(module: attention.CBAM, kind: tuple[torch.dtype, torch.device]) -> bool:
    """Whether the gates are the ones of the paper, with all parameters of `kind`, and unwatched."""
    channel, spatial = module.channel, module.spatial
    gates = type(channel), type(spatial), type(channel.mixer), type(spatial.conv)
    if gates != (ChannelAttention, SpatialAttention, nn.Sequential, nn.Conv2d):
        return False
    layers = [*channel.mixer, spatial.conv, *([] if spatial.norm is None else [spatial.norm])]
    parameters = (p for layer in layers for p in layer.parameters(recurse=False))
    return all((p.dtype, p.device) == kind for p in parameters) and not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in (channel, channel.mixer, spatial, *layers)
    )
