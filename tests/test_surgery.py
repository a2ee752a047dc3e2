"""Attention in networks that were not written here: torchvision's, timm's, and some of all kinds."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu.attention import CBAM
from cbam_edu.complexity import count
from cbam_edu.neighbours import BAM, SqueezeExcitation
from cbam_edu.surgery import Attended, add_attention, remove_attention

STAGES = (16, 8, 4, 2)  # sides of an image of 64 x 64 in the four stages of most networks


def stages(*widths_and_depths: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (channels, side) of each block, for four stages of (channels, blocks)."""
    pairs = zip(widths_and_depths, STAGES, strict=True)
    return [(width, side) for (width, depth), side in pairs for _ in range(depth)]


def blocks(*each: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return (channels, side) of each block, for (channels, side, how many)."""
    return [(channels, side) for channels, side, number in each for _ in range(number)]


BOTTLENECKS = stages((256, 3), (512, 4), (1024, 6), (2048, 3))  # ResNet-50, He et al., table 1

# Name, the maps that are attended for an image of 64 x 64, the first and the last place; all by
# hand from the architectures' tables. A block without a shortcut has no place: of MobileNetV2's
# blocks (t, c, n, s) in Sandler et al., table 2, the first of each stage that narrows or widens.
TORCHVISION = [
    ("resnet18", stages((64, 2), (128, 2), (256, 2), (512, 2)), "layer1.0.bn2", "layer4.1.bn2"),
    ("resnet50", BOTTLENECKS, "layer1.0.bn3", "layer4.2.bn3"),
    ("resnext50_32x4d", BOTTLENECKS, "layer1.0.bn3", "layer4.2.bn3"),
    ("wide_resnet50_2", BOTTLENECKS, "layer1.0.bn3", "layer4.2.bn3"),
    (
        "regnet_x_400mf",
        stages((32, 1), (64, 2), (160, 7), (400, 12)),
        "trunk_output.block1.block1-0.f.c.1",
        "trunk_output.block4.block4-11.f.c.1",
    ),
    (
        "regnet_y_400mf",
        stages((48, 1), (104, 3), (208, 6), (440, 6)),
        "trunk_output.block1.block1-0.f.c.1",
        "trunk_output.block4.block4-5.f.c.1",
    ),
    (
        "mobilenet_v2",
        blocks((24, 16, 1), (32, 8, 2), (64, 4, 3), (96, 4, 2), (160, 2, 2)),
        "features.3.conv.3",
        "features.16.conv.3",
    ),
    (
        "mobilenet_v3_small",  # Howard et al., table 2
        blocks((24, 8, 1), (40, 4, 2), (48, 4, 1), (96, 2, 2)),
        "features.3.block.2.1",
        "features.11.block.3.1",
    ),
    (
        "efficientnet_b0",  # Tan and Le, table 1
        blocks((24, 16, 1), (40, 8, 1), (80, 4, 2), (112, 4, 2), (192, 2, 3)),
        "features.2.1.block.3.1",
        "features.6.3.block.3.1",
    ),
    (  # the permutation back to (N, C, H, W), before the layer scale
        "convnext_tiny",
        stages((96, 3), (192, 3), (384, 9), (768, 3)),
        "features.1.0.block.6",
        "features.7.2.block.6",
    ),
    (  # half of the channels pass, the other half meets them behind branch2
        "shufflenet_v2_x0_5",
        blocks((24, 8, 3), (48, 4, 7), (96, 2, 3)),
        "stage2.1.branch2.7",
        "stage4.3.branch2.7",
    ),
    (  # each layer's 32 new maps
        "densenet121",
        stages((32, 6), (32, 12), (32, 24), (32, 16)),
        "features.denseblock1.denselayer1.conv2",
        "features.denseblock4.denselayer16.conv2",
    ),
    (
        "vgg11_bn",
        [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)],
        "features.2",
        "features.27",
    ),
    ("squeezenet1_1", [(64, 31), (128, 15), (256, 7)], "features.1", "features.7"),
]
TIMM = [
    ("seresnet18", stages((64, 2), (128, 2), (256, 2), (512, 2)), "layer1.0.se", "layer4.1.se"),
    ("resnet26d", stages((256, 2), (512, 2), (1024, 2), (2048, 2)), "layer1.0.bn3", "layer4.1.bn3"),
    ("res2net50_26w_4s", BOTTLENECKS, "layer1.0.bn3", "layer4.2.bn3"),
    (
        "nf_resnet26",  # no BatchNorm, and the branch is rescaled by numbers
        stages((256, 2), (512, 2), (1024, 2), (2048, 2)),
        "stages.0.0.conv3",
        "stages.3.1.conv3",
    ),
    (
        "regnetx_002",
        stages((24, 1), (56, 1), (152, 4), (368, 7)),
        "s1.b1.conv3.bn",
        "s4.b7.conv3.bn",
    ),
    (
        "efficientnet_lite0",
        blocks((24, 16, 1), (40, 8, 1), (80, 4, 2), (112, 4, 2), (192, 2, 3)),
        "blocks.1.1.bn3",
        "blocks.5.3.bn3",
    ),
    (  # 0.5 x 40 and 0.5 x 48 are both rounded to 24 channels, so that one more block has a shortcut
        "mobilenetv3_small_050",
        blocks((16, 8, 1), (24, 4, 4), (48, 2, 2)),
        "blocks.1.1.bn3",
        "blocks.4.2.bn3",
    ),
    (
        "mixnet_s",
        blocks((16, 32, 1), (24, 16, 1), (40, 8, 3), (80, 4, 2), (120, 4, 2), (200, 2, 2)),
        "blocks.0.0.bn2",
        "blocks.5.2.bn3",
    ),
    (  # where the block narrows, its shortcut has convolutions of its own: two
        "ghostnet_100",
        blocks((16, 32, 1), (24, 16, 2), (40, 8, 2), (80, 4, 4), (112, 4, 2), (160, 2, 5)),
        "blocks.0.0.ghost2",
        "blocks.8.3.ghost2",
    ),
    (  # the shortcut is added to some of the channels, and all of them are attended
        "rexnet_100",
        [(38, 16), (61, 8), (84, 4), (95, 4), (106, 4), (117, 4), (128, 4)]
        + [(151, 2), (162, 2), (174, 2), (185, 2)],
        "features.2.conv_pwl.bn",
        "features.15.conv_pwl.bn",
    ),
    (
        "convnextv2_atto",
        stages((40, 2), (80, 2), (160, 6), (320, 2)),
        "stages.0.blocks.0.mlp.fc2",
        "stages.3.blocks.1.mlp.fc2",
    ),
    (
        "dla34",
        stages((64, 2), (128, 4), (256, 4), (512, 2)),
        "level2.tree1.bn2",
        "level5.tree2.bn2",
    ),
    (  # the blocks' shortcuts, and not where streams of several resolutions meet
        "hrnet_w18_small",
        [(128, 16)]
        + blocks((16, 16, 2), (32, 8, 2))
        + blocks((16, 16, 2), (32, 8, 2), (64, 4, 2))
        + blocks((16, 16, 2), (32, 8, 2), (64, 4, 2), (128, 2, 2))
        + [(128, 16), (256, 8), (512, 4), (1024, 2)],
        "layer1.0.bn3",
        "incre_modules.3.0.bn3",
    ),
    (  # the sum of its 3 x 3 and 1 x 1 convolutions, where there is a shortcut: no module gives it
        "repvgg_a0",
        blocks((48, 16, 1), (96, 8, 3), (192, 4, 13)),
        "stages.0.1.drop_path",
        "stages.2.13.drop_path",
    ),
]
NETWORKS = [("torchvision", *row) for row in TORCHVISION] + [("timm", *row) for row in TIMM]
SIZE = (3, 64, 64)


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(name)
    else:
        options = {"init_weights": False} if name.startswith("vgg") else {}  # saves seconds
        model = torchvision.models.get_model(name, **options)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("layer_scale") or not (p.any() or key.endswith("bias")):
                p.fill_(0.3)  # a branch that is scaled to nothing shows nothing
    return model


def places(model: nn.Module) -> dict[str, Attended]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Attended)}


def images(number: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(number, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)


def cbam_parameters(channels: int) -> int:
    hidden = max(1, channels // 16)
    return (2 * channels * hidden + hidden + channels) + (2 * 49 + 2)


def cbam_multiply_accumulates(channels: int, side: int) -> int:
    return 2 * (2 * channels * max(1, channels // 16)) + 2 * 49 * side * side


@pytest.mark.parametrize(
    ("library", "name", "maps", "first", "last"), NETWORKS, ids=["-".join(n[:2]) for n in NETWORKS]
)
def test_placed_counted_exported_removed_and_trained(library, name, maps, first, last):
    model = build(library, name)
    x = images(2)
    expected, bare = predict(model, x), count(model, SIZE)
    modules, weights = list(model.named_modules()), copy.deepcopy(model.state_dict())

    assert add_attention(model, start="identity", input_size=SIZE) is model
    placed = places(model)
    assert [*placed][:: len(placed) - 1] == [first, last]
    assert sorted(p.attention.channels for p in placed.values()) == sorted(c for c, _ in maps)
    assert torch.equal(predict(model, x), expected)

    cost = count(model, SIZE)
    assert cost.parameters - bare.parameters == sum(cbam_parameters(c) + 1 for c, _ in maps)
    more = sum(cbam_multiply_accumulates(*a_map) for a_map in maps)
    assert cost.multiply_accumulates - bare.multiply_accumulates == more

    for place in placed.values():
        place.mix.data.fill_(0.5)
    attended = predict(model, x)
    assert not torch.allclose(attended, expected, rtol=1e-3, atol=0)
    exported = torch.export.export(model, (x,)).module()
    assert_close(exported(x), attended, rtol=1e-3, atol=1e-5 * float(attended.abs().max()))

    assert remove_attention(model) is model
    assert [(n, m) for n, m in model.named_modules()] == modules
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(predict(model, x), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    add_attention(model.train(), start="identity", input_size=SIZE)
    trained = places(model).values()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        moved = [any(p.grad.any() for p in place.attention.parameters()) for place in trained]
        optimizer.step()
    assert all(moved)  # the second time, since the first moved each mix
    assert all(place.mix != 0 for place in trained)
