"""The Triton kernels for an image that stays on the chip; `cbam_edu.fused.chip` launches them.

They are built as those of `cbam_edu.fused.kernels` are. One program has an image, and reads it
again while it is in the cache. What other threads of the program have stored may be read after a
barrier.
"""
# Kernels are no Python that mypy could judge: their arguments are pointers and numbers on a GPU.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, unused-ignore, import-not-found"

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from cbam_edu.fused.kernels import aligned, inside, larger


@triton.jit
def gate_both_kernel(
    x, w1, b1, w2, b2, mean, peak, c, top, average, C, P, HIDDEN,
    LAST: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    BH: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Pool an image, gate its channels by the shared MLP, and squeeze what is gated.

    The MLP's weights are w1 (HIDDEN, C) and w2 (C, HIDDEN), taken by BM channels and BH >= HIDDEN
    units.
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
    BH: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Send dmax, dmean and dc, what is known of c's gradient, back through the MLP and write dx.

    The shares of maxima and means pass through of_max, of_mean, of_peak and ties; the gradients of
    the weights are products of dlogit, hidden and dz.
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
