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

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import CBAM, GATES, ChannelAttention, SpatialAttention

BLOCK = 2**21  # bytes of a map worked on at a time, such that a few of them stay in the cache


def _wide(x: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


# ---- What is as large as x


class Backend(Protocol):
    """What a device has to compute on feature maps; x and g are (N, C, H, W), of one format.

    Everything else is float32, or float64 where x is: c ``(N, C, 1, 1)``; s, maxima, ds, dmax,
    dmean and ties ``(N, 1, H, W)``; m, dc, da, dm ``(N, C)``. The names are the module's, above.
    """

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


class InBlocks:
    """The backend in plain PyTorch, for a CPU: a few images at a time, which stay in the cache.

    Steps write into memory that is reused, for a fresh map of 16 MB costs ten times its arithmetic.
    Blocks are (n, C, P), or (n, P, C) in channels_last, where P = H W; a sum over their axis 1 is a
    product of matrices. Hence the two names: `channels` and `places` are axes of a block.
    """

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, m = (torch.empty(x.shape[:2], dtype=_wide(x)) for _ in range(2))
        _, places = _axes(x)
        for _, (xs,), (a_, m_) in _blocks(x, maps=[x], small=[a, m]):
            torch.mean(xs, places, keepdim=True, out=a_)
            torch.amax(xs, places, keepdim=True, out=m_)
        return a, m

    def squeeze(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        maxima, mean = (c.new_empty(len(x), 1, *x.shape[2:]) for _ in range(2))
        channels, _ = _axes(x)
        for (y,), (xs,), (c_, max_, mean_) in _blocks(x, [x], [c, maxima, mean], scratch=1):
            torch.mul(xs, c_, out=y)
            torch.amax(y, channels, keepdim=True, out=max_)
            torch.mean(y, channels, keepdim=True, out=mean_)
        return maxima, mean

    def scale(self, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        out = _empty_like(x)
        for (y,), (xs,), (c_, s_, out_) in _blocks(x, [x], [c, s, out], scratch=1):
            torch.mul(torch.mul(xs, c_, out=y), s_, out=out_)
        return out

    def gate_grads(self, g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        ds, dc = torch.empty_like(s), c.new_empty(c.shape[:2])
        sums = [c, ds, s, dc] if _axes(x) == (1, 2) else [s, dc, c, ds]
        for (t,), (gs, xs), (by, over_1, by_too, over_2) in _blocks(x, [g, x], sums, scratch=1):
            torch.mul(gs, xs, out=t)
            torch.bmm(by.mT, t, out=over_1)
            torch.sum(t.mul_(by_too), 2, keepdim=True, out=over_2)
        return ds, dc

    def map_grads(
        self, x: Tensor, c: Tensor, maxima: Tensor, dmax: Tensor, dmean: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dc, n, ties = torch.empty_like(m), torch.empty_like(m), torch.empty_like(maxima)
        channels, places = _axes(x)
        small = [c, maxima, dmax, dmean / x.shape[1], m, dc, n, ties]
        for (t,), (xs,), small_ in _blocks(x, [x], small, scratch=1):
            c_, max_, dmax_, dmean_, m_, dc_, n_, ties_ = small_
            torch.mul(xs, c_, out=t).eq_(max_)
            torch.sum(t, channels, keepdim=True, out=ties_)
            t.mul_(dmax_ / ties_).add_(dmean_)
            torch.sum(t.mul_(xs), places, keepdim=True, out=dc_)
            torch.sum(torch.eq(xs, m_, out=t), places, keepdim=True, out=n_)
        return dc, ties, n

    def input_grad(
        self, g: Tensor, x: Tensor, c: Tensor, s: Tensor, maxima: Tensor, dmax: Tensor,
        dmean: Tensor, m: Tensor, dm: Tensor, da: Tensor,
    ) -> Tensor:  # fmt: skip
        dx = _empty_like(x)
        small = [c, s, maxima, dmax, dmean, m, dm, da, dx]
        for (t, u), (gs, xs), small_ in _blocks(x, [g, x], small, scratch=2):
            c_, s_, max_, dmax_, dmean_, m_, dm_, da_, dx_ = small_
            torch.mul(xs, c_, out=t).eq_(max_).mul_(dmax_).add_(dmean_)
            t.addcmul_(gs, s_).mul_(c_).add_(da_)
            torch.addcmul(t, torch.eq(xs, m_, out=u), dm_, out=dx_)
        return dx


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _dense(t: Tensor, x: Tensor) -> Tensor:
    """Return `t` in the format that x is worked on: channels_last where x is, else contiguous."""
    last = _channels_last(x)
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _empty_like(x: Tensor) -> Tensor:
    kind = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=kind)


def _axes(x: Tensor) -> tuple[int, int]:
    """Return the axes of channels and of places in a block."""
    return (2, 1) if _channels_last(x) else (1, 2)


def _blocks(
    x: Tensor, maps: list[Tensor], small: list[Tensor], scratch: int = 0
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield a few images of everything at a time, as blocks.

    Of `scratch` buffers of the size of a map; of `maps`, widened where their type is narrow; and of
    `small`, which are views, so that one can write into them.
    """
    last = _channels_last(x)

    def as_blocks(t: Tensor) -> Tensor:
        t = t[:, :, None, None] if t.ndim == 2 else t
        n, c, h, w = t.shape
        return t.permute(0, 2, 3, 1).view(n, h * w, c) if last else t.view(n, c, h * w)

    wide, images = _wide(x), max(1, BLOCK // (4 * x[:1].numel() or 1))
    several = [as_blocks(t).split(images) for t in (*maps, *small)]  # of each, its blocks
    room = torch.empty(scratch, *several[0][0].shape, dtype=wide)
    for blocks in zip(*several, strict=True):
        buffers = [room[i, : len(blocks[0])] for i in range(scratch)]
        first, others = blocks[: len(maps)], blocks[len(maps) :]
        yield buffers, [t.to(wide) for t in first], list(others)


BACKENDS: dict[str, Backend] = {"cpu": InBlocks()}  # by the device's type


# ---- What is small


class _Convolution(torch.autograd.Function):
    """The convolution of 2 maps to 1, whose gradient for the input is again a convolution.

    oneDNN's own way to that gradient takes twenty times as long.
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
            dweight = torch.nn.grad.conv2d_weight(z, weight.shape, g, padding=k // 2)
        return dz, dweight


def _channel_map(channel: ChannelAttention, a: Tensor, m: Tensor) -> Tensor:
    """Return M_c from what the pooling found, in the type of `a`."""
    kind = next(channel.parameters()).dtype
    pooled = {"avg": a.to(kind), "max": m.to(kind)}
    logits = torch.stack([channel.mixer(pooled[name]) for name in channel.pooling]).sum(0)
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


def _refine(module: CBAM, x: Tensor, graph: bool) -> tuple[Tensor, _Kept]:
    x, backend = _dense(x, x), BACKENDS[x.device.type]
    with torch.autocast(x.device.type, enabled=False):
        a, m = (v.requires_grad_(graph) for v in backend.pool(x))
        with torch.set_grad_enabled(graph):
            c = _channel_map(module.channel, a, m)
        z = torch.cat(backend.squeeze(x, c.detach()), 1).requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            s = _spatial_map(module.spatial, z)
        return backend.scale(x, c.detach(), s.detach()), _Kept(a, m, c, z, s)


def _small_gradients(map_: Tensor, wanted: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Send the gradient of a gate back to what it came from; zeros where it came not from there."""
    return list(torch.autograd.grad(map_, wanted, grad, retain_graph=True, materialize_grads=True))


def _gradients(
    module: CBAM, kept: _Kept, g: Tensor, x: Tensor, with_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return dx, where it is wanted, and the gradients of the parameters that have one."""
    backend, maxima = BACKENDS[x.device.type], kept.z.detach()[:, :1].contiguous()
    m, c, s = kept.m.detach(), kept.c.detach(), kept.s.detach()
    ds, dc = backend.gate_grads(g, x, c, s)
    dz, *d_spatial = _small_gradients(kept.s, [kept.z, *_trained(module.spatial)], ds)
    dmax, dmean = (d.contiguous() for d in dz.split(1, 1))
    rest, ties, n = backend.map_grads(x, c, maxima, dmax, dmean, m)
    wanted = [kept.a, kept.m, *_trained(module.channel)]
    da, dm, *d_channel = _small_gradients(kept.c, wanted, (dc + rest).view_as(c))
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
    def forward(ctx: Any, module: CBAM, x: Tensor, *parameters: Tensor) -> Tensor:
        out, ctx.kept = _refine(module, x, graph=True)
        ctx.module = module
        ctx.save_for_backward(x, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        with_x = ctx.needs_input_grad[1]
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():  # a gradient of the gradient is wanted
                wanted = [x, *parameters] if with_x else parameters
                found = torch.autograd.grad(_plain(ctx.module, x), wanted, g, create_graph=True)
                return None, *((None,) * (not with_x)), *found
            x = _dense(x, x)
            dx, found = _gradients(ctx.module, ctx.kept, _dense(g, x), x, with_x)
            return None, dx, *found


def supports(module: CBAM, x: Tensor) -> bool:
    """Whether `forward` takes this input; where not, the plain form does, or says what is wrong.

    It does not take: another order than channel-spatial, other poolings than avg and max, a device
    without backend; parameters of another type than the input's, unless autocast is on; gates that
    were replaced or that somebody watches by a hook; and whatever traces or transforms the plain
    operations: `torch.compile`, `torch.export`, `torch.func`, forward-mode derivatives, counters.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    own = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and x.ndim == 4
    if not own or x.device.type not in BACKENDS or not x.is_floating_point():
        return False
    if module.order != "channel-spatial" or not {"avg", "max"}.issuperset(module.channel.pooling):
        return False
    if x.shape[1] != module.channels or 0 in x.shape[1:] or _transformed():
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
    parameters = _trained(module)
    if torch.is_grad_enabled() and (x.requires_grad or parameters):
        return _Refine.apply(module, x, *parameters)
    return _refine(module, x, graph=False)[0]
