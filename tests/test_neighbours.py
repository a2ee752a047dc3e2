"""SE and ECA against two independent libraries, BAM against its equations; the choice by name."""

import copy
import math
from itertools import pairwise

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu import attention, create_model
from cbam_edu.fused import CBAM
from cbam_edu.neighbours import (
    ATTENTIONS,
    BAM,
    ECA,
    STUDIED,
    Half,
    SqueezeExcitation,
    Variant,
    attention_layer,
    check_name,
)


def inputs(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same input twice, and a gradient to send back."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, channels, 4, 5)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), x.detach().clone().requires_grad_(), upstream


def assert_equal_to(ours: nn.Module, reference: nn.Module, names: dict[str, str]) -> None:
    """Carry the weights of `reference` over to `ours`; outputs and gradients must be equal."""
    ours, reference = ours.double(), reference.double()
    theirs = dict(reference.named_parameters())
    own = dict(ours.named_parameters())
    assert set(names) == set(own)
    assert set(names.values()) == set(theirs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.values():
            parameter.normal_(0.3, generator=generator)
        for name, parameter in own.items():
            parameter.copy_(theirs[names[name]].reshape(parameter.shape))
    x, x_too, upstream = inputs(ours.channel.channels)
    result, expected = ours(x), reference(x_too)
    assert (result - x).abs().max() > 0.1
    assert_close(result, expected, rtol=1e-12, atol=1e-12)
    result.backward(upstream)
    expected.backward(upstream)
    assert_close(x.grad, x_too.grad, rtol=1e-10, atol=1e-12)
    for name, parameter in own.items():
        gradient = theirs[names[name]].grad.reshape(parameter.shape)
        assert gradient.abs().max() > 1e-6
        assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


SE_WEIGHTS = {"channel.mixer.0.weight": "fc1.weight", "channel.mixer.2.weight": "fc2.weight"}
SE_BIASES = {"channel.mixer.0.bias": "fc1.bias", "channel.mixer.2.bias": "fc2.bias"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "reduction"), [(32, 16), (24, 4), (6, 16)])
def test_squeeze_excitation_equals_timm(channels, reduction, bias):
    reference = timm.layers.SEModule(channels, rd_channels=max(1, channels // reduction), bias=bias)
    names = SE_WEIGHTS | SE_BIASES if bias else SE_WEIGHTS
    assert_equal_to(SqueezeExcitation(channels, reduction, bias=bias), reference, names)


@pytest.mark.parametrize(("channels", "reduction"), [(32, 16), (24, 4), (6, 16)])
def test_squeeze_excitation_equals_torchvision(channels, reduction):
    reference = torchvision.ops.SqueezeExcitation(channels, max(1, channels // reduction))
    assert_equal_to(SqueezeExcitation(channels, reduction), reference, SE_WEIGHTS | SE_BIASES)


@pytest.mark.parametrize("channels", [8, 32, 64, 128, 200, 1024])
def test_eca_equals_timm(channels):
    reference = timm.layers.EcaModule(channels)
    assert_equal_to(ECA(channels), reference, {"channel.mixer.1.weight": "conv.weight"})


def eca_kernel(channels: int) -> int:
    """Return k as the authors write it (Wang et al., arXiv:1910.03151, figure 3)."""
    t = int(abs((math.log(channels, 2) + 1) / 2))
    return t if t % 2 else t + 1


CHANNELS = sorted({*range(1, 300), *(2**i + j for i in range(8, 15) for j in (-1, 0, 1))})


def test_ecas_kernel_follows_the_authors_rule():
    sizes = {c: ECA(c).channel.mixer[1].kernel_size[0] for c in CHANNELS}
    assert sizes == {c: eca_kernel(c) for c in CHANNELS}
    # From 8 channels on; below, timm takes 3 where the rule says 1.
    timms = {c: timm.layers.EcaModule(c).conv.kernel_size[0] for c in CHANNELS if c >= 8}
    assert {c: sizes[c] for c in timms} == timms
    assert {sizes[c] for c in (1, 2, 7)} == {1}
    assert [sizes[c] for c in (8, 64, 127, 128, 256, 1024)] == [3, 3, 3, 5, 5, 5]


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (SqueezeExcitation(64), 2 * 64 * 4 + 4 + 64),
        (SqueezeExcitation(64, 8, bias=False), 2 * 64 * 8),
        (SqueezeExcitation(3), 2 * 3 + 1 + 3),
        (ECA(64), 3),
        (ECA(256), 5),
    ],
)
def test_number_of_parameters(layer, count):
    assert sum(p.numel() for p in layer.parameters()) == count


# ---- Each sees the mean alone, and gates


def sees_the_mean_alone_and_gates(layer: nn.Module) -> None:
    """F' / F is one number a channel, in (0, 1), that the channels' means decide."""
    x = torch.rand(2, 8, 3, 4, dtype=torch.float64) + 0.5
    ratio = layer(x) / x
    assert ((ratio > 0) & (ratio < 1)).all()
    assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert (ratio[0] - ratio[1]).abs().max() > 1e-3
    same_means = x.clone()
    same_means[:, :, 0, 0] += 2
    same_means[:, :, 1, 1] -= 2
    assert_close(layer(same_means) / same_means, ratio)


class Ungated(SqueezeExcitation):
    def forward(self, x):
        return x


class Additive(ECA):
    def forward(self, x):
        return x + self.channel(x)


class Constant(ECA):
    def forward(self, x):
        return x * 0.5


class Logits(SqueezeExcitation):
    def forward(self, x):
        return x * self.channel.logits(x)


def with_normal_weights(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.double()


@pytest.mark.parametrize("layer", [SqueezeExcitation(8, 2), ECA(8)], ids=["se", "eca"])
def test_a_channel_gate_of_the_mean(layer):
    sees_the_mean_alone_and_gates(with_normal_weights(layer))


@pytest.mark.parametrize(
    "layer",
    [
        Ungated(8),
        Additive(8),
        Constant(8),
        Logits(8, 2),
        CBAM(8, 2),
        CBAM(8, 2, order="channel-only"),  # sees the largest as well
        CBAM(8, order="spatial-only"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_check_fails_on_another_layer(layer):
    with pytest.raises(AssertionError):
        sees_the_mean_alone_and_gates(with_normal_weights(layer))


# ---- BAM


def bam_by_its_paper(bam: BAM, x: Tensor) -> Tensor:
    """Equations 1 to 4 of Park et al., in evaluation mode, written out."""
    w = bam.state_dict()

    def norm(name: str, z: Tensor) -> Tensor:
        mean, var, weight, bias = (
            w[f"{name}.{k}"].view(1, -1, 1, 1)
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (z - mean) / (var + 1e-5).sqrt() * weight + bias

    hidden = F.relu(x.mean((2, 3)) @ w["channel.mixer.0.weight"].T + w["channel.mixer.0.bias"])
    mlp = hidden @ w["channel.mixer.2.weight"].T + w["channel.mixer.2.bias"]
    channel = norm("channel_norm", mlp[:, :, None, None])
    z = x
    for i, dilation in ((0, 0), (3, 4), (6, 4)):  # 1 x 1, then two dilated 3 x 3
        z = F.conv2d(
            z, w[f"spatial.{i}.weight"], w[f"spatial.{i}.bias"],
            padding=dilation, dilation=max(1, dilation),
        )  # fmt: skip
        z = F.relu(norm(f"spatial.{i + 1}", z))
    z = F.conv2d(z, w["spatial.9.weight"], w["spatial.9.bias"])
    return x + x * torch.sigmoid(channel + norm("spatial.10", z))


def test_bam_is_what_its_paper_says():
    torch.manual_seed(0)
    bam = BAM(32, 4).double().eval()
    with torch.no_grad():
        for name, value in bam.state_dict().items():
            if value.is_floating_point():
                value.normal_(0.3)
                if name.endswith("running_var"):
                    value.abs_().add_(0.1)
    x = torch.randn(2, 32, 9, 11, dtype=torch.float64)
    assert (bam(x) - x).abs().max() > 0.1
    assert_close(bam(x), bam_by_its_paper(bam, x), rtol=1e-12, atol=1e-12)


def test_bam_sees_as_far_as_its_dilation():
    """Two 3 x 3 convolutions of dilation d reach 2 d places to each side."""
    torch.manual_seed(0)
    for dilation in (1, 4):
        bam = BAM(16, 1, dilation=dilation).eval()
        x = torch.randn(1, 16, 1, 31, requires_grad=True)
        bam.spatial(x)[0, 0, 0, 15].backward()
        seen = x.grad[0].abs().sum((0, 1)).nonzero().flatten()
        assert seen.tolist() == [15 + k * dilation for k in range(-2, 3)]


def test_bam_trains_on_a_single_place():
    bam = BAM(4, 2).train()
    with torch.no_grad():
        bam(torch.randn(1, 4, 1, 1))  # nothing has a variance: the running statistics serve
    assert all(m.num_batches_tracked == 0 for m in bam.modules() if isinstance(m, nn.BatchNorm2d))
    bam(torch.randn(2, 4, 1, 1)).sum().backward()
    assert all(m.num_batches_tracked == 1 for m in bam.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet20", 3), ("resnet9", 4), ("resnet18", 4), ("resnet50", 4), ("mobilenet_0.7", 4)],
)
def test_bam_stands_where_the_next_stage_halves_the_map(name, stages):
    model = create_model(name, attention="bam")
    names = [n for n, m in model.named_modules() if isinstance(m, BAM)]
    assert names == [f"stages.{i}.bam" for i in range(stages - 1)]
    maps = model.forward_features(torch.randn(2, 3, 64, 64))
    halved = [a.shape[2] == 2 * b.shape[2] for a, b in pairwise(maps)]
    assert halved == [True] * (stages - 1)


def test_bam_of_a_cbamnet_stands_before_its_pooling():
    model = create_model("cbamnet_small", attention="bam")
    assert all(isinstance(stage[3], BAM) for stage in model.stages)
    assert all(isinstance(stage[4], nn.MaxPool2d) for stage in model.stages)
    assert model.stages[0][3].channel.mixer[0].out_features == 64 // 8


# ---- By name


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 5), (1, 8, 1, 1), (0, 8, 4, 4), (2, 8, 1, 6)], ids=str)
def test_every_name_keeps_shape_and_dtype(name, dtype, shape):
    layer, x = attention_layer(name, 8).to(dtype), torch.randn(shape, dtype=dtype)
    result = layer(x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert result.isfinite().all()


CHANNEL_ONLY = CBAM(8, 2, order="channel-only", gate="softmax")
SPATIAL_ONLY = CBAM(8, kernel_size=3, order="spatial-only", norm=False)


@pytest.mark.parametrize(
    ("name", "options", "twin"),
    [
        ("se", {"reduction": 2}, SqueezeExcitation(8, 2)),
        ("eca", {}, ECA(8)),
        ("bam", {"reduction": 2, "dilation": 2}, BAM(8, 2, dilation=2)),
        ("channel", {"reduction": 2, "gate": "softmax"}, CHANNEL_ONLY),
        ("spatial", {"kernel_size": 3, "norm": False}, SPATIAL_ONLY),
        ("cbam", {"reduction": 2, "order": "parallel"}, CBAM(8, 2, order="parallel")),
    ],
    ids=["se", "eca", "bam", "channel", "spatial", "cbam"],
)
def test_a_name_stands_for(name, options, twin):
    layer, other = attention_layer(name, 8, **options), twin
    assert type(layer) is type(other)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 4, 5)
    assert_close(layer(x), other(x), rtol=0, atol=0)
    assert_close(copy.deepcopy(layer)(x), other(x), rtol=0, atol=0)


def test_no_attention_is_the_identity():
    x = torch.randn(2, 8, 4, 5)
    assert attention_layer(None, 8)(x) is x


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cbma", r"unknown attention 'cbma'; did you mean cbam\?"),
        ("SE", r"unknown attention 'SE'; known: se, eca, bam, channel, spatial, cbam"),
        ("spacial", r"unknown attention 'spacial'; did you mean spatial\?"),
        ("", "unknown attention ''; known: se, eca"),
        (3, "unknown attention 3; known: se, eca"),
        (["cbam"], r"unknown attention \['cbam'\]"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(ValueError, match=message):
        attention_layer(name, 8)


def test_names_that_are_near_are_all_suggested():
    with pytest.raises(ValueError, match=r"unknown model 'resnet2'; did you mean .* or .*\?"):
        check_name("model", "resnet2", ["resnet20", "resnet32", "cbamnet_tiny"])
    check_name("model", "resnet20", ["resnet20"])


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("channels", [0, -1, 2.5, True, "8"])
def test_bad_channels(name, channels):
    with pytest.raises(ValueError, match="channels must be a positive integer, got"):
        attention_layer(name, channels)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_bad_input(name):
    layer = attention_layer(name, 8)
    for shape in ((8, 4, 4), (2, 7, 4, 4), (2, 8, 0, 4), (2, 8, 4, 4, 4)):
        with pytest.raises(ValueError, match=r"of shape \(N, 8, H, W\), got"):
            layer(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"floating-point input, got torch.int64"):
        layer(torch.zeros(2, 8, 4, 4, dtype=torch.int64))


def test_bad_options():
    with pytest.raises(ValueError, match="reduction must be a positive integer, got 0"):
        attention_layer("se", 8, reduction=0)
    with pytest.raises(ValueError, match="kernel_size must be a positive odd integer, got 4"):
        attention_layer("spatial", 8, kernel_size=4)
    with pytest.raises(ValueError, match="dilation must be a positive integer, got 0"):
        attention_layer("bam", 8, dilation=0)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("cbam", "reducton", "unknown option of cbam 'reducton'; did you mean reduction"),
        ("eca", "reduction", "unknown option of eca 'reduction'; known: "),
        ("spatial", "order", "unknown option of spatial 'order'; known: kernel_size, norm, gate"),
        ("channel", "norm", "unknown option of channel 'norm'; known: reduction, pooling"),
    ],
)
def test_unknown_options_are_told(name, option, message):
    with pytest.raises(ValueError, match=message):
        attention_layer(name, 8, **{option: 4})


# ---- For studies: Variant and Half


def same_weights(layer: type, channels: int, **options) -> nn.Module:
    torch.manual_seed(0)
    return layer(channels, **options)


VARIANTS = [
    {},
    {"reduction": 2, "kernel_size": 3},
    {"order": "parallel"},
    {"order": "spatial-channel", "gate": "hard-sigmoid"},
    {"order": "spatial-only", "norm": False},
]


@pytest.mark.parametrize("twin", [attention.CBAM, CBAM], ids=["plain", "fused"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_variant_without_its_own_options_is_cbam(options, twin):
    """Bit for bit: weights, results, gradients and running statistics, in both modes."""
    torch.manual_seed(1)
    x, upstream = torch.randn(2, 2, 8, 5, 6).unbind()
    layers = [same_weights(kind, 8, **options) for kind in (Variant, twin)]
    assert list(layers[0].state_dict()) == list(layers[1].state_dict())
    results = []
    for layer in layers:
        given = x.clone().requires_grad_()
        out = layer(given)
        gradients = torch.autograd.grad(out, [given, *layer.parameters()], upstream)
        quiet = layer.eval()(x)
        results.append([out, quiet, *gradients, *layer.state_dict().values()])
    assert all(map(torch.equal, *results))
    assert not torch.equal(results[0][0], x)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kernel", [3, 7])
def test_a_variants_1x1_convolution_by_its_formula(kernel, norm):
    torch.manual_seed(0)
    layer = Variant(8, 2, kernel, squeeze="conv", norm=norm).double().eval()
    w = layer.state_dict()
    if norm:
        for name, value in (
            ("running_mean", 0.3),
            ("running_var", 2.0),
            ("weight", 1.5),
            ("bias", -0.2),
        ):
            w[f"spatial.norm.{name}"].fill_(value)
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    y = x * layer.channel(x)
    mixed = torch.einsum("c,nchw->nhw", w["spatial.squeeze.weight"].flatten(), y)
    side = kernel // 2
    windows = F.pad(mixed, (side,) * 4).unfold(1, kernel, 1).unfold(2, kernel, 1)
    logits = torch.einsum("nhwij,ij->nhw", windows, w["spatial.conv.weight"][0, 0])
    if norm:
        logits = (logits - 0.3) / (2.0 + 1e-5) ** 0.5 * 1.5 - 0.2
    wanted = y / (1 + torch.exp(-logits))[:, None]
    assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    assert logits.std() > 0.05


@pytest.mark.parametrize("squeeze", ["pool", "conv"])
def test_a_norm_that_starts_at_zero_learns_one_step_late(squeeze):
    torch.manual_seed(0)
    layer = Variant(8, 2, 3, squeeze=squeeze, norm_scale=0.0)
    x, wanted = torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    assert torch.equal(layer.spatial(x), torch.full((4, 1, 5, 5), 0.5))
    assert torch.equal(layer(x), x * layer.channel(x) * 0.5)
    learner = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen = []
    for _ in range(2):
        learner.zero_grad()
        F.mse_loss(layer(x), wanted).backward()
        spatial = layer.spatial
        seen.append((spatial.conv.weight.grad.abs().max(), spatial.norm.weight.grad.abs().max()))
        learner.step()
    (first, first_scale), (second, _) = seen
    assert first == 0
    assert first_scale > 0
    assert second > 0
    assert layer.spatial(x).std() > 0


def test_the_scale_that_a_norm_starts_at():
    for scale in (0.0, 1.0, 0.25):
        norm = Variant(8, norm_scale=scale).spatial.norm
        assert (norm.weight.item(), norm.bias.item()) == (scale, 0)


@pytest.mark.parametrize("squeeze", ["pool", "conv"])
def test_a_variant_trains_on_a_single_place(squeeze):
    layer = Variant(8, squeeze=squeeze).train()
    out = layer(torch.randn(1, 8, 1, 1))  # one value has no variance: the running ones serve
    assert out.isfinite().all()
    assert layer.spatial.norm.num_batches_tracked == 0
    assert layer.spatial.norm.running_var == 1
    layer(torch.randn(2, 8, 1, 1)).sum().backward()
    assert layer.spatial.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (Variant(64), 2 * 64 * 4 + 4 + 64 + 2 * 49 + 2),
        (Variant(64, norm_scale=0.0), 2 * 64 * 4 + 4 + 64 + 2 * 49 + 2),
        (Variant(64, squeeze="conv"), 2 * 64 * 4 + 4 + 64 + 64 + 49 + 2),
        (Variant(64, 8, 3, squeeze="conv", norm=False), 2 * 64 * 8 + 8 + 64 + 64 + 9),
        (Half(64), 0),
    ],
)
def test_number_of_parameters_of_what_is_studied(layer, count):
    assert sum(p.numel() for p in layer.parameters()) == count


def test_half_is_a_quarter():
    x = torch.randn(2, 8, 4, 5, requires_grad=True)
    out = Half(8)(x)
    assert torch.equal(out, x / 4)
    out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 0.25))
    assert not Half(8).state_dict()


@pytest.mark.parametrize("name", STUDIED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 5), (1, 8, 1, 1), (0, 8, 4, 4), (2, 8, 1, 6)], ids=str)
def test_what_is_studied_keeps_shape_and_dtype(name, dtype, shape):
    options = {"squeeze": "conv"} if name == "variant" else {}
    layer, x = attention_layer(name, 8, **options).to(dtype), torch.randn(shape, dtype=dtype)
    result = layer(x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert result.isfinite().all()


def test_what_is_studied_goes_by_name_but_is_not_offered():
    assert not set(STUDIED) & set(ATTENTIONS)
    assert type(attention_layer("half", 8)) is Half
    layer = attention_layer("variant", 8, reduction=2, squeeze="conv", norm_scale=0.5)
    assert type(layer) is Variant
    assert layer.channel.mixer[0].out_features == 4
    assert layer.spatial.norm.weight == 0.5
    model = create_model("resnet8", attention="half", dims=(4, 8)).eval()
    assert [n for n, m in model.named_modules() if isinstance(m, Half)] == [
        "stages.0.0.attention",
        "stages.1.0.attention",
    ]
    # A half twice is what a BatchNorm before it could do alone.
    plain = create_model("resnet8", dims=(4, 8)).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for stage in plain.stages:
            stage[0].bn2.weight /= 4
            stage[0].bn2.bias /= 4
        x = torch.randn(2, 3, 8, 8)
        assert_close(model(x), plain(x))


@pytest.mark.parametrize("name", STUDIED)
def test_bad_input_of_what_is_studied(name):
    layer = attention_layer(name, 8)
    for shape in ((8, 4, 4), (2, 7, 4, 4), (2, 8, 0, 4)):
        with pytest.raises(ValueError, match=r"of shape \(N, 8, H, W\), got"):
            layer(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"floating-point input, got torch.int64"):
        layer(torch.zeros(2, 8, 4, 4, dtype=torch.int64))
    for channels in (0, 2.5, True):
        with pytest.raises(ValueError, match="channels must be a positive integer, got"):
            attention_layer(name, channels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("variant", {"squeeze": "max"}, "squeeze must be one of pool, conv; got 'max'"),
        ("variant", {"order": "channel-only"}, "order must be one of channel-spatial, .*; got"),
        ("variant", {"norm": False, "norm_scale": 0.0}, "norm_scale needs norm=True; got 0.0 with"),
        ("variant", {"norm": False, "norm_scale": 2.0}, "norm_scale needs norm=True; got 2.0 with"),
        ("variant", {"squeeze": "conv", "kernel_size": 4}, "kernel_size must be a positive odd"),
        ("variant", {"gate": "relu"}, "gate must be one of"),
        ("variant", {"reduction": 0}, "reduction must be a positive integer, got 0"),
        ("variant", {"sqeeze": "conv"}, "unknown option of variant 'sqeeze'; did you mean squeeze"),
        ("half", {"reduction": 2}, "unknown option of half 'reduction'"),
    ],
)  # fmt: skip
def test_bad_options_of_what_is_studied(name, options, message):
    with pytest.raises(ValueError, match=message):
        attention_layer(name, 8, **options)


def test_a_learnt_mixture_says_what_input_it_wants():
    gate = Variant(8, squeeze="conv").spatial
    with pytest.raises(ValueError, match=r"of shape \(N, C, H, W\), got \(8, 4, 4\)"):
        gate(torch.zeros(8, 4, 4))


def test_bam_of_few_channels_has_one_hidden_channel():
    assert [conv.weight.shape[0] for conv in BAM(8).spatial if isinstance(conv, nn.Conv2d)] == [
        1
    ] * 4


def test_bam_of_many_channels_takes_one_value_of_each():
    x = torch.randn(1, 300, 1, 1)
    assert BAM(300).train()(x).shape == x.shape


@pytest.mark.parametrize("name", ["channel", "cbam"])
def test_every_option_of_a_layer_has_its_name(name):
    layer = attention_layer(name, 8, bias=False)
    assert all(linear.bias is None for linear in layer.modules() if isinstance(linear, nn.Linear))


def test_three_names_are_near_at_most():
    with pytest.raises(ValueError, match="unknown kind 'aaa'; did you mean ") as caught:
        check_name("kind", "aaa", ["aaab", "aaac", "aaad", "aaae"])
    assert str(caught.value).count(" or ") == 2


@pytest.mark.parametrize("name", ["se", "bam", "channel", "cbam", "variant"])
def test_the_usual_reduction_is_sixteen(name):
    shapes = [w.shape[:2] for w in attention_layer(name, 240).parameters() if w.ndim > 1]
    assert (15, 240) in shapes
    assert (240, 15) in shapes


def test_the_usual_kernel_is_seven_wide():
    for name in ("spatial", "cbam", "variant"):
        layer = attention_layer(name, 8)
        assert [m.kernel_size for m in layer.modules() if isinstance(m, nn.Conv2d)] == [(7, 7)]
    assert {m.dilation for m in BAM(8).modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (4, 4)}
