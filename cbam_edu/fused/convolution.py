"""The spatial gate's convolution, of 2 maps to 1, with a backward pass that is fast on a CPU.

A CPU computes 16 channels at once, or as many places as it has channels to fill. So 8 neighbouring
places are made 8 channels, whose kernels are the same one, shifted, in rows of k + 7.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

NEIGHBOURS = 8


class _Convolution(torch.autograd.Function):
    """The convolution of 2 maps to 1, whose gradient for the input is again a convolution.

    On a CPU, torch's own way to that gradient takes many times as long.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        out = _convolve(z, weight)
        # Beside the kernels are zeros, which times an infinity are NaN at more places of a row.
        if _neighbours(z) == 1 or torch.compiler.is_compiling() or out.isfinite().all():
            return out
        return F.conv2d(z, weight.contiguous(), padding=weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        z, weight = ctx.saved_tensors
        dz = _convolve(g, weight.flip(2, 3).transpose(0, 1))
        return dz, _weight_grad(z, weight, g) if ctx.needs_input_grad[1] else None


convolve = _Convolution.apply


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
    columns = -(-w // many)
    out = F.conv2d(_padded(z, k), kernels, stride=(1, many)).view(n, outs, many, h, columns)
    return out.permute(0, 1, 3, 4, 2).reshape(n, outs, h, columns * many)[..., :w]


def _weight_grad(z: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Return the gradient of the weight where `g` is that of ``_convolve(z, weight)``."""
    many, (_, ins, k, _), (n, _, h, w) = _neighbours(z), weight.shape, g.shape
    if many == 1:
        return conv2d_weight(z, weight.shape, g, padding=k // 2)
    g = F.pad(g, (0, -w % many)).view(n, h, -(-w // many), many).permute(0, 3, 1, 2)
    kernels = many, ins, k, k + many - 1
    found = conv2d_weight(_padded(z, k), kernels, g, stride=(1, many))
    return torch.stack([found[j, :, :, j : j + k] for j in range(many)]).sum(0, keepdim=True)
