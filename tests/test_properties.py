"""What holds for every option and every input: properties, each tried on drawn examples.

Here 50 of each, the same ones every time; ``python tests/attacks/properties.py`` tries 5,000 others
of each, and breaks the code on purpose to see that the properties notice.
"""

import contextlib
import copy
import functools
import itertools
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cbam_edu import attention, attention_layer, create_model, fused
from cbam_edu.attention import GATES, ORDERS, POOLINGS, ChannelAttention, SpatialAttention
from cbam_edu.checkpoint import read_checkpoint, write_checkpoint
from cbam_edu.convert import convert
from cbam_edu.export import FORMATS, trace
from cbam_edu.fused import blocks
from cbam_edu.layouts import LAYOUTS
from cbam_edu.models import load_model, save_model
from cbam_edu.neighbours import ATTENTIONS, STUDIED
from foreign_cbam import randomise

EXAMPLES = int(os.environ.get("CBAM_EDU_EXAMPLES", "50"))
LONG = EXAMPLES > 50  # then compiled as a user's network is, not only traced
PHASES = [Phase.generate, Phase.shrink][: int(os.environ.get("CBAM_EDU_PHASES", "2"))]
PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=PHASES,
    suppress_health_check=list(HealthCheck),
)
TRIED: Counter[str] = Counter()  # examples that ran through, by the property's name
WORDS: dict[str, str] = {}  # the property's name -> the same in words


def holds(words: str, **drawn: st.SearchStrategy) -> Callable[[Callable[..., None]], Any]:
    """Make a property of a function: `words` say what holds for all that is drawn."""

    def decorate(check: Callable[..., None]) -> Any:
        @functools.wraps(check)
        def counted(**values: Any) -> None:
            check(**values)
            TRIED[check.__name__] += 1

        WORDS[check.__name__] = words
        return PROFILE(given(**drawn)(counted))

    return decorate


# ---- What is drawn

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDING = {t: torch.finfo(t).eps for t in DTYPES}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "ties": lambda x: (2 * x).round() / 2,
    "half zeros": torch.relu,
    "constant": lambda x: torch.full_like(x, 0.75),
    "zero": torch.zeros_like,
    "negative": lambda x: -x.abs(),
    "small": lambda x: x * 1e-3,
    "tens": lambda x: x * 10,
}


AXES = list(itertools.permutations(range(4)))  # which has the first choice


@st.composite
def shapes(draw: st.DrawFn, least: tuple[int, ...] = (1, 1, 1, 1), most: int = 2**13) -> Any:
    """Draw (N, C, H, W), each of which may be up to 64, of at most `most` values altogether."""
    shape, room = [0, 0, 0, 0], most
    for axis in draw(st.sampled_from(AXES)):
        shape[axis] = draw(st.integers(least[axis], max(least[axis], min(64, room))))
        room //= max(1, shape[axis])
    return tuple(shape)


seeds = st.integers(0, 2**31)
kinds = st.sampled_from(list(KINDS))
dtypes = st.sampled_from(DTYPES)
gates = st.sampled_from(list(GATES))
poolings = st.sampled_from(
    [list(p) for n in range(1, 5) for p in itertools.product(POOLINGS, repeat=n)]
).map(list)
channel_options = st.fixed_dictionaries(
    {
        "reduction": st.integers(1, 70),
        "pooling": poolings,
        "mixer": st.sampled_from(["mlp", "conv1d"]),
        "bias": st.booleans(),
        "gate": gates,
    }
)
spatial_options = st.fixed_dictionaries(
    {"kernel_size": st.sampled_from([1, 3, 5, 7, 9]), "norm": st.booleans(), "gate": gates}
)
orders = st.fixed_dictionaries({"order": st.sampled_from(ORDERS)})


def both(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda each: functools.reduce(lambda a, b: {**a, **b}, each))


cbam_options = both(channel_options, spatial_options, orders)
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "plain": cbam_options,
    "cbam": cbam_options,
    "channel": channel_options,
    "spatial": spatial_options,
    "se": st.fixed_dictionaries({"reduction": st.integers(1, 70), "bias": st.booleans()}),
    "eca": st.just({}),
    "bam": st.fixed_dictionaries({"reduction": st.integers(1, 70), "dilation": st.integers(1, 5)}),
    "half": st.just({}),
    "variant": both(
        spatial_options,
        st.fixed_dictionaries(
            {
                "reduction": st.integers(1, 70),
                "squeeze": st.sampled_from(["pool", "conv"]),
                "order": st.sampled_from([name for name in ORDERS if name != "channel-only"]),
            }
        ),
    ),
}
assert {*OPTIONS} == {"plain", *ATTENTIONS, *STUDIED}
layers = st.sampled_from(list(OPTIONS)).flatmap(lambda n: st.tuples(st.just(n), OPTIONS[n]))
Layer = tuple[str, dict[str, Any]]


def lively(module: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """Draw all numbers of a module, none of them special; it is in evaluation mode then."""
    return randomise(module, seed).to(dtype).requires_grad_(True)


def build(layer: Layer, channels: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    name, options = layer
    if name == "plain":
        return lively(attention.CBAM(channels, **options), seed, dtype)
    return lively(attention_layer(name, channels, **options), seed, dtype)


def cbam(channels: int, options: dict[str, Any], seed: int = 0) -> Any:
    return lively(attention.CBAM(channels, **options), seed)


def numbers(
    shape: tuple[int, ...], seed: int, kind: str = "normal", dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return KINDS[kind](torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


LAID: dict[str, Callable[[Tensor], Tensor]] = {  # the same numbers, in another order in memory
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "images last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, 1::2],
    "part of a larger one": lambda x: nn.functional.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    "one place expanded": lambda x: x[:, :, :1, :1].expand(x.shape),  # other numbers
    "one image expanded": lambda x: x[:1].expand(x.shape),
}
layouts = st.sampled_from(list(LAID))


def near(one: Tensor, other: Tensor, allowed: Tensor | float, what: str = "") -> None:
    """Assert that two differ by at most `allowed`, and are the same where they are no numbers."""
    assert one.shape == other.shape, what
    wide = torch.float64
    one, other = one.detach().to(wide), other.detach().to(wide)
    finite = one.isfinite() & other.isfinite()
    same = (one == other) | (one.isnan() & other.isnan())
    assert same[~finite].all(), f"{what}: not finite at other places, or otherwise"
    excess = ((one - other).abs() - allowed).masked_fill(~finite, -1)
    assert (excess <= 0).all(), f"{what}: {excess.max():.2e} more than is allowed"


def same_bits(one: Tensor, other: Tensor, what: str = "") -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape), what
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    first, second = (t.detach().contiguous().view(whole) for t in (one, other))
    assert torch.equal(first, second), what


@contextlib.contextmanager
def small_blocks(size: int = 2000) -> Iterator[None]:
    """Let the fused form take small maps, in several blocks; of size 0, leave all as it is."""
    if size == 0:
        yield
        return
    with mock.patch.object(blocks, "BLOCK", size), mock.patch.object(fused, "SMALLEST", 0):
        yield


block_sizes = st.sampled_from([0, 300, 2000, 2**22])


def growth(name: str) -> int:
    """Return how many times x an output may be."""
    return 2 if name == "bam" else 1


# ---- Shapes, types, memory


@holds(
    "output, maps and gradients have the input's shape and type",
    layer=layers, shape=shapes(least=(0, 1, 1, 1)), dtype=dtypes, kind=kinds,
    layout=layouts, training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_shape_and_type(layer, shape, dtype, kind, layout, training, seed):
    name, _ = layer
    module = build(layer, shape[1], seed, dtype).train(training)
    x = LAID[layout](numbers(shape, seed, kind, dtype)).detach().requires_grad_()
    result = module(x)
    assert (result.shape, result.dtype, result.device) == (x.shape, x.dtype, x.device)
    assert (result.abs() <= growth(name) * x.abs()).all()  # which no NaN is
    assert name != "bam" or (result.abs() >= x.abs()).all()
    wide = dtype != torch.float16  # whose gradients want their loss scaled
    (result.sum() if wide else result.sum() * 1e-3).backward()
    for value in (x, *module.parameters()):
        assert value.grad is not None
        assert (value.grad.shape, value.grad.dtype) == (value.shape, dtype)
        assert value.grad.isfinite().all() or not wide
    assert all(value.isfinite().all() for value in module.buffers())
    for gate, wanted in (("channel", (*shape[:2], 1, 1)), ("spatial", (shape[0], 1, *shape[2:]))):
        part = getattr(module, gate, None)
        if isinstance(part, ChannelAttention | SpatialAttention):
            found = part(x)
            assert (found.shape, found.dtype) == (wanted, dtype)


@holds(
    "the order of the numbers in memory does not matter, and is kept; the input is left as it was",
    layer=layers, shape=shapes(), kind=kinds, layout=layouts, training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_order_in_memory(layer, shape, kind, layout, training, seed):
    x = LAID[layout](numbers(shape, seed, kind))
    before = x.clone()
    module = build(layer, shape[1], seed).train(training)
    other = copy.deepcopy(module)
    with torch.no_grad():
        result, expected = module(x), other(x.contiguous())
    near(result, expected, 1e-9 * x.abs() + 1e-300)
    same_bits(x, before)
    if layout in ("contiguous", "channels last"):
        kept = torch.channels_last if layout == "channels last" else torch.contiguous_format
        assert result.is_contiguous(memory_format=kept)
    for one, two in zip(module.buffers(), other.buffers(), strict=True):
        near(one, two, 1e-9 * two.double().abs())


@holds(
    "autocast: the output has the input's type and is the exact one to bfloat16's rounding",
    layer=layers, shape=shapes(), kind=st.sampled_from(["normal", "half zeros", "small"]),
    block=block_sizes, training=st.booleans(), graph=st.booleans(), seed=seeds,
)  # fmt: skip
def test_autocast(layer, shape, kind, block, training, graph, seed):
    x = numbers(shape, seed, kind, torch.float32)
    module = build(layer, shape[1], seed, torch.float32).train(training)
    # BatchNorm divides by what the batch spreads: where that is little, roundings become large.
    assume(not training or not any(isinstance(m, nn.BatchNorm2d) for m in module.modules()))
    narrow = torch.autocast("cpu", torch.bfloat16)
    with torch.set_grad_enabled(graph), small_blocks(block), narrow:
        result = module(x)
    assert result.dtype == torch.float32
    exact = copy.deepcopy(module).double()(x.double())
    # A map is off by up to the rounding of its logits, which are tens at most.
    near(result, exact, 0.15 * x.double().abs() + 1e-30)


# ---- Maps


def strictly_inside(gate: str, dtype: torch.dtype) -> tuple[float, float]:
    """Return between which logits a map is neither 0 nor 1, though rounded to `dtype`."""
    if gate == "hard-sigmoid":
        return -2.9, 2.9
    above = {torch.float64: 36, torch.float32: 16, torch.float16: 7, torch.bfloat16: 5}[dtype]
    below = {torch.float64: -700, torch.float32: -87, torch.float16: -16, torch.bfloat16: -87}
    return below[dtype], above


@holds(
    "maps lie between 0 and 1, and reach neither unless a number of their type ends there",
    channel=channel_options, spatial=spatial_options, shape=shapes(least=(0, 1, 1, 1)),
    kind=kinds, gain=st.sampled_from([0.1, 1.0, 10.0, 100.0]), dtype=dtypes, seed=seeds,
)  # fmt: skip
def test_maps_between_0_and_1(channel, spatial, shape, kind, gain, dtype, seed):
    x = (numbers(shape, seed, kind) * gain).to(dtype)
    for layer in (ChannelAttention(shape[1], **channel), SpatialAttention(**spatial)):
        gate = lively(layer, seed, dtype)
        found, logits = gate(x), gate.logits(x)
        assert ((found >= 0) & (found <= 1)).all()
        if layer.gate == "softmax":
            sums = found.double().sum((1, 2, 3))
            near(sums, torch.ones_like(sums), 4 * ROUNDING[dtype] * max(1, found[:1].numel()))
            continue
        low, high = strictly_inside(layer.gate, dtype)
        inside = found[(logits > low) & (logits < high)]
        assert ((inside > 0) & (inside < 1)).all()
        if layer.gate == "hard-sigmoid":
            assert (found[logits <= -3] == 0).all()
            assert (found[logits >= 3] == 1).all()


# ---- Symmetries


def order_of(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@holds(
    "channel attention does not change when the places are permuted",
    options=channel_options, shape=shapes(), kind=kinds, seed=seeds,
)  # fmt: skip
def test_channel_attention_ignores_where(options, shape, kind, seed):
    x = numbers(shape, seed, kind)
    gate = lively(ChannelAttention(shape[1], **options), seed)
    moved = x.flatten(2)[:, :, order_of(shape[2] * shape[3], seed)].view(x.shape)
    near(gate(moved), gate(x), 1e-10)
    near(gate(x.mT), gate(x), 1e-10)


@holds(
    "channel attention follows its channels when its weights are permuted with them",
    options=channel_options, shape=shapes(), kind=kinds, seed=seeds,
)  # fmt: skip
def test_channel_attention_follows_the_channels(options, shape, kind, seed):
    x = numbers(shape, seed, kind)
    gate = lively(ChannelAttention(shape[1], **options), seed)
    other, order = copy.deepcopy(gate), order_of(shape[1], seed)
    with torch.no_grad():
        if options["mixer"] == "conv1d":  # its weights know neighbours, which a mirror keeps
            order = torch.arange(shape[1]).flip(0)
            other.mixer[1].weight.copy_(gate.mixer[1].weight.flip(2))
        else:
            other.mixer[0].weight.copy_(gate.mixer[0].weight[:, order])
            other.mixer[2].weight.copy_(gate.mixer[2].weight[order])
            if options["bias"]:
                other.mixer[2].bias.copy_(gate.mixer[2].bias[order])
    near(other(x[:, order]), gate(x)[:, order], 1e-10)


@holds(
    "spatial attention does not change when the channels are permuted",
    options=spatial_options, shape=shapes(), kind=kinds, training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_spatial_attention_ignores_what(options, shape, kind, training, seed):
    x = numbers(shape, seed, kind)
    gate = lively(SpatialAttention(**options), seed).train(training)
    near(gate(x[:, order_of(shape[1], seed)]), gate(x), 1e-8)


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "horizontal flip": lambda x: x.flip(3),
    "vertical flip": lambda x: x.flip(2),
    "turn by 90 degrees": lambda x: x.rot90(1, (2, 3)),
    "turn by 180 degrees": lambda x: x.rot90(2, (2, 3)),
    "transposition": lambda x: x.mT,
}
turns = st.sampled_from(list(TURNS))


def with_kernel(module: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy whose spatial kernel, if it has one, is another."""
    module = copy.deepcopy(module)
    if hasattr(module, "spatial"):
        kernel = module.spatial.conv.weight
        with torch.no_grad():
            kernel.copy_(change(kernel.clone()))
    return module


def symmetrical(kernel: Tensor) -> Tensor:
    """Return the mean of a kernel's eight pictures in mirrors and turned."""
    turned = [kernel.rot90(k, (2, 3)) for k in range(4)]
    return torch.stack([*turned, *(t.mT for t in turned)]).mean(0)


@holds(
    "CBAM commutes with flips and turns when its kernel is symmetric",
    options=cbam_options, shape=shapes(), kind=kinds, turn=turns, training=st.booleans(),
    seed=seeds,
)  # fmt: skip
def test_a_symmetric_kernel_commutes(options, shape, kind, turn, training, seed):
    x = numbers(shape, seed, kind)
    module = with_kernel(cbam(shape[1], options, seed), symmetrical).train(training)
    turned = TURNS[turn](x)
    near(module(turned), TURNS[turn](module(x)), 1e-8 * turned.abs() + 1e-300)


@holds(
    "CBAM commutes with flips and turns when its kernel is turned as well, and not otherwise",
    options=cbam_options, shape=shapes(least=(1, 1, 2, 2)), turn=turns, seed=seeds,
)  # fmt: skip
def test_another_kernel_must_turn_too(options, shape, turn, seed):
    x = numbers(shape, seed)
    module = cbam(shape[1], options, seed)
    turned, wanted = TURNS[turn](x), TURNS[turn](module(x))
    near(with_kernel(module, TURNS[turn])(turned), wanted, 1e-8 * turned.abs())
    looks_around = options["kernel_size"] > 1 and options["order"] in ORDERS[:2]
    if not looks_around or options["gate"] != "sigmoid":  # others may end at 0 or 1 altogether
        return
    if module.channel(x).min() > 1e-3:  # else the spatial gate sees hardly anything
        assert (module(turned) - wanted).abs().max() > 1e-7 * wanted.abs().max()


@holds(
    "spatial attention moves with the input, as far as no border is seen",
    options=spatial_options, shape=shapes(least=(1, 1, 12, 12)), down=st.integers(0, 64),
    across=st.integers(0, 64), seed=seeds,
)  # fmt: skip
def test_spatial_attention_moves_with_the_input(options, shape, down, across, seed):
    x = numbers(shape, seed)
    gate, half = lively(SpatialAttention(**options), seed), options["kernel_size"] // 2
    down, across = down % (shape[2] - 2 * half), across % (shape[3] - 2 * half)
    moved = gate.logits(x.roll((down, across), (2, 3)))
    here = gate.logits(x)[:, :, half : shape[2] - half - down, half : shape[3] - half - across]
    there = moved[:, :, half + down : shape[2] - half, half + across : shape[3] - half]
    near(there, here, 1e-9)


@holds(
    "an image's result is the same alone as in any batch and at any place of it",
    layer=layers, shape=shapes(least=(2, 1, 1, 1)), kind=kinds, seed=seeds,
)  # fmt: skip
def test_images_do_not_mix(layer, shape, kind, seed):
    x = numbers(shape, seed, kind)
    module, order = build(layer, shape[1], seed), order_of(shape[0], seed)
    result = module(x)
    allowed = 1e-9 * x.abs() + 1e-300
    near(module(x[order]), result[order], allowed[order])
    for i in (0, shape[0] - 1):
        near(module(x[i : i + 1]), result[i : i + 1], allowed[i : i + 1])


# ---- Formulas


@holds(
    "logits grow in proportion to the input where their formula says so",
    channel=channel_options, spatial=spatial_options, shape=shapes(), kind=kinds,
    factor=st.floats(1e-3, 1e3), seed=seeds,
)  # fmt: skip
def test_logits_scale(channel, spatial, shape, kind, factor, seed):
    pooling = [name for name in channel["pooling"] if name != "lse"] or ["avg"]
    x = numbers(shape, seed, kind)
    channel = {**channel, "pooling": pooling, "bias": False}
    for layer in (
        ChannelAttention(shape[1], **channel),
        SpatialAttention(**{**spatial, "norm": False}),
    ):
        gate = lively(layer, seed)
        wanted = gate.logits(x) * factor
        near(gate.logits(x * factor), wanted, 1e-11 * factor * (1 + x.abs().max() * 1e3))
        near(gate.logits(x * 4), gate.logits(x) * 4, 0)  # a power of two rounds nothing


def shared_out(z: Tensor) -> Tensor:
    e = (z - z.flatten(1).max(1).values.view(-1, 1, 1, 1)).exp()
    return e / e.sum((1, 2, 3), keepdim=True)


BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.sum(2) / x.shape[2],
    "max": lambda x: x.sort(2).values[:, :, -1],
    "lp": lambda x: (x * x).sum(2) ** 0.5,
    "lse": lambda x: x.exp().sum(2).log(),
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "hard-sigmoid": lambda z: (z / 6 + 0.5).clamp(0, 1),
    "softmax": shared_out,
}


@holds(
    "nothing comes from nothing, no sign changes, and each order is its equation",
    options=cbam_options, shape=shapes(), kind=kinds, training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_orders_are_their_equations(options, shape, kind, training, seed):
    x = numbers(shape, seed, kind)
    module = cbam(shape[1], options, seed).train(training)
    result = module(x)
    assert (result[x == 0] == 0).all()
    assert ((result == 0) | (result.sign() == x.sign())).all()
    gate, order = BY_HAND[options["gate"]], options["order"]

    def channel(f: Tensor) -> Tensor:
        pooled = [module.channel.mixer(BY_HAND[name](f.flatten(2))) for name in options["pooling"]]
        return sum(pooled)[:, :, None, None]

    def spatial(f: Tensor) -> Tensor:
        planes = torch.stack([f.max(1).values, f.sum(1) / f.shape[1]], 1)
        windows = nn.functional.unfold(planes, k := options["kernel_size"], padding=k // 2)
        kernel = module.spatial.conv.weight.flatten()
        logits = torch.einsum("k,nkp->np", kernel, windows).view(len(f), 1, *f.shape[2:])
        n = module.spatial.norm
        if n is None:
            return logits
        mean, var = n.running_mean, n.running_var
        if training and logits.numel() > 1:
            mean, var = logits.mean(), logits.var(correction=0)
        return (logits - mean) / (var + n.eps).sqrt() * n.weight + n.bias

    module = cbam(shape[1], options, seed)  # the running statistics have moved
    if order == "parallel":
        expected = x * gate(channel(x) + spatial(x))
    else:
        both = {"channel": channel, "spatial": spatial}
        steps = [both[name] for name in order.split("-") if name != "only"]
        expected = functools.reduce(lambda f, step: f * gate(step(f)), steps, x)
    near(result, expected, 1e-6 * x.abs() + 1e-300)


@holds(
    "gradients are those of finite differences, in float64",
    layer=layers, shape=shapes(most=48), training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_gradients(layer, shape, training, seed):
    module = build(layer, shape[1], seed).train(training)
    names = [name for name, _ in module.named_parameters()]
    # No two equal, as a maximum shares its gradient; and none near another.
    order = order_of(torch.Size(shape).numel(), seed).double().view(shape)
    x = (
        (order + 0.5) / order.numel() * 4 - 1.9
    ).requires_grad_()  # whose mean is not 0, where a ReLU has none
    if training and shape[0] * shape[2] * shape[3] == 2:
        return  # BatchNorm of two values is a sign, whose gradient is 0 but for eps

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = tuple(module.parameters())
    assert torch.autograd.gradcheck(forward, (x, *values), fast_mode=True, atol=1e-4)


# ---- Empty batches, wrong inputs, wrong options


@holds(
    "an empty batch gives an empty result, no gradient, and leaves the statistics alone",
    layer=layers, shape=shapes(), dtype=dtypes, training=st.booleans(), graph=st.booleans(),
    seed=seeds,
)  # fmt: skip
def test_empty_batch(layer, shape, dtype, training, graph, seed):
    module = build(layer, shape[1], seed, dtype).train(training)
    before = {k: v.clone() for k, v in module.named_buffers() if "running" in k}
    x = torch.zeros(0, *shape[1:], dtype=dtype, requires_grad=graph)
    with torch.set_grad_enabled(graph):
        result = module(x)
    assert (result.shape, result.dtype) == (x.shape, dtype)
    for name, value in module.named_buffers():
        if name in before:
            same_bits(value, before[name], name)
    if graph:
        result.sum().backward()
        assert not any(p.grad.any() for p in module.parameters())


WRONG_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "no channels": lambda x: x[:, :0],
    "no rows": lambda x: x[:, :, :0],
    "no columns": lambda x: x[..., :0],
    "one channel more": lambda x: torch.cat([x, x[:, :1]], 1),
    "one image, without its batch": lambda x: x[0],
    "a vector": lambda x: x[:, :, 0, 0],
    "five axes": lambda x: x[None],
    "whole numbers": lambda x: x.long(),
    "bytes": lambda x: x.byte(),
    "complex numbers": lambda x: x.to(torch.complex64),
}


@holds(
    "a wrong input is refused in one sentence that says its shape or type",
    layer=layers, shape=shapes(most=256), wrong=st.sampled_from(list(WRONG_INPUTS)),
    training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_wrong_input(layer, shape, wrong, training, seed):
    module = build(layer, shape[1], seed).train(training)
    x = WRONG_INPUTS[wrong](torch.zeros(shape))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises((ValueError, TypeError)) as told:
        module(x)
    text = str(told.value)
    assert "\n" not in text
    assert str(tuple(x.shape)) in text or str(x.dtype) in text
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "channels": st.integers(1, 64),
    "reduction": st.integers(1, 10**6),
    "kernel_size": st.integers(0, 9).map(lambda n: 2 * n + 1),
    "order": st.sampled_from(ORDERS),
    "pooling": poolings | poolings.map(tuple),
    "mixer": st.sampled_from(["mlp", "conv1d"]),
    "gate": gates,
    "bias": st.booleans(),
    "norm": st.booleans(),
}
CHECKED = [name for name in RIGHT if name not in ("bias", "norm")]
ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 2.0, float("nan"), float("inf"), "8", "", "avg", b"avg", (), []]
    ),
    st.integers(-(2**40), 0),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["Sigmoid", " max", "channel_spatial", "both", "MLP", "avg,max", "mean"]),
    st.sampled_from([["avg", "min"], [["avg"]], ["Max"], [None], {"avg"}, ("avg", 3), [b"max"]]),
    st.sampled_from([(7, 7), [3], {}, {"avg": "max"}, 4, 8, range(3), torch.float32, len]),
)


def is_right(name: str, value: Any) -> bool:
    if name == "pooling":
        listed = type(value) in (list, tuple) and len(value) > 0
        return listed and all(isinstance(v, str) and v in POOLINGS for v in value)
    if name in ("channels", "reduction", "kernel_size"):
        return type(value) is int and value > 0 and (name != "kernel_size" or value % 2 == 1)
    choices = {"order": ORDERS, "mixer": ("mlp", "conv1d"), "gate": tuple(GATES)}[name]
    return isinstance(value, str) and value in choices


@holds(
    "every combination of options makes a layer that works, or is refused in one clear sentence",
    made=st.sampled_from([attention.CBAM, fused.CBAM]), options=st.fixed_dictionaries(RIGHT),
    wrong=st.dictionaries(st.sampled_from(CHECKED), ODD_VALUES, max_size=2),
    even=st.integers(1, 32).map(lambda n: 2 * n), seed=seeds,
)  # fmt: skip
def test_every_combination(made, options, wrong, even, seed):
    with pytest.raises(ValueError, match=f"kernel_size must be a positive odd .* got {even}$"):
        made(8, kernel_size=even)
    given_ = {**options, **wrong}
    used = [name for name in wrong if not is_right(name, wrong[name])]
    # What an order has no gate for is not looked at.
    if options["order"] == given_["order"] == "spatial-only":
        used = [n for n in used if n not in ("reduction", "pooling", "mixer")]
    if options["order"] == given_["order"] == "channel-only":
        used = [n for n in used if n != "kernel_size"]
    if isinstance(given_["channels"], int) and given_["channels"] > 64:
        given_["channels"] = 64
    if not used:
        module = made(**given_)
        x = numbers((2, given_["channels"], 3, 4), seed, dtype=torch.float32)
        assert module(x).isfinite().all()
        return
    with pytest.raises(ValueError) as told:  # noqa: PT011 (what it must say stands below)
        made(**given_)
    text = str(told.value)
    assert "\n" not in text.replace(repr(wrong[used[0]]), "")
    assert any(name in text and " must be " in text for name in used)


# ---- Extreme numbers

BAD = {
    "0": 0.0,
    "-0": -0.0,
    "1e30": 1e30,
    "-1e30": -1e30,
    "denormal": 1e-40,
    "infinity": float("inf"),
    "-infinity": float("-inf"),
    "NaN": float("nan"),
}
bad_values = st.sampled_from(list(BAD))
bad_places = st.sampled_from(["one number", "a channel", "a place", "a row", "the image"])


def spoil(x: Tensor, value: str, where: str, seed: int) -> Tensor:
    """Return a copy of x whose first image, or a part of it, is a bad number; float32 and up."""
    x = x.clone()
    generator = torch.Generator().manual_seed(seed)
    c, h, w = (int(torch.randint(n, (), generator=generator)) for n in x.shape[1:])
    part = {
        "one number": (0, c, h, w),
        "a channel": (0, c),
        "a place": (0, slice(None), h, w),
        "a row": (0, slice(None), h),
        "the image": (0,),
    }[where]
    x[part] = BAD[value]
    return x


wide_dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@holds(
    "zero, 1e30, denormals, infinities and NaN: each shows where it is, and in no other image",
    layer=layers, shape=shapes(least=(2, 1, 1, 1)), dtype=wide_dtypes, value=bad_values,
    where=bad_places, layout=st.sampled_from(["contiguous", "channels last"]),
    block=block_sizes, graph=st.booleans(), seed=seeds,
)  # fmt: skip
def test_extreme_numbers_show(layer, shape, dtype, value, where, layout, block, graph, seed):
    name, _ = layer
    x = LAID[layout](numbers(shape, seed, dtype=dtype))
    bad = spoil(x, value, where, seed)
    module = build(layer, shape[1], seed, dtype)
    with torch.set_grad_enabled(graph), small_blocks(block):
        result = module(bad)
        same_bits(result[1:], module(x)[1:], "another image changed")
    mine, given_ = result[0].detach(), bad[0]
    assert mine[given_.isnan()].isnan().all()
    assert not mine[given_.isinf()].isfinite().any()
    assert ((mine == 0) | mine.isnan())[given_ == 0].all()
    assert ((mine.abs() <= growth(name) * given_.abs()) | mine.isnan())[given_.isfinite()].all()
    if value in ("0", "-0", "denormal"):
        assert mine.isfinite().all()
    if value == "NaN":
        seen = bad[0].isnan()
        for pooling in POOLINGS.values():
            assert torch.equal(pooling(bad)[0].isnan(), seen.any(2).any(1))
        if isinstance(getattr(module, "channel", None), ChannelAttention):
            assert module.channel(bad)[0].isnan()[seen.any(2).any(1)].all()
        if isinstance(getattr(module, "spatial", None), SpatialAttention):
            assert module.spatial(bad)[0, 0].isnan()[seen.any(0)].all()


@holds(
    "a gradient that is no number stays in its image",
    layer=layers, shape=shapes(least=(2, 1, 1, 1), most=2**11), value=bad_values,
    where=bad_places, of_output=st.booleans(), block=block_sizes, seed=seeds,
)  # fmt: skip
def test_extreme_gradients_stay(layer, shape, value, where, of_output, block, seed):
    x, g = numbers(shape, seed), numbers(shape, seed + 1)
    bad_x = x if of_output else spoil(x, value, where, seed)
    bad_g = spoil(g, value, where, seed) if of_output else g
    module = build(layer, shape[1], seed)
    grads = []
    for one, upstream in ((x, g), (bad_x, bad_g)):
        one = one.clone().requires_grad_()
        with small_blocks(block):
            grads.append(torch.autograd.grad(module(one), one, upstream)[0])
    same_bits(grads[1][1:], grads[0][1:], "another image's gradient changed")
    if value == "NaN" and of_output:
        assert grads[1][0][bad_g[0].isnan()].isnan().all()


# ---- The same by another way: fused, compiled, exported

# How far another way may be, in units of x: sums in another order, on maps of logits of tens.
OTHER_WAY = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
SMALLEST = {t: 4 * torch.finfo(t).smallest_normal * ROUNDING[t] for t in DTYPES}
fused_options = both(
    channel_options, spatial_options, st.fixed_dictionaries({"pooling": st.sampled_from(
        [["avg"], ["max"], ["avg", "max"], ["max", "avg"], ["max", "max"]])}),
)  # fmt: skip


def twins(channels: int, options: dict[str, Any], seed: int, dtype: torch.dtype) -> Any:
    ours = lively(fused.CBAM(channels, **options), seed, dtype)
    plain = lively(attention.CBAM(channels, **options), seed, dtype)
    return ours, plain


@holds(
    "the fused form gives the plain form's output, extreme numbers and statistics",
    options=fused_options, shape=shapes(least=(0, 1, 1, 1)), kind=kinds, layout=layouts,
    value=st.none() | bad_values, where=bad_places, dtype=dtypes,
    block=st.sampled_from([300, 2000, 2**22]), training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_fused(options, shape, kind, layout, value, where, dtype, block, training, seed):
    x = numbers(shape, seed, kind, dtype)
    assume(value is None or shape[0] > 0)
    x = LAID[layout](x if value is None else spoil(x, value, where, seed))
    ours, plain = twins(shape[1], options, seed, dtype)
    narrow = dtype in (torch.bfloat16, torch.float16)
    if narrow:  # the fused form computes its gates in float32: it is compared with exact ones
        plain = copy.deepcopy(plain).double()
        assume(not training and value not in ("1e30", "-1e30"))
    result, expected = None, plain.train(training)(x.double() if narrow else x)
    with small_blocks(block):
        assert fused.supports(ours, x)
        result = ours.train(training)(x)
    assert type(result.grad_fn).__name__ == "_ScaleBackward"
    spread = 1e3 if training else 1.0  # BatchNorm divides by what may be hardly any spread
    size = x.double().abs().nan_to_num(0, 0, 0)
    allowed = spread * OTHER_WAY[dtype] * size + SMALLEST[dtype]
    near(result, expected, allowed)
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        small = 1e-3 * other.double().abs().nan_to_num(0, 0, 0) + 1e-6
        near(one, other, small)
    with torch.no_grad():
        here = copy.deepcopy(ours)(x)
        near(here, copy.deepcopy(ours).requires_grad_(False)(x), 0)


@holds(
    "the fused form gives the plain form's gradients, of the input and of all weights",
    options=fused_options, shape=shapes(most=2**11), kind=kinds, layout=layouts,
    block=st.sampled_from([300, 2000, 2**22]), training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_fused_gradients(options, shape, kind, layout, block, training, seed):
    x = LAID[layout](numbers(shape, seed, kind))
    upstream = numbers(shape, seed + 1)
    ours, plain = twins(shape[1], options, seed, torch.float64)
    found = []
    with small_blocks(block):
        for module in (ours.train(training), plain.train(training)):
            here = x.detach().requires_grad_()
            out = module(here)
            found.append(torch.autograd.grad(out, [here, *module.parameters()], upstream))
    names = ["x", *(name for name, _ in plain.named_parameters())]
    spread = 1e4 if training else 1.0
    largest = max(g.abs().max().item() for g in found[1])
    for name, one, other in zip(names, *found, strict=True):
        near(one, other, spread * 1e-10 * (largest + 1e-300), name)


@holds(
    "the end of a residual block is the ReLU of the sum",
    layer=layers, shape=shapes(), kind=kinds, value=st.none() | bad_values, where=bad_places,
    training=st.booleans(), seed=seeds,
)  # fmt: skip
def test_residual(layer, shape, kind, value, where, training, seed):
    x, r = numbers(shape, seed, kind), numbers(shape, seed + 1)
    r = r if value is None else spoil(r, value, where, seed)
    module = build(layer, shape[1], seed).train(training)
    expected = torch.relu(copy.deepcopy(module)(x) + r)
    near(fused.refine_and_add(module, x, r), expected, 1e-12 * (1 + x.abs()))


def spread_to_8(x: Tensor) -> Tensor:
    """Return 8 channels of 3, by no arithmetic that an extreme number would not survive."""
    return torch.cat([x, x.flip(3), -x[:, :2]], 1)


SIDE_BY_SIDE: list[Layer] = [  # every order, gate, pooling, mixer and norm
    ("cbam", {"kernel_size": 3}),
    ("spatial", {"kernel_size": 5, "norm": False, "gate": "hard-sigmoid"}),
    ("eca", {}),
    ("bam", {"reduction": 2, "dilation": 2}),
    ("cbam", {"order": "spatial-channel", "gate": "hard-sigmoid", "pooling": ["max"]}),
    ("cbam", {"order": "parallel", "gate": "softmax", "norm": False, "kernel_size": 1}),
    ("channel", {"pooling": ["lp", "lse"], "reduction": 2, "bias": False}),
    ("channel", {"pooling": ["max", "lse"], "mixer": "conv1d", "gate": "softmax"}),
    ("variant", {"squeeze": "conv", "kernel_size": 3}),
]

# Sizes of 1 and another type want a compilation of their own, each of a minute in the long run.
SPECIAL = [*[None] * 6, *[(1, 3, 8, 8), (2, 3, 1, 1)] * LONG]
COMPILED = [torch.float32, *[torch.float64] * LONG]
if not LONG:  # `test_export` has the others
    SIDE_BY_SIDE = SIDE_BY_SIDE[:2]


class SideBySide(nn.Module):
    """All options side by side, of one input of 3 channels: compiled and exported once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(attention_layer(name, 8, **o) for name, o in SIDE_BY_SIDE)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = spread_to_8(x)
        return torch.cat([layer(x) for layer in self.layers], 1)


@functools.cache
def side_by_side(dtype: torch.dtype) -> SideBySide:
    return SideBySide().to(dtype)


@functools.cache
def compiled(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    network = copy.deepcopy(side_by_side(dtype))
    backend = "inductor" if LONG else "eager"
    run = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        run(torch.zeros(4, 3, 7, 11, dtype=dtype))  # no two sizes alike, lest it take them for one
    return run


@functools.cache
def exported(format: str) -> Callable[[Tensor], Tensor]:
    program = trace(side_by_side(torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FORMATS[format].read(FORMATS[format].write(program, "{}"))


def as_eager(run: Callable[[Tensor], Tensor], x: Tensor, allowed: float) -> None:
    with torch.no_grad():
        result, expected = run(x).split(8, 1), side_by_side(x.dtype)(x).split(8, 1)
    x = spread_to_8(x)
    size = x.double().abs().nan_to_num(0, 0, 0)
    for layer, one, other in zip(SIDE_BY_SIDE, result, expected, strict=True):
        if "lp" in layer[1].get("pooling", []) and size.max() > 1e19:
            continue  # its squares overflow, where torch does not know the norm of one without
        near(one, other, allowed * size + SMALLEST[x.dtype], str(layer))


@st.composite
def images(draw: st.DrawFn, least: tuple[int, ...] = (1, 3, 1, 1)) -> Any:
    """Draw shapes of images of 3 channels."""
    n, _, h, w = draw(shapes(least, most=2**12))
    return n, 3, h, w


@holds(
    "a compiled layer gives what the eager one gives, extreme numbers too",
    shape=images(least=(2, 3, 2, 2)), special=st.sampled_from(SPECIAL), kind=kinds,
    value=st.none() | bad_values, where=bad_places, dtype=st.sampled_from(COMPILED), seed=seeds,
)  # fmt: skip
def test_compiled(shape, special, kind, value, where, dtype, seed):
    x = numbers(special or shape, seed, kind, dtype)
    x = x if value is None else spoil(x, value, where, seed)
    as_eager(compiled(dtype), x, OTHER_WAY[dtype])


@holds(
    "an exported layer gives what the eager one gives, extreme numbers too",
    format=st.sampled_from(["torch-export", *["onnx"] * LONG]), shape=images(), kind=kinds,
    value=st.none() | bad_values, where=bad_places, seed=seeds,
)  # fmt: skip
def test_exported(format, shape, kind, value, where, seed):
    x = numbers(shape, seed, kind, torch.float32)
    x = x if value is None else spoil(x, value, where, seed)
    as_eager(exported(format), x, OTHER_WAY[torch.float32])


# ---- Stored and read again


def any_bits(module: nn.Module, seed: int) -> nn.Module:
    """Fill weights with bits of any kind, NaN and infinity among them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        drawn = torch.randint(0, 256, (tensor.nbytes,), dtype=torch.uint8, generator=generator)
        tensor.copy_(drawn.view(tensor.dtype).view(tensor.shape))
    return module


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor], any_nan: bool = False) -> None:
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        nan = tensor.isnan() if any_nan else torch.zeros((), dtype=torch.bool)
        assert not any_nan or torch.equal(nan, other[name].isnan()), name
        same_bits(tensor.masked_fill(nan, 0), other[name].masked_fill(nan, 0), name)


@holds(
    "weights come back bit for bit: state_dict, copy, safetensors, torch.save, checkpoint",
    layer=layers, shape=shapes(most=256), dtype=dtypes, seed=seeds,
)  # fmt: skip
def test_stored_weights(layer, shape, dtype, seed):
    module = any_bits(build(layer, shape[1], seed, dtype), seed)
    weights = module.state_dict()
    other = build(layer, shape[1], seed + 1, dtype)
    other.load_state_dict(weights)
    same_weights(other.state_dict(), weights)
    same_weights(copy.deepcopy(module).state_dict(), weights)
    if weights:
        same_weights(safetensors.torch.load(safetensors.torch.save(weights)), weights)
    with tempfile.TemporaryDirectory(dir=memory()) as folder, without_sync():
        state = {"identity": {"seed": seed}, "history": [{"epoch": 1, "loss": 0.5}]}
        parts = {"model": weights, "optimizer": {}, "scaler": {}, "average": weights}
        write_checkpoint(Path(folder), {**state, **parts})
        found = read_checkpoint(Path(folder) / "checkpoint.pt")
        assert {name: found[name] for name in state} == state
        same_weights(found["model"], weights)
        same_weights(found["average"], weights)
    x = numbers(shape, seed, dtype=dtype)
    lively_, loaded = build(layer, shape[1], seed, dtype), build(layer, shape[1], seed + 1, dtype)
    loaded.load_state_dict(lively_.state_dict())
    same_bits(loaded(x), lively_(x))


def memory() -> str | None:
    """Return a folder in memory, where there is one: thousands of files wear a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def without_sync() -> Iterator[None]:
    with mock.patch("os.fsync"):
        yield


def may_have(drawn: bool, *layouts: bool | None) -> bool:
    """Return whether a CBAM has what layouts always (True), never (False) or as one likes have."""
    return False not in layouts and (drawn or True in layouts)


@holds(
    "weights converted to another implementation's names come back bit for bit",
    source=st.sampled_from(list(LAYOUTS)), target=st.sampled_from(list(LAYOUTS)),
    shape=shapes(most=256), reduction=st.integers(1, 70), kernel=st.sampled_from([1, 3, 5, 7, 9]),
    bias=st.booleans(), norm=st.booleans(), dtype=dtypes, extreme=st.booleans(),
    path=st.sampled_from(["", "block", "layers.3.attention", "net.module"]), seed=seeds,
)  # fmt: skip
def test_converted(
    source, target, shape, reduction, kernel, bias, norm, dtype, extreme, path, seed
):
    there, back = LAYOUTS[source], LAYOUTS[target]
    bias = may_have(bias, there.bias, back.bias)
    norm = may_have(norm, there.norm, back.norm)
    made = attention.CBAM(shape[1], reduction, kernel, bias=bias, norm=norm)
    module = randomise(made, seed).to(dtype)
    if extreme:
        any_bits(module, seed)
    ours = {f"{path}.{k}" if path else k: v for k, v in module.state_dict().items()}
    theirs = convert(ours, "cbam_edu", source)
    kept = {k: v.clone() for k, v in theirs.items()}
    mine = convert(theirs, source, "cbam_edu")
    same_weights({k: mine[k] for k in ours}, ours)
    converted = convert(theirs, source, target)
    same_weights(theirs, kept)
    again = convert(converted, target, source)
    # Into a layout without BatchNorm the kernel is multiplied by what the BatchNorm does, 1 here:
    # that changes which NaN a NaN is.
    same_weights({k: again[k] for k in theirs}, theirs, any_nan=False in (there.norm, back.norm))


NETWORKS: dict[str, dict[str, Any]] = {
    "cbamnet_tiny": {"dims": (4, 8)},
    "resnet8": {"dims": (4, 8, 8)},
    "resnet9": {"dims": (4, 8, 8, 8)},
    "resnet18": {"dims": (4, 4, 8, 8)},
}
networks = st.sampled_from(list(NETWORKS))
attentions = st.sampled_from([None, *ATTENTIONS])


@functools.cache
def network(name: str, attention: str | None) -> Any:
    made = create_model(name, num_classes=5, attention=attention, **NETWORKS[name])
    return randomise(made).float()


@holds(
    "a network takes images of every size, each for itself, and a spoilt one shows in its own row",
    name=networks, attention=attentions, shape=images(), value=st.none() | bad_values,
    where=bad_places, seed=seeds,
)  # fmt: skip
def test_networks(name, attention, shape, value, where, seed):
    model = network(name, attention)
    x = numbers(shape, seed, dtype=torch.float32)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (shape[0], 5)
        assert logits.isfinite().all()
        alone = model(x[-1:])
        near(alone, logits[-1:], 1e-4 * logits.abs().max().item())
        assert model(x[:0]).shape == (0, 5)
        if value is None:
            return
        spoilt = model(spoil(x, value, where, seed))
    same_bits(spoilt[1:], logits[1:], "another image changed")
    if value in ("NaN", "infinity", "-infinity"):
        assert not spoilt[0].isfinite().all()


@holds(
    "a network that was saved is read again with the same configuration and bits",
    name=networks, attention=attentions, classes=st.integers(0, 9), seed=seeds,
)  # fmt: skip
def test_saved_networks(name, attention, classes, seed):
    model = create_model(name, num_classes=classes, attention=attention, **NETWORKS[name])
    any_bits(model, seed)
    with tempfile.TemporaryDirectory(dir=memory()) as folder, without_sync():
        save_model(model, Path(folder) / "model.safetensors", seed=seed)
        found = load_model(Path(folder) / "model.safetensors")
    same_weights(found.state_dict(), model.state_dict())
    assert found.about["seed"] == seed
    assert found.config["name"] == name


def test_each_property_is_counted():
    here = {name for name in globals() if name.startswith("test_")}
    assert {*WORDS} == here - {"test_each_property_is_counted"}
    assert len(set(WORDS.values())) == len(WORDS)
