"""CBAM's functions over maps whose images stay on a GPU's chip from one reading to the next.

An image of up to `CACHED` bytes does so if one program does all that it needs. What lies between
the readings, the shared MLP, is then computed there too. Passes are counted as in
`cbam_edu.fused.gpu`, whose `scale` and `gate_grads` do the rest:

============================ ====== ======= =====================================================
`gate_both`                  1      x       `pool`, M_c, `squeeze`
`scale`                      2      x, w    the output
**forward**                  **3**
`gate_grads`                 2      g, x    gradients of s and, of what goes through s, of c
`gate_back`                  3      g, x, w `map_grads`, the MLP's gradients, `input_grad`
**backward**                 **5**
============================ ====== ======= =====================================================

That is a count: as many images are at work as a GPU has room for programs, and whether its caches
hold them all, a measurement must tell.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from cbam_edu.fused.gpu import Map, power

CACHED = 2**17  # bytes of an image that is still in the cache when it is read again
UNITS = 128  # hidden units of an MLP that one program computes


@cache
def kernels() -> ModuleType:
    """Return the kernels, read when first needed."""
    from cbam_edu.fused import chip_kernels

    return chip_kernels


def fits(x: Tensor, w1: Tensor, w2: Tensor) -> bool:
    """Return whether `gate_both` pays: an image and an MLP, one made for the other, are small."""
    hidden, channels = w1.shape
    alike = channels == x.shape[1] and w2.shape == (channels, hidden)
    return alike and x.shape[1:].numel() * x.element_size() <= CACHED and hidden <= UNITS


def gate_both(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return all that comes before the convolution, in one launch: `pool`, M_c and `squeeze`.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), the input.
    w1, b1, w2, b2 : Tensor
        The shared MLP: (hidden, C), (hidden,), (C, hidden), (C,). It is computed in float32
        whatever their type (float64 for x of float64).

    Returns
    -------
    a, m, c, maxima, means : Tensor
        Means and maxima of the channels, (N, C); M_c with a sigmoid, (N, C, 1, 1); maxima and means
        of x c over the channels, (N, 1, H, W).
    """
    a, hidden = Map(x), len(w1)
    tile = a.tile(row=128, values=8192)
    mean, peak, c = (a.per_channel() for _ in range(3))
    top, average = a.per_place(), a.per_place()
    units = power(hidden)
    weights = [w.detach().contiguous() for w in (w1, b1, w2, b2)]
    a.launch(
        kernels().gate_both_kernel, (a.n,), tile, a.x, *weights,
        mean, peak, c, top, average, a.channels, a.places, hidden,
        BH=units, BM=min(power(a.channels), 2048 // units), num_warps=8,
    )  # fmt: skip
    return mean, peak, c[:, :, None, None], top, average


def gate_back(
    g: Tensor,
    x: Tensor,
    c: Tensor,
    s: Tensor,
    maxima: Tensor,
    dmax: Tensor,
    dmean: Tensor,
    dc: Tensor,
    a: Tensor,
    m: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what comes after the convolution's backward pass: gradients of x and of the MLP.

    `map_grads`, the MLP's backward pass and `input_grad` in one launch, and small products for the
    weights. The gradients are whole here, not shares.

    Parameters
    ----------
    g, x, c, s : Tensor
        The gradient of the output, the input, and the two maps.
    maxima, dmax, dmean : Tensor
        (N, 1, H, W), `gate_both`'s maxima, their gradient and that of the means.
    dc : Tensor
        (N, C, 1, 1), what `gate_grads` found.
    a, m, w1, b1, w2 : Tensor
        `gate_both`'s pooled channels, and its weights.

    Returns
    -------
    dx, dw1, db1, dw2, db2 : Tensor
        dx of x's type and order, the others of the shapes of what they are gradients of.
    """
    big, units = Map(x), len(w1)
    tile = big.tile(row=128, values=4096)
    dx, of_max = torch.empty_like(big.x), big.per_place()
    dlogit, of_mean, of_peak, ties = big.per_channel(4)
    hidden, dz_mean, dz_peak = dlogit.new_empty(3, big.n, units)
    small = [c, s, maxima, dmax, dmean, dc, a, m, w1, b1, w2]
    big.launch(
        kernels().gate_back_kernel, (big.n,), tile, big.like(g), big.x,
        *(t.detach().contiguous() for t in small),
        dx, dlogit, hidden, dz_mean, dz_peak, of_max, of_mean, of_peak, ties,
        big.channels, big.places, units,
        BH=power(units), BM=min(power(big.channels), 2048 // power(units)), num_warps=8,
    )  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        dw1 = torch.addmm(dz_mean.mT @ a, dz_peak.mT, m)
        return dx, dw1, (dz_mean + dz_peak).sum(0), dlogit.mT @ hidden, 2 * dlogit.sum(0)
