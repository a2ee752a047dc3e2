"""CBAM's passes over big maps as Triton kernels; `cbam_edu.fused_triton` launches them.

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


@triton.jit
def gate_both_kernel(
    x, w1, b1, w2, b2, mean, peak, c, top, average, C, P, HIDDEN,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    BH: tl.constexpr, BM: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Pool an image, gate its channels by the shared MLP, and squeeze what is gated.

    One program an image, which is so small that the second reading comes from the cache. The MLP's
    weights are w1 (HIDDEN, C) and w2 (C, HIDDEN), taken by BM channels and BH >= HIDDEN units.
    What other threads of the program have stored may be read after a barrier.
    """
    C, P = aligned(C, P, LAST, ALIGN)
    n = tl.program_id(0).to(tl.int64)
    image, row = n * (C * P), n * C
    for first in range(0, C, BC):
        channel = first + tl.arange(0, BC)
        total = tl.full([BC, BP], 0, ACC)
        most = tl.full([BC, BP], float("-inf"), ACC)
        for start in range(0, P, BP):
            at, exists = inside(channel, start + tl.arange(0, BP), C, P, LAST)
            value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
            total += value
            most = larger(most, tl.where(exists, value, float("-inf")))
        tl.store(mean + row + channel, tl.sum(total, 1) / P, mask=channel < C)
        tl.store(peak + row + channel, tl.reduce(most, 1, larger), mask=channel < C)
    tl.debug_barrier()

    unit = tl.arange(0, BH)
    of_mean = tl.full([BH, BM], 0, ACC)
    of_peak = tl.full([BH, BM], 0, ACC)
    for first in range(0, C, BM):
        channel = first + tl.arange(0, BM)
        exists = (unit < HIDDEN)[:, None] & (channel < C)[None, :]
        weight = tl.load(w1 + unit[:, None] * C + channel[None, :], mask=exists, other=0).to(ACC)
        of_mean += weight * tl.load(mean + row + channel, mask=channel < C, other=0)[None, :]
        of_peak += weight * tl.load(peak + row + channel, mask=channel < C, other=0)[None, :]
    z_mean, z_peak = tl.sum(of_mean, 1), tl.sum(of_peak, 1)
    if BIAS:
        offset = tl.load(b1 + unit, mask=unit < HIDDEN, other=0).to(ACC)
        z_mean += offset
        z_peak += offset
    hidden = larger(z_mean, 0.0) + larger(z_peak, 0.0)
    for first in range(0, C, BM):
        channel = first + tl.arange(0, BM)
        exists = (channel < C)[:, None] & (unit < HIDDEN)[None, :]
        at = channel[:, None] * HIDDEN + unit[None, :]
        weight = tl.load(w2 + at, mask=exists, other=0).to(ACC)
        logit = tl.sum(weight * hidden[None, :], 1)
        if BIAS:
            logit += 2 * tl.load(b2 + channel, mask=channel < C, other=0).to(ACC)
        tl.store(c + row + channel, 1 / (1 + tl.exp(-logit)), mask=channel < C)
    tl.debug_barrier()

    for first in range(0, P, BP):
        place = first + tl.arange(0, BP)
        total = tl.full([BC, BP], 0, ACC)
        most = tl.full([BC, BP], float("-inf"), ACC)
        for start in range(0, C, BC):
            channel = start + tl.arange(0, BC)
            at, exists = inside(channel, place, C, P, LAST)
            gate = tl.load(c + row + channel, mask=channel < C, other=0)
            y = tl.load(x + image + at, mask=exists, other=0).to(ACC) * gate[:, None]
            total += y
            most = larger(most, tl.where(exists, y, float("-inf")))
        tl.store(top + n * P + place, tl.reduce(most, 0, larger), mask=place < P)
        tl.store(average + n * P + place, tl.sum(total, 0) / C, mask=place < P)


@triton.jit
def gate_back_kernel(
    g, x, c, s, mx, dmax, dmean, dc, mean, peak, w1, b1, w2,
    dx, dlogit, hidden, dz_mean, dz_peak, of_max, of_mean, of_peak, ties, C, P, HIDDEN,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    BH: tl.constexpr, BM: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Send dmax, dmean and dc, what is known of c's gradient, back through the MLP and write dx.

    One program an image, as in `gate_both_kernel`. of_max, of_mean, of_peak and ties are room for
    the shares of maxima and means; dlogit, hidden and dz are what the weights' gradients are of.
    """
    C, P = aligned(C, P, LAST, ALIGN)
    n = tl.program_id(0).to(tl.int64)
    image, row = n * (C * P), n * C
    for first in range(0, P, BP):  # at each place, share dmax among the channels that attain mx
        place = first + tl.arange(0, BP)
        at_place = n * P + place
        top = tl.load(mx + at_place, mask=place < P, other=0).to(ACC)[None, :]
        count = tl.full([BC, BP], 0, ACC)
        for start in range(0, C, BC):
            channel = start + tl.arange(0, BC)
            at, exists = inside(channel, place, C, P, LAST)
            gate = tl.load(c + row + channel, mask=channel < C, other=0).to(ACC)
            y = tl.load(x + image + at, mask=exists, other=0).to(ACC) * gate[:, None]
            count += ((y == top) & exists).to(ACC)
        share = tl.load(dmax + at_place, mask=place < P, other=0) / tl.maximum(tl.sum(count, 0), 1)
        tl.store(of_max + at_place, share, mask=place < P)
    tl.debug_barrier()

    for first in range(0, C, BC):  # the rest of dc, and how often a channel attains its maximum
        channel = first + tl.arange(0, BC)
        gate = tl.load(c + row + channel, mask=channel < C, other=0).to(ACC)
        most = tl.load(peak + row + channel, mask=channel < C, other=0).to(ACC)
        total = tl.full([BC, BP], 0, ACC)
        count = tl.full([BC, BP], 0, ACC)
        for start in range(0, P, BP):
            place = start + tl.arange(0, BP)
            at_place = n * P + place
            at, exists = inside(channel, place, C, P, LAST)
            top = tl.load(mx + at_place, mask=place < P, other=0).to(ACC)[None, :]
            top_share = tl.load(of_max + at_place, mask=place < P, other=0)[None, :]
            mean_share = tl.load(dmean + at_place, mask=place < P, other=0).to(ACC)[None, :] / C
            value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
            total += value * (mean_share + tl.where(value * gate[:, None] == top, top_share, 0))
            count += ((value == most[:, None]) & exists).to(ACC)
        gradient = tl.load(dc + row + channel, mask=channel < C, other=0).to(ACC) + tl.sum(total, 1)
        tl.store(dlogit + row + channel, gradient * gate * (1 - gate), mask=channel < C)
        tl.store(ties + row + channel, tl.maximum(tl.sum(count, 1), 1), mask=channel < C)
    tl.debug_barrier()

    unit = tl.arange(0, BH)
    by_mean = tl.full([BH, BM], 0, ACC)
    by_peak = tl.full([BH, BM], 0, ACC)
    back = tl.full([BH, BM], 0, ACC)
    for first in range(0, C, BM):
        channel = first + tl.arange(0, BM)
        real = channel < C
        exists = (unit < HIDDEN)[:, None] & real[None, :]
        weight = tl.load(w1 + unit[:, None] * C + channel[None, :], mask=exists, other=0).to(ACC)
        by_mean += weight * tl.load(mean + row + channel, mask=real, other=0).to(ACC)[None, :]
        by_peak += weight * tl.load(peak + row + channel, mask=real, other=0).to(ACC)[None, :]
        at = channel[None, :] * HIDDEN + unit[:, None]
        weight = tl.load(w2 + at, mask=exists, other=0).to(ACC)
        back += weight * tl.load(dlogit + row + channel, mask=real, other=0)[None, :]
    z_mean, z_peak, dhidden = tl.sum(by_mean, 1), tl.sum(by_peak, 1), tl.sum(back, 1)
    if BIAS:
        offset = tl.load(b1 + unit, mask=unit < HIDDEN, other=0).to(ACC)
        z_mean += offset
        z_peak += offset
    from_mean = tl.where(z_mean > 0, dhidden, 0)
    from_peak = tl.where(z_peak > 0, dhidden, 0)
    mine = n * HIDDEN + unit
    tl.store(hidden + mine, larger(z_mean, 0.0) + larger(z_peak, 0.0), mask=unit < HIDDEN)
    tl.store(dz_mean + mine, from_mean, mask=unit < HIDDEN)
    tl.store(dz_peak + mine, from_peak, mask=unit < HIDDEN)
    for first in range(0, C, BM):
        channel = first + tl.arange(0, BM)
        real = channel < C
        exists = real[:, None] & (unit < HIDDEN)[None, :]
        weight = tl.load(w1 + unit[None, :] * C + channel[:, None], mask=exists, other=0).to(ACC)
        count = tl.load(ties + row + channel, mask=real, other=1)
        tl.store(of_mean + row + channel, tl.sum(weight * from_mean[None, :], 1) / P, mask=real)
        tl.store(of_peak + row + channel, tl.sum(weight * from_peak[None, :], 1) / count, mask=real)
    tl.debug_barrier()

    for first in range(0, C, BC):  # the gradient of x, as `input_grad_kernel` has it
        channel = first + tl.arange(0, BC)
        real = channel < C
        gate = tl.load(c + row + channel, mask=real, other=0).to(ACC)[:, None]
        most = tl.load(peak + row + channel, mask=real, other=0).to(ACC)[:, None]
        peak_share = tl.load(of_peak + row + channel, mask=real, other=0)[:, None]
        average_share = tl.load(of_mean + row + channel, mask=real, other=0)[:, None]
        for start in range(0, P, BP):
            place = start + tl.arange(0, BP)
            column, here = n * P + place, place < P
            at, exists = inside(channel, place, C, P, LAST)
            spatial = tl.load(s + column, mask=here, other=0).to(ACC)[None, :]
            top = tl.load(mx + column, mask=here, other=0).to(ACC)[None, :]
            top_share = tl.load(of_max + column, mask=here, other=0)[None, :]
            mean_share = tl.load(dmean + column, mask=here, other=0).to(ACC)[None, :] / C
            value = tl.load(x + image + at, mask=exists, other=0).to(ACC)
            upstream = tl.load(g + image + at, mask=exists, other=0).to(ACC)
            of_y = upstream * spatial + mean_share + tl.where(value * gate == top, top_share, 0)
            of_x = of_y * gate + tl.where(value == most, peak_share, 0) + average_share
            tl.store(dx + image + at, of_x, mask=exists)
