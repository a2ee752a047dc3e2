"""CBAM's six functions over big maps, on a CPU: a few images at a time, which stay in the cache.

The names are those of `cbam_edu.fused`, where the equations stand. Steps write into memory that is
reused: a fresh map of 16 MB costs ten times its arithmetic. Blocks are (n, C, P), or (n, P, C) in
channels_last, where P = H W; `channels` and `places` are axes of a block. A weighted sum over the
axis 1 is a product of matrices; over the axis 2 that would be slow, and products are summed. Where
an image is larger than a block, numbers of a channel are found in parts, one for each block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**22  # bytes of a map worked on at a time, such that a few of them stay in the cache


def serves(x: Tensor) -> bool:
    """Return whether these functions can take x: anywhere on a CPU."""
    return x.device.type == "cpu"


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of each channel: (N, C, H, W) -> (N, C), (N, C)."""
    a, m = _per_channel(x), _per_channel(x)
    _, places = _axes(x)
    for _, (xs,), (a_, m_) in _blocks(x, maps=[x], small=[a, m]):
        torch.sum(xs, places, keepdim=True, out=a_)
        torch.amax(xs, places, keepdim=True, out=m_)
    return a.sum((2, 3)) / (x.shape[2] * x.shape[3]), m.amax((2, 3))


def squeeze(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return maximum and mean of x c over the channels: (N, 1, H, W), (N, 1, H, W)."""
    maxima, mean = (c.new_empty(len(x), 1, *x.shape[2:]) for _ in range(2))
    channels, _ = _axes(x)
    for (y,), (xs,), (c_, max_, mean_) in _blocks(x, [x], [c, maxima, mean], scratch=1):
        torch.mul(xs, c_, out=y)
        torch.amax(y, channels, keepdim=True, out=max_)
        if channels == 1:
            torch.bmm(c_.mT, xs, out=mean_)
        else:
            torch.sum(y, channels, keepdim=True, out=mean_)
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
    sums = [c, ds, s, dc] if _axes(x) == (1, 2) else [s, dc, c, ds]
    for (t,), (gs, xs), (by, over_1, by_too, over_2) in _blocks(x, [g, x], sums, scratch=1):
        torch.mul(gs, xs, out=t)
        torch.bmm(by.mT, t, out=over_1)
        torch.sum(t.mul_(by_too), 2, keepdim=True, out=over_2)
    return ds, dc.sum((2, 3))


def map_grads(
    x: Tensor, c: Tensor, maxima: Tensor, dmax: Tensor, dmean: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rest of dc, (N, C), and how many attain the maxima: t (N, 1, H, W), n (N, C)."""
    dc, n, ties = _per_channel(x), _per_channel(x), torch.empty_like(maxima)
    channels, places = _axes(x)
    small = [c, maxima, dmax, dmean / x.shape[1], m, dc, n, ties]
    for (t,), (xs,), small_ in _blocks(x, [x], small, scratch=1):
        c_, max_, dmax_, dmean_, m_, dc_, n_, ties_ = small_
        torch.mul(xs, c_, out=t).eq_(max_)
        torch.sum(t, channels, keepdim=True, out=ties_)
        t.mul_(dmax_ / ties_).add_(dmean_)
        torch.sum(t.mul_(xs), places, keepdim=True, out=dc_)
        torch.sum(torch.eq(xs, m_, out=t), places, keepdim=True, out=n_)
    return dc.sum((2, 3)), ties, n.sum((2, 3))


def input_grad(
    g: Tensor, x: Tensor, c: Tensor, s: Tensor, maxima: Tensor, dmax: Tensor,
    dmean: Tensor, m: Tensor, dm: Tensor, da: Tensor,
) -> Tensor:  # fmt: skip
    """Return dx; dmax, dmean, dm and da are already divided by t, C, n and H W."""
    dx = _empty_like(x)
    small = [c, s, maxima, dmax, dmean, m, dm, da, dx]
    for (t, u), (gs, xs), small_ in _blocks(x, [g, x], small, scratch=2):
        c_, s_, max_, dmax_, dmean_, m_, dm_, da_, dx_ = small_
        torch.mul(xs, c_, out=t).eq_(max_).mul_(dmax_).add_(dmean_)
        t.addcmul_(gs, s_).mul_(c_).add_(da_)
        torch.addcmul(t, torch.eq(xs, m_, out=u), dm_, out=dx_)
    return dx


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
    images = max(1, BLOCK // (4 * channels * places))
    width = -(-places // -(-4 * channels * places // BLOCK))  # of as few blocks as can be
    return images, width, -(-places // width)


def _per_channel(x: Tensor) -> Tensor:
    """Return room for one number a channel and a block: (N, C, blocks of an image, 1)."""
    shape = (*x.shape[:2], _tiles(x)[2], 1)
    return torch.empty(shape, dtype=_wide(x), memory_format=_memory_format(x))


def _blocks(
    x: Tensor, maps: list[Tensor], small: list[Tensor], scratch: int = 0
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield everything in blocks: a few images at a time, or a few places of an image.

    Of `scratch` buffers of the size of a map; of `maps`, widened where their type is narrow; and of
    `small`, which are views, so that one can write into them.
    """
    channels, places = _axes(x)
    images, width, tiles = _tiles(x)

    def pieces(t: Tensor) -> list[Tensor]:
        t = t[:, :, None, None] if t.ndim == 2 else t
        n, c, h, w = t.shape
        t = t.view(n, c, h * w) if channels == 1 else t.permute(0, 2, 3, 1).view(n, h * w, c)
        if tiles == 1:
            return list(t.split(images))
        if h * w == 1:  # one for the whole image
            return [image for image in t.split(1) for _ in range(tiles)]
        of_map = (h, w) == x.shape[2:]
        return [b for image in t.split(1) for b in image.split(width if of_map else 1, places)]

    several = [pieces(t) for t in (*maps, *small)]
    room = torch.empty(scratch, *several[0][0].shape, dtype=_wide(x))
    for blocks in zip(*several, strict=True):
        first, others = blocks[: len(maps)], blocks[len(maps) :]
        n = first[0].shape[0]
        buffers = [room[i, :n].narrow(places, 0, first[0].shape[places]) for i in range(scratch)]
        yield buffers, [t.to(_wide(x)) for t in first], list(others)
