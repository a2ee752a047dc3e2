"""The fused CBAM against the plain one: outputs, gradients, memory; and where it steps back."""

import copy
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from cbam_edu import fused
from cbam_edu.attention import CBAM
from cbam_edu.fused import blocks
from cbam_edu.fused import steps as fused_steps

FORMATS = [torch.contiguous_format, torch.channels_last]
MAPS = {
    "normal": lambda x: x,
    "relu": torch.relu,  # half of all are 0: many maxima are attained many times at small maps
    "rounded": torch.round,  # ties among positive maxima
    "constant": lambda x: torch.full_like(x, 1.5),
    "zero": torch.zeros_like,
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Work on two images at a time at most, so that small maps need several blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 2000)
    monkeypatch.setattr(fused, "SMALLEST", 0)


def cbam(channels: int = 6, dtype: torch.dtype = torch.float64, **options) -> CBAM:
    """Return a CBAM none of whose parameters and statistics are special."""
    torch.manual_seed(0)
    module = CBAM(channels, 2, **options).to(dtype)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.normal_(0, 0.5)
                if name.endswith("running_var"):
                    value.abs_().add_(0.1)
    return module


def feature_map(shape=(5, 6, 4, 7), kind="normal", memory_format=FORMATS[0], dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = MAPS[kind](torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    return x.contiguous(memory_format=memory_format)


def gradients(module: CBAM, call, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the output, and the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()  # with the strides that it has
    out = call(x)
    generator = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    return out.detach(), {"x": x.grad, **{n: p.grad for n, p in module.named_parameters()}}


def run_fused(module: CBAM, x: Tensor) -> Tensor:
    assert fused.supports(module, x)
    return fused.refine(module, x)


def assert_same(module: CBAM, x: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Outputs, gradients and statistics are those of the plain form."""
    plain = copy.deepcopy(module)
    out, grads = gradients(module, lambda x: run_fused(module, x), x)
    expected, expected_grads = gradients(plain, plain, x)
    assert (out.dtype, out.stride()) == (expected.dtype, expected.stride())
    close = {"rtol": rtol, "atol": atol, "equal_nan": True}
    assert_close(out, expected, **close)
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], msg=lambda m, n=name: f"{n}: {m}", **close)
    for (name, value), (_, other) in zip(
        module.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert_close(value, other, msg=lambda m, n=name: f"{n}: {m}", **close)
    with torch.no_grad():
        assert_close(run_fused(module, x), plain(x), **close)


# ---- Equal to the plain form


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("kind", MAPS)
def test_equals_the_plain_form(kind, memory_format, training):
    assert_same(cbam().train(training), feature_map(kind=kind, memory_format=memory_format))


OPTIONS = [
    {"pooling": ["avg"]},
    {"pooling": ["max"]},
    {"pooling": ["max", "avg"]},
    {"pooling": ["max", "max"]},
    {"mixer": "conv1d"},
    {"mixer": "conv1d", "bias": False, "norm": False},
    {"bias": False},
    {"norm": False, "kernel_size": 3},
    {"kernel_size": 1},
    {"kernel_size": 9},
    {"gate": "softmax"},
    {"gate": "hard-sigmoid"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options):
    for memory_format in FORMATS:
        assert_same(cbam(**options), feature_map(kind="rounded", memory_format=memory_format))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 6, 1, 1),  # one value has no variance of its own
        (2, 6, 1, 1),
        (1, 6, 1, 9),
        (3, 6, 8, 1),
        (3, 1, 4, 5),
        (1, 1, 1, 1),
        (7, 6, 2, 3),
        (1, 6, 23, 19),  # one image is more than a block
        (2, 130, 3, 3),
    ],
    ids=str,
)
def test_odd_shapes(shape):
    for memory_format in FORMATS:
        x = feature_map(shape, memory_format=memory_format)
        assert_same(cbam(shape[1]), x)
        assert_same(cbam(shape[1]).eval(), x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", [True, False])
def test_an_empty_batch(norm, training):
    for width in (5, 17):  # the convolution of a wide map takes 8 places at once
        assert_same(cbam(norm=norm).train(training), feature_map((0, 6, 4, width)))


def test_a_map_that_is_not_dense():
    big = feature_map((4, 12, 9, 8))
    for x in (big[:, ::2], big[:, :6, 1:, 2:7], big[::2, 6:].flip(3)):
        assert_same(cbam(), x)
    transposed = big[:, :6].transpose(2, 3)
    module = cbam()
    plain = copy.deepcopy(module)
    assert_close(run_fused(module, transposed), plain(transposed), rtol=1e-10, atol=1e-12)


def test_a_gradient_that_is_not_dense():
    module, x = cbam(), feature_map().requires_grad_()
    plain = copy.deepcopy(module)
    for weight in (torch.ones(()), feature_map((7, 4, 6, 5)).permute(3, 2, 1, 0)):
        (actual,) = torch.autograd.grad((run_fused(module, x) * weight).sum(), x)
        (expected,) = torch.autograd.grad((plain(x) * weight).sum(), x)
        assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
    ids=str,
)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_narrow_types_to_their_rounding(dtype, tolerance, memory_format):
    module = cbam(8, mixer="conv1d")  # no ReLU, where a rounding may switch a gradient off
    x = feature_map((6, 8, 9, 10), memory_format=memory_format).to(dtype)
    module.to(dtype)
    exact = copy.deepcopy(module).double()
    out, grads = gradients(module, lambda x: run_fused(module, x), x)
    assert out.dtype == grads["x"].dtype == dtype
    assert out.stride() == x.stride()
    expected, expected_grads = gradients(exact, exact, x.double())
    assert (out - expected).abs().max() < tolerance * expected.abs().max()
    for name, grad in grads.items():
        assert grad.dtype == dtype
        allowed = tolerance * expected_grads[name].abs().max() * (1 if name == "x" else 10)
        assert (grad - expected_grads[name]).abs().max() < allowed, name  # parameters: long sums


def test_gates_of_narrow_types_are_wide():
    module, x = cbam(8, torch.bfloat16), feature_map((2, 8, 40, 40), dtype=torch.bfloat16)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run_fused(module, x.requires_grad_())
    for name, size in (("c", (2, 8, 1, 1)), ("z", (2, 2, 40, 40)), ("s", (2, 1, 40, 40))):
        assert torch.float32 in {t.dtype for t in kept if t.shape == size}, name


def test_numbers_that_are_none():
    for bad in (float("nan"), float("inf"), -float("inf")):
        for memory_format in FORMATS:
            x = feature_map(memory_format=memory_format)
            x[1, 2, 3, 4] = bad
            for module in (cbam(), cbam().eval()):
                plain = copy.deepcopy(module)
                out, expected = run_fused(module, x), plain(x)
                assert_close(out, expected, rtol=1e-10, atol=1e-12, equal_nan=True)
                assert not out[1].isfinite().all()
                assert out[0].isfinite().all() != module.training
    x = feature_map()
    x[1, 2, 3, 4] = float("nan")
    assert_same(cbam().eval(), x)


def test_an_infinity_stays_as_far_as_the_kernel_reaches():
    """The convolution of a wide map takes 8 places at once, with zeros beside its kernel."""
    module, x = cbam(1, kernel_size=3).eval(), feature_map((2, 1, 5, 24))
    module.channel.requires_grad_(False)
    for parameter in module.channel.parameters():
        parameter.fill_(1)
    x[0, 0, 2, 12] = float("inf")
    out = run_fused(module, x)
    assert_close(out, module(x), rtol=1e-10, atol=1e-12, equal_nan=True)
    assert 0 < (~out.isfinite()).sum() <= 3 * 3


# ---- Gradients


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_by_finite_differences(training, memory_format):
    module = cbam(4, kernel_size=3).train(training)
    x = feature_map((2, 4, 3, 3), memory_format=memory_format).requires_grad_()
    parameters = dict(module.named_parameters())

    def call(x: Tensor, *_: Tensor) -> Tensor:
        return fused.refine(module, x)

    assert gradcheck(call, (x, *parameters.values()))
    assert gradgradcheck(call, (x, *parameters.values()))


def test_a_gradient_of_the_gradient_moves_no_statistics():
    module, x = cbam(), feature_map().requires_grad_()
    (grad,) = torch.autograd.grad(run_fused(module, x).square().sum(), x, create_graph=True)
    before = copy.deepcopy(module.state_dict())
    grad.square().sum().backward()
    plain = copy.deepcopy(module)
    y = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain(y).square().sum(), y, create_graph=True)
    expected.square().sum().backward()
    assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert int(before["spatial.norm.num_batches_tracked"]) == 1


def test_a_gradient_of_the_gradient_of_parameters_alone():
    module, x = cbam(), feature_map()
    plain = copy.deepcopy(module)
    weights = [m.channel.mixer[0].weight for m in (module, plain)]
    outs = [run_fused(module, x), plain(x)]
    for weight, out in zip(weights, outs, strict=True):
        (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
        grad.square().sum().backward()
    assert_close(weights[0].grad, weights[1].grad, rtol=1e-9, atol=1e-9)


def test_what_is_frozen_gets_no_gradient():
    for frozen in (["channel"], ["spatial.conv"], ["spatial"], ["channel", "spatial"]):
        module, x = cbam(), feature_map()
        for name in frozen:
            module.get_submodule(name).requires_grad_(False)
        assert_same(module, x)
        for name, p in module.named_parameters():
            assert (p.grad is None) == any(name.startswith(f) for f in frozen)


def test_what_is_frozen_after_the_forward_pass():
    module, x = cbam(), feature_map()
    out = run_fused(module, x)
    module.channel.requires_grad_(False)
    out.square().sum().backward()
    plain = cbam()
    plain(x).square().sum().backward()
    expected = plain.spatial.conv.weight.grad
    assert_close(module.spatial.conv.weight.grad, expected, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in module.channel.parameters())


def test_an_input_without_gradient():
    module, x = cbam(), feature_map()
    plain = copy.deepcopy(module)
    run_fused(module, x).square().sum().backward()
    plain(x).square().sum().backward()
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)


def test_a_layer_used_twice_and_a_graph_walked_twice():
    module, x = cbam(), feature_map().requires_grad_()
    plain, y = copy.deepcopy(module), feature_map().requires_grad_()
    out = run_fused(module, run_fused(module, x)).square().sum()
    expected = plain(plain(y)).square().sum()
    for keep in (True, False):
        out.backward(retain_graph=keep)
        expected.backward(retain_graph=keep)
        assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-12)
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward()


def test_many_gradients_at_once():
    module, x = cbam().eval(), feature_map((2, 6, 3, 4)).requires_grad_()
    plain = copy.deepcopy(module)
    several = torch.stack([feature_map((2, 6, 3, 4), kind) for kind in ("normal", "relu")])
    found = [
        torch.autograd.grad(call(x), x, several, is_grads_batched=True)[0]
        for call in (lambda x: run_fused(module, x), plain)
    ]
    assert_close(*found, rtol=1e-10, atol=1e-12)


def test_two_backward_passes_at_once_are_told_and_none_is_wrong():
    module, x = cbam(), feature_map((4, 6, 16, 16)).requires_grad_()
    out = run_fused(module, x)
    losses = [out.sin().sum(), out.cos().sum()]
    wanted = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]

    def passes(i: int) -> list[str]:
        told = []
        for _ in range(30):
            try:
                (found,) = torch.autograd.grad(losses[i], x, retain_graph=True)
            except RuntimeError as error:
                told.append(str(error))
                continue
            assert torch.equal(found, wanted[i])
        return told

    with ThreadPoolExecutor(2) as pool:
        told = [text for texts in pool.map(passes, range(2)) for text in texts]
    assert all("let them come one after the other" in text for text in told)


def test_two_backward_passes_at_once_by_hand():
    call = fused_steps.Call(blocks)
    call.leave("scale", torch.ones(1))
    assert call.take("scale")[0] == 1
    with pytest.raises(RuntimeError, match="two backward passes"):
        call.take("scale")
    call.left["scale"] = 7, (torch.ones(1),)  # another pass's
    with pytest.raises(RuntimeError, match="two backward passes"):
        call.take("scale")


def test_an_input_detached_after_the_forward_pass_is_told_by_torch():
    module, x = cbam(), feature_map().requires_grad_()
    h = x * 1
    out = run_fused(module, h)
    h.detach_()
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_an_input_that_was_overwritten_is_noticed():
    x = feature_map().requires_grad_()
    y = x * 1
    out = run_fused(cbam(), y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_input_and_gradient_stay_as_they_are():
    module, x, g = cbam(), feature_map().requires_grad_(), feature_map()
    before = x.detach().clone(), g.clone()
    run_fused(module, x).backward(g)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(g, before[1])


def test_statistics_follow_the_plain_form_for_many_steps():
    module = cbam()
    plain = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    for step in range(5):
        x = feature_map() * step + step
        assert_close(run_fused(module, x), plain(x), rtol=1e-10, atol=1e-12)
    for name, value in module.named_buffers():
        assert_close(value, plain.get_buffer(name), rtol=1e-12, atol=1e-12)
        assert not torch.equal(value, before[name])
    module.eval()
    after = copy.deepcopy(module.state_dict())
    run_fused(module, x).sum().backward()
    assert all(torch.equal(v, after[k]) for k, v in module.state_dict().items())


def test_the_same_input_gives_the_same_bits():
    module, x = cbam(8, torch.float32).eval(), feature_map((4, 8, 16, 16), dtype=torch.float32)
    first, second = (gradients(copy.deepcopy(module), lambda x: run_fused(module, x), x)
                     for _ in range(2))  # fmt: skip
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["x"], second[1]["x"])


# ---- What it keeps


def kept_bytes(call, x: Tensor) -> int:
    """Return the bytes kept for the backward pass; a storage counts once."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = call(x)
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_it_keeps_one_feature_map(memory_format):
    module = cbam(64, torch.float32)
    x = feature_map((8, 64, 24, 24), memory_format=memory_format, dtype=torch.float32)
    x.requires_grad_()
    assert kept_bytes(module, x) > 2 * x.nbytes
    assert x.nbytes < kept_bytes(lambda x: run_fused(module, x), x) < 1.1 * x.nbytes


def test_nothing_is_kept_without_a_gradient():
    module, x = cbam(), feature_map()
    with torch.no_grad():
        assert run_fused(module, x.requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert run_fused(module, x).is_inference()
    module.requires_grad_(False)
    assert run_fused(module, x.detach()).grad_fn is None


def test_no_memory_leaks():
    module, x = cbam(), feature_map().requires_grad_()
    out = run_fused(module, x)
    watched = [weakref.ref(out.grad_fn.call), weakref.ref(out.grad_fn)]
    g = torch.ones_like(out)
    watched.append(weakref.ref(g))
    out.backward(g)
    del out, g
    assert [w() for w in watched] == [None] * len(watched)


def test_activation_checkpoints():
    module, x = cbam(), feature_map()
    plain = copy.deepcopy(module)
    _, grads = gradients(module, lambda x: checkpoint(run_fused, module, x, use_reentrant=False), x)
    _, expected = gradients(plain, plain, x)
    for name, grad in grads.items():
        assert_close(grad, expected[name], rtol=1e-10, atol=1e-12)


# ---- The six functions, each by its definition


@pytest.mark.parametrize("block", [1, 300, 2000, 2**22])  # places, parts of images, images, all
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_each_function_is_its_formula(memory_format, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    x, g = (feature_map(kind=k, memory_format=memory_format) for k in ("rounded", "normal"))
    c, s = torch.rand(5, 6, 1, 1).double(), torch.rand(5, 1, 4, 7).double()
    dmax, dmean = torch.randn(2, 5, 1, 4, 7).double()
    da, dm = torch.randn(2, 5, 6).double()
    a, m = blocks.pool(x)
    assert_close(a, x.mean((2, 3)))
    assert torch.equal(m, x.amax((2, 3)))
    y = x * c
    maxima, mean = blocks.squeeze(x, c)
    assert torch.equal(maxima, y.amax(1, keepdim=True))
    assert_close(mean, y.mean(1, keepdim=True))
    assert torch.equal(blocks.scale(x, c, s), y * s)
    ds, dc = blocks.gate_grads(g, x, c, s)
    assert_close(ds, (g * y).sum(1, keepdim=True))
    assert_close(dc, (g * x * s).sum((2, 3)))
    is_max, is_largest = (y == maxima).double(), (x == m[:, :, None, None]).double()
    rest, ties, n = blocks.map_grads(x, c, maxima, dmax, dmean, m)
    assert ties.max() > 1
    assert n.max() > 1
    assert torch.equal(ties, is_max.sum(1, keepdim=True))
    assert torch.equal(n, is_largest.sum((2, 3)))
    assert_close(rest, (x * (dmean / 6 + is_max * dmax / ties)).sum((2, 3)))
    dx = blocks.input_grad(g, x, c, s, maxima, dmax, dmean, m, dm, da)
    dy = g * s + dmean + is_max * dmax
    assert_close(dx, c * dy + da[:, :, None, None] + is_largest * dm[:, :, None, None])
    assert dx.stride() == x.stride()


# ---- Where it steps back


@pytest.mark.parametrize(
    "options",
    [
        *({"order": o} for o in ("spatial-channel", "parallel", "channel-only", "spatial-only")),
        {"pooling": ["avg", "lse"]},
        {"pooling": ["lp"]},
    ],
    ids=str,
)
def test_options_that_are_left_to_the_plain_form(options):
    assert not fused.supports(cbam(**options), feature_map())


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 6, 4),
        torch.zeros(2, 5, 4, 4).double(),
        torch.zeros(2, 6, 0, 4).double(),
        torch.zeros(2, 6, 4, 4, dtype=torch.int64),
        torch.zeros(2, 6, 4, 4),  # float32 for a module of float64
        torch.zeros(2, 6, 4, 4, device="meta").double(),
        torch.zeros(2, 6, 4, 4).double().to_sparse(),
        [1.0],
    ],
    ids=lambda x: f"{getattr(x, 'dtype', '')} {getattr(x, 'shape', x)}",
)
def test_inputs_that_are_left_to_the_plain_form(x):
    assert not fused.supports(cbam(), x)


def test_watched_or_replaced_gates_are_left_to_the_plain_form():
    x = feature_map()

    def supports(change) -> bool:
        module = cbam()
        assert fused.supports(module, x)
        change(module)
        return fused.supports(module, x)

    assert supports(lambda m: m.register_forward_hook(lambda *_: None))  # it sees no gate
    for name in ("channel", "channel.mixer.0", "spatial", "spatial.conv", "spatial.norm"):
        for hook in ("forward_hook", "forward_pre_hook", "full_backward_hook"):
            register = f"register_{hook}"
            assert not supports(lambda m, n=name, r=register: getattr(m.get_submodule(n), r)(print))
    assert not supports(lambda m: parametrizations.weight_norm(m.spatial.conv))
    assert not supports(lambda m: m.spatial.register_module("conv", nn.Identity()))
    assert not supports(lambda m: m.channel.half())
    assert not supports(lambda m: vars(m.spatial).update(forward=print))
    assert not supports(lambda m: m.register_module("channel", nn.Identity()))


@pytest.mark.parametrize(
    "conv",
    [
        {"padding_mode": "reflect"},
        {"dilation": 2, "padding": 6},
        {"bias": True},
        {"kernel_size": (1, 7), "padding": (0, 3)},
        {"kernel_size": 4, "padding": "same"},
    ],
    ids=str,
)
def test_another_convolution_is_the_plain_forms(conv):
    module, x = cbam(), feature_map()
    settings = {"kernel_size": 7, "padding": 3, "bias": False} | conv
    module.spatial.conv = nn.Conv2d(2, 1, **settings).double()
    assert not fused.supports(module, x)


@pytest.mark.parametrize("name", ["norm", "spectral", "none"])
def test_another_mixer_is_the_plain_forms(name):
    module, x = cbam(), feature_map()
    first, relu, last = module.channel.mixer
    if name == "norm":  # it would see both poolings at once
        layers = [first, nn.BatchNorm1d(3).double(), relu, last]
    elif name == "spectral":  # it takes a step each time it is called
        layers = [parametrizations.spectral_norm(first), relu, last]
    else:
        layers = [nn.Identity()]
    module.channel.mixer = nn.Sequential(*layers)
    assert not fused.supports(module, x)


@pytest.mark.parametrize("when", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_on_all_modules_sees_the_plain_form(when):
    watch = getattr(nn.modules.module, f"register_module_{when}_hook")
    with watch(lambda *_: None):
        assert not fused.supports(cbam(), feature_map())
    assert fused.supports(cbam(), feature_map())


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_transformations_are_left_to_the_plain_form():
    module, x = cbam().eval().requires_grad_(False), feature_map()

    def call(x: Tensor) -> Tensor:
        assert not fused.supports(module, x)
        return module(x)

    torch.func.vmap(call)(x[:, None])
    torch.func.jvp(call, (x,), (x,))
    torch.func.grad(lambda x: call(x).sum())(x)
    with forward_ad.dual_level():
        call(forward_ad.make_dual(x, x))
    with FlopCounterMode(display=False):
        call(x)
    torch.jit.trace(call, x, check_trace=False)
    assert fused.supports(module, x)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_compiled_to_train_its_convolution_is_the_fused_ones(norm, memory_format):
    torch.compiler.reset()
    module, x = cbam(norm=norm), feature_map((2, 6, 5, 17), memory_format=memory_format)
    plain, ours = copy.deepcopy(module), fused.CBAM(6, 2, norm=norm).double()
    ours.load_state_dict(module.state_dict())
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    out, grads = gradients(ours, compiled, x)
    expected, expected_grads = gradients(plain, plain, x)
    assert_close(out, expected)
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], msg=lambda m, n=name: f"{n}: {m}")
    graphs: list[torch.fx.GraphModule] = []

    def look(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(ours, backend=look, fullgraph=True)(x)
    torch.compile(plain, backend=look, fullgraph=True)(x)
    convolved = ["autograd_function_apply" in str(g.graph) for g in graphs]
    assert convolved == [memory_format == torch.channels_last, False]


def test_compiled_and_exported_it_is_the_plain_form():
    torch.compiler.reset()  # it compiles no class more than 8 times
    module, x = chosen().eval(), feature_map(dtype=torch.float32)
    expected = cbam(dtype=torch.float32).eval()(x)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), expected)


# ---- How CBAM chooses


def chosen(dtype=torch.float32, **options) -> fused.CBAM:
    """Return the public CBAM with the weights of `cbam`, which is plain."""
    module = fused.CBAM(6, 2, **options).to(dtype)
    names = ("order", "pooling", "mixer", "bias", "norm", "gate")
    plain = cbam(dtype=dtype, **{k: v for k, v in options.items() if k in names})
    module.load_state_dict(plain.state_dict())
    return module


def is_fused(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "_ScaleBackward"


def test_it_is_fused_where_it_pays(monkeypatch):
    x = feature_map(dtype=torch.float32)
    assert is_fused(chosen()(x))
    assert not is_fused(chosen(fused=False)(x))
    assert not is_fused(chosen(order="parallel")(x))
    monkeypatch.setattr(fused, "SMALLEST", x.numel() + 1)
    assert not is_fused(chosen()(x))
    assert torch.equal(chosen()(x), cbam(dtype=torch.float32)(x))


def test_without_a_gradient_it_is_the_plain_form_in_less_memory():
    module, plain, x = chosen(), cbam(dtype=torch.float32), feature_map(dtype=torch.float32)
    before = x.clone()
    for training in (True, False):
        module.train(training)
        plain.train(training)
        with torch.no_grad():
            assert torch.equal(module(x), plain(x))
        with torch.inference_mode():
            assert torch.equal(module(x), plain(x))
    assert torch.equal(x, before)


def test_inference_first_and_training_after(monkeypatch):
    monkeypatch.setattr(blocks, "_room", blocks._Room())
    module, x = cbam(), feature_map()
    with torch.inference_mode():
        fused.refine(module, x)
    assert_same(module, x)


def test_a_wrong_input_is_told_as_by_the_plain_form():
    for x in (torch.zeros(2, 5, 4, 4), torch.zeros(2, 6, 4), torch.zeros(2, 6, 4, 4).int()):
        with pytest.raises((ValueError, TypeError)) as ours:
            chosen()(x)
        with pytest.raises((ValueError, TypeError)) as plain:
            cbam()(x)
        assert str(ours.value) == str(plain.value)


def test_its_arguments_are_the_plain_forms_and_one_more():
    ours, plain = (inspect.signature(c).parameters for c in (fused.CBAM, CBAM))
    assert [*ours.values()][:-1] == [*plain.values()]
    assert [*ours][-1] == "fused"
    options = {"order": "parallel", "pooling": ["lp"], "mixer": "conv1d", "bias": False}
    built = fused.CBAM(6, 2, 3, **options, norm=False, gate="softmax")
    assert repr(built) == repr(CBAM(6, 2, 3, **options, norm=False, gate="softmax"))
    assert (built.order, built.gate, built.channel.pooling) == ("parallel", "softmax", ("lp",))
    assert copy.deepcopy(fused.CBAM(6, fused=False)).fused is False


# ---- Autocast


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_keeps_the_gates_in_float32(kind):
    module, x = cbam(8, torch.float32), feature_map((3, 8, 6, 6), dtype=kind)
    exact, plain = copy.deepcopy(module).double(), copy.deepcopy(module)

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run_fused(module, x)

    out, grads = gradients(module, call, x)
    expected, expected_grads = gradients(exact, exact, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert out.dtype == plain(x).dtype
        assert not fused.supports(plain.double(), feature_map((3, 8, 6, 6)).bfloat16())
        assert fused.supports(plain, feature_map((3, 8, 6, 6)))
    tolerance = 1e-5 if kind == torch.float32 else 2e-2
    assert (out - expected).abs().max() < tolerance * expected.abs().max()
    for name, grad in grads.items():
        scale = expected_grads[name].abs().max()
        assert (grad - expected_grads[name]).abs().max() < tolerance * scale, name


def test_a_backward_pass_under_autocast_is_as_exact_as_the_plain_one():
    module, x = cbam(8, torch.float32), feature_map((3, 8, 6, 6), dtype=torch.float32)
    weight = feature_map((3, 8, 6, 6), dtype=torch.float32)
    x.requires_grad_()
    plain = copy.deepcopy(module)
    losses = [(call(x) * weight).sum() for call in (plain, plain, lambda x: run_fused(module, x))]
    (exact,) = torch.autograd.grad(losses[0], x)
    with torch.autocast("cpu", torch.bfloat16):
        (by_plain,), (by_fused,) = (torch.autograd.grad(loss, x) for loss in losses[1:])
    assert (by_fused - exact).abs().max() < 2 * (by_plain - exact).abs().max()


def test_without_autocast_types_do_not_mix():
    assert not fused.supports(cbam(dtype=torch.float32), feature_map(dtype=torch.bfloat16))


# ---- The end of a residual block


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_residual_on_a_cpu_is_added_by_the_plain_expression(training):
    for build in (chosen, lambda: cbam(dtype=torch.float32), nn.Identity):
        module, plain = build().train(training), build().train(training)
        seen: list[Tensor] = []
        module.register_forward_hook(lambda m, given, out, seen=seen: seen.append(out))
        x, r = (feature_map(kind=k, dtype=torch.float32) for k in ("normal", "rounded"))
        x.requires_grad_()
        out = fused.refine_and_add(module, x, r)
        assert len(seen) == 1
        assert torch.equal(out, torch.relu(plain(x) + r))


def test_a_residual_block_is_traced_whole():
    module, x = chosen().eval(), feature_map(dtype=torch.float32)
    block = nn.Module()
    block.attention = module
    block.forward = lambda x: fused.refine_and_add(block.attention, x, x)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    expected = torch.relu(cbam(dtype=torch.float32).eval()(x) + x)
    assert torch.equal(compiled(x), expected)


def test_more_channels_than_a_byte_counts_are_fused():
    assert fused.supports(CBAM(300), torch.zeros(1, 300, 2, 2))
