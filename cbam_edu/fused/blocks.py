"""CBAM's six functions over big maps, on a CPU: a few images at a time, which stay in the cache.

The names are those of `cbam_edu.fused`, where the equations stand. Steps write into memory that is
reused, as a fresh map costs ten times its arithmetic; for the same reason a buffer of `BLOCK` bytes
or two is kept from call to call. Blocks are (n, C, P), or (n, P, C) in channels_last, P = H W;
`channels` and `places` are axes of a block. Where an image is larger than a block, numbers of a
channel are found in parts, one for each block.
"""

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 2**22  # bytes of a map worked on at a time, such that a few of them stay in the cache


def serves(x: Tensor) -> bool:
    """Return whether these functions can take x: anywhere on a CPU."""
    return x.is_cpu


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of each channel: (N, C, H, W) -> (N, C), (N, C)."""
    a, m = _per_channel(x), _per_channel(x)
    _, places = _axes(x)
    for _, (xs,), (a_, m_) in _blocks(x, maps=[x], small=[a, m]):
        torch.sum(xs, places, keepdim=True, out=a_)
        torch.amax(_folded(xs, places), places, keepdim=True, out=m_)
    return a.sum((2, 3)) / (x.shape[2] * x.shape[3]), m.amax((2, 3))


def squeeze(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return maximum and mean of x c over the channels: (N, 1, H, W), (N, 1, H, W)."""
    maxima, mean = (c.new_empty(len(x), 1, *x.shape[2:]) for _ in range(2))
    channels, _ = _axes(x)
    for (y,), (xs,), (c_, max_, mean_) in _blocks(x, [x], [c, maxima, mean], scratch=1):
        torch.amax(torch.mul(xs, c_, out=y), channels, keepdim=True, out=max_)
        _weighted_sum(xs, c_, out=mean_)
    return maxima, mean.div_(x.shape[1])


def scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Return x c s, of the type of x and in its order in memory."""
    out = _empty_like(x)
    for (y,), (xs,), (c_, s_, out_) in _blocks(x, [x], [c, s, out], scratch=1):
        torch.mul(torch.mul(xs, c_, out=y), s_, out=out_)
    return out


def gate_grads(g: Tensor, x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return ds = sum_k g x c, (N, 1, H, W), and the part of dc through s, sum_p g x s, (N, C)."""
    ds, dc = torch.empty_like(s), _per_channel(x)
    for (t,), (gs, xs), (c_, s_, ds_, dc_) in _blocks(x, [g, x], [c, s, ds, dc], scratch=1):
        torch.mul(gs, xs, out=t)
        _weighted_sum(t, c_, out=ds_)
        _weighted_sum(t, s_, out=dc_)
    return ds, dc.sum((2, 3))


def map_grads(
    x: Tensor, c: Tensor, maxima: Tensor, dmax: Tensor, dmean: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rest of dc, (N, C), and how many attain the maxima: t (N, 1, H, W), n (N, C).

    Where x c is the maximum, x is the maximum over c. Where c is 0, the gate is so sure that it has
    no gradient, whatever dc is.
    """
    of_max, of_mean, n = (_per_channel(x) for _ in range(3))
    ties = torch.empty_like(maxima)
    channels, places = _axes(x)
    small = [c, maxima, dmax * maxima, dmean / x.shape[1], m, of_max, of_mean, n, ties]
    for (t,), (xs,), small_ in _blocks(x, [x], small, scratch=1):
        c_, max_, product_, dmean_, m_, of_max_, of_mean_, n_, ties_ = small_
        torch.sum(torch.mul(xs, c_, out=t).eq_(max_), channels, keepdim=True, out=ties_)
        _weighted_sum(t, product_ / ties_, out=of_max_)
        _weighted_sum(xs, dmean_, out=of_mean_)
        torch.sum(torch.eq(xs, m_, out=t), places, keepdim=True, out=n_)
    through_max = (of_max.sum((2, 3)) / c[:, :, 0, 0]).masked_fill_(c[:, :, 0, 0] == 0, 0)
    return through_max + of_mean.sum((2, 3)), ties, n.sum((2, 3))


def input_grad(
    g: Tensor, x: Tensor, c: Tensor, s: Tensor, maxima: Tensor, dmax: Tensor,
    dmean: Tensor, m: Tensor, dm: Tensor, da: Tensor,
) -> Tensor:  # fmt: skip
    """Return dx; dmax, dmean, dm and da are already divided by t, C, n and H W."""
    dx = _empty_like(x)
    small = [c, s, maxima, dmax, dmean, m, dm, da, dx]
    for (t, u), (gs, xs), small_ in _blocks(x, [g, x], small, scratch=2):
        c_, s_, max_, dmax_, dmean_, m_, dm_, da_, dx_ = small_
        torch.mul(xs, c_, out=t).eq_(max_)
        t.mul_(dmax_).add_(dmean_).addcmul_(gs, s_).mul_(c_).add_(da_)
        torch.addcmul(t, torch.eq(xs, m_, out=u), dm_, out=dx_)
    return dx


def _folded(xs: Tensor, places: int) -> Tensor:
    """Return fewer places with the same maxima: torch takes 30 times as long over short rows."""
    n, rows, channels = xs.shape
    side_by_side = 1
    while places == 1 and channels * side_by_side < 64 and rows % (2 * side_by_side) == 0:
        side_by_side *= 2
    if side_by_side == 1:
        return xs
    wide = xs.reshape(n, rows // side_by_side, side_by_side * channels)
    return wide.amax(1).view(n, side_by_side, channels)


def _weighted_sum(t: Tensor, weight: Tensor, out: Tensor) -> None:
    """Sum a block over the axis along which `weight` has values, as a product of matrices."""
    if weight.shape[1:] == (t.shape[1], 1):
        torch.bmm(weight.mT, t, out=out)
    else:
        torch.bmm(t, weight.mT, out=out)


def _wide(x: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _axes(x: Tensor) -> tuple[int, int]:
    """Return the axes of channels and of places in a block."""
    return (2, 1) if _memory_format(x) == torch.channels_last else (1, 2)


def _tiles(x: Tensor) -> tuple[int, int, int]:
    """Return how many images, or else places of one image, make a block, and blocks an image."""
    channels, places = x.shape[1], x.shape[2] * x.shape[3]
    images = max(2, BLOCK // (4 * channels * places))  # two keep two processors busy
    width = -(-places // -(-4 * channels * places // BLOCK))  # of as few blocks as can be
    return images, width, -(-places // width)


def _per_channel(x: Tensor) -> Tensor:
    """Return room for one number a channel and a block: (N, C, blocks of an image, 1)."""
    shape = (*x.shape[:2], _tiles(x)[2], 1)
    return x.new_empty(shape, dtype=_wide(x)).contiguous(memory_format=_memory_format(x))


class _Room(threading.local):
    """Memory to write into, one for each thread, which every call gets again."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def view(self, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * kind.itemsize
        if self.memory.numel() < size:
            with torch.inference_mode(False):  # later calls may not be in that mode
                self.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self.memory[:size].view(kind).view(shape)


_room = _Room()


def _blocks(
    x: Tensor, maps: list[Tensor], small: list[Tensor], scratch: int = 0
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield everything in blocks: a few images at a time, or a few places of an image.

    Of `scratch` buffers of the size of a map; of `maps`, widened where their type is narrow; and of
    `small`, which are views, so that one can write into them.
    """
    channels, places = _axes(x)
    images, width, tiles = _tiles(x)

    def pieces(t: Tensor) -> Sequence[Tensor]:
        t = t[:, :, None, None] if t.ndim == 2 else t
        n, c, h, w = t.shape
        t = t.view(n, c, h * w) if channels == 1 else t.permute(0, 2, 3, 1).view(n, h * w, c)
        if tiles == 1:
            return [t] if n <= images else t.tensor_split(-(-n // images))
        if h * w == 1:  # one for the whole image
            return [image for image in t.split(1) for _ in range(tiles)]
        of_map = (h, w) == x.shape[2:]
        return [b for image in t.split(1) for b in image.split(width if of_map else 1, places)]

    several = [pieces(t) for t in (*maps, *small)]
    room = _room.view((scratch, *several[0][0].shape), _wide(x))
    for blocks in zip(*several, strict=True):
        first, others = blocks[: len(maps)], blocks[len(maps) :]
        n = first[0].shape[0]
        buffers = [room[i, :n].narrow(places, 0, first[0].shape[places]) for i in range(scratch)]
        yield buffers, [t.to(_wide(x)) for t in first], list(others)
