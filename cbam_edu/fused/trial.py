"""The Triton kernels on trial: before a GPU's first use, their numbers are held to a CPU's.

Nobody can test every GPU, driver and version of Triton. So all functions of `gpu` and of
`chip` are run on one small map, of odd sides and with ties. That takes some seconds where the
kernels have yet to be compiled, and a moment where Triton finds them in its cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cbam_edu.attention import ChannelAttention
from cbam_edu.fused import blocks, chip, gpu

SHAPE = 2, 20, 9, 15
CLOSE = 1e-4  # float32, in sums of 135 numbers at most


def check(device: torch.device) -> None:
    """Compare what all functions return on a device with what the plain ones do on the CPU.

    Raises
    ------
    RuntimeError
        If one differs; and whatever Triton raises where it cannot work.
    """
    # Whatever mode the caller is in, the numbers are a CPU's, and gradients can be taken of them.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        with torch.inference_mode(False), torch.enable_grad():
            for name, found, expected in _results(device):
                if not all(map(_close, _several(found), _several(expected))):
                    raise RuntimeError(f"{name} gives other numbers there than on a CPU")


def _several(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [*found]


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.detach().cpu().double(), expected.double(), CLOSE, CLOSE)


def _results(device: torch.device) -> Iterator[tuple[str, Any, Any]]:
    """Yield of each function its name, what it returns on the device, and what it should."""

    def there(*given: Tensor) -> list[Tensor]:
        return [t.detach().to(device) for t in given]

    n, channels, height, width = SHAPE
    x = torch.randn(SHAPE, dtype=torch.float32).mul(2).round() / 2
    g, r = torch.randn_like(x), torch.randn_like(x)
    c = torch.rand(n, channels, 1, 1, dtype=torch.float32).mul(4).ceil() / 4
    s, dmax, dmean = torch.rand(3, n, 1, height, width, dtype=torch.float32)
    dm, da = torch.rand(2, n, channels, dtype=torch.float32)
    maxima, m = (x * c).amax(1, keepdim=True), x.amax((2, 3))
    calls = {
        "pool": (x,),
        "squeeze": (x, c),
        "scale": (x, c, s),
        "gate_grads": (g, x, c, s),
        "map_grads": (x, c, maxima, dmax, dmean, m),
        "input_grad": (g, x, c, s, maxima, dmax, dmean, m, dm, da),
    }
    for name, given in calls.items():
        yield name, getattr(gpu, name)(*there(*given)), getattr(blocks, name)(*given)

    out = (x * c * s + r).relu()
    dr = g * (out > 0)
    through = dr, *blocks.gate_grads(dr, x, c, s)
    yield "scale with a residual", gpu.scale(*there(x, c, s, r)), out
    yield "residual_grads", gpu.residual_grads(*there(g, out, x, c, s)), through

    gate = ChannelAttention(channels, reduction=4).double()
    weights = there(*(w.float() for w in gate.parameters()))
    both, back = _on_chip(weights, *there(x, g, s, dmax, dmean))
    x_ = x.double().requires_grad_()
    c_ = gate(x_)
    y = x_ * c_
    z = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    dz = torch.cat([dmax, dmean], 1).double()
    grads = torch.autograd.grad([y * s, z], [x_, *gate.parameters()], [g.double(), dz])
    yield "gate_both", both, (x.mean((2, 3)), m, c_, *z.split(1, 1))
    yield "gate_back", back, grads


def _on_chip(
    weights: list[Tensor], x: Tensor, g: Tensor, s: Tensor, dmax: Tensor, dmean: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what `gate_both` and `gate_back` do, the one's results being given to the other."""
    a, m, c, maxima, mean = chip.gate_both(x, *weights)
    _, dc = gpu.gate_grads(g, x, c, s)
    shares = maxima, dmax, dmean, dc, a, m
    back = chip.gate_back(g, x, c, s, *shares, *weights[:3])
    return (a, m, c, maxima, mean), back
