"""The kernels' own tests: on a GPU as they are, elsewhere in Triton's interpreter.

`test_fused_gpu` runs this file in a process of its own, as Triton reads TRITON_INTERPRET once,
when it is imported, and other tests want the compiler.
"""

import copy
import weakref
from functools import reduce
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from triton import knobs
from triton.runtime import interpreter

from cbam_edu import fused
from cbam_edu.attention import CBAM
from cbam_edu.fused import chip, gpu
from cbam_edu.models.resnet import ResidualBlock
from test_properties import (
    OTHER_WAY,
    bad_places,
    bad_values,
    holds,
    kinds,
    near,
    seeds,
    shapes,
    spoil,
)
from test_properties import numbers as drawn_numbers

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

    mean, m = gpu.pool(x)
    same(mean, x_.mean((2, 3)))
    assert torch.equal(m, x.amax((2, 3)).to(wide))

    maxima, means = gpu.squeeze(x, c)
    y = x.to(wide) * c
    assert torch.equal(maxima, y.amax(1, keepdim=True))
    same(means, (x_ * c_).mean(1, keepdim=True))

    out = gpu.scale(x, c, s)
    same(out, x_ * c_ * s_, dtype)
    assert out.is_contiguous(memory_format=memory_format)

    ds, dc = gpu.gate_grads(g, x, c, s)
    same(ds, (g_ * x_ * c_).sum(1, keepdim=True))
    same(dc, (g_ * x_ * s_).sum((2, 3)))

    dmax, dmean = (numbers(*s.shape, dtype=wide) for _ in range(2))
    rest, ties, channel_ties = gpu.map_grads(x, c, maxima, dmax, dmean, m)
    top, peak = (y == maxima).double(), (x.to(wide) == places(m)).double()
    t, k = top.sum(1, keepdim=True), peak.sum((2, 3))
    assert torch.equal(ties.double(), t)
    assert torch.equal(channel_ties.double(), k)
    share = dmean.double() / shape[1] + top * (dmax.double() / t)
    same(rest, (x_ * share).sum((2, 3)))

    dm, da = (numbers(*shape[:2], dtype=wide) for _ in range(2))
    dx = gpu.input_grad(g, x, c, s, maxima, dmax, dmean, m, dm, da)
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
    monkeypatch.setattr(gpu, "ENOUGH", enough)
    x = numbers(*shape, memory_format=memory_format)
    mean, m = gpu.pool(x)
    assert_close(mean, x.mean((2, 3)))
    assert torch.equal(m, x.amax((2, 3)))


# ---- At the edges


def test_an_empty_batch():
    x, c, s = numbers(0, 3, 2, 5), numbers(0, 3, 1, 1), numbers(0, 1, 2, 5)
    pooled = numbers(0, 3)
    assert [tuple(v.shape) for v in gpu.pool(x)] == [(0, 3)] * 2
    assert [tuple(v.shape) for v in gpu.squeeze(x, c)] == [(0, 1, 2, 5)] * 2
    assert gpu.scale(x, c, s).shape == x.shape
    ds, dc = gpu.gate_grads(x, x, c, s)
    assert (ds.shape, dc.shape) == (s.shape, pooled.shape)
    dc, ties, channel_ties = gpu.map_grads(x, c, s, s, s, pooled)
    assert (dc.shape, ties.shape, channel_ties.shape) == (pooled.shape, s.shape, pooled.shape)
    w1, b1, w2 = numbers(2, 3), numbers(2), numbers(3, 2)
    found = chip.gate_both(x, w1, b1, w2, numbers(3))
    assert [v.shape for v in found] == [pooled.shape, pooled.shape, c.shape, s.shape, s.shape]
    found = chip.gate_back(x, x, c, s, s, s, s, c, pooled, pooled, w1, b1, w2)
    assert [v.shape for v in found[:4]] == [x.shape, w1.shape, b1.shape, w2.shape]
    assert not any(v.any() for v in found)  # no image, no gradient
    shares = (s, s, pooled, pooled, pooled)
    assert gpu.input_grad(x, x, c, s, s, *shares).shape == x.shape


@pytest.mark.parametrize("memory_format", LAST)
def test_what_is_no_number_or_infinite_shows_as_in_torch(memory_format):
    x = numbers(2, 9, 6, 6, memory_format=memory_format)
    x[0, 2, 1, 3] = float("nan")
    x[0, 5, 5, 5] = float("inf")
    x[1, :, 2, 2] = float("-inf")
    x[1, 4] = float("-inf")
    c, s = gates(x.shape, "random", torch.float32)
    found = gpu.pool(x), gpu.squeeze(x, c), gpu.scale(x, c, s)
    y = x * c
    assert_close(found[0], (x.mean((2, 3)), x.amax((2, 3))), equal_nan=True)
    expected = y.amax(1, keepdim=True), y.mean(1, keepdim=True)
    assert_close(found[1], expected, equal_nan=True)
    assert_close(found[2], y * s, equal_nan=True)
    maxima, m = found[1][0], found[0][1]
    _, ties, channel_ties = gpu.map_grads(x, c, maxima, s, s, m)
    assert torch.equal(ties, (y == maxima).sum(1, keepdim=True).float())
    assert torch.equal(channel_ties, (x == places(m)).sum((2, 3)).float())
    assert ties[0, 0, 1, 3] == 0  # nothing equals NaN


def test_maps_in_any_order_in_memory():
    wide = numbers(2, 8, 5, 6)
    x = wide[:, ::2].transpose(2, 3)
    g = numbers(2, 4, 6, 5, memory_format=torch.channels_last)
    c, s = gates(x.shape, "random", torch.float32)
    assert_close(gpu.pool(x), gpu.pool(x.contiguous()))
    assert_close(gpu.scale(x, c, s), x * c * s)
    ds, dc = gpu.gate_grads(g, x, c.expand(2, 4, 1, 1), s.transpose(2, 3).mT)
    assert_close(ds, (g * x * c).sum(1, keepdim=True))
    assert_close(dc, (g * x * s).sum((2, 3)))


def test_a_gradient_of_another_type():
    x, g = numbers(2, 4, 3, 3, dtype=torch.bfloat16), numbers(2, 4, 3, 3)
    c, s = gates(x.shape, "random", torch.float32)
    ds, _ = gpu.gate_grads(g, x, c, s)
    assert_close(ds, (g * x.float() * c).sum(1, keepdim=True))


def test_which_maps_are_taken():
    assert gpu.serves(numbers(2, 3, 4, 4, dtype=torch.float16))
    assert gpu.serves(numbers(0, 3, 4, 4))
    assert not gpu.serves(numbers(2, 3, 4))
    assert not gpu.serves(numbers(2, 3, 4, 4).int())
    assert not gpu.serves(numbers(2, 3, 0, 4))
    huge = torch.empty(1, device=DEVICE).expand(1, 2**15, 2**8, 2**8)
    assert not gpu.serves(huge)
    with pytest.raises(ValueError, match="an image of 32768 x 256 x 256 values is too large"):
        gpu.pool(huge)


def test_equal_runs_give_equal_bits():
    x, g = numbers(2, 70, 9, 15), numbers(2, 70, 9, 15)
    c, s = gates(x.shape, "random", torch.float32)
    first, second = (
        (*gpu.pool(x), *gpu.squeeze(x, c), *gpu.gate_grads(g, x, c, s)) for _ in range(2)
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
        (*gpu.pool(v), *gpu.squeeze(v, gc), gpu.scale(v, gc, gs),
         *gpu.gate_grads(v, v, gc, gs))
        for v, gc, gs in [(x, c, s), (x[last], c[last], s[last])]
    )  # fmt: skip
    for a, b in zip(of_all, of_last, strict=True):
        assert_close(a[last], b)


# ---- The end of a residual block


@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
def test_residual_and_relu(dtype, close, memory_format):
    shape = (2, 70, 9, 15)
    x, r, g = (numbers(*shape, dtype=dtype, memory_format=memory_format) for _ in range(3))
    r[0, 3, 4, 5] = float("nan")
    c, s = gates(shape, "random", torch.float32)
    r_ = r.float().requires_grad_()
    expected = torch.relu(x.float() * c * s + r_)
    expected.backward(g.float())
    out = gpu.scale(x, c, s, r)
    assert_close(out.float(), expected.detach(), rtol=close, atol=close, equal_nan=True)
    assert out.is_contiguous(memory_format=memory_format)
    dr, ds, dc = gpu.residual_grads(g, out, x, c, s)
    assert torch.equal(dr, torch.where(out <= 0, 0, g))
    assert (dr == 0).float().mean() > 0.3
    assert dr[0, 3, 4, 5] == g[0, 3, 4, 5]  # as torch's ReLU: what is no number lets it through
    assert_close(dr.float(), r_.grad)
    assert_close((ds, dc), gpu.gate_grads(dr, x, c, s))


# ---- An image on the chip


def assert_near(found, expected, close):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= close * expected.abs().max()


@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize(
    ("shape", "kind", "dtype", "close"),
    [
        ((2, 5, 3, 7), "ties", torch.float64, 1e-12),
        ((1, 300, 3, 3), "ties", torch.float64, 1e-12),
        ((2, 20, 9, 15), "random", torch.float64, 1e-12),
        ((2, 8, 4, 4), "random", torch.float32, 1e-5),
        ((2, 8, 4, 4), "ties", torch.bfloat16, 5e-3),
    ],
)
def test_an_image_that_stays_on_the_chip(shape, kind, dtype, close, memory_format):
    torch.manual_seed(1)
    module = CBAM(shape[1], reduction=3).to(DEVICE).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))  # the numbers that the kernels are given
    w1, _, w2 = module.channel.mixer
    x = numbers(*shape, kind=kind, dtype=dtype, memory_format=memory_format)
    g = numbers(*shape, dtype=dtype, memory_format=memory_format)
    assert chip.fits(x, w1.weight, w2.weight)

    x_ = x.double().requires_grad_()
    c_ = module.channel(x_)
    y = x_ * c_
    z = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    z.retain_grad()
    s = module.spatial.norm(module.spatial.conv(z)).sigmoid()
    (y * s).backward(g.double())

    weights = [w.detach().to(dtype) for w in module.channel.parameters()]
    a, m, c, maxima, means = chip.gate_both(x, *weights)
    wide = a.dtype
    assert torch.equal(m, x.amax((2, 3)).to(wide))
    assert torch.equal(maxima, (x.to(wide) * c).amax(1, keepdim=True))
    fine = min(close, 1e-5)
    assert_near(a, x_.mean((2, 3)), fine)
    assert_near(c, c_, fine)
    assert_near(means, z[:, 1:], fine)

    s = s.detach().to(wide)
    dmax, dmean = z.grad.to(wide).split(1, 1)
    _, dc = gpu.gate_grads(g, x, c, s)
    with torch.autocast(DEVICE, torch.bfloat16):  # sums are float32 nevertheless
        dx, *found = chip.gate_back(g, x, c, s, maxima, dmax, dmean, dc, a, m, *weights[:3])
    assert dx.dtype == dtype
    assert dx.is_contiguous(memory_format=memory_format)
    assert_near(dx, x_.grad, close)
    for gradient, parameter in zip(found, module.channel.parameters(), strict=True):
        assert_near(gradient, parameter.grad, fine)


def test_what_is_too_large_for_the_chip():
    x = torch.empty(4, 64, 32, 32, dtype=torch.bfloat16)
    w = torch.empty(128, 64)
    assert chip.fits(x, w, w.mT)
    assert not chip.fits(x, torch.empty(129, 64), torch.empty(64, 129))
    assert not chip.fits(x.float(), w, w.mT)
    for w1, w2 in [(w[:, 1:], w.mT[1:]), (w, w.mT[:, 1:]), (w, w)]:  # no MLP of 64 channels
        assert not chip.fits(x, w1, w2)


# ---- All together


@pytest.fixture
def _triton(monkeypatch):
    monkeypatch.setattr(fused, "BACKENDS", [gpu])


@pytest.fixture(params=["on the chip", "by the six"])
def way(request, monkeypatch):
    if request.param == "by the six":
        monkeypatch.setattr(chip, "CACHED", 0)
    return request.param


def drawn(channels, dtype=torch.float64, **options):
    """Return a fused CBAM of random numbers, and the plain one of the same in float64."""
    torch.manual_seed(3)
    module = fused.CBAM(channels, reduction=4, **options).to(DEVICE, dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    plain = CBAM(channels, reduction=4, **options).to(DEVICE).double()
    plain.load_state_dict(module.state_dict())
    return module, plain


def steps(out):
    """Return the names of the fused steps in the graph of `out`."""
    seen, ahead = set(), [out.grad_fn]
    while ahead:
        node = ahead.pop()
        seen.add(type(node).__name__)
        ahead += [f for f, _ in node.next_functions if f is not None]
    return {name[1:-8] for name in seen if name.startswith("_")} - {"Convolution"}


def assert_as_plain(module, plain, x, call, plain_call):
    """Output and all gradients of `call` are those of `plain_call`, to float64's rounding."""
    g = numbers(*x.shape, dtype=x.dtype)
    close = {"rtol": 1e-9, "atol": 1e-11}
    out, expected = call(x), plain_call(x)
    assert_close(out, expected, **close)
    wanted = [[t for t in [x, *m.parameters()] if t.requires_grad] for m in (module, plain)]
    assert_close(
        torch.autograd.grad(out, wanted[0], g),
        torch.autograd.grad(expected, wanted[1], g),
        **close,
    )


def same(found, reference, close=1e-10):
    size = reference.abs().max()
    assert size > 1e-3
    assert (found.double() - reference).abs().max() < close * size


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_together_they_are_cbam(dtype, close, memory_format, way):
    module, plain = drawn(12, dtype)
    x = numbers(3, 12, 6, 5, dtype=dtype, memory_format=memory_format)
    upstream = numbers(3, 12, 6, 5, dtype=dtype)
    x_, x = x.double().requires_grad_(), x.requires_grad_()
    out, expected = fused.refine(module, x), plain(x_)
    before = {"on the chip": {"Gates"}, "by the six": {"Pool", "Squeeze"}}
    assert steps(out) == before[way] | {"Scale"}
    assert (out.dtype, out.stride()) == (dtype, x.stride())
    out.backward(upstream)
    expected.backward(upstream.double())
    same(out, expected, close)
    same(x.grad, x_.grad, close)
    for found, reference in zip(module.parameters(), plain.parameters(), strict=True):
        assert found.grad.dtype == dtype
        # bfloat16's roundings are large beside a sum whose terms cancel.
        same(found.grad, reference.grad, close if close < 1e-2 else 5 * close)
    assert_close(module.spatial.norm.running_var.double(), plain.spatial.norm.running_var,
                 rtol=close, atol=close)  # fmt: skip


def of_another_size(module):
    module.channel.mixer[2] = nn.Linear(5, 8).double()


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"pooling": ["max", "avg"]}, True),
        ({"bias": False, "norm": False}, True),
        ({"pooling": ["avg"]}, False),
        ({"pooling": ["max", "max"]}, False),
        ({"mixer": "conv1d"}, False),
        ({"gate": "hard-sigmoid"}, False),
    ],
)
def test_which_gates_are_computed_on_the_chip(options, taken):
    module, plain = drawn(8, **options)
    x = numbers(2, 8, 3, 5, kind="ties", dtype=torch.float64).requires_grad_()
    assert fused.supports(module, x)
    assert ("Gates" in steps(fused.refine(module, x))) == taken
    assert_as_plain(module, plain, x, lambda x: fused.refine(module, x), plain)


@pytest.mark.usefixtures("_triton")
def test_an_mlp_that_does_not_fit_together_is_told_as_by_the_plain_form():
    module, _ = drawn(8)
    of_another_size(module)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fused.refine(module, numbers(2, 8, 3, 5, dtype=torch.float64))


def calls(module, plain, joined, r):
    """Return what computes `module` and `plain`, or with `joined` the ReLU of their sum with r."""
    if not joined:
        return (lambda x: fused.refine(module, x)), plain
    return (lambda x: fused.refine_and_add(module, x, r)), lambda x: torch.relu(plain(x) + r)


joined = pytest.mark.parametrize("joined", [False, True], ids=["alone", "joined"])


@pytest.mark.usefixtures("_triton")
@joined
def test_gradients_by_finite_differences(joined, way):
    module, _ = drawn(3, kernel_size=3, norm=False)
    x, r = (numbers(1, 3, 2, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    inputs = (x, r, *module.parameters())

    def call(x, r, *_):
        return fused.refine_and_add(module, x, r) if joined else fused.refine(module, x) * r

    assert ("Join" in steps(call(*inputs))) == joined
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.usefixtures("_triton")
@joined
@pytest.mark.parametrize(
    "frozen",
    [[], ["channel"], ["spatial"], ["channel", "spatial"], ["x"], ["x", "channel"]],
    ids=str,
)
def test_what_is_frozen_and_what_is_not(frozen, joined, way):
    module, plain = drawn(6)
    x = numbers(2, 6, 3, 5, kind="ties", dtype=torch.float64).requires_grad_("x" not in frozen)
    r = numbers(2, 6, 3, 5, dtype=torch.float64)
    for name in set(frozen) - {"x"}:
        for m in (module, plain):
            m.get_submodule(name).requires_grad_(False)
    assert_as_plain(module, plain, x, *calls(module, plain, joined, r))


@pytest.mark.usefixtures("_triton")
@joined
def test_what_is_frozen_after_the_forward_pass(joined, way):
    module, plain = drawn(6)
    x, r = (numbers(2, 6, 3, 5, dtype=torch.float64) for _ in range(2))
    for m, call in zip((module, plain), calls(module, plain, joined, r), strict=True):
        out = call(x)
        m.channel.requires_grad_(False)
        out.square().sum().backward()
    assert_close(module.spatial.conv.weight.grad, plain.spatial.conv.weight.grad)
    assert all(p.grad is None for p in module.channel.parameters())


@pytest.mark.usefixtures("_triton")
@joined
def test_a_graph_walked_twice_and_a_gradient_of_the_gradient(joined, way):
    module, plain = drawn(6)
    x, r = (numbers(2, 6, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    found = []
    for call in calls(module, plain, joined, r):
        loss = call(x).square().sum()
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        (again,) = torch.autograd.grad(loss, x, create_graph=True)
        second = torch.autograd.grad(again.square().sum(), [x, *[r] * joined], retain_graph=True)
        (last,) = torch.autograd.grad(loss, x)
        assert_close(again, first, rtol=1e-10, atol=1e-12)
        assert_close(last, first, rtol=1e-10, atol=1e-12)
        found.append((first, *second))
    assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("_triton")
def test_an_empty_batch_through_all(way):
    module, plain = drawn(6)
    x = numbers(0, 6, 3, 5, dtype=torch.float64).requires_grad_()
    for joined in (False, True):
        assert_as_plain(module, plain, x, *calls(module, plain, joined, x))


@pytest.mark.usefixtures("_triton")
def test_no_gradient_keeps_nothing(way):
    module, plain = drawn(6)
    x = numbers(2, 6, 3, 5, dtype=torch.float64).requires_grad_()
    with torch.inference_mode():
        out = fused.refine(module, x)
        assert_close(out, plain(x), rtol=1e-10, atol=1e-12)
    assert out.is_inference()


@pytest.mark.usefixtures("_triton")
def test_it_keeps_one_map_and_no_more(way):
    module, _ = drawn(64, torch.float32)
    x = numbers(2, 64, 16, 16).requires_grad_()
    for call, maps in [(fused.refine, 1), (fused.refine_and_add, 2)]:  # with the output, a ReLU's
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = call(module, x, *[x] * (maps - 1))
        assert maps * x.nbytes < sum(kept.values()) < (maps + 0.15) * x.nbytes
        watched = weakref.ref(out.grad_fn.call)
        out.backward(out)
        del out
        assert watched() is None


# ---- The join in a network


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("memory_format", LAST)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_a_residual_block_is_joined(dtype, close, memory_format, way):
    torch.manual_seed(0)
    block = ResidualBlock(4, 8, 2, "cbam").to(DEVICE)
    exact = copy.deepcopy(block).double()
    exact.attention.fused = False
    x = numbers(2, 4, 9, 7).contiguous(memory_format=memory_format).requires_grad_()
    x_ = x.detach().double().requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = block(x)
    expected = exact(x_)
    if dtype == torch.float32:
        assert type(out.grad_fn).__name__ == "_JoinBackward"
    out.float().square().sum().backward()
    expected.square().sum().backward()
    same(out, expected, close)
    same(x.grad, x_.grad, close)


@pytest.mark.usefixtures("_triton")
def test_where_nothing_is_joined():
    x, r = (numbers(2, 8, 3, 5).requires_grad_() for _ in range(2))

    def joins(change=lambda m: None, r=r):
        module, plain = drawn(8, torch.float32)
        change(module)
        out = fused.refine_and_add(module, x, r)
        assert_close(out, torch.relu(plain.float()(x) + r), rtol=1e-5, atol=1e-5)
        return "Join" in steps(out)

    def no_longer_fused(module):
        module.fused = False

    assert joins()
    assert not joins(no_longer_fused)
    for name in ("forward_hook", "forward_pre_hook", "full_backward_hook"):
        assert not joins(lambda m, n=name: getattr(m, f"register_{n}")(lambda *_: None))
    assert not joins(r=numbers(2, 8, 1, 1))
    assert not joins(r=numbers(2, 8, 3, 5, dtype=torch.float64))
    watch = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not joins()
    watch.remove()
    assert joins()


def test_a_backend_that_cannot_join_adds(monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 0)
    module, plain = drawn(8)
    x, r = (numbers(2, 8, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    out = fused.refine_and_add(module.cpu(), x.cpu(), r.cpu())
    assert steps(out) == {"Pool", "Squeeze", "Scale"}
    assert_close(out, torch.relu(plain.cpu()(x.cpu()) + r.cpu()))


# ---- Drawn examples


@holds(
    "Triton's kernels give the plain form's output, gradients and extreme numbers",
    shape=shapes(most=64), few=st.sampled_from([1, 1, 1, 2]), hidden=st.integers(1, 40), kind=kinds,
    last=st.booleans(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    on_chip=st.booleans(), back=st.sampled_from([True, *[False] * 3]), joined=st.booleans(),
    value=st.none() | bad_values, where=bad_places, seed=seeds,
)  # fmt: skip
def test_drawn_examples(
    shape, few, hidden, kind, last, dtype, on_chip, back, value, where, joined, seed
):
    torch.manual_seed(seed)
    shape = (min(few, shape[0]), *shape[1:])  # each image takes the interpreter its time
    module = fused.CBAM(shape[1], max(1, shape[1] // hidden), norm=False).to(DEVICE, dtype)
    plain = CBAM(shape[1], max(1, shape[1] // hidden), norm=False).to(DEVICE).double()
    plain.load_state_dict(module.state_dict())
    x = drawn_numbers(shape, seed, kind, dtype)
    x = (x if value is None else spoil(x, value, where, seed)).to(DEVICE)
    x = x.contiguous(memory_format=LAST[last])
    r, g = (drawn_numbers(shape, seed + i, dtype=dtype).to(DEVICE) for i in (1, 2))
    exact = back and dtype == torch.float64 and value is None  # no tie by a rounding
    found = []
    with (
        np.errstate(all="ignore"),  # the interpreter computes by numpy, which warns of infinities
        mock.patch.object(fused, "BACKENDS", [gpu]),
        mock.patch.object(chip, "CACHED", chip.CACHED if on_chip else 0),
    ):
        for m, wide in ((module, dtype), (plain, torch.float64)):
            here = x.to(wide).requires_grad_(exact)
            if m is plain:
                out = torch.relu(m(here) + r.to(wide)) if joined else m(here)
            else:
                out = fused.refine(m, here, r if joined else None)
            wanted = [here, *m.parameters()] if exact else []
            grads = torch.autograd.grad(out, wanted, g.to(wide)) if exact else ()
            found.append((out, *grads))
    size = x.double().abs().nan_to_num(0, 0, 0) + joined * r.double().abs()
    near(found[0][0], found[1][0], OTHER_WAY[dtype] * size + 1e-40)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        near(one, other, 1e-9 * (1 + other.abs().max()))


# ---- The trial


def test_the_kernels_pass_their_trial(recwarn):
    state = torch.get_rng_state()
    assert gpu.runs(torch.device(DEVICE))
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        assert gpu.runs(torch.device(DEVICE))
    assert not recwarn
    assert torch.equal(torch.get_rng_state(), state)


PAIR = ["gate_both", "gate_back"]
SIX = ["pool", "squeeze", "scale", "gate_grads", "map_grads", "input_grad"]


@pytest.mark.parametrize("name", [*SIX, "residual_grads", *PAIR])
def test_a_wrong_kernel_is_found(name, monkeypatch):
    room = chip if name in PAIR else gpu
    right = getattr(room, name)

    def wrong(*given):
        found = right(*given)
        (found if isinstance(found, Tensor) else found[-1]).view(-1)[-1] += 0.01
        return found

    monkeypatch.setattr(room, name, wrong)
    with pytest.warns(UserWarning, match=rf"plain form on {DEVICE}, .* fail there: {name} gives"):
        assert not gpu.runs(torch.device(DEVICE))


def test_a_wrong_join_is_found(monkeypatch):
    right = gpu.scale
    monkeypatch.setattr(gpu, "scale", lambda x, c, s, r=None: right(x, c, s))
    with pytest.warns(UserWarning, match=r"fail there: scale with a residual gives other numbers"):
        assert not gpu.runs(torch.device(DEVICE))


def test_a_kernel_that_raises_is_found(monkeypatch):
    def broken(*given):
        raise ValueError("out of resource: shared memory")

    monkeypatch.setattr(chip, "gate_back", broken)
    with pytest.warns(UserWarning, match=r"fail there: out of resource: shared memory$"):
        assert not gpu.runs(torch.device(DEVICE))
