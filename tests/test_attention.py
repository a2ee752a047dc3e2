"""The gates against the paper's equations, against timm, and against gates that are wrong."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu.attention import (
    CBAM,
    GATES,
    ORDERS,
    POOLINGS,
    ChannelAttention,
    SpatialAttention,
)

MIXERS = ("mlp", "conv1d")
POOLING_SETS = (("avg",), ("max",), ("lp",), ("lse",), ("avg", "max"), tuple(POOLINGS))


def seeded(module: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Give every weight and running statistic of `module` a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
        for name, value in module.named_buffers():
            if "running" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return module


def distinct(*shape: int, seed: int = 0) -> Tensor:
    """Return float64 in -2..2, no two equal (`amax` would share the gradient), none zero."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(math.prod(shape), generator=generator).reshape(shape)
    return (order.double() + 0.5) / math.prod(shape) * 4 - 2


# ---- The equations, by hand: numpy, loops and nothing of torch


def pool_by_hand(plane: np.ndarray, pooling: str) -> float:
    values = [float(value) for value in plane.ravel()]
    return {
        "avg": sum(values) / len(values),
        "max": max(values),
        "lp": math.sqrt(sum(value**2 for value in values)),
        "lse": math.log(sum(math.exp(value) for value in values)),
    }[pooling]


def mix_by_hand(mixer: nn.Sequential, descriptor: list[float]) -> list[float]:
    """Run (C,) numbers through the MLP or the 1-D convolution."""
    layers = [layer for layer in mixer if isinstance(layer, nn.Linear | nn.Conv1d)]
    weights = [layer.weight.detach().numpy() for layer in layers]
    biases = [
        np.zeros(len(w)) if layer.bias is None else layer.bias.detach().numpy()
        for layer, w in zip(layers, weights, strict=True)
    ]
    if len(layers) == 1:
        kernel = weights[0][0, 0]
        padded = [0.0] * (len(kernel) // 2) + descriptor + [0.0] * (len(kernel) // 2)
        return [
            sum(kernel[j] * padded[i + j] for j in range(len(kernel))) + biases[0][0]
            for i in range(len(descriptor))
        ]
    hidden = [
        max(0.0, sum(w * d for w, d in zip(row, descriptor, strict=True)) + b)
        for row, b in zip(weights[0], biases[0], strict=True)
    ]
    return [
        sum(w * h for w, h in zip(row, hidden, strict=True)) + b
        for row, b in zip(weights[1], biases[1], strict=True)
    ]


def gate_by_hand(logits: np.ndarray, gate: str) -> np.ndarray:
    result = np.empty_like(logits)
    for n, image in enumerate(logits):
        total = sum(math.exp(z) for z in image.ravel())
        for place, z in np.ndenumerate(image):
            result[(n, *place)] = {
                "sigmoid": 1 / (1 + math.exp(-z)),
                "hard-sigmoid": min(1.0, max(0.0, z / 6 + 0.5)),
                "softmax": math.exp(z) / total,
            }[gate]
    return result


def channel_logits_by_hand(layer: ChannelAttention, x: np.ndarray) -> np.ndarray:
    logits = np.zeros((*x.shape[:2], 1, 1))
    for n, image in enumerate(x):
        for pooling in layer.pooling:
            descriptor = [pool_by_hand(plane, pooling) for plane in image]
            logits[n, :, 0, 0] += mix_by_hand(layer.mixer, descriptor)
    return logits


def spatial_logits_by_hand(layer: SpatialAttention, x: np.ndarray) -> np.ndarray:
    batch, _, height, width = x.shape
    kernel = layer.conv.weight.detach().numpy()[0]  # (2, k, k)
    half = kernel.shape[-1] // 2
    logits = np.zeros((batch, 1, height, width))
    for n, row, column in itertools.product(range(batch), range(height), range(width)):
        for i, j in itertools.product(range(kernel.shape[1]), range(kernel.shape[2])):
            r, c = row + i - half, column + j - half
            if 0 <= r < height and 0 <= c < width:
                values = [float(value) for value in x[n, :, r, c]]
                logits[n, 0, row, column] += kernel[0, i, j] * max(values)
                logits[n, 0, row, column] += kernel[1, i, j] * sum(values) / len(values)
    if layer.norm is not None:
        norm = layer.norm
        mean, variance = norm.running_mean.item(), norm.running_var.item()
        if layer.training:
            mean = sum(logits.ravel()) / logits.size
            variance = sum((z - mean) ** 2 for z in logits.ravel()) / logits.size
        scaled = (logits - mean) / math.sqrt(variance + norm.eps)
        logits = scaled * norm.weight.item() + norm.bias.item()
    return logits


def cbam_by_hand(module: CBAM, x: np.ndarray) -> np.ndarray:
    def channel(f: np.ndarray) -> np.ndarray:
        return gate_by_hand(channel_logits_by_hand(module.channel, f), module.gate)

    def spatial(f: np.ndarray) -> np.ndarray:
        return gate_by_hand(spatial_logits_by_hand(module.spatial, f), module.gate)

    match module.order:
        case "channel-spatial":
            refined = channel(x) * x
            return spatial(refined) * refined
        case "spatial-channel":
            refined = spatial(x) * x
            return channel(refined) * refined
        case "channel-only":
            return channel(x) * x
        case "spatial-only":
            return spatial(x) * x
    both = channel_logits_by_hand(module.channel, x) + spatial_logits_by_hand(module.spatial, x)
    return gate_by_hand(both, module.gate) * x


def same(ours: Tensor, by_hand: np.ndarray) -> None:
    assert_close(ours.detach(), torch.from_numpy(by_hand), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("pooling", POOLING_SETS, ids="+".join)
def test_channel_attention_is_equation_2(pooling, mixer, bias, gate):
    layer = ChannelAttention(8, 4, pooling=pooling, mixer=mixer, bias=bias, gate=gate)
    layer = seeded(layer.double(), scale=0.5)
    x = distinct(2, 8, 3, 2)
    by_hand = channel_logits_by_hand(layer, x.numpy())
    same(layer.logits(x), by_hand)
    same(layer(x), gate_by_hand(by_hand, gate))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_spatial_attention_is_equation_3(kernel_size, norm, gate, training):
    layer = seeded(SpatialAttention(kernel_size, norm=norm, gate=gate).double()).train(training)
    x = distinct(2, 3, 4, 5)
    by_hand = spatial_logits_by_hand(layer, x.numpy())
    same(layer.logits(x), by_hand)
    layer = seeded(layer)  # the running statistics moved
    same(layer(x), gate_by_hand(by_hand, gate))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("order", ORDERS)
def test_cbam_is_equation_1_in_every_order(order, gate, mixer, training):
    module = CBAM(4, 2, 3, order=order, gate=gate, mixer=mixer).double().train(training)
    x = distinct(2, 4, 3, 4)
    by_hand = cbam_by_hand(seeded(module, scale=0.5), x.numpy())
    same(module(x), by_hand)


def test_the_defaults_are_the_papers():
    module = CBAM(32)
    assert module.order == "channel-spatial"
    assert module.channel.pooling == ("avg", "max")
    assert module.channel.gate == module.spatial.gate == module.gate == "sigmoid"
    assert module.channel.mixer[0].out_features == 32 // 16
    assert module.channel.mixer[0].bias is not None
    assert module.channel.mixer[2].bias is not None
    assert module.spatial.conv.kernel_size == (7, 7)
    assert module.spatial.conv.bias is None
    assert module.spatial.norm.num_features == 1


# ---- Parameters


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # DESIGN: 2 x 32 x 8 + 2 x 7 x 7, and 3 + 2 x 7 x 7
        ({"channels": 32, "reduction": 4, "bias": False, "norm": False}, 610),
        ({"channels": 32, "reduction": 4, "bias": False, "norm": False, "mixer": "conv1d"}, 101),
        ({"channels": 32, "reduction": 4}, 512 + 8 + 32 + 98 + 2),
        ({"channels": 64}, 2 * 64 * 4 + 4 + 64 + 98 + 2),
        ({"channels": 64, "kernel_size": 3}, 2 * 64 * 4 + 4 + 64 + 18 + 2),
        ({"channels": 64, "pooling": tuple(POOLINGS)}, 2 * 64 * 4 + 4 + 64 + 98 + 2),
        ({"channels": 3}, 2 * 3 * 1 + 1 + 3 + 98 + 2),  # fewer channels than reduction
        ({"channels": 24, "order": "channel-only", "bias": False}, 2 * 24 * 1),
        ({"channels": 33, "order": "channel-only", "bias": False}, 2 * 33 * 2),
        ({"channels": 64, "order": "spatial-only"}, 98 + 2),
        ({"channels": 256, "order": "channel-only", "mixer": "conv1d"}, 5 + 1),
    ],
)
def test_number_of_parameters(options, count):
    assert sum(p.numel() for p in CBAM(**options).parameters()) == count


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 64])
@pytest.mark.parametrize("reduction", [1, 4, 16, 100])
def test_hidden_units_are_never_none(channels, reduction):
    layer = ChannelAttention(channels, reduction)
    assert layer.mixer[0].out_features == max(1, channels // reduction)


# ---- Gradients


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_of_input_and_weights(order, gate, mixer):
    module = CBAM(4, 2, 3, order=order, gate=gate, mixer=mixer, pooling=tuple(POOLINGS))
    module = seeded(module.double(), scale=0.3)
    names = [name for name, _ in module.named_parameters()]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = distinct(2, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, *module.parameters()))


# ---- Against timm


def from_timm(reference: nn.Module, swap: bool = True) -> dict[str, Tensor]:
    """Return the weights of timm's CbamModule (or their gradients, once there) under our names.

    timm's gates are 1x1 convolutions, and its spatial gate reads [mean, max], ours [max, mean].
    """
    first, last = reference.channel.fc1, reference.channel.fc2
    kernel, norm = reference.spatial.conv.conv.weight, reference.spatial.conv.bn
    found = {
        "channel.mixer.0.weight": first.weight.flatten(1),
        "channel.mixer.2.weight": last.weight.flatten(1),
        "spatial.conv.weight": kernel.flip(1) if swap else kernel,
        "spatial.norm.weight": norm.weight,
        "spatial.norm.bias": norm.bias,
    }
    if first.bias is not None:
        found |= {"channel.mixer.0.bias": first.bias, "channel.mixer.2.bias": last.bias}
    return found


def twins(mlp_bias: bool, swap: bool = True, kernel_size: int = 7) -> tuple[CBAM, nn.Module]:
    reference = CbamModule(32, rd_ratio=1 / 4, spatial_kernel_size=kernel_size, mlp_bias=mlp_bias)
    reference = seeded(reference.double(), scale=0.4)
    ours = CBAM(32, 4, kernel_size, bias=mlp_bias).double()
    buffers = {
        f"spatial.norm.{name}": value for name, value in reference.spatial.conv.bn.named_buffers()
    }
    ours.load_state_dict(from_timm(reference, swap) | buffers)
    return ours, reference


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("mlp_bias", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_timm(training, mlp_bias, kernel_size):
    ours, reference = twins(mlp_bias, kernel_size=kernel_size)
    x = distinct(3, 32, 6, 5).requires_grad_()
    x_too = x.detach().clone().requires_grad_()
    upstream = distinct(3, 32, 6, 5, seed=1)
    result, expected = ours.train(training)(x), reference.train(training)(x_too)
    assert_close(result, expected, rtol=1e-12, atol=1e-12)

    result.backward(upstream)
    expected.backward(upstream)
    assert_close(x.grad, x_too.grad, rtol=1e-10, atol=1e-12)
    for parameter in reference.parameters():
        parameter.data = parameter.grad
    gradients = from_timm(reference)
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
        assert_close(parameter.grad, gradients[name].detach(), rtol=1e-10, atol=1e-10, msg=name)
    assert_close(ours.spatial.norm.running_mean, reference.spatial.conv.bn.running_mean)
    assert_close(ours.spatial.norm.running_var, reference.spatial.conv.bn.running_var)


def test_differs_from_timm_unless_the_kernels_planes_are_swapped():
    ours, reference = twins(True, swap=False)
    x = distinct(3, 32, 6, 5)
    assert (ours.eval()(x) - reference.eval()(x)).abs().max() > 1e-2


# ---- What makes a gate a gate. Each check takes a module and fails on some wrong one, see MUTANTS


def gates_lie_between_0_and_1_and_factorise(module: nn.Module) -> None:
    """F'' / F is a vector over channels times a map over places, and neither is constant."""
    x = distinct(2, 8, 4, 5)
    ratio = (module(x) / x).flatten(2)  # (N, C, H W)
    assert ((ratio > 0) & (ratio < 1)).all()
    assert_close(ratio * ratio[:, :1, :1], ratio[:, :, :1] * ratio[:, :1, :])
    assert (ratio.std(1) > 1e-3 * ratio.mean(1)).all()
    assert (ratio.std(2) > 1e-3 * ratio.mean(2)).all()


def gates_vary_with_the_input(module: nn.Module) -> None:
    maps = [
        (module.channel(x), module.spatial(x))
        for x in (distinct(2, 8, 4, 5, seed=s) for s in (0, 1))
    ]
    for one, other in zip(*maps, strict=True):
        assert (one - other).abs().max() > 1e-3
        assert (one[0] - one[1]).abs().max() > 1e-3


def channel_first_and_both_multiply(module: nn.Module) -> None:
    x = distinct(2, 8, 4, 5)
    refined = module.channel(x) * x
    assert_close(module(x), module.spatial(refined) * refined)


def channel_map_ignores_where(module: nn.Module) -> None:
    x = distinct(2, 8, 4, 5)
    moved = x.flatten(2)[:, :, torch.randperm(20)].reshape(x.shape)
    assert_close(module.channel(moved), module.channel(x))


def channel_map_follows_the_channels(module: nn.Module) -> None:
    """Channels in another order, with the weights in that order, give the map in that order."""
    x, order = distinct(2, 8, 4, 5), torch.randperm(8)
    expected = module.channel(x)[:, order]
    channel = copy.deepcopy(module.channel)
    first, last = channel.mixer[0], channel.mixer[2]
    with torch.no_grad():
        first.weight.copy_(first.weight[:, order])
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    assert_close(channel(x[:, order]), expected)


def channel_map_sees_mean_and_max(module: nn.Module) -> None:
    x = torch.rand(1, 8, 3, 3, dtype=torch.float64)
    x[:, :, 0, 0] = 2  # the largest of each channel
    same_max, same_mean = x.clone(), x.clone()
    same_max[:, :, 1, 1] -= 3
    same_mean[:, :, 0, 0] += 1
    same_mean[:, :, 1, 1] -= 1
    for other in (same_max, same_mean):
        assert (module.channel(other) - module.channel(x)).abs().max() > 1e-3


def mlp_is_shared(module: nn.Module) -> None:
    """The logits are g(mean) + g(max), where a constant map of d has the logits 2 g(d)."""
    x = distinct(2, 8, 4, 5)

    def half(descriptor: Tensor) -> Tensor:
        return module.channel(descriptor.expand_as(x)).logit() / 2

    expected = half(x.mean((2, 3), keepdim=True)) + half(x.amax((2, 3), keepdim=True))
    assert_close(module.channel(x).logit(), expected)


def spatial_map_ignores_what(module: nn.Module) -> None:
    x = distinct(2, 8, 4, 5)
    assert_close(module.spatial(x[:, torch.randperm(8)]), module.spatial(x))


def spatial_map_follows_the_places(module: nn.Module) -> None:
    """A mirrored input with a mirrored kernel gives the mirrored map."""
    x = distinct(2, 8, 4, 5)
    spatial = copy.deepcopy(module.spatial)
    with torch.no_grad():
        spatial.conv.weight.copy_(spatial.conv.weight.flip(2, 3))
    assert_close(spatial(x.flip(2, 3)), module.spatial(x).flip(2, 3))


def spatial_operands_are_max_then_mean(module: nn.Module) -> None:
    x = torch.rand(1, 8, 3, 3, dtype=torch.float64)
    x[:, 0] = 2  # the largest at each place
    same_max, same_mean = x.clone(), x.clone()
    same_max[:, 1] -= 3
    same_mean[:, 0] += 1
    same_mean[:, 1] -= 1
    for unused, unseen, seen in ((1, same_max, same_mean), (0, same_mean, same_max)):
        spatial = copy.deepcopy(module.spatial)
        with torch.no_grad():
            spatial.conv.weight[:, unused] = 0
        assert_close(spatial(unseen), spatial(x))
        assert (spatial(seen) - spatial(x)).abs().max() > 1e-3


def images_do_not_mix(module: nn.Module) -> None:
    x = distinct(3, 8, 4, 5)
    alone = torch.cat([module(image[None]) for image in x])
    assert_close(module(x), alone)


class UnsharedMLP(ChannelAttention):
    def __init__(self, *args):
        super().__init__(*args)
        self.second = copy.deepcopy(self.mixer)

    def logits(self, x):
        logits = self.mixer(POOLINGS["avg"](x)) + self.second(POOLINGS["max"](x))
        return logits[:, :, None, None]


class SumBeforeMLP(ChannelAttention):
    def logits(self, x):
        return self.mixer(POOLINGS["avg"](x) + POOLINGS["max"](x))[:, :, None, None]


class MeanAlone(ChannelAttention):
    def logits(self, x):
        return self.mixer(POOLINGS["avg"](x))[:, :, None, None]


class MaxAlone(ChannelAttention):
    def logits(self, x):
        return self.mixer(POOLINGS["max"](x))[:, :, None, None]


class OneRowPooled(ChannelAttention):
    def logits(self, x):
        return super().logits(x[:, :, :1])


class BatchPooled(ChannelAttention):
    def logits(self, x):
        return super().logits(x.mean(0, keepdim=True).expand_as(x))


class SortedChannels(ChannelAttention):
    def logits(self, x):
        return super().logits(x.sort(dim=1).values)


class NoChannelSigmoid(ChannelAttention):
    def forward(self, x):
        return self.logits(x)


class ConstantChannelGate(ChannelAttention):
    def forward(self, x):
        return torch.full_like(x[:, :, :1, :1], 0.5)


class NoSpatialSigmoid(SpatialAttention):
    def forward(self, x):
        return self.logits(x)


class ConstantSpatialGate(SpatialAttention):
    def forward(self, x):
        return torch.full_like(x[:, :1], 0.5)


class SwappedOperands(SpatialAttention):
    def logits(self, x):
        return self.norm(self.conv(torch.cat([x.mean(1, True), x.amax(1, True)], dim=1)))


class FirstChannelsOnly(SpatialAttention):
    def logits(self, x):
        return self.norm(self.conv(x[:, :2]))


class PooledOverRows(SpatialAttention):
    def logits(self, x):
        x = x.mean(2, keepdim=True).expand_as(x)
        x = x + torch.arange(x.shape[2], dtype=x.dtype)[:, None]
        return super().logits(x)


class ShiftedKernel(SpatialAttention):
    def logits(self, x):
        return super().logits(x).roll(1, dims=3)


class BatchStatisticsAlways(SpatialAttention):
    def logits(self, x):
        self.norm.training = True
        return super().logits(x)


class SwappedOrder(CBAM):
    def forward(self, x):
        x = x * self.spatial(x)
        return x * self.channel(x)


class SpatialSeesTheInput(CBAM):
    def forward(self, x):
        return x * self.channel(x) * self.spatial(x)


class LogitsAdded(CBAM):
    def forward(self, x):
        return x * torch.sigmoid(self.channel.logits(x) + self.spatial.logits(x))


class Dead(CBAM):
    def forward(self, x):
        return x


class Added(CBAM):
    def forward(self, x):
        return x + self.channel(x) + self.spatial(x)


class NoMultiplication(CBAM):
    def forward(self, x):
        return self.channel(x) * self.spatial(x)


class ChannelOnly(CBAM):
    def forward(self, x):
        return x * self.channel(x)


class SpatialOnly(CBAM):
    def forward(self, x):
        return x * self.spatial(x)


class Residual(CBAM):
    def forward(self, x):
        return x + super().forward(x)


CHECKS: dict[Callable[[nn.Module], None], list[type[nn.Module]]] = {
    gates_lie_between_0_and_1_and_factorise: [
        *(Dead, Added, NoMultiplication, ChannelOnly, SpatialOnly, Residual),
        *(NoChannelSigmoid, NoSpatialSigmoid, ConstantChannelGate, ConstantSpatialGate),
        LogitsAdded,
    ],
    gates_vary_with_the_input: [ConstantChannelGate, ConstantSpatialGate, BatchPooled],
    channel_first_and_both_multiply: [
        *(Dead, Added, NoMultiplication, ChannelOnly, SpatialOnly, Residual),
        *(SwappedOrder, SpatialSeesTheInput),
    ],
    channel_map_ignores_where: [OneRowPooled],
    channel_map_follows_the_channels: [SortedChannels],
    channel_map_sees_mean_and_max: [MeanAlone, MaxAlone, ConstantChannelGate],
    mlp_is_shared: [UnsharedMLP, SumBeforeMLP],
    spatial_map_ignores_what: [FirstChannelsOnly],
    spatial_map_follows_the_places: [PooledOverRows, ShiftedKernel],
    spatial_operands_are_max_then_mean: [SwappedOperands, FirstChannelsOnly, ConstantSpatialGate],
    images_do_not_mix: [BatchPooled, BatchStatisticsAlways],
}
MUTANTS = [(check, mutant) for check, mutants in CHECKS.items() for mutant in mutants]


def build(part: type[nn.Module] = CBAM) -> nn.Module:
    """Return a CBAM of 8 channels, one part of which is `part`, in eval mode."""
    torch.manual_seed(0)
    module = (part if issubclass(part, CBAM) else CBAM)(8, 2, 3)
    if issubclass(part, ChannelAttention):
        module.channel = part(8, 2)
    if issubclass(part, SpatialAttention):
        module.spatial = part(3)
    return seeded(module.double(), scale=0.4).eval()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_module_passes_every_check(check):
    check(build())


@pytest.mark.parametrize(
    ("check", "mutant"), MUTANTS, ids=[f"{c.__name__}-{m.__name__}" for c, m in MUTANTS]
)
def test_every_check_fails_on_a_wrong_module(check, mutant):
    with pytest.raises(AssertionError):
        check(build(mutant))


# ---- Shapes, dtypes, memory formats

TOLERANCE = {torch.float64: 0, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtype_and_memory_format_are_kept(dtype, layout, order, training):
    torch.manual_seed(0)
    module = CBAM(8, 2, order=order).train(training)
    x = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=layout).requires_grad_()
    exact = copy.deepcopy(module).double()(x.double())
    module = module.to(dtype)
    result = module(x)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=layout)
    assert_close(result.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    result.sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_a_batch_of_one_number_trains_on_the_running_statistics():
    module = seeded(CBAM(8)).train()
    statistics = {k: v.clone() for k, v in module.named_buffers()}
    x = torch.randn(1, 8, 1, 1)
    result = module(x)
    result.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert_close(result, module.eval()(x))
    assert_close(dict(module.named_buffers()), statistics)


def test_an_empty_batch_leaves_the_running_statistics():
    module = seeded(CBAM(8)).train()
    statistics = {k: v.clone() for k, v in module.named_buffers() if "running" in k}
    assert module(torch.randn(0, 8, 4, 4)).shape == (0, 8, 4, 4)
    assert_close({k: v for k, v in module.named_buffers() if "running" in k}, statistics)


@pytest.mark.parametrize("gate", GATES)
def test_softmax_alone_sums_to_one(gate):
    x = torch.randn(3, 8, 4, 5)
    for layer in (ChannelAttention(8, gate=gate), SpatialAttention(gate=gate)):
        sums = layer(x).sum((1, 2, 3))
        assert torch.allclose(sums, torch.ones(3)) == (gate == "softmax")


# ---- What PyTorch does to a module


def test_compile_without_a_graph_break():
    module = seeded(CBAM(8, 2), scale=0.3)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for shape in ((2, 8, 4, 5), (1, 8, 1, 1)):
        x = torch.randn(shape)
        result, expected = compiled(x), module(x)
        assert_close(result, expected)
        result.sum().backward()
        expected.sum().backward()
    for one, other in zip(compiled.parameters(), module.parameters(), strict=True):
        assert_close(one.grad, other.grad)


@pytest.mark.parametrize("options", [{}, {"mixer": "conv1d", "gate": "softmax"}], ids=str)
def test_export_with_any_batch_size(options):
    module = seeded(CBAM(8, 2, **options), scale=0.3).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module, (torch.randn(2, 8, 4, 5),), dynamic_shapes=({0: batch},)
    ).module()
    for size in (1, 2, 7):
        x = torch.randn(size, 8, 4, 5)
        assert_close(program(x), module(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast(training):
    module = seeded(CBAM(8, 2), scale=0.3).train(training)
    for shape in ((2, 8, 4, 5), (1, 8, 1, 1)):
        x = torch.randn(shape)
        exact = copy.deepcopy(module)(x)
        with torch.autocast("cpu", torch.bfloat16):
            result = module(x)
        assert result.dtype == torch.float32  # the input's: a gate may be rough, the features not
        assert_close(result, exact, rtol=5e-2, atol=5e-2)
        result.sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())


def test_copies_and_stored_weights_compute_the_same():
    module, x = seeded(CBAM(8, 2)).eval(), torch.randn(2, 8, 4, 5)
    loaded = CBAM(8, 2).eval()
    assert not torch.allclose(loaded(x), module(x))
    loaded.load_state_dict(module.state_dict())
    assert_close(loaded(x), module(x), rtol=0, atol=0)
    copied = copy.deepcopy(module)
    assert_close(copied(x), module(x), rtol=0, atol=0)
    seeded(copied, seed=1)
    assert not torch.allclose(copied(x), module(x))  # a copy shares nothing


def test_names_of_the_weights():
    """Stored networks depend on them."""
    assert set(CBAM(8).state_dict()) == {
        *("channel.mixer.0.weight", "channel.mixer.0.bias"),
        *("channel.mixer.2.weight", "channel.mixer.2.bias"),
        *("spatial.conv.weight", "spatial.norm.weight", "spatial.norm.bias"),
        *("spatial.norm.running_mean", "spatial.norm.running_var"),
        "spatial.norm.num_batches_tracked",
    }
    convolved = CBAM(8, mixer="conv1d", bias=False, norm=False)
    assert set(convolved.state_dict()) == {"channel.mixer.1.weight", "spatial.conv.weight"}
    assert {k.split(".")[0] for k in CBAM(8, order="channel-only").state_dict()} == {"channel"}
    assert {k.split(".")[0] for k in CBAM(8, order="spatial-only").state_dict()} == {"spatial"}


# ---- Bad input


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "8", None])
def test_bad_channels(value, order):
    with pytest.raises(ValueError, match="channels must be a positive integer, got") as caught:
        CBAM(value, order=order)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 0}, "reduction must be a positive integer, got 0"),
        ({"reduction": 1.5}, "reduction must be a positive integer, got 1.5"),
        ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
        ({"kernel_size": 0}, "kernel_size must be a positive odd integer, got 0"),
        ({"kernel_size": 7.0}, "kernel_size must be a positive odd integer, got 7.0"),
        ({"kernel_size": (7, 7)}, r"kernel_size must be a positive odd integer, got \(7, 7\)"),
        ({"gate": "relu"}, "gate must be one of sigmoid, hard-sigmoid, softmax; got 'relu'"),
        ({"order": "both"}, "order must be one of channel-spatial, .*spatial-only; got 'both'"),
        ({"mixer": "linear"}, "mixer must be one of mlp, conv1d; got 'linear'"),
        ({"pooling": ["avg", "min"]}, "pooling must be one of avg, max, lp, lse; got 'min'"),
        ({"pooling": [["avg"]]}, r"pooling must be one of avg, max, lp, lse; got \['avg'\]"),
        ({"pooling": []}, r"pooling must be a list such as .*, got \[\]"),
        ({"pooling": "avg"}, "pooling must be a list such as .*, got 'avg'"),
        ({"pooling": None}, "pooling must be a list such as .*, got None"),
        ({"pooling": (p for p in ["avg"])}, "pooling must be a list such as .*, got <generator"),
    ],
    ids=lambda part: str(part).split(" at 0x")[0],  # the same name in every process
)
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        CBAM(8, **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "shape",
    [(8, 4, 4), (8,), (2, 8, 4, 4, 4), (2, 7, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)],
)
def test_bad_shape(shape, order):
    with pytest.raises(ValueError, match=r"input of shape \(N, 8, H, W\), got") as caught:
        CBAM(8, order=order)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_bad_shape_for_a_gate_alone():
    with pytest.raises(ValueError, match=r"of shape \(N, 8, H, W\), got \(2, 9, 4, 4\)"):
        ChannelAttention(8)(torch.zeros(2, 9, 4, 4))
    with pytest.raises(ValueError, match=r"of shape \(N, C, H, W\), got \(9, 4, 4\)"):
        SpatialAttention()(torch.zeros(9, 4, 4))
    with pytest.raises(ValueError, match=r"of shape \(N, C, H, W\), got \(2, 0, 4, 4\)"):
        SpatialAttention()(torch.zeros(2, 0, 4, 4))


@pytest.mark.parametrize("gate", [ChannelAttention, lambda channels, **o: SpatialAttention(**o)])
def test_a_gate_alone_refuses_an_unknown_gate_when_it_is_made(gate):
    with pytest.raises(ValueError, match=r"gate must be one of sigmoid, .*; got 'relu'"):
        gate(8, gate="relu")


@pytest.mark.parametrize(
    ("module", "positional", "named"),
    [
        (ChannelAttention, {"channels": 8, "reduction": 2}, {"pooling": ["avg"]}),
        (SpatialAttention, {"kernel_size": 3}, {"norm": False}),
        (CBAM, {"channels": 8, "reduction": 2, "kernel_size": 3}, {"order": "parallel"}),
    ],
)
def test_sizes_may_be_named_and_options_must_be(module, positional, named):
    by_name = module(**positional, **named).state_dict()
    by_place = module(*positional.values(), **named).state_dict()
    assert {k: v.shape for k, v in by_name.items()} == {k: v.shape for k, v in by_place.items()}
    with pytest.raises(TypeError, match="positional arguments"):
        module(*positional.values(), *named.values())


@pytest.mark.parametrize("module", [ChannelAttention, CBAM])
def test_the_usual_reduction_is_the_papers(module):
    hidden = [w.shape[0] for name, w in module(240).named_parameters() if "mixer.0.weight" in name]
    assert hidden == [240 // 16]


def test_more_channels_than_a_byte_counts():
    x = torch.randn(2, 300, 2, 2)
    assert CBAM(300)(x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_input_that_is_not_floating_point(dtype):
    for module in (CBAM(8), ChannelAttention(8), SpatialAttention()):
        with pytest.raises(TypeError, match=f"floating-point input, got {dtype}; convert it"):
            module(torch.zeros(2, 8, 4, 4, dtype=dtype))


def test_compiled_for_all_sizes_at_once():
    for channels in (8, 16):
        module = CBAM(channels).eval()
        compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
        for shape in ((3, channels, 9, 17), (2, channels, 5, 6)):
            x = torch.randn(shape)
            assert torch.equal(compiled(x), module(x))
