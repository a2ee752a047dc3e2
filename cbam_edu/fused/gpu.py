"""CBAM's functions over big maps, on a GPU: one launch each, by Triton's kernels.

With x (N, C, H, W), the channel map c = M_c (N, C, 1, 1), y = x c, the spatial map s = M_s
(N, 1, H, W) and the output x c s, a training step reads and writes the big maps so often (r: a map
is read, w: one is written; maps of N C or N H W numbers are small and not counted):

============================ ====== ======= =====================================================
function                     passes r and w what it makes
============================ ====== ======= =====================================================
`pool`                       1      x       mean and maximum of each channel
`squeeze`                    1      x       maximum and mean of y at each place
`scale`                      2      x, w    the output
**forward**                  **4**
`gate_grads`                 2      g, x    gradients of s and, of what goes through s, of c
`map_grads`                  1      x       gradient of c through the two maps; how many tie
`input_grad`                 3      g, x, w the gradient of x
**backward**                 **6**
============================ ====== ======= =====================================================

Of a small image, `cbam_edu.fused.chip` makes 3 and 5. At the end of a residual block, `scale` adds
the block's input r and takes the ReLU: 3 passes (x, r, w), and `residual_grads` stands for
`gate_grads`: 4 (g, the output, x, w). By themselves an addition and a ReLU make 5 and 3 more. The
BatchNorm before CBAM stays by itself: in training its statistics need a pass before all others.

`map_grads` asks for x twice, a tile of 64 to 128 places after the other; the second time it comes
from the cache. Sums over places are left in parts where an image has more than one tile, and added
up by torch: `gate_grads` writes and reads again 4 bytes, `map_grads` 8, for the 64 to 128 values of
a channel that one part stands for.

Numbers
-------
Gates and sums are float32 (float64 for float64), whatever x is, and so are all results but those of
`scale` and `input_grad`, which are rounded once to x's type. The plain module in bfloat16 rounds y
to bfloat16 before it takes maxima, so that channels tie there that do not tie here: the two agree
to bfloat16's rounding, and their gradients too except at such places. Within this file y is always
the same float32 product, so "x c equals the maximum" finds the channels that made it. Every sum has
a fixed order: the same input gives the same bits.
"""

import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**30  # values an image may have: offsets inside it, and beyond, are 32-bit numbers
ENOUGH = 512  # programs that keep a GPU of some 100 multiprocessors busy; fewer, and work is split


@cache
def available() -> bool:
    """Return whether Triton is installed; it is not on macOS and Windows."""
    return importlib.util.find_spec("triton") is not None


@cache
def kernels() -> ModuleType:
    """Return the kernels; they are read when first needed, as Triton takes a moment to import."""
    from cbam_edu.fused import kernels

    return kernels


@cache
def reaches(device: torch.device) -> bool:
    """Return whether Triton works on a device: a GPU from Volta on, or its interpreter's CPU."""
    if device.type == "cpu":
        return available() and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" or not available():
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0) and runs(device)


def runs(device: torch.device) -> bool:
    """Try all kernels on a GPU: Triton also needs a C compiler and Python's headers."""
    from cbam_edu.fused import trial  # which needs this file

    try:
        trial.check(device)
    except Exception as error:  # whatever is wrong, the plain form needs none of it
        warnings.warn(
            f"CBAM takes its plain form on {device}, as the Triton kernels fail there: {error}",
            stacklevel=2,
        )
        return False
    return True


def serves(x: Tensor) -> bool:
    """Return whether these functions take x: where it is, of what type, and not too large."""
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    fits = x.ndim == 4 and 0 < x.shape[1:].numel() <= LARGEST
    return known and fits and reaches(x.device)


def power(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


class Map:
    """A big map as the kernels want it: dense, and what they must know of its shape.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), contiguous or channels_last; anything else is copied to contiguous.

    Raises
    ------
    ValueError
        If an image has more than `LARGEST` values.
    """

    def __init__(self, x: Tensor):
        self.n, self.channels, self.height, self.width = x.shape
        self.places = self.height * self.width
        if self.channels * self.places > LARGEST:
            raise ValueError(
                f"an image of {self.channels} x {self.height} x {self.width} values is too large:"
                f" the kernels take up to {LARGEST}; use the plain form, CBAM(..., fused=False)"
            )
        dense = x.is_contiguous(memory_format=torch.channels_last)
        self.last = dense and not x.is_contiguous()
        self.format = torch.channels_last if self.last else torch.contiguous_format
        self.x = x if self.last else x.contiguous()
        self.wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def like(self, other: Tensor) -> Tensor:
        """Return another map of the same shape with its values in the same places as x's."""
        return other.contiguous(memory_format=self.format)

    def per_channel(self, *more: int) -> Tensor:
        """Return room for (..., N, C) numbers."""
        return torch.empty(*more, self.n, self.channels, dtype=self.wide, device=self.x.device)

    def in_parts(self, *parts: int) -> Tensor:
        """Return room for (..., N, parts, C) numbers: a sum over places in parts."""
        shape = *parts[:-1], self.n, parts[-1], self.channels
        return torch.empty(shape, dtype=self.wide, device=self.x.device)

    def per_place(self) -> Tensor:
        """Return room for (N, 1, H, W) numbers."""
        shape = self.n, 1, self.height, self.width
        return torch.empty(shape, dtype=self.wide, device=self.x.device)

    def tile(self, row: int, values: int) -> tuple[int, int]:
        """Return BC and BP of a tile of at most `values`, rows of up to `row` lying in memory."""
        if self.last:
            bc = min(power(self.channels), row)
            return bc, min(power(self.places), values // bc)
        bp = min(power(self.places), row)
        return min(power(self.channels), values // bp), bp

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        tile: tuple[int, int],
        *args: Any,
        **more: Any,
    ) -> None:
        """Start `grid` programs of a kernel; of an empty batch there are none."""
        if self.n == 0:
            return
        language = kernels().tl
        row = self.channels if self.last else self.places
        align = min(16, row & -row)
        wide = self.wide == torch.float64
        # Values a thread: wide numbers and narrow loads need more registers for each.
        each = 16 if wide or align * self.x.element_size() < 8 else 32
        options = {
            "LAST": self.last,
            "ALIGN": align,
            "ACC": language.float64 if wide else language.float32,
            "BC": tile[0],
            "BP": tile[1],
            "num_warps": max(1, tile[0] * tile[1] // (32 * each)),
            **more,
        }
        if not self.x.is_cuda:  # Triton's interpreter
            kernel[grid](*args, **options)
            return
        with torch.cuda.device(self.x.device):
            kernel[grid](*args, **options)


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover `size`."""
    return -(-size // block)


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of each channel: (N, C, H, W) -> (N, C), (N, C)."""
    a = Map(x)
    bc, bp = a.tile(row=32 if a.last else 1024, values=4096)
    programs, steps = a.n * blocks(a.channels, bc), blocks(a.places, bp)
    steps = blocks(steps, min(steps, blocks(ENOUGH, max(1, programs))))
    parts = blocks(a.places, bp * steps)
    mean, peak = a.per_channel(parts), a.per_channel(parts)
    grid, sizes = (programs, parts), (a.n, a.channels, a.places, steps)
    a.launch(kernels().pool_kernel, grid, (bc, bp), a.x, mean, peak, *sizes)
    return (mean[0], peak[0]) if parts == 1 else (mean.sum(0), peak.amax(0))


def squeeze(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return maximum and mean of x c over the channels: (N, 1, H, W), (N, 1, H, W)."""
    a = Map(x)
    bc, bp = a.tile(row=256 if a.last else 64, values=4096)
    peak, mean = a.per_place(), a.per_place()
    grid, sizes = (a.n * blocks(a.places, bp),), (a.channels, a.places)
    a.launch(kernels().squeeze_kernel, grid, (bc, bp), a.x, c.contiguous(), peak, mean, *sizes)
    return peak, mean


def scale(x: Tensor, c: Tensor, s: Tensor, r: Tensor | None = None) -> Tensor:
    """Return x c s, of the type of x and in its order in memory; given r, ReLU(x c s + r).

    The latter ends a residual block, where r, (N, C, H, W), is what the block was given.
    """
    a = Map(x)
    bc, bp = a.tile(row=256, values=4096)
    out = torch.empty_like(a.x)
    grid = (a.n * blocks(a.channels, bc) * blocks(a.places, bp),)
    maps = a.x, c.contiguous(), s.contiguous(), a.x if r is None else a.like(r), out
    sizes = a.channels, a.places
    a.launch(kernels().scale_kernel, grid, (bc, bp), *maps, *sizes, JOIN=r is not None)
    return out


def gate_grads(g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return ds = sum_c g x c, (N, 1, H, W), and dc = sum_hw g x s, (N, C)."""
    return _gate_grads(Map(x), g, c, s)


def residual_grads(
    g: Tensor, out: Tensor, x: Tensor, c: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dr = g where the ReLU of `scale` let it through, and `gate_grads` of dr.

    From here on dr takes the place of g; out is what `scale` returned.
    """
    a = Map(x)
    dr = torch.empty_like(a.x, dtype=g.dtype)
    return dr, *_gate_grads(a, g, c, s, a.like(out), dr)


def _gate_grads(a: Map, g: Tensor, c: Tensor, s: Tensor, *join: Tensor) -> tuple[Tensor, Tensor]:
    bc, bp = a.tile(row=128, values=8192)
    parts = blocks(a.places, bp)
    ds, dc = a.per_place(), a.in_parts(parts)
    maps = a.like(g), a.x, c.contiguous(), s.contiguous(), *(join or (a.x, a.x)), ds, dc
    grid, sizes = (a.n * parts,), (a.channels, a.places)
    kernel = kernels().gate_grads_kernel
    a.launch(kernel, grid, (bc, bp), *maps, *sizes, JOIN=bool(join))
    return ds, dc[:, 0] if parts == 1 else dc.sum(1)


def map_grads(
    x: Tensor, c: Tensor, maxima: Tensor, dmax: Tensor, dmean: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what goes through the two maps to c, and the number of ties.

    Parameters
    ----------
    x, c : Tensor
        The input and the channel map.
    maxima, dmax, dmean : Tensor
        (N, 1, H, W), `squeeze`'s maximum, its gradient and that of its mean.
    m : Tensor
        (N, C), `pool`'s maximum.

    Returns
    -------
    dc : Tensor
        (N, C), sum over the places of x (dmean / C + [x c = maxima] dmax / ties).
    ties : Tensor
        (N, 1, H, W), how many channels attain the maximum; 0 where it is NaN.
    channel_ties : Tensor
        (N, C), how many places of a channel attain m.
    """
    a = Map(x)
    bc, bp = a.tile(row=128, values=8192)
    parts = blocks(a.places, bp)
    sums, ties = a.in_parts(2, parts), a.per_place()
    small = [t.contiguous() for t in (c, maxima, dmax, dmean, m)]
    results = sums[0], ties, sums[1]
    a.launch(
        kernels().map_grads_kernel,
        (a.n * parts,),
        (bc, bp),
        a.x,
        *small,
        *results,
        a.channels,
        a.places,
    )
    dc, channel_ties = sums[:, :, 0] if parts == 1 else sums.sum(2)
    return dc, ties, channel_ties


def input_grad(
    g: Tensor,
    x: Tensor,
    c: Tensor,
    s: Tensor,
    maxima: Tensor,
    dmax: Tensor,
    dmean: Tensor,
    m: Tensor,
    dm: Tensor,
    da: Tensor,
) -> Tensor:
    """Return dx = (g s + dmean + [x c = maxima] dmax) c + [x = m] dm + da, as x is in memory.

    The four gradients are shares, already divided by how many values made each maximum and mean:
    dmax and dmean (N, 1, H, W) of the maps over channels, dm and da (N, C) of the pooled channels.
    """
    a = Map(x)
    bc, bp = a.tile(row=256, values=4096)
    dx = torch.empty_like(a.x)
    small = [t.contiguous() for t in (c, s, maxima, dmax, dmean, m, dm, da)]
    grid = (a.n * blocks(a.channels, bc) * blocks(a.places, bp),)
    sizes = a.channels, a.places
    a.launch(kernels().input_grad_kernel, grid, (bc, bp), a.like(g), a.x, *small, dx, *sizes)
    return dx
