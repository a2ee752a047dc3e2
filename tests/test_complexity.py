"""Costs: the paper's tables row by row, torch's own counter, and formulas derived by hand."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cbam_edu import create_model, list_models
from cbam_edu.attention import CBAM
from cbam_edu.complexity import Cost, LayerCost, count
from cbam_edu.neighbours import ATTENTIONS, ECA, attention_layer

PAPER = json.loads(
    (Path(__file__).parents[1] / "book" / "results" / "paper_tables.json").read_text("utf-8")
)
TABLES = {**PAPER["table4_imagenet"], **PAPER["table5_mobilenet"]}
ROWS = [(name, arm) for name, arms in TABLES.items() for arm in arms]
EXACT = {name: arms for name, arms in PAPER["exact"].items() if name != "_comment"}


def paper_cost(name: str, arm: str) -> Cost:
    with torch.device("meta"):  # shapes are all that is counted
        model = create_model(name, attention=None if arm == "none" else arm)
    return count(model, (3, 224, 224))


# ---- The paper's tables


def test_there_are_thirty_rows():
    assert len(ROWS) == 30
    assert set(TABLES) <= set(list_models())


@pytest.mark.parametrize(("name", "arm"), ROWS)
def test_a_row_of_tables_4_and_5_comes_out_as_published(name, arm):
    parameters, gflops = TABLES[name][arm][:2]
    cost = paper_cost(name, arm)
    assert f"{cost.parameters / 1e6:.2f}" == f"{parameters:.2f}"
    assert f"{cost.multiply_accumulates / 1e9:.3f}" == f"{gflops:.3f}"
    if name in EXACT:
        assert list(cost[:2]) == EXACT[name][arm]
    assert sum(layer.parameters for layer in cost.layers) == cost.parameters
    assert sum(layer.multiply_accumulates for layer in cost.layers) == cost.multiply_accumulates


def test_the_exact_rows_are_those_of_four_networks():
    assert {(n, a) for n in EXACT for a in EXACT[n]} <= set(ROWS)
    assert len(EXACT) == 4


# ---- By hand


def resnet_by_hand(blocks: list[int], dims: list[int], bottleneck: int, side: int) -> Cost:
    """Parameters and multiply-accumulates of a ResNet for ImageNet, added up layer by layer."""
    parameters, work = 0, 0

    def conv(c_in: int, c_out: int, kernel: int, out: int, groups: int = 1) -> None:
        nonlocal parameters, work
        weights = c_in // groups * c_out * kernel**2
        parameters += weights + 2 * c_out  # and BatchNorm's two
        work += weights * out**2

    side //= 2
    conv(3, 64, 7, side)
    side //= 2
    c = 64
    for stage, (depth, dim) in enumerate(zip(blocks, dims, strict=True)):
        for block in range(depth):
            if stage > 0 and block == 0:
                side //= 2
            if bottleneck:
                conv(c, dim // bottleneck, 1, side)
                conv(dim // bottleneck, dim // bottleneck, 3, side)
                conv(dim // bottleneck, dim, 1, side)
            else:
                conv(c, dim, 3, side)
                conv(dim, dim, 3, side)
            if c != dim:
                conv(c, dim, 1, side)
            c = dim
    return Cost(parameters + 1000 * c + 1000, work + 1000 * c, ())  # and the head


@pytest.mark.parametrize(
    ("name", "blocks", "dims", "bottleneck"),
    [
        ("resnet18", [2, 2, 2, 2], [64, 128, 256, 512], 0),
        ("resnet101", [3, 4, 23, 3], [256, 512, 1024, 2048], 4),
    ],
)
def test_a_resnet_by_hand(name, blocks, dims, bottleneck):
    assert paper_cost(name, "none")[:2] == resnet_by_hand(blocks, dims, bottleneck, 224)[:2]


C, R, K, SIDE = 48, 16, 7, 6
H = C // R
MLP = 2 * C * H + H + C  # two layers and their biases
ECA_KERNEL = 3  # (log2(48) + 1) / 2 = 3.3, rounded to odd
HAND = {  # parameters, multiply-accumulates
    "se": (MLP, 2 * C * H),
    "eca": (ECA_KERNEL, ECA_KERNEL * C),
    "channel": (MLP, 2 * 2 * C * H),
    "spatial": (2 * K**2 + 2, 2 * K**2 * SIDE**2),
    "cbam": (MLP + 2 * K**2 + 2, 2 * 2 * C * H + 2 * K**2 * SIDE**2),
    "bam": (
        MLP + 2 * C  # the channel branch, with BatchNorm
        + C * H + H + 2 * (9 * H * H + H) + H + 1  # four convolutions with biases
        + 3 * 2 * H + 2,  # and BatchNorm after each
        2 * C * H + (C * H + 2 * 9 * H * H + H) * SIDE**2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_layer_by_hand(name):
    assert count(attention_layer(name, C), (C, SIDE, SIDE))[:2] == HAND[name]


def test_eca_has_the_kernel_that_the_hand_count_takes():
    assert ECA(C).channel.mixer[1].kernel_size == (ECA_KERNEL,)


def test_a_convolution_by_hand():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    row = LayerCost("", "Conv2d", (1, 8, 10, 12), 1, 8 * 27 + 8, 8 * 27 * 120)
    assert count(layer, (3, 10, 12)) == (row.parameters, row.multiply_accumulates, (row,))


def test_the_contracts_example():
    cbam = CBAM(32, 4, bias=False, norm=False)
    assert count(cbam, (32, 6, 5))[:2] == (610, 2 * (2 * 32 * 8) + 98 * 30)


def test_layers_are_named_and_runs_counted():
    rows = {layer.name: layer for layer in count(create_model("resnet20", attention="cbam")).layers}
    assert next(iter(rows)) == "conv"
    shared = rows["stages.2.1.attention.channel.mixer.0"]
    assert shared == LayerCost(shared.name, "Linear", (1, 4), 2, 64 * 4 + 4, 2 * 64 * 4)
    assert rows["bn"] == LayerCost("bn", "BatchNorm2d", (1, 16, 32, 32), 1, 32, 0)
    assert rows["head"] == LayerCost("head", "Linear", (1, 10), 1, 650, 640)


# ---- Against torch's own counter


def by_torch(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Return half of the operations that torch counts: a multiplication and an addition are one."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("attention", [None, *ATTENTIONS])
@pytest.mark.parametrize("name", ["cbamnet_tiny", "resnet20", "mobilenet_0.7", "resnext50_32x4d"])
def test_torch_counts_the_same(name, attention):
    model = create_model(name, attention=attention)
    assert count(model, (3, 45, 64)).multiply_accumulates == by_torch(model, (3, 45, 64))


@pytest.mark.parametrize(
    "build", ["mobilenet_v3_small", "convnext_tiny", "regnet_y_400mf", "densenet121", "vgg11"]
)
def test_torch_counts_the_same_for_networks_not_written_here(build):
    model = torchvision.models.get_model(build)
    cost = count(model, (3, 64, 96))
    assert cost.multiply_accumulates == by_torch(model, (3, 64, 96))
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert sum(layer.parameters for layer in cost.layers) == cost.parameters


def test_torchvision_strides_the_3x3_convolution():
    """The reason why its ResNet-50 costs more than the paper's: 4.089 G."""
    theirs = count(torchvision.models.resnet50(), (3, 224, 224))
    ours = count(create_model("resnet50", stride_on="3x3"), (3, 224, 224))
    assert theirs[:2] == ours[:2] == (25_557_032, 4_089_184_256)


# ---- What counting leaves alone


def test_counting_leaves_the_network_as_it_was():
    model = create_model("cbamnet_tiny", dims=(4, 8)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.head.bias is not None


def test_shared_parameters_count_once_and_idle_ones_too():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.b = self.a
            self.idle = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return self.b(self.a(x))

    cost = count(Twice(), (3, 4, 4))
    assert cost[:2] == (12 + 6 + 5, 2 * 9 * 16)
    assert {layer.name: layer.runs for layer in cost.layers} == {"": 1, "a": 2, "idle": 0}


def test_another_dtype_costs_the_same():
    model = create_model("cbamnet_tiny")
    assert count(model.bfloat16()) == count(model.float())


def test_a_wrong_input_is_told():
    with pytest.raises(ValueError, match=r"of shape \(N, 8, H, W\), got \(1, 3, 4, 4\)"):
        count(CBAM(8), (3, 4, 4))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (32, r"input_size must be \(channels, height, width\), got 32"),
        ((3, 0, 32), "each number of input_size must be a positive integer, got 0"),
        ((3, 10**10, 10**10), r"CIFARResNet cannot be counted .*overflowed.*; give a size that"),
        ((3, 10**30, 32), r"CIFARResNet cannot be counted .*; give a size that"),
    ],
)
def test_what_is_no_size_of_an_image_is_told(size, message):
    with pytest.raises(ValueError, match=f"^{message}") as told:
        count(create_model("resnet20"), size)
    assert "\n" not in str(told.value)


def test_a_network_without_parameters_costs_nothing():
    assert count(nn.ReLU()) == Cost(0, 0, ())
