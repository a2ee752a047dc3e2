"""The kernels' own tests: on a GPU as they are, elsewhere in Triton's interpreter.

`test_fused_triton` runs this file in a process of its own, as Triton reads TRITON_INTERPRET once,
when it is imported, and other tests want the compiler.
"""

import copy
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from triton import knobs
from triton.runtime import interpreter

from cbam_edu import fused, fused_triton
from cbam_edu.attention import CBAM

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
torch.backends.cudnn.allow_tf32 = False  # of the convolution, which is torch's
LAST = [torch.contiguous_format, torch.channels_last]

# Three shortcomings of the interpreter of Triton 3.6: numpy 2.4 makes no number of an array of one,
# as its `range` would like; bfloat16 is cut off instead of rounded; reductions with a function of
# one's own go value by value, 60 microseconds each.

patch_tensor, convert, generic = (
    interpreter._patch_lang_tensor,
    interpreter._convert_float,
    interpreter.ReduceOps.generic_reduce,
)


def patch_tensor_with_index(tensor, scope):
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def convert_rounding(data, source, target, mode):
    if (source.name, target.name) != ("fp32", "bf16"):
        return convert(data, source, target, mode)
    return torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view(np.uint16)


def reduce_by_slices(self, input):
    (x,) = input
    slices = (self.to_tensor(d, x.dtype) for d in np.moveaxis(x.handle.data, self.axis, 0))
    folded = reduce(self.combine_fn.fn, slices).handle.data
    return [self.to_tensor(folded, x.dtype)]


interpreter._patch_lang_tensor = patch_tensor_with_index
interpreter._convert_float = convert_rounding
interpreter.ReduceOps.generic_reduce = reduce_by_slices

# ---- The six against torch


def places(v: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, 1)."""
    return v[:, :, None, None]


def numbers(*shape, kind="random", dtype=torch.float32, memory_format=torch.contiguous_format):
    """Return random numbers, or `kind` "ties": few different ones, exact in every type."""
    v = torch.randn(shape)
    v = (2 * v).round() / 2 if kind == "ties" else v
    return v.to(DEVICE, dtype).contiguous(memory_format=memory_format)


def gates(shape, kind, wide):
    """Return c and s, the maps that scale the input of `shape`."""
    n, c, h, w = shape
    maps = [torch.rand(n, c, 1, 1), torch.rand(n, 1, h, w)]
    maps = [m.mul(4).ceil() / 4 for m in maps] if kind == "ties" else maps
    return [m.to(DEVICE, wide) for m in maps]


def check(shape, memory_format, kind="random", dtype=torch.float32):
    """Hold all six to their formulas, in float64."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = numbers(*shape, kind=kind, dtype=dtype, memory_format=memory_format)
    g = numbers(*shape, dtype=dtype, memory_format=memory_format)
    c, s = gates(shape, kind, wide)
    x_, g_, c_, s_ = x.double(), g.double(), c.double(), s.double()

    def same(found, expected, dtype=wide):
        assert found.dtype == dtype
        assert found.device == x.device
        # As the kernels compute in `wide`, only a result of a narrow type may be off by more.
        close = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 1e-12}.get(dtype, 1e-5)
        assert_close(found.double(), expected, rtol=close, atol=10 * close)

    mean, m = fused_triton.pool(x)
    same(mean, x_.mean((2, 3)))
    assert torch.equal(m, x.amax((2, 3)).to(wide))

    maxima, means = fused_triton.squeeze(x, c)
    y = x.to(wide) * c
    assert torch.equal(maxima, y.amax(1, keepdim=True))
    same(means, (x_ * c_).mean(1, keepdim=True))

    out = fused_triton.scale(x, c, s)
    same(out, x_ * c_ * s_, dtype)
    assert out.is_contiguous(memory_format=memory_format)

    ds, dc = fused_triton.gate_grads(g, x, c, s)
    same(ds, (g_ * x_ * c_).sum(1, keepdim=True))
    same(dc, (g_ * x_ * s_).sum((2, 3)))

    dmax, dmean = (numbers(*s.shape, dtype=wide) for _ in range(2))
    rest, ties, channel_ties = fused_triton.map_grads(x, c, maxima, dmax, dmean, m)
    top, peak = (y == maxima).double(), (x.to(wide) == places(m)).double()
    t, k = top.sum(1, keepdim=True), peak.sum((2, 3))
    assert torch.equal(ties.double(), t)
    assert torch.equal(channel_ties.double(), k)
    share = dmean.double() / shape[1] + top * (dmax.double() / t)
    same(rest, (x_ * share).sum((2, 3)))

    dm, da = (numbers(*shape[:2], dtype=wide) for _ in range(2))
    dx = fused_triton.input_grad(g, x, c, s, maxima, dmax, dmean, m, dm, da)
    dy = g_ * s_ + dmean.double() + top * dmax.double()
    same(dx, dy * c_ + peak * places(dm.double()) + places(da.double()), dtype)
    assert dx.is_contiguous(memory_format=memory_format)
    return ties, channel_ties


SHAPES = [
    (2, 5, 3, 7),  # nothing is a power of two
    (2, 16, 4, 8),  # everything is
    (3, 1, 4, 5),  # one channel
    (2, 40, 1, 1),  # one place
    (1, 1, 1, 1),
    (1, 300, 3, 3),  # several tiles of channels
    (1, 70, 9, 15),  # several tiles of both
]


@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, memory_format):
    if 1 in (shape[1], shape[2] * shape[3]) and memory_format is torch.channels_last:
        pytest.skip("one channel or one place lies in the same order both ways")
    ties, channel_ties = check(shape, memory_format, "ties")
    assert ties.max() > 1 or shape[1] == 1
    assert channel_ties.max() > 1 or shape[2] == 1


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(dtype, memory_format, kind):
    check((2, 6, 5, 3), memory_format, kind, dtype)


def test_random_float32():
    ties, _ = check((3, 24, 6, 6), torch.contiguous_format)
    assert ties.unique().tolist() == [1]


@pytest.mark.parametrize("enough", [1, 4])
@pytest.mark.parametrize(
    ("shape", "memory_format"), [((1, 2, 37, 83), LAST[0]), ((1, 3, 21, 20), LAST[1])]
)
def test_one_program_or_several_pool_the_places_of_a_channel(
    shape, memory_format, enough, monkeypatch
):
    monkeypatch.setattr(fused_triton, "ENOUGH", enough)
    x = numbers(*shape, memory_format=memory_format)
    mean, m = fused_triton.pool(x)
    assert_close(mean, x.mean((2, 3)))
    assert torch.equal(m, x.amax((2, 3)))


# ---- At the edges


def test_an_empty_batch():
    x, c, s = numbers(0, 3, 2, 5), numbers(0, 3, 1, 1), numbers(0, 1, 2, 5)
    pooled = numbers(0, 3)
    assert [tuple(v.shape) for v in fused_triton.pool(x)] == [(0, 3)] * 2
    assert [tuple(v.shape) for v in fused_triton.squeeze(x, c)] == [(0, 1, 2, 5)] * 2
    assert fused_triton.scale(x, c, s).shape == x.shape
    ds, dc = fused_triton.gate_grads(x, x, c, s)
    assert (ds.shape, dc.shape) == (s.shape, pooled.shape)
    dc, ties, channel_ties = fused_triton.map_grads(x, c, s, s, s, pooled)
    assert (dc.shape, ties.shape, channel_ties.shape) == (pooled.shape, s.shape, pooled.shape)
    shares = (s, s, pooled, pooled, pooled)
    assert fused_triton.input_grad(x, x, c, s, s, *shares).shape == x.shape


@pytest.mark.parametrize("memory_format", LAST)
def test_what_is_no_number_or_infinite_shows_as_in_torch(memory_format):
    x = numbers(2, 9, 6, 6, memory_format=memory_format)
    x[0, 2, 1, 3] = float("nan")
    x[0, 5, 5, 5] = float("inf")
    x[1, :, 2, 2] = float("-inf")
    x[1, 4] = float("-inf")
    c, s = gates(x.shape, "random", torch.float32)
    found = fused_triton.pool(x), fused_triton.squeeze(x, c), fused_triton.scale(x, c, s)
    y = x * c
    assert_close(found[0], (x.mean((2, 3)), x.amax((2, 3))), equal_nan=True)
    expected = y.amax(1, keepdim=True), y.mean(1, keepdim=True)
    assert_close(found[1], expected, equal_nan=True)
    assert_close(found[2], y * s, equal_nan=True)
    maxima, m = found[1][0], found[0][1]
    _, ties, channel_ties = fused_triton.map_grads(x, c, maxima, s, s, m)
    assert torch.equal(ties, (y == maxima).sum(1, keepdim=True).float())
    assert torch.equal(channel_ties, (x == places(m)).sum((2, 3)).float())
    assert ties[0, 0, 1, 3] == 0  # nothing equals NaN


def test_maps_in_any_order_in_memory():
    wide = numbers(2, 8, 5, 6)
    x = wide[:, ::2].transpose(2, 3)
    g = numbers(2, 4, 6, 5, memory_format=torch.channels_last)
    c, s = gates(x.shape, "random", torch.float32)
    assert_close(fused_triton.pool(x), fused_triton.pool(x.contiguous()))
    assert_close(fused_triton.scale(x, c, s), x * c * s)
    ds, dc = fused_triton.gate_grads(g, x, c.expand(2, 4, 1, 1), s.transpose(2, 3).mT)
    assert_close(ds, (g * x * c).sum(1, keepdim=True))
    assert_close(dc, (g * x * s).sum((2, 3)))


def test_a_gradient_of_another_type():
    x, g = numbers(2, 4, 3, 3, dtype=torch.bfloat16), numbers(2, 4, 3, 3)
    c, s = gates(x.shape, "random", torch.float32)
    ds, _ = fused_triton.gate_grads(g, x, c, s)
    assert_close(ds, (g * x.float() * c).sum(1, keepdim=True))


def test_which_maps_are_taken():
    assert fused_triton.serves(numbers(2, 3, 4, 4, dtype=torch.float16))
    assert fused_triton.serves(numbers(0, 3, 4, 4))
    assert not fused_triton.serves(numbers(2, 3, 4))
    assert not fused_triton.serves(numbers(2, 3, 4, 4).int())
    assert not fused_triton.serves(numbers(2, 3, 0, 4))
    huge = torch.empty(1, device=DEVICE).expand(1, 2**15, 2**8, 2**8)
    assert not fused_triton.serves(huge)
    with pytest.raises(ValueError, match="an image of 32768 x 256 x 256 values is too large"):
        fused_triton.pool(huge)


def test_equal_runs_give_equal_bits():
    x, g = numbers(2, 70, 9, 15), numbers(2, 70, 9, 15)
    c, s = gates(x.shape, "random", torch.float32)
    first, second = (
        (*fused_triton.pool(x), *fused_triton.squeeze(x, c), *fused_triton.gate_grads(g, x, c, s))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def has_gigabytes(wanted):
    return DEVICE == "cuda" and torch.cuda.get_device_properties(0).total_memory > wanted * 2**30


@pytest.mark.skipif(not has_gigabytes(24), reason="24 GB on a GPU")
@pytest.mark.parametrize("memory_format", LAST)
def test_maps_of_more_values_than_32_bits_count(memory_format):
    n = 2**31 // 2**15 + 1
    x = torch.zeros(n, 32, 32, 32, dtype=torch.bfloat16, device=DEVICE)
    x = x.contiguous(memory_format=memory_format)
    x[-1] = numbers(32, 32, 32, dtype=torch.bfloat16)
    c, s = gates(x.shape, "random", torch.float32)
    last = slice(n - 1, n)
    of_all, of_last = (
        (*fused_triton.pool(v), *fused_triton.squeeze(v, gc), fused_triton.scale(v, gc, gs),
         *fused_triton.gate_grads(v, v, gc, gs))
        for v, gc, gs in [(x, c, s), (x[last], c[last], s[last])]
    )  # fmt: skip
    for a, b in zip(of_all, of_last, strict=True):
        assert_close(a[last], b)


# ---- All together


@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_together_they_are_cbam(dtype, close, memory_format, monkeypatch):
    monkeypatch.setattr(fused, "BACKENDS", [fused_triton])
    torch.manual_seed(0)
    module = CBAM(12, reduction=4).to(DEVICE, dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    plain = copy.deepcopy(module).double()
    x = numbers(3, 12, 6, 5, dtype=dtype, memory_format=memory_format)
    upstream = numbers(3, 12, 6, 5, dtype=dtype)
    x_, x = x.double().requires_grad_(), x.requires_grad_()
    out, expected = fused.refine(module, x), plain(x_)
    out.backward(upstream)
    expected.backward(upstream.double())

    def same(found, reference):
        size = reference.abs().max()
        assert size > 1e-3
        assert (found.double() - reference).abs().max() < close * size

    same(out, expected)
    same(x.grad, x_.grad)
    pairs = zip(module.parameters(), plain.parameters(), strict=True)
    for found, reference in pairs:
        same(found.grad, reference.grad)
    assert_close(module.spatial.norm.running_var.double(), plain.spatial.norm.running_var,
                 rtol=close, atol=close)  # fmt: skip
