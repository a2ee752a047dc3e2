"""Weights from and to the four other layouts: equal outputs, round trips, and what is refused."""

import copy
import functools
import re

import pytest
import timm
import torch
import torchvision
from timm.layers.cbam import CbamModule, LightCbamModule
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.resnet import BasicBlock, Bottleneck

from cbam_edu import CBAM, create_model
from cbam_edu.convert import ConversionError, cbam_options, convert, detect
from cbam_edu.layouts import LAYOUTS
from cbam_edu.models.imagenet import ResNet
from foreign_cbam import (
    AuthorsCBAM,
    Luuuyi2018CBAM,
    LuuuyiCBAM,
    PytorchcvCBAM,
    PytorchcvResNet,
    randomise,
    with_cbam,
)


def timms(channels: int, hidden: int, k: int = 7, bias: bool = False) -> CbamModule:
    return CbamModule(channels, rd_channels=hidden, spatial_kernel_size=k, mlp_bias=bias)


def ours(channels: int, hidden: int, k: int = 7, **options: bool) -> CBAM:
    return CBAM(channels, channels // hidden, k, **options)


FOREIGN = {
    "authors": AuthorsCBAM,
    "timm": timms,
    "timm with biases": functools.partial(timms, bias=True),
    "luuuyi": LuuuyiCBAM,
    "luuuyi-2018": Luuuyi2018CBAM,
    "pytorchcv": PytorchcvCBAM,
}
OUR_OPTIONS = {  # what CBAM needs for their weights
    "authors": {},
    "timm": {"bias": False},
    "timm with biases": {},
    "luuuyi": {"bias": False, "norm": False},
    "luuuyi-2018": {"bias": False, "norm": False},
    "pytorchcv": {},
}
SIZES = [(32, 2, 7), (64, 4, 3), (24, 2, 7), (6, 1, 5), (5, 5, 1)]  # channels, hidden units, k


def make(name: str, *sizes: int) -> nn.Module:
    """Return a module of a layout with random weights in float64."""
    return randomise(FOREIGN[name](*sizes))


def images(channels: int = 3, size: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, channels, size, size + 2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module = module.double().eval()
    module.load_state_dict(weights)
    return module


def assert_same_output(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        first, second = a(x), b(x)
    assert (first - x).abs().max() > 0.1 if first.shape == x.shape else first.std() > 1e-3
    assert_close(first, second, rtol=1e-10, atol=1e-12)


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    for key, tensor in a.items():
        assert tensor.dtype == b[key].dtype
        assert torch.equal(tensor, b[key]), key


def refused(sentence: str):
    return pytest.raises(ConversionError, match=f"^{re.escape(sentence)}$")


# ---- One CBAM: the same output


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", FOREIGN)
def test_our_cbam_gives_the_output_of_theirs(name, sizes):
    theirs = make(name, *sizes)
    weights = convert(theirs.state_dict())
    cbam = loaded(ours(*sizes, **OUR_OPTIONS[name]), weights)
    assert_same_output(theirs, cbam, images(sizes[0]))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", FOREIGN)
def test_their_cbam_gives_the_output_of_ours(name, sizes):
    cbam = randomise(ours(*sizes, **OUR_OPTIONS[name]))
    weights = convert(cbam.state_dict(), target=name.split()[0])
    assert_same_output(cbam, loaded(FOREIGN[name](*sizes), weights), images(sizes[0]))


@pytest.mark.parametrize("name", ["authors", "timm", "pytorchcv"])
def test_a_missing_norm_is_added_as_the_identity(name):
    cbam = randomise(ours(32, 4, 7, bias=False, norm=False))
    weights = convert(cbam.state_dict(), target=name)
    assert_same_output(cbam, loaded(FOREIGN[name](32, 4), weights), images(32))
    assert sum(key.endswith("num_batches_tracked") for key in weights) == 1


@pytest.mark.parametrize("name", ["authors", "pytorchcv"])
def test_missing_biases_are_added_as_zeros(name):
    cbam = randomise(ours(32, 4, 7, bias=False))
    weights = convert(cbam.state_dict(), target=name)
    assert sum(key.endswith("bias") for key in weights) == 3
    assert_same_output(cbam, loaded(FOREIGN[name](32, 4), weights), images(32))


@pytest.mark.parametrize("name", ["luuuyi", "luuuyi-2018"])
def test_a_norm_that_only_scales_goes_into_the_convolution(name):
    theirs = make("authors", 32, 4)
    for key, tensor in theirs.state_dict().items():
        if key.endswith(("bias", "running_mean")):
            tensor.zero_()
    weights = convert(theirs.state_dict(), target=name)
    assert_same_output(theirs, loaded(FOREIGN[name](32, 4), weights), images(32))


def test_a_norm_whose_mean_and_bias_cancel_only_scales_too():
    theirs = make("authors", 32, 4)
    state = theirs.state_dict()
    state["SpatialGate.spatial.bn.running_var"].fill_(4 - 1e-5)
    state["SpatialGate.spatial.bn.weight"].fill_(2.0)
    state["SpatialGate.spatial.bn.running_mean"].fill_(0.25)
    state["SpatialGate.spatial.bn.bias"].fill_(0.25)
    for key in ("ChannelGate.mlp.1.bias", "ChannelGate.mlp.3.bias"):
        state[key].zero_()
    weights = convert(state, target="luuuyi")
    assert_same_output(theirs, loaded(LuuuyiCBAM(32, 4), weights), images(32))


def test_what_luuuyis_cbam_cannot_hold_is_refused_with_its_size():
    state = make("authors", 32, 4).state_dict()
    norm = [state[f"SpatialGate.spatial.bn.{x}"] for x in ("weight", "bias", "running_mean")]
    state["SpatialGate.spatial.bn.running_var"].fill_(1 - 1e-5)
    for tensor, value in zip(norm, (2.0, 0.75, 0.25), strict=True):
        tensor.fill_(value)
    with refused(
        "luuuyi has no BatchNorm: that of the CBAM multiplies by 2, which its convolution can do, "
        "but it also adds 0.25, which nothing there can"
    ):
        convert(state, target="luuuyi")
    norm[1].fill_(0.5)
    state["ChannelGate.mlp.1.bias"].zero_()
    state["ChannelGate.mlp.3.bias"].clamp_(-0.1, 0.125)[3] = -0.5
    network = {f"block.cbam.{key}": tensor for key, tensor in state.items()}
    with refused(
        "luuuyi has no biases, and one in the MLP of the CBAM at block.cbam is 0.5 in size"
    ):
        convert(network, target="luuuyi")


# ---- Round trips


def random_weights(source: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    if source == "cbam_edu":
        module = randomise(ours(32, 4))
    else:
        module = make("timm with biases" if source == "timm" else source, 32, 4)
    return module.to(dtype).state_dict()


HOLD_ALL = ["cbam_edu", "authors", "timm", "pytorchcv"]


@pytest.mark.parametrize("source", HOLD_ALL)
@pytest.mark.parametrize("target", HOLD_ALL)
def test_there_and_back_between_layouts_that_hold_all(source, target):
    weights = random_weights(source)
    there = convert(weights, source, target)
    assert detect(there) == target
    assert_same_bits(convert(there, target, source), weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", ["luuuyi", "luuuyi-2018"])
def test_luuuyis_weights_come_back_from_everywhere(source, target, dtype):
    weights = random_weights(source, dtype)
    there = convert(weights, target=target)
    assert detect(there) == target
    assert {t.dtype for t in there.values()} <= {dtype, torch.int64}
    assert_same_bits(convert(there, target=source), weights)


@pytest.mark.parametrize("target", HOLD_ALL)
def test_what_is_optional_here_is_kept_as_it_is(target):
    """timm's biases and our norm: absent stays absent where the target allows it."""
    there = convert(make("timm", 32, 4).state_dict(), target=target)
    assert any("bias" in k and "bn" not in k and "norm" not in k for k in there) == (
        target in ("authors", "pytorchcv")
    )
    bare = convert(make("luuuyi", 32, 4).state_dict(), target=target)
    assert any(key.endswith("running_var") for key in bare) == (target != "cbam_edu")


# ---- Whole ResNets


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_timms_resnet(name):
    theirs = timm.create_model(name, num_classes=7, block_args={"attn_layer": "cbam"})
    randomise(theirs)
    options = {"attention": "cbam", "attention_options": {"bias": False}, "stride_on": "3x3"}
    net = create_model(name, num_classes=7, **options)
    weights = convert(theirs.state_dict())
    assert_same_output(theirs, loaded(net, weights), images(size=64))
    assert_same_bits(convert(weights, target="timm"), theirs.state_dict())


def small(source: str, bottleneck: bool, groups: int = 1) -> tuple[nn.Module, ResNet]:
    """Return their ResNet with random weights, and ours of the same shape: 2 + 3 x 1 blocks."""
    blocks, dims = [2, 1, 1, 1], [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512]
    if source == "pytorchcv":
        theirs = PytorchcvResNet(blocks, dims, bottleneck, num_classes=5)
    else:
        kind = Bottleneck if bottleneck else BasicBlock
        width = 4 if groups > 1 else 64
        plain = torchvision.models.ResNet(
            kind, blocks, num_classes=5, groups=groups, width_per_group=width
        )
        theirs = with_cbam(plain, source)
    mine = ResNet(
        blocks,
        dims,
        bottleneck=(2 if groups > 1 else 4) * bottleneck,
        groups=groups,
        num_classes=5,
        attention="cbam",
        attention_options=OUR_OPTIONS[source],
        stride_on="3x3",
    )
    return randomise(theirs), mine


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("source", ["authors", "luuuyi", "luuuyi-2018", "pytorchcv"])
def test_resnet_of(source, bottleneck):
    theirs, mine = small(source, bottleneck)
    weights = convert(theirs.state_dict())
    assert_same_output(theirs, loaded(mine, weights), images(size=40))
    assert_same_bits(convert(weights, target=source), theirs.state_dict())


def test_resnext_of_the_authors_layout():
    theirs, mine = small("authors", bottleneck=True, groups=32)
    assert_same_output(theirs, loaded(mine, convert(theirs.state_dict())), images(size=40))


@functools.cache
def authors_resnet18() -> dict[str, Tensor]:
    """Weights of a ResNet-18 of the authors', with zeros: only names and shapes matter."""
    with torch.device("meta"):
        net = with_cbam(torchvision.models.resnet18(num_classes=3), "authors")
    return {key: torch.zeros_like(t, device="cpu") for key, t in net.state_dict().items()}


@pytest.mark.parametrize("target", LAYOUTS)
def test_between_other_implementations_resnets_too(target):
    weights = authors_resnet18()
    there = convert(weights, target=target)
    assert detect(there) == target
    if target.startswith("luuuyi"):
        assert "layer1.0.sa.conv1.weight" in there
        assert len(there) == len(weights) - 8 * (2 + 5)
    else:
        assert_same_bits(convert(there, target="authors"), weights)


def test_the_authors_weights_fit_timms_resnet_with_biases():
    with_biases = functools.partial(CbamModule, mlp_bias=True)
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": with_biases})
    net.load_state_dict(convert(authors_resnet18(), target="timm"), assign=True)


def test_deeper_numbers_are_counted_right():
    with torch.device("meta"):
        net = with_cbam(torchvision.models.resnet101(num_classes=3), "authors")
    weights = convert(net.state_dict())
    with torch.device("meta"):
        mine = create_model("resnet101", num_classes=3, attention="cbam", stride_on="3x3")
    mine.load_state_dict(weights, assign=True)
    there = convert(weights, target="pytorchcv")
    assert "features.stage3.unit23.cbam.ch_gate.mlp.fc2.bias" in there
    assert "layer3.22.cbam.ChannelGate.mlp.3.bias" in convert(there, target="authors")


def test_a_headless_resnet_is_whole():
    weights = {k: v for k, v in authors_resnet18().items() if not k.startswith("fc.")}
    net = create_model("resnet18", num_classes=0, attention="cbam")
    net.load_state_dict(convert(weights))


def test_the_networks_names_are_left_if_asked():
    weights = convert(authors_resnet18(), rename_network=False)
    cbam = "layer1.0.cbam.channel.mixer.0.weight"
    assert {"conv1.weight", "layer4.1.bn2.bias", "fc.bias", cbam} < set(weights)
    same = set(weights) & set(authors_resnet18())
    assert same == {key for key in authors_resnet18() if "Gate" not in key}


def without(weights: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    assert set(keys) <= set(weights)
    return {key: tensor for key, tensor in weights.items() if key not in keys}


WHY = "(not in a ResNet of authors; rename_network=False converts the CBAMs alone)"


@pytest.mark.parametrize(
    ("missing", "more", "sentence"),
    [
        (["layer1.0.bn2.bias"], [], "the ResNet lacks layer1.0.bn2.bias"),
        (["conv1.weight", "fc.bias"], [], "the ResNet lacks conv1.weight, fc.bias"),
        (["bn1.running_var"], [], "the ResNet lacks bn1.running_var"),
        (["layer1.1.conv2.weight"], [], "the ResNet lacks layer1.1.conv2.weight"),
        (["layer4.1.bn1.weight"], [], "the ResNet lacks layer4.1.bn1.weight"),
        (
            ["layer2.0.downsample.0.weight"],
            [],
            "the ResNet lacks layer2.0.downsample.0.weight",
        ),
        ([], ["aux.weight"], f"the ResNet has aux.weight {WHY}"),
        ([], ["layer1.0.conv2.bias"], f"the ResNet has layer1.0.conv2.bias {WHY}"),
        ([], ["layer1.0.cbam.scale"], f"the ResNet has layer1.0.cbam.scale {WHY}"),
        (
            ["fc.weight"],
            ["head.weight", "layer1.0.convs.weight"],
            f"the ResNet lacks fc.weight and has head.weight, layer1.0.convs.weight {WHY}",
        ),
    ],
)
def test_a_resnet_that_is_not_whole_or_has_more(missing, more, sentence):
    weights = without(authors_resnet18(), *missing) | {key: torch.zeros(1) for key in more}
    with refused(sentence):
        convert(weights)


def test_a_block_without_its_cbam_or_its_place_in_the_count():
    gone = [key for key in authors_resnet18() if key.startswith("layer3.1.cbam")]
    gates = ["ChannelGate.mlp.1", "ChannelGate.mlp.3", "SpatialGate.spatial.conv"]
    with refused("the ResNet lacks " + ", ".join(f"layer3.1.cbam.{gate}.weight" for gate in gates)):
        convert(without(authors_resnet18(), *gone))
    gone = [key for key in authors_resnet18() if key.startswith("layer3.0.")]
    with pytest.raises(ConversionError, match=r"^the ResNet lacks layer3\.0.*, .* and 5 more$"):
        convert(without(authors_resnet18(), *gone))
    gone = [key for key in authors_resnet18() if key.startswith("layer2.")]
    with pytest.raises(ConversionError, match=r"^the ResNet lacks layer2\.0\.cbam\..* and 5 more$"):
        convert(without(authors_resnet18(), *gone))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("cbam_edu", "stages.99999999.0.conv1.weight"),  # no block is counted up to it
        ("cbam_edu", "stages.00.0.conv1.weight"),  # nor is it stages.0.0.conv1.weight
        ("authors", "layer0.0.conv1.weight"),  # before the first stage
    ],
)
def test_numbers_that_no_block_has(source, key):
    weights = convert(create_model("resnet18", 3, attention="cbam").state_dict(), target=source)
    with refused(f"the ResNet has {key} {WHY.replace('authors', source)}"):
        convert(weights | {key: torch.zeros(1)}, target="timm")


def test_a_variance_below_zero_is_told():
    cbam = CBAM(8, bias=False).state_dict() | {"spatial.norm.running_var": torch.tensor([-1.0])}
    with refused(
        "the BatchNorm of the CBAM has a running variance of -1, and none is below zero; these "
        "weights are damaged"
    ):
        convert(cbam, target="luuuyi")


def test_where_no_name_differs_the_network_may_be_any():
    """Here a ResNet-9, which has residual blocks in some stages only."""
    weights = create_model("resnet9", attention="cbam").state_dict()
    assert_same_bits(convert(weights), weights)
    with pytest.raises(ConversionError, match=r"^the ResNet lacks conv\.weight, .* and has stages"):
        convert(weights, target="timm")
    assert "stages.1.1.attention.channel.fc1.weight" in convert(
        weights, target="timm", rename_network=False
    )


def test_a_resnet_whose_cbam_has_another_name():
    weights = {key.replace(".cbam.", ".att."): t for key, t in authors_resnet18().items()}
    with pytest.raises(ConversionError, match=r"^the ResNet has layer1\.0\.att, layer1\.1\.att,"):
        convert(weights)
    assert "layer1.0.att.channel.mixer.0.weight" in convert(weights, rename_network=False)


def test_a_resnet_of_which_hardly_anything_is_left():
    cbam = {f"cbam.{key}": tensor for key, tensor in random_weights("authors").items()}
    with pytest.raises(ConversionError, match=r"^the ResNet lacks conv1\.weight, bn1\.weight,"):
        convert(cbam | {"layer1.0.conv1.foo": torch.zeros(1)})


# ---- CBAMs in any network, and how weights come


class Net(nn.Module):
    """Somebody's network, with two CBAMs at different depths."""

    def __init__(self, cbam: type[nn.Module], **options: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.att = cbam(8, 2, **options)
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), cbam(16, 4, **options))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.att(self.conv(x)))


@pytest.mark.parametrize("name", FOREIGN)
def test_in_any_network_only_the_cbams_change(name):
    theirs = randomise(Net(FOREIGN[name]))
    weights = convert(theirs.state_dict())
    mine = loaded(Net(ours, **OUR_OPTIONS[name]), weights)
    assert_same_output(theirs, mine, images())
    assert_same_bits(convert(weights, target=name.split()[0]), theirs.state_dict())


def test_prefixes_of_wrappers_and_checkpoints_are_taken_off():
    bare = random_weights("authors")
    wrapped = nn.DataParallel(randomise(AuthorsCBAM(32, 4))).state_dict()
    assert all(key.startswith("module.") for key in wrapped)
    expected = convert(bare)
    assert_same_bits(convert(wrapped), expected)
    assert_same_bits(convert({f"module._orig_mod.{k}": v for k, v in bare.items()}), expected)
    for name in ("state_dict", "model_state_dict", "model"):
        assert_same_bits(convert({"epoch": 3, name: wrapped, "optimizer": {}}), expected)
    ema = {"state_dict": wrapped, "model": make("timm", 32, 4).state_dict()}
    assert_same_bits(convert(ema), expected)
    mixed = {f"module.{key}": value for key, value in bare.items()} | {
        "conv.weight": bare.popitem()[1]
    }
    assert "module.channel.mixer.0.weight" in convert(mixed)


def test_weights_from_before_batches_were_counted():
    old = without(random_weights("authors"), "SpatialGate.spatial.bn.num_batches_tracked")
    cbam = ours(32, 4)
    cbam.load_state_dict(convert(old))
    assert torch.equal(cbam.spatial.norm.weight, old["SpatialGate.spatial.bn.weight"].float())


@pytest.mark.parametrize("target", ["cbam_edu", "authors", "timm", "pytorchcv"])
@pytest.mark.parametrize("source", ["cbam_edu", "authors", "timm", "pytorchcv"])
def test_the_result_shares_nothing_and_the_input_is_as_it_was(source, target):
    module = nn.Sequential(nn.Conv2d(32, 32, 1))
    weights = {
        f"cbam.{k}": nn.Parameter(v, v.is_floating_point())
        for k, v in random_weights(source).items()
    }
    weights |= dict(module.named_parameters())
    before = copy.deepcopy(weights)
    result = convert(weights, target=target)
    assert not any(tensor.requires_grad for tensor in result.values())
    for tensor in result.values():
        tensor.fill_(5)
    assert_same_bits(weights, before)
    assert len({tensor.untyped_storage().data_ptr() for tensor in result.values()}) == len(result)


# ---- Whose weights they are


@pytest.mark.parametrize("name", FOREIGN)
def test_detect(name):
    state = make(name, 32, 4).state_dict()
    assert detect(state) == name.split()[0]
    assert detect({"state_dict": {f"module.a.b.{k}": v for k, v in state.items()}}) == detect(state)


def test_ambiguous_weights_ask_for_the_source():
    half = {"sa.conv1.weight": torch.zeros(1, 2, 7, 7)}
    with refused(
        "this may be of luuuyi or luuuyi-2018: say which by source=; what was recognised is "
        "sa.conv1.weight"
    ):
        detect(half)
    with refused("the CBAM lacks ca.fc1.weight, ca.fc2.weight"):
        convert(half, "luuuyi-2018")


def test_another_source_than_said():
    with refused(
        "source is 'timm', but this looks like authors: it has ChannelGate.mlp.1.weight; leave "
        "source out or correct it"
    ):
        convert(random_weights("authors"), "timm")
    with refused(
        "source is 'luuuyi', but this looks like luuuyi-2018: it has ca.fc1.weight; leave source "
        "out or correct it"
    ):
        convert(random_weights("luuuyi-2018"), "luuuyi")
    with refused(
        "source is 'cbam_edu', but this looks like luuuyi or luuuyi-2018: it has "
        "b.sa.conv1.weight; leave source out or correct it"
    ):
        convert({"b.sa.conv1.weight": torch.zeros(1, 2, 7, 7)}, "cbam_edu")


def test_cbams_of_several_implementations():
    mixed = {f"a.{k}": v for k, v in random_weights("authors").items()}
    mixed |= {f"b.{k}": v for k, v in random_weights("timm").items()}
    sentence = (
        "these are CBAMs of several implementations: a.ChannelGate.mlp.1.weight (authors), "
        "b.channel.fc1.weight (timm); convert those of each on their own"
    )
    for source in (None, "authors", "timm"):
        with refused(sentence):
            convert(mixed, source)


def test_names_of_implementations_are_checked():
    with pytest.raises(ValueError, match=r"^unknown source 'author'; did you mean authors\?$"):
        convert(random_weights("authors"), "author")
    with pytest.raises(ValueError, match=r"^unknown target 'tim'; did you mean timm\?$"):
        convert(random_weights("authors"), target="tim")


def test_no_cbam_among_the_weights():
    with refused(
        "no CBAM found: none of the 1 keys ends like one of channel.mixer.0.weight (cbam_edu), "
        "ChannelGate.mlp.1.weight (authors), channel.fc1.weight (timm), ca.fc.0.weight (luuuyi), "
        "ca.fc1.weight (luuuyi-2018), ch_gate.mlp.fc1.weight (pytorchcv)"
    ):
        convert({"classifier.weight": torch.zeros(3, 3)})
    with refused(
        "no CBAM found; did you mean net.ChannelGate.mlp.1.weight by net.channelGate.mlp.1.weight?"
    ):
        convert({"x.weight": torch.zeros(1), "net.channelGate.mlp.1.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "ecaresnet50d", "vit_tiny_patch16_224"])
def test_other_networks_are_no_near_misses(name):
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
    with pytest.raises(ConversionError, match=rf"^no CBAM found: none of the {len(weights)} keys "):
        detect(weights)


# ---- Broken weights


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "the state_dict is empty"),
        ({"epoch": 3, "state_dict": {}}, "the state_dict is empty"),
        ([1], "expected a state_dict, a dict of tensors, got list"),
        (None, "expected a state_dict, a dict of tensors, got NoneType"),
        (nn.ReLU(), "expected a state_dict, got a module; pass its state_dict()"),
        (
            {"epoch": 3, "net": {}},
            "a state_dict names tensors, but 'epoch' names a value of type int; give the weights "
            "alone, as in checkpoint['state_dict_ema']",
        ),
        (
            {"model": nn.ReLU()},
            "a state_dict names tensors, but 'model' names a value of type ReLU; give the weights "
            "alone, as in checkpoint['state_dict_ema']",
        ),
        (
            {0: torch.zeros(1)},
            "a state_dict names tensors, but 0 names a value of type Tensor; give the weights "
            "alone, as in checkpoint['state_dict_ema']",
        ),
    ],
)
def test_what_is_no_state_dict(given, sentence):
    with refused(sentence):
        convert(given)


@pytest.mark.parametrize(
    ("source", "missing", "more", "sentence"),
    [
        (
            "authors",
            ["ChannelGate.mlp.3.bias", "SpatialGate.spatial.bn.running_var"],
            [],
            "the CBAM at b.1 lacks ChannelGate.mlp.3.bias, SpatialGate.spatial.bn.running_var",
        ),
        (
            "authors",
            ["ChannelGate.mlp.1.bias", "ChannelGate.mlp.3.bias"],
            [],
            "the CBAM at b.1 lacks ChannelGate.mlp.1.bias, ChannelGate.mlp.3.bias",
        ),
        ("timm", ["channel.fc1.bias"], [], "the CBAM at b.1 lacks channel.fc1.bias"),
        ("timm", ["channel.fc1.weight"], [], "the CBAM at b.1 lacks channel.fc1.weight"),
        (
            "cbam_edu",
            [f"spatial.norm.{x}" for x in ("weight", "bias", "running_mean", "running_var")],
            [],
            "the CBAM at b.1 lacks spatial.norm.weight, spatial.norm.bias, "
            "spatial.norm.running_mean, spatial.norm.running_var",
        ),
        (
            "pytorchcv",
            ["sp_gate.conv.conv.weight"],
            [],
            "the CBAM at b.1 lacks sp_gate.conv.conv.weight",
        ),
        (
            "luuuyi",
            [],
            ["ca.fc.0.bias"],
            "the CBAM at b.1 has b.1.ca.fc.0.bias (in luuuyi it has no such tensor)",
        ),
        (
            "timm",
            ["channel.fc2.weight"],
            ["channel.fc3.weight"],
            "the CBAM at b.1 lacks channel.fc2.weight and has b.1.channel.fc3.weight (in timm it "
            "has no such tensor)",
        ),
    ],
)
def test_missing_and_left_over(source, missing, more, sentence):
    weights = without(random_weights(source), *missing)
    weights |= {key: torch.zeros(1) for key in more}
    network = {f"a.0.{k}": v for k, v in random_weights(source).items()}
    network |= {f"b.1.{k}": v for k, v in weights.items()}
    with refused(sentence):
        convert(network, source)


@pytest.mark.parametrize(
    ("source", "key", "shape", "sentence"),
    [
        ("authors", "ChannelGate.mlp.1.weight", (4, 32, 1, 1), "wanted (hidden, channels)"),
        ("authors", "ChannelGate.mlp.1.weight", (0, 32), "wanted (hidden, channels)"),
        ("authors", "ChannelGate.mlp.1.bias", (5,), "wanted (4,)"),
        ("authors", "ChannelGate.mlp.3.weight", (33, 4), "wanted (32, 4)"),
        ("authors", "ChannelGate.mlp.3.bias", (32, 1), "wanted (32,)"),
        ("pytorchcv", "sp_gate.conv.bn.weight", (2,), "wanted (1,)"),
        ("timm", "channel.fc1.weight", (4, 32), "wanted (hidden, channels, 1, 1)"),
        ("timm", "channel.fc1.weight", (4, 32, 3, 3), "wanted (hidden, channels, 1, 1)"),
        ("timm", "spatial.conv.conv.weight", (1, 1, 7, 7), "wanted (1, 2, k, k) with an odd k"),
        ("luuuyi", "sa.conv1.weight", (1, 2, 6, 6), "wanted (1, 2, k, k) with an odd k"),
        ("luuuyi", "sa.conv1.weight", (1, 2, 7, 3), "wanted (1, 2, k, k) with an odd k"),
        ("cbam_edu", "spatial.norm.num_batches_tracked", (1,), "wanted ()"),
    ],
)
def test_wrong_shapes(source, key, shape, sentence):
    weights = {f"x.{k}": v for k, v in random_weights(source).items()}
    weights[f"x.{key}"] = torch.zeros(shape)
    with refused(f"x.{key} has shape {shape}, {sentence}"):
        convert(weights, source)


def test_timms_light_cbam_is_another_thing():
    with refused(
        "spatial.conv.conv.weight has shape (1, 1, 7, 7), wanted (1, 2, k, k) with an odd k"
    ):
        convert(LightCbamModule(32).state_dict())


# ---- The arguments that weights need


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", FOREIGN)
def test_cbam_options_make_the_module(name, sizes):
    theirs = make(name, *sizes)
    (found,) = cbam_options(theirs.state_dict()).items()
    options = {"bias": True, "norm": True} | OUR_OPTIONS[name]
    assert found == (
        "",
        {
            "channels": sizes[0],
            "reduction": found[1]["reduction"],
            "kernel_size": sizes[2],
            **options,
        },
    )
    assert_same_output(
        theirs, loaded(CBAM(**found[1]), convert(theirs.state_dict())), images(sizes[0])
    )


def test_cbam_options_of_a_network():
    options = cbam_options({"state_dict": Net(timms).state_dict(), "epoch": 1}, "timm")
    expected = {"kernel_size": 7, "bias": False, "norm": True}
    assert options == {
        "att": {"channels": 8, "reduction": 4, **expected},
        "stage.2": {"channels": 16, "reduction": 4, **expected},
    }


def test_timms_rounding_of_hidden_units():
    """24 / 16 is 1.5: timm rounds it to 2, others to 1."""
    assert cbam_options(CbamModule(24).state_dict())[""]["reduction"] == 12
    assert ours(24, 2).channel.mixer[0].out_features == 2


@pytest.mark.parametrize("hidden", [7, 17, 40])
def test_hidden_units_that_no_reduction_gives(hidden):
    assert all(max(1, 24 // r) != hidden for r in range(1, 100))
    with refused(
        f"the CBAM has {hidden} hidden units for 24 channels, and no whole number as reduction "
        "gives that"
    ):
        cbam_options(make("authors", 24, hidden).state_dict())
