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

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from cbam_edu import fused_blocks, fused_triton
from cbam_edu.attention import CBAM, GATES, ChannelAttention, SpatialAttention

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


# ---- What is small


class _Convolution(torch.autograd.Function):
    """The convolution of 2 maps to 1, whose gradient for the input is again a convolution.

    On a CPU, torch's own way to that gradient takes many times as long.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        return F.conv2d(z, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        z, weight = ctx.saved_tensors
        k, dweight = weight.shape[-1], None
        dz = F.conv2d(g, weight.flip(2, 3).transpose(0, 1), padding=k // 2)
        if ctx.needs_input_grad[1]:
            dweight = conv2d_weight(z, weight.shape, g, padding=k // 2)
        return dz, dweight


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


# ---- Both together


class _Kept(NamedTuple):
    """What the backward pass needs besides x: descriptors, and gates with their graphs."""

    a: Tensor
    m: Tensor
    c: Tensor
    z: Tensor
    s: Tensor


def _refine(backend: Backend, module: CBAM, x: Tensor, graph: bool = False) -> tuple[Tensor, _Kept]:
    """Return the output, and what the backward pass needs, with the graphs of the gates or not."""
    x = _dense(x, x)
    with torch.autocast(x.device.type, enabled=False):
        a, m = (v.requires_grad_(graph) for v in backend.pool(x))
        with torch.set_grad_enabled(graph):
            c = _channel_map(module.channel, a, m)
        z = torch.cat(backend.squeeze(x, c.detach()), 1).requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            s = _spatial_map(module.spatial, z)
        return backend.scale(x, c.detach(), s.detach()), _Kept(a, m, c, z, s)


def _small_gradients(map_: Tensor, wanted: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Send a gate's gradient back; zeros for what the gate does not need, or was since frozen."""
    free = [t for t in wanted if t.requires_grad]
    found = torch.autograd.grad(map_, free, grad, retain_graph=True, materialize_grads=True)
    by_tensor = dict(zip(map(id, free), found, strict=True))
    return [by_tensor[id(t)] if t.requires_grad else torch.zeros_like(t) for t in wanted]


def _gradients(
    backend: Backend, trained: list[list[Tensor]], kept: _Kept, g: Tensor, x: Tensor, with_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return dx, where it is wanted, and the gradients of what is trained of the two gates."""
    of_channel, of_spatial = trained
    maxima, m = kept.z.detach()[:, :1].contiguous(), kept.m.detach()
    c, s = kept.c.detach(), kept.s.detach()
    ds, dc = backend.gate_grads(g, x, c, s)
    dz, *d_spatial = _small_gradients(kept.s, [kept.z, *of_spatial], ds)
    dmax, dmean = (d.contiguous() for d in dz.split(1, 1))
    rest, ties, n = backend.map_grads(x, c, maxima, dmax, dmean, m)
    dc = (dc + rest).view_as(c)
    da, dm, *d_channel = _small_gradients(kept.c, [kept.a, kept.m, *of_channel], dc)
    dx = None
    if with_x:
        dmax, dmean, dm = dmax / ties, dmean / x.shape[1], dm / n
        da = da / (x.shape[2] * x.shape[3])
        dx = backend.input_grad(g, x, c, s, maxima, dmax, dmean, m, dm, da)
    return dx, [*d_channel, *d_spatial]


def _plain(module: CBAM, x: Tensor) -> Tensor:
    """Return what the module returns, by its own formula; no running statistics move."""
    buffers = {name: b.clone() for name, b in module.spatial.named_buffers()}
    y = x.to(next(module.parameters()).dtype)
    y = y * module.channel(y)
    out = y * torch.func.functional_call(module.spatial, buffers, (y,))
    return out.to(x.dtype)


def _trained(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


class _Refine(torch.autograd.Function):
    """`_refine` with its backward pass; the parameters are named so that they get gradients."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, module: CBAM, x: Tensor, *parameters: Tensor) -> Tensor:
        out, ctx.kept = _refine(backend, module, x, graph=True)
        ctx.backend, ctx.module = backend, module
        ctx.trained = [_trained(module.channel), _trained(module.spatial)]
        ctx.save_for_backward(x, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        with_x = ctx.needs_input_grad[2]
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():  # a gradient of the gradient is wanted
                wanted = [x, *parameters] if with_x else parameters
                found = torch.autograd.grad(_plain(ctx.module, x), wanted, g, create_graph=True)
                return None, None, *([] if with_x else [None]), *found
            x = _dense(x, x)
            g = _dense(g, x)
            dx, grads = _gradients(ctx.backend, ctx.trained, ctx.kept, g, x, with_x)
            return None, None, dx, *grads


def supports(module: CBAM, x: Tensor) -> bool:
    """Whether `forward` takes this input; where not, the plain form does, or says what is wrong.

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
    expected = (nn.Parameter, kind, x.device)
    if any((type(p), p.dtype, p.device) != expected for p in module.parameters()):
        return False
    gates = (type(module.channel), type(module.spatial), type(module.spatial.conv))
    return gates == (ChannelAttention, SpatialAttention, nn.Conv2d) and not _watched(module)


def _transformed() -> bool:
    """Whether something looks at every operation, or differentiates by another way."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _watched(module: CBAM) -> bool:
    """Whether a hook waits for the gates, which are not called here."""
    inner = (m for gate in (module.channel, module.spatial) for m in gate.modules())
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in inner
    ) or any(p._backward_hooks for p in module.parameters())


def forward(module: CBAM, x: Tensor) -> Tensor:
    """Return what ``module(x)`` returns: (N, C, H, W) float -> the same shape.

    Only for what `supports` says yes to. Sums are taken in another order than in the plain form, so
    numbers agree to rounding; under autocast, the gates are computed in float32 nevertheless.
    """
    backend, parameters = _backend(x), _trained(module)
    assert backend is not None
    if torch.is_grad_enabled() and (x.requires_grad or parameters):
        return _Refine.apply(backend, module, x, *parameters)
    return _refine(backend, module, x)[0]
