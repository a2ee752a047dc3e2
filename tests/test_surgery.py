"""Attention in networks that were not written here: torchvision's, timm's, and others."""

import copy
import re

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu import create_model
from cbam_edu.attention import CBAM
from cbam_edu.complexity import count
from cbam_edu.neighbours import BAM, ECA, SqueezeExcitation
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
    (  # the same of two layers a block
        "DenseNet",
        stages((32, 2), (32, 2), (32, 2), (32, 2)),
        "features.denseblock1.denselayer1.conv2",
        "features.denseblock4.denselayer2.conv2",
    ),
    ("alexnet", [(64, 15), (192, 7), (256, 3)], "features.1", "features.11"),
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
    (  # half of 40 and half of 48 are both rounded to 24: one more block has a shortcut
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
        [
            *((38, 16), (61, 8), (84, 4), (95, 4), (106, 4), (117, 4), (128, 4)),
            *((151, 2), (162, 2), (174, 2), (185, 2)),
        ],
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
        [
            (128, 16),
            *blocks((16, 16, 2), (32, 8, 2)),
            *blocks((16, 16, 2), (32, 8, 2), (64, 4, 2)),
            *blocks((16, 16, 2), (32, 8, 2), (64, 4, 2), (128, 2, 2)),
            *((128, 16), (256, 8), (512, 4), (1024, 2)),
        ],
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
# Of the others, only the places are looked at, to save time: their like is above.
PLACED_ONLY = {"resnet50", "regnet_x_400mf", "densenet121", "resnet26d", "res2net50_26w_4s"}
PLACED_ONLY |= {"nf_resnet26", "mixnet_s", "ghostnet_100", "hrnet_w18_small"}
IN_FULL = [row for row in NETWORKS if row[1] not in PLACED_ONLY]
SIZE = (3, 64, 64)


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(name)
    elif name == "DenseNet":
        model = torchvision.models.DenseNet(32, (2, 2, 2, 2))
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


def networks(rows: list[tuple[str, str, list[tuple[int, int]], str, str]]) -> pytest.MarkDecorator:
    names = ["-".join(row[:2]) for row in rows]
    return pytest.mark.parametrize(("library", "name", "maps", "first", "last"), rows, ids=names)


def assert_placed(model: nn.Module, maps: list[tuple[int, int]], first: str, last: str) -> None:
    placed = places(model)
    assert [*placed][:: len(placed) - 1] == [first, last]
    assert sorted(p.attention.channels for p in placed.values()) == sorted(c for c, _ in maps)


@networks([row for row in NETWORKS if row[1] in PLACED_ONLY])
def test_placed(library, name, maps, first, last):
    model = build(library, name)
    x = images(1)
    expected = predict(model, x)
    assert_placed(add_attention(model, start="identity", input_size=SIZE), maps, first, last)
    assert torch.equal(predict(model, x), expected)


@networks(IN_FULL)
def test_placed_counted_exported_removed_and_trained(library, name, maps, first, last):
    model = build(library, name)
    x = images(2)
    expected, bare = predict(model, x), count(model, SIZE)
    modules, weights = list(model.named_modules()), copy.deepcopy(model.state_dict())

    assert add_attention(model, start="identity", input_size=SIZE) is model
    assert_placed(model, maps, first, last)
    assert torch.equal(predict(model, x), expected)

    cost = count(model, SIZE)
    assert cost.parameters - bare.parameters == sum(cbam_parameters(c) + 1 for c, _ in maps)
    more = sum(cbam_multiply_accumulates(*a_map) for a_map in maps)
    assert cost.multiply_accumulates - bare.multiply_accumulates == more

    for place in places(model).values():
        place.mix.data.fill_(0.5)
    attended = predict(model, x)
    assert not torch.allclose(attended, expected, rtol=1e-3, atol=0)
    exported = torch.export.export(model, (x,)).module()
    assert_close(exported(x), attended, rtol=1e-3, atol=1e-5 * float(attended.abs().max()))

    assert remove_attention(model) is model
    assert list(model.named_modules()) == modules
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(predict(model, x), expected)

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


def test_enough_networks_are_tested_in_full():
    libraries = [library for library, name, *_ in IN_FULL if name != "DenseNet"]
    assert libraries.count("torchvision") >= 12
    assert libraries.count("timm") >= 8


# ---- What it makes of a network


def small(**options: object) -> nn.Module:
    """Return a ResNet of two stages and three blocks: the smallest that has all."""
    torch.manual_seed(0)
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4, **options)


SMALL = [f"layer{i}.0.bn2" for i in (1, 2, 3, 4)]


def test_the_place_is_the_papers():
    """Figure 3: behind the branch's last BatchNorm, before the addition and the ReLU."""
    model = add_attention(small(), reduction=8)
    assert list(places(model)) == SMALL
    block = model.layer1[0].eval()
    assert isinstance(block.bn2.attention, CBAM)
    x = images(1, (64, 8, 8))
    branch = block.bn2.body(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(block.bn2.attention(branch) + x))


def test_weights_survive_under_keys_with_body():
    model, original = add_attention(small()), small()
    weights = model.state_dict()
    for key, value in original.state_dict().items():
        module, _, last = key.rpartition(".")
        assert torch.equal(weights[f"{module}.body.{last}" if module in SMALL else key], value)
    own = {key for key in weights if any(key.startswith(f"{n}.attention.") for n in SMALL)}
    assert len(weights) == len(original.state_dict()) + len(own)


def test_it_is_saved_copied_and_loaded_like_any_network():
    x = images(2)
    model = add_attention(small(), start="identity", input_size=SIZE)
    for place in places(model).values():
        place.mix.data.fill_(0.5)
    expected = predict(model, x)
    assert torch.equal(predict(copy.deepcopy(model), x), expected)
    other = add_attention(small(), start="identity", input_size=SIZE)
    assert not torch.equal(predict(other, x), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(predict(other, x), expected)
    bare = remove_attention(copy.deepcopy(model))
    assert bare.state_dict().keys() == small().state_dict().keys()
    assert list(places(model)) == SMALL  # the copy's removal is the copy's alone


def test_a_random_start_is_the_attention_itself():
    x = images(2)
    expected = predict(small(), x)
    model = add_attention(small(), input_size=SIZE)
    assert all(place.mix is None for place in places(model).values())
    assert not torch.allclose(predict(model, x), expected)
    for place in places(model).values():
        assert "before=False" in repr(place)


def test_mix_goes_from_nothing_to_the_attention_itself():
    place = add_attention(small(), start="identity").layer2[0].bn2.eval()
    x = images(2, (128, 4, 4))
    body, attended = place.body(x), place.attention(place.body(x))
    for mix, expected in ((0.0, body), (0.5, (body + attended) / 2), (1.0, attended)):
        place.mix.data.fill_(mix)
        assert_close(place(x), expected)


@pytest.mark.parametrize("name", ["se", "eca", "channel", "spatial", "cbam"])
def test_every_attention_by_its_name(name):
    model = add_attention(small(), name, start="identity", input_size=SIZE)
    assert list(places(model)) == SMALL
    x = images(2)
    assert torch.equal(predict(model, x), predict(small(), x))


def test_options_reach_each_layer():
    model = add_attention(small(), "se", reduction=4, bias=False)
    for place, channels in zip(places(model).values(), (64, 128, 256, 512), strict=True):
        assert isinstance(place.attention, SqueezeExcitation)
        assert sum(p.numel() for p in place.attention.parameters()) == 2 * channels * channels // 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_attention_has_the_networks_type(dtype):
    model = add_attention(small().to(dtype), start="identity", input_size=SIZE)
    assert {p.dtype for p in model.parameters()} == {dtype}
    x = images(1).to(dtype)
    assert torch.equal(predict(model, x), predict(small().to(dtype), x))


def test_the_attention_is_on_the_networks_device():
    with torch.device("meta"):
        model = small()
    add_attention(model, start="identity")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert list(places(model)) == SMALL


def test_under_autocast():
    model = add_attention(small(), start="identity", input_size=SIZE).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(2)).float().square().mean()
    loss.backward()
    assert all(place.mix.grad for place in places(model).values())


def test_the_network_keeps_its_modes_statistics_gradients_and_the_generators_state():
    model = small().train()
    model.layer2.eval()  # frozen
    model.fc.register_forward_hook(hook := lambda *_: None)
    modes = {name: m.training for name, m in model.named_modules()}
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    add_attention(model, "eca", where=["layer2.0.bn2"], input_size=SIZE)
    after = torch.rand(1)
    remove_attention(model)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(),)]
    assert hooks == [hook]
    assert not any(m._forward_pre_hooks for m in model.modules())
    torch.manual_seed(3)
    ECA(128)  # what was drawn is the layer's
    assert torch.equal(torch.rand(1), after)


def test_the_attention_has_the_mode_of_what_it_is_behind():
    model = small().train()
    model.layer2.eval()
    placed = places(add_attention(model))
    modes = [{m.training for m in (p, *p.attention.modules())} for p in placed.values()]
    assert modes == [{True}, {False}, {True}, {True}]


# ---- Places by name


def test_where_names_the_places():
    x = images(2)
    names = ["layer1", "layer1.0.bn2", "maxpool", "layer1"]  # one in another, and one twice
    model = add_attention(small(), where=names, start="identity", input_size=SIZE)
    placed = places(model)
    assert list(placed) == ["maxpool", "layer1", "layer1.body.0.bn2"]
    assert [p.attention.channels for p in placed.values()] == [64, 64, 64]
    assert torch.equal(predict(model, x), predict(small(), x))
    remove_attention(model)
    assert model.state_dict().keys() == small().state_dict().keys()


class Repeated(nn.Module):
    """One block three times, with one activation for all, under two names each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.stem(x))
        for conv in (self.conv, self.again, self.conv):
            x = x + self.relu(conv(x))
        return x


def test_a_module_that_is_called_several_times_has_one_attention_for_all():
    x = images(1)
    torch.manual_seed(0)
    model = Repeated()
    expected = predict(model, x)
    add_attention(model, start="identity", input_size=SIZE)
    # The ReLU comes after the branch's convolution, but after the stem as well.
    assert isinstance(model.conv, Attended)
    assert model.conv is model.again
    assert not isinstance(model.relu, Attended)
    assert torch.equal(predict(model, x), expected)
    runs = []
    model.conv.attention.register_forward_hook(lambda *_: runs.append(1))
    predict(model, x)
    assert len(runs) == 3
    remove_attention(model)
    assert model.conv is model.again
    assert type(model.conv) is nn.Conv2d
    assert list(places(add_attention(model, where=["again"], input_size=SIZE))) == ["conv"]


class Dropped(nn.Module):
    """A residual block whose branch is an operation, and may be dropped in training."""

    def __init__(self, drop: nn.Module):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.manual_seed(0)))
        self.square = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.drop = drop

    def forward(self, x):
        x = nn.functional.conv2d(x, self.weight, padding=1)
        return x + self.drop(nn.functional.conv2d(x, self.square, padding=1))


@pytest.mark.parametrize(
    "drop",
    [torchvision.ops.StochasticDepth(1.0, "row"), nn.Dropout2d(1.0), timm.layers.DropPath(1.0)],
    ids=lambda drop: type(drop).__name__,
)
def test_a_dropped_branch_is_dropped_behind_its_attention(drop):
    model = add_attention(Dropped(drop), start="identity", input_size=SIZE)
    assert model.drop.before
    assert model.drop.body is drop
    model.drop.mix.data.fill_(0.5)
    x = images(2)
    seen = []
    drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        kept, dropped = model.eval()(x), model.train()(x)
    first = nn.functional.conv2d(x, model.weight, padding=1)
    assert torch.equal(kept, first + seen[0])
    assert torch.equal(dropped, first)


# ---- BAM


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        ("torchvision", "resnet18", ["layer1.1", "layer2.1", "layer3.1"]),
        ("torchvision", "mobilenet_v2", ["features.3", "features.6", "features.13"]),
        ("torchvision", "convnext_tiny", ["features.1.2", "features.3.2", "features.5.8"]),
        ("torchvision", "vgg11_bn", [f"features.{i}" for i in (2, 6, 13, 20, 27)]),
        ("timm", "resnet26d", ["layer1.1.act3", "layer2.1.act3", "layer3.1.act3"]),
    ],
)
def test_bam_is_at_the_ends_of_stages(library, name, expected):
    model = build(library, name)
    x = images(1)
    before = predict(model, x)
    add_attention(model, "bam", start="identity", input_size=SIZE)
    assert list(places(model)) == expected
    assert all(isinstance(p.attention, BAM) for p in places(model).values())
    assert torch.equal(predict(model, x), before)


def test_bam_sees_the_map_behind_the_activation():
    model = add_attention(build("torchvision", "resnet18"), "bam", input_size=SIZE)
    seen = []
    model.layer1[1].attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    predict(model, images(1))
    assert seen[0].min() == 0


def test_bam_where_it_is_named():
    model = add_attention(small(), "bam", where=["layer2.0.bn2"], dilation=2, input_size=SIZE)
    assert list(places(model)) == ["layer2.0.bn2"]


# ---- What can go wrong, and leaves the network as it was


class Elsewhere(nn.Module):
    """Modules that give something else than a map of one width."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.largest = nn.Flatten()
        self.idle = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        x = self.relu(self.wide(self.relu(self.norm(self.conv(x)))))
        x, _ = self.pool(x)
        return self.linear(x.permute(0, 2, 3, 1)), self.largest(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "cbma"}, r"unknown attention 'cbma'; did you mean cbam\?"),
        ({"attention": None}, "unknown attention None; known: se, eca, bam"),
        ({"start": "zero"}, "start must be one of random, identity; got 'zero'"),
        ({"input_size": 64}, r"input_size must be \(channels, height, width\), got 64"),
        ({"input_size": (3, 64)}, r"input_size must be .*, got \(3, 64\)"),
        ({"input_size": (3, 64, 0)}, "each number of input_size must be a positive integer, got 0"),
        ({"where": "conv"}, r"where must be a list such as \[.*\], got 'conv'"),
        ({"where": []}, r"where must be a list such as \[.*\], got \[\]"),
        ({"where": ["norm", "cnv"]}, r"unknown module 'cnv'; did you mean conv\?"),
        ({"where": [""]}, "unknown module ''; known: conv, norm"),
        ({"where": ["norm", "idle"]}, "module 'idle' was not called when an image passed"),
        ({"where": ["pool"]}, r"'pool' has to give a float \(N, C, H, W\); it gave tuple"),
        ({"where": ["largest"]}, r"'largest' has to .*; it gave torch.float32 \(1, 16384\)"),
        ({"where": ["linear"]}, r"'linear' .* \(1, 32, 32, 16\), which is \(N, H, W, C\)"),
        ({"where": ["relu"]}, "'relu' gives maps of 8, 16 channels in one pass"),
        (
            {"where": ["norm", "wide"], "kernel_size": 4},
            "kernel_size must be a positive odd integer",
        ),
        (
            {"input_size": (1, 64, 64)},
            r"Elsewhere fails on an image of input_size=\(1, 64, 64\) \(R",
        ),
    ],
)
def test_an_error_leaves_the_network_as_it_was(arguments, message):
    model = Elsewhere()
    model.norm.eval()
    modules, weights = list(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        add_attention(model, **{"input_size": SIZE, **arguments})
    assert list(model.named_modules()) == modules
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert [name for name, m in modules if not m.training] == ["norm"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_option_that_the_layer_does_not_have():
    model = small()
    with pytest.raises(ValueError, match="unknown option of"):
        add_attention(model, "eca", reduction=4)
    assert not places(model)


def test_the_cause_of_a_failing_image_is_kept_and_a_right_one_helps():
    model = torchvision.models.alexnet()
    with pytest.raises(ValueError, match=r"AlexNet fails .* such as input_size=\(3, 2") as error:
        add_attention(model, input_size=(3, 32, 32))
    assert isinstance(error.value.__cause__, RuntimeError)
    add_attention(model, input_size=(3, 96, 96))
    assert list(places(model)) == ["features.1", "features.4", "features.11"]


def test_twice_and_not_at_all():
    model = add_attention(small())
    with pytest.raises(ValueError, match=r"already has such attention; remove_attention\(model\)"):
        add_attention(model, "se", where=["conv1"])
    remove_attention(model)
    with pytest.raises(ValueError, match="no attention that add_attention put in"):
        remove_attention(model)


def test_a_network_with_attention_of_its_own_gets_no_second_one_unasked():
    model = create_model("resnet20", attention="se")
    with pytest.raises(
        ValueError, match=r"of its own, at stages\.0\.0\.attention; make it without"
    ):
        add_attention(model, input_size=(3, 32, 32))
    add_attention(model, where=["stages.0"], input_size=(3, 32, 32))
    assert list(places(model)) == ["stages.0"]


MLP = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8), nn.ReLU(), nn.Linear(8, 4))


def test_what_is_no_network_is_told():
    for change in (add_attention, remove_attention):
        with pytest.raises(TypeError, match=r"must be a network, a torch\.nn\.Module; got a str$"):
            change("resnet18")
    with pytest.raises(TypeError, match=r"got AlexNet$"):
        add_attention(torchvision.models.AlexNet)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_torchscript_is_refused_as_such():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    for scripted in (torch.jit.script(plain), torch.jit.trace(plain, torch.zeros(1, 3, 8, 8))):
        with pytest.raises(ValueError, match=r"TorchScript.*before torch\.jit"):
            add_attention(nn.Sequential(scripted), input_size=(3, 8, 8))


@pytest.mark.parametrize(
    ("model", "seen", "hint"),
    [
        (timm.create_model("test_vit", img_size=64), "none", "patch_embed.proj"),
        (
            torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4]),
            "none",
            "features",
        ),
        (timm.create_model("mambaout_femto", depths=(1, 1, 1, 1)), "4", "stem.conv1"),
        (MLP, "none", None),
    ],
    ids=["vit", "swin", "mambaout", "mlp"],
)
def test_a_network_without_a_place_says_what_was_looked_for(model, seen, hint):
    modules = list(model.named_modules())
    with pytest.raises(ValueError, match=r"found no place for attention\. Looked for") as error:
        add_attention(model, input_size=SIZE)
    message = str(error.value)
    assert message.startswith(f"{type(model).__name__}: ")
    for line in (
        rf"\(1\) residual blocks: additions of two maps, .* \({seen} seen",
        r"\(2\) dense blocks: maps joined along the channels .* \(none seen\)",
        r"\(3\) poolings that halve a map \(none seen\)",
        r'Name the modules yourself, where=\["...", ...\]',
    ):
        assert re.search(line, message)
    assert (f"such shapes come from {hint}" in message) if hint else "come from" not in message
    assert list(model.named_modules()) == modules


def test_without_a_place_for_bam():
    with pytest.raises(ValueError, match=r"\(1\) ends of stages: .*\(none seen\); \(2\) poolings"):
        add_attention(MLP, "bam", input_size=SIZE)
