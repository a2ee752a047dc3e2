"""The steps of CBAM on maps as large as x, each with its backward pass.

The names and the equations are those of `cbam_edu.fused`. The steps of one forward pass share a
`Call`: their backward passes leave there what the last of them, that of `_Pool` or of `_Gates`,
makes dx of. Where a graph of the gradients is wanted, autograd finds each step's gradients instead.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cbam_edu.fused import chip, gpu


class Backend(Protocol):
    """What a device has to compute on feature maps; x and g are (N, C, H, W), of one format.

    Everything else is float32, or float64 where x is: c ``(N, C, 1, 1)``; s, maxima, ds, dmax,
    dmean and ties ``(N, 1, H, W)``; m, dc, da, dm ``(N, C)``. The names are `cbam_edu.fused`'s.
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


class Call:
    """One forward pass, and what the steps of its backward pass leave for the last."""

    by_autograd = False  # once a graph of the gradients was wanted, steps may come without others

    def __init__(self, backend: Backend):
        self.backend = backend
        self.left: dict[str, tuple[int, tuple[Tensor, ...]]] = {}

    def is_plain(self, g: Tensor) -> bool:
        """Whether each step's gradients are to be found by autograd, from the step's formula."""
        self.by_autograd |= torch.is_grad_enabled()
        several = torch._C._functorch.is_legacy_batchedtensor(g)  # `is_grads_batched`
        return self.by_autograd or several or torch._C._are_functorch_transforms_active()

    def leave(self, step: str, *found: Tensor) -> None:
        """Leave what a step found, for the last step of the same backward pass."""
        self.left[step] = torch._C._current_graph_task_id(), found

    def take(self, step: str) -> tuple[Tensor, ...]:
        """Return what a step of this backward pass left.

        Raises
        ------
        RuntimeError
            If another backward pass went through the same graph meanwhile.
        """
        task, found = self.left.pop(step, (None, ()))
        if task != torch._C._current_graph_task_id():
            raise RuntimeError(
                "two backward passes went through the graph of one CBAM at the same time; let them "
                "come one after the other, or make it with CBAM(..., fused=False)"
            )
        return found


def dense(t: Tensor, x: Tensor) -> Tensor:
    """Return `t` in the format that x is worked on: channels_last where x is, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# ---- From x to c and z


class _Pool(torch.autograd.Function):
    """x -> a, m. Its backward pass returns the whole of dx; `_Squeeze`'s and `_Scale`'s, none."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
        a, m = call.backend.pool(x)
        ctx.call = call
        ctx.save_for_backward(x, m)
        return a, m

    @staticmethod
    def backward(ctx: Any, da: Tensor, dm: Tensor) -> tuple[Tensor | None, ...]:
        (x, m), v = ctx.saved_tensors, ctx.call
        if v.is_plain(da):
            return None, *_by_autograd(_pool, [x], (da, dm))
        (g, c, s), (maxima, dmax, dmean, n) = v.take("scale"), v.take("squeeze")
        shares = dmax, dmean, m, dm / n, da / (x.shape[2] * x.shape[3])
        return None, v.backend.input_grad(g, x, c, s, maxima, *shares)


class _Squeeze(torch.autograd.Function):
    """x, c -> z. The maxima m are there for the backward pass, which counts who attains them."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, c: Tensor, m: Tensor) -> Tensor:
        z = torch.cat(call.backend.squeeze(x, c), 1)
        ctx.call = call
        ctx.save_for_backward(x, c, m, z)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, m, z), v = ctx.saved_tensors, ctx.call
        if v.is_plain(dz):
            return None, *_by_autograd(_squeeze, [x, c], dz), None
        maxima, dmax, dmean = z.detach()[:, :1], dz[:, :1], dz[:, 1:]
        dc, ties, n = v.backend.map_grads(x, c, maxima, dmax, dmean, m)
        if ctx.needs_input_grad[1]:
            v.leave("squeeze", maxima, dmax / ties, dmean / x.shape[1], n)
        return None, None, dc.view_as(c), None


class _Gates(torch.autograd.Function):
    """x and the MLP's w1, b1, w2, b2 -> c, z: `_Pool`, M_c and `_Squeeze` of images on the chip."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        a, m, c, *maps = chip.gate_both(x, *weights)
        z = torch.cat(maps, 1)
        ctx.call = call
        ctx.save_for_backward(a, m, c, z, x, *weights)
        return c, z

    @staticmethod
    def backward(ctx: Any, dc: Tensor, dz: Tensor) -> tuple[Tensor | None, ...]:
        (a, m, c, z, *inputs), v = ctx.saved_tensors, ctx.call
        x, *weights = inputs
        if v.is_plain(dz) or not ctx.needs_input_grad[1]:
            return None, *_by_autograd(_gates, inputs, (dc, dz))
        g, _, s = v.take("scale")
        maps = g, x, c, s, z[:, :1], dz[:, :1], dz[:, 1:]
        return None, *chip.gate_back(*maps, dc, a, m, *weights[:3])


pool, squeeze, gates = _Pool.apply, _Squeeze.apply, _Gates.apply

# ---- From x, c and s to the output


class _Scale(torch.autograd.Function):
    """x, c, s -> out."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, c, s)
        return call.backend.scale(x, c, s)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, s), v = ctx.saved_tensors, ctx.call
        if v.is_plain(g):
            return None, *_by_autograd(_scale, [x, c, s], g)
        g = dense(g, x)
        if ctx.needs_input_grad[1]:
            v.leave("scale", g, c.detach(), s.detach())
        ds, dc = v.backend.gate_grads(g, x, c, s)
        return None, None, dc.view_as(c), ds


class _Join(torch.autograd.Function):
    """x, c, s, r -> the ReLU of x c s + r."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, c: Tensor, s: Tensor, r: Tensor) -> Tensor:
        out = gpu.scale(x, c, s, r)
        ctx.call = call
        ctx.save_for_backward(x, c, s, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, s, out), v = ctx.saved_tensors, ctx.call
        if v.is_plain(g):
            dr = torch.where(out.detach() <= 0, 0, g)
            return None, *_by_autograd(_scale, [x, c, s], dr), dr
        dr, ds, dc = gpu.residual_grads(g, out, x, c, s)
        if ctx.needs_input_grad[1]:
            v.leave("scale", dr, c.detach(), s.detach())
        return None, None, dc.view_as(c), ds, dr


scale, join = _Scale.apply, _Join.apply

# ---- The steps' formulas


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.mean((2, 3)), wide.amax((2, 3))


def _squeeze(x: Tensor, c: Tensor) -> Tensor:
    y = x * c
    return torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)


def _gates(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    pooled = _pool(x)
    w1, b1, w2, b2 = (w.to(pooled[0].dtype) for w in weights)
    of_mean, of_max = (F.linear(F.linear(v, w1, b1).relu(), w2, b2) for v in pooled)
    c = (of_mean + of_max).sigmoid()[:, :, None, None]
    return c, _squeeze(x, c)


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
        outs = formula(*here)
        found = iter(torch.autograd.grad(outs, wanted, grads, create_graph=graph) if wanted else ())
    return [next(found) if t.requires_grad else None for t in here]
