"""CBAM's passes over big maps as Triton kernels; `cbam_edu.fused.gpu` launches them.

Triton is a language inside Python: a kernel says what one program does with one tile, and runs as
many programs at once as the grid has. Importing this file needs the package `triton`.

How all of them are built
-------------------------
- A feature map (N, C, H, W) is read as N images of C channels by P = H W places. ``LAST`` says
  what lies side by side in memory: the places (contiguous) or the channels (channels_last).
- A tile is BC channels by BP places, both powers of two. What hangs over the edge is masked.
- An image's number n is 64 bits wide, and so is its offset; inside an image 32 bits do.
- ``ALIGN`` is a power of two that divides the length of a row in memory. Triton sees it in
  `aligned` and then loads so many values at once, up to 16 bytes a thread.
- Everything is computed in ``ACC``, float32 or for float64 maps float64, and rounded once, when
  stored. ``x * c`` is compared with its own maximum, so every kernel computes it in the same way.
- Each number has one program that sums it, in a fixed order: no atomics, so equal runs give equal
  results. Sums over the places of an image are left in parts, one a tile, where a tile is smaller.
- `tl.max` passes over NaN on a GPU; a maximum of torch is NaN if any value is. `larger` is torch's.
"""
# Kernels are no Python that mypy could judge: their arguments are pointers and numbers on a GPU.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, unused-ignore, import-not-found"

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def larger(a, b):
    """Return the larger of two, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def aligned(C, P, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """Return C and P as they are, in words from which Triton learns what divides a row."""
    if LAST:
        return C // ALIGN * ALIGN, P
    else:
        return C, P // ALIGN * ALIGN


@triton.jit
def inside(channel, place, C, P, LAST: tl.constexpr):
    """Return where in an image the values of a tile are, and which of them exist."""
    exists = (channel < C)[:, None] & (place < P)[None, :]
    if LAST:
        return channel[:, None] + place[None, :] * C, exists
    else:
        return channel[:, None] * P + place[None, :], exists


@triton.jit
def pool_kernel(
    x, mean, peak, N, C, P, STEPS,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write mean and maximum of BC channels over STEPS tiles of places: (parts, N, C).

    The mean of a part is its sum divided by all P places, so that the parts add up.
    """
    C, P = aligned(C, P, LAST, ALIGN)
    blocks = tl.cdiv(C, BC)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    part = tl.program_id(1)
    image = n * (C * P)
    total = tl.full([BC, BP], 0, ACC)
    most = tl.full([BC, BP], float("-inf"), ACC)
    for start in range(part * STEPS * BP, tl.minimum((part + 1) * STEPS * BP, P), BP):
        at, exists = inside(channel, start + tl.arange(0, BP), C, P, LAST)
        value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
        total += value
        most = larger(most, tl.where(exists, value, float("-inf")))
    to = (part * N + n) * C + channel
    tl.store(mean + to, tl.sum(total, 1) / P, mask=channel < C)
    tl.store(peak + to, tl.reduce(most, 1, larger), mask=channel < C)


@triton.jit
def squeeze_kernel(
    x, c, peak, mean, C, P,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write maximum and mean of x c over the channels, at BP places."""
    C, P = aligned(C, P, LAST, ALIGN)
    blocks = tl.cdiv(P, BP)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BP + tl.arange(0, BP)
    image = n * (C * P)
    total = tl.full([BC, BP], 0, ACC)
    most = tl.full([BC, BP], float("-inf"), ACC)
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        at, exists = inside(channel, place, C, P, LAST)
        gate = tl.load(c + n * C + channel, mask=channel < C, other=0).to(ACC)
        y = tl.load(x + image + at, mask=exists, other=0).to(ACC) * gate[:, None]
        total += y
        most = larger(most, tl.where(exists, y, float("-inf")))
    to = n * P + place
    tl.store(peak + to, tl.reduce(most, 0, larger), mask=place < P)
    tl.store(mean + to, tl.sum(total, 0) / C, mask=place < P)


@triton.jit
def scale_kernel(
    x, c, s, r, out, C, P,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    JOIN: tl.constexpr,
):  # fmt: skip
    """Write x c s of one tile, or with JOIN the ReLU of x c s + r."""
    C, P = aligned(C, P, LAST, ALIGN)
    across, down = tl.cdiv(P, BP), tl.cdiv(C, BC)
    n = (tl.program_id(0) // (across * down)).to(tl.int64)
    channel = tl.program_id(0) // across % down * BC + tl.arange(0, BC)
    place = tl.program_id(0) % across * BP + tl.arange(0, BP)
    at, exists = inside(channel, place, C, P, LAST)
    image = n * (C * P)
    gate = tl.load(c + n * C + channel, mask=channel < C, other=0).to(ACC)
    spatial = tl.load(s + n * P + place, mask=place < P, other=0).to(ACC)
    value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
    refined = value * gate[:, None] * spatial[None, :]
    if JOIN:
        refined = larger(refined + tl.load(r + image + at, mask=exists, other=0).to(ACC), 0.0)
    tl.store(out + image + at, refined, mask=exists)


@triton.jit
def gate_grads_kernel(
    g, x, c, s, out, dr, ds, dc, C, P,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    JOIN: tl.constexpr,
):  # fmt: skip
    """Write at BP places ds = sum_c g x c, and of each channel their part of dc = sum_p g x s.

    With JOIN, the ReLU that made `out` takes g first, and what it lets through is written to dr.
    """
    C, P = aligned(C, P, LAST, ALIGN)
    parts = tl.cdiv(P, BP)
    n = (tl.program_id(0) // parts).to(tl.int64)
    place = tl.program_id(0) % parts * BP + tl.arange(0, BP)
    image = n * (C * P)
    row = tl.program_id(0).to(tl.int64) * C
    spatial = tl.load(s + n * P + place, mask=place < P, other=0).to(ACC)
    total = tl.full([BC, BP], 0, ACC)
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        at, exists = inside(channel, place, C, P, LAST)
        gate = tl.load(c + n * C + channel, mask=channel < C, other=0).to(ACC)
        gx = tl.load(g + image + at, mask=exists, other=0).to(ACC)
        if JOIN:
            gx = tl.where(tl.load(out + image + at, mask=exists, other=0).to(ACC) <= 0, 0, gx)
            tl.store(dr + image + at, gx, mask=exists)
        gx *= tl.load(x + image + at, mask=exists, other=0).to(ACC)
        total += gx * gate[:, None]
        tl.store(dc + row + channel, tl.sum(gx * spatial[None, :], 1), mask=channel < C)
    tl.store(ds + n * P + place, tl.sum(total, 0), mask=place < P)


@triton.jit
def map_grads_kernel(
    x, c, mx, dmax, dmean, m, dc, ties, channel_ties, C, P,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write at BP places how many channels attain mx, and their part of dc and of channel_ties.

    The count comes first, for the gradient of the maximum is shared: x is asked for twice, and the
    second time comes out of the cache, where BP places of an image have just been put.
    """
    C, P = aligned(C, P, LAST, ALIGN)
    parts = tl.cdiv(P, BP)
    n = (tl.program_id(0) // parts).to(tl.int64)
    place = tl.program_id(0) % parts * BP + tl.arange(0, BP)
    image = n * (C * P)
    row = tl.program_id(0).to(tl.int64) * C
    at_place = n * P + place
    top = tl.load(mx + at_place, mask=place < P, other=0).to(ACC)[None, :]
    count = tl.full([BC, BP], 0, ACC)
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        at, exists = inside(channel, place, C, P, LAST)
        gate = tl.load(c + n * C + channel, mask=channel < C, other=0).to(ACC)
        y = tl.load(x + image + at, mask=exists, other=0).to(ACC) * gate[:, None]
        count += ((y == top) & exists).to(ACC)
    tie = tl.sum(count, 0)
    tl.store(ties + at_place, tie, mask=place < P)
    of_max = tl.load(dmax + at_place, mask=place < P, other=0).to(ACC) / tl.maximum(tie, 1)
    of_mean = tl.load(dmean + at_place, mask=place < P, other=0).to(ACC) / C
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        at, exists = inside(channel, place, C, P, LAST)
        gate = tl.load(c + n * C + channel, mask=channel < C, other=0).to(ACC)
        peak = tl.load(m + n * C + channel, mask=channel < C, other=0).to(ACC)
        value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
        of_y = of_mean[None, :] + tl.where(value * gate[:, None] == top, of_max[None, :], 0)
        tl.store(dc + row + channel, tl.sum(value * of_y, 1), mask=channel < C)
        hits = ((value == peak[:, None]) & exists).to(ACC)
        tl.store(channel_ties + row + channel, tl.sum(hits, 1), mask=channel < C)


@triton.jit
def input_grad_kernel(
    g, x, c, s, mx, of_max, of_mean, m, of_peak, of_average, dx, C, P,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write dx = (g s + of_mean + [x c = mx] of_max) c + [x = m] of_peak + of_average of a tile."""
    C, P = aligned(C, P, LAST, ALIGN)
    across, down = tl.cdiv(P, BP), tl.cdiv(C, BC)
    n = (tl.program_id(0) // (across * down)).to(tl.int64)
    channel = tl.program_id(0) // across % down * BC + tl.arange(0, BC)
    place = tl.program_id(0) % across * BP + tl.arange(0, BP)
    at, exists = inside(channel, place, C, P, LAST)
    image = n * (C * P)
    row, real = n * C + channel, channel < C
    gate = tl.load(c + row, mask=real, other=0).to(ACC)[:, None]
    peak = tl.load(m + row, mask=real, other=0).to(ACC)[:, None]
    peak_share = tl.load(of_peak + row, mask=real, other=0).to(ACC)[:, None]
    average_share = tl.load(of_average + row, mask=real, other=0).to(ACC)[:, None]
    column, here = n * P + place, place < P
    spatial = tl.load(s + column, mask=here, other=0).to(ACC)[None, :]
    top = tl.load(mx + column, mask=here, other=0).to(ACC)[None, :]
    top_share = tl.load(of_max + column, mask=here, other=0).to(ACC)[None, :]
    mean_share = tl.load(of_mean + column, mask=here, other=0).to(ACC)[None, :]
    value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
    upstream = tl.load(g + image + at, mask=exists, other=0).to(ACC)
    of_y = upstream * spatial + mean_share + tl.where(value * gate == top, top_share, 0)
    of_x = of_y * gate + tl.where(value == peak, peak_share, 0) + average_share
    tl.store(dx + image + at, of_x, mask=exists)
