"""Networks: what they compute, and what happens to a file that is not theirs."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from cbam_edu import (
    create_model,
    data,
    list_models,
    load_model,
    load_pretrained,
    models,
    save_model,
)
from cbam_edu.fused import CBAM
from cbam_edu.models import Bottleneck, CIFARResNet, ModelFileError, list_pretrained
from cbam_edu.models.resnet import ResidualBlock
from cbam_edu.neighbours import ATTENTIONS
from cbam_edu.storage import StorageError
from cbam_edu.train import evaluate


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("attention", [None, *ATTENTIONS])
@pytest.mark.parametrize("name", list_models())
def test_every_network_takes_every_attention(name, attention):
    model = create_model(name, num_classes=7, attention=attention).eval()
    layers = [m for m in model.modules() if type(m) in (CBAM,)]
    assert bool(layers) == (attention in ("channel", "spatial", "cbam"))
    with torch.no_grad():
        for height, width in ((8, 8), (9, 5), (1, 1)):
            assert model(torch.randn(2, 3, height, width)).shape == (2, 7)


# He et al. (2016), Table 6, in millions; to the unit as option A gives them.
@pytest.mark.parametrize(
    ("name", "published", "exact"),
    [
        ("resnet20", 0.27, 269_722),
        ("resnet32", 0.46, 464_154),
        ("resnet44", 0.66, 658_586),
        ("resnet56", 0.85, 853_018),
        ("resnet110", 1.7, 1_727_962),
    ],
)
def test_resnets_have_the_published_size(name, published, exact):
    count = parameters(create_model(name))
    assert count == exact
    assert count / 1e6 == pytest.approx(published, abs=0.05 if published > 1 else 0.005)


@pytest.mark.parametrize("name", [n for n in list_models() if models._MODELS[n][0] is CIFARResNet])
def test_a_resnets_name_is_its_number_of_layers(name):
    layers = [m for m in create_model(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert name == f"resnet{len(layers)}"


def test_resnet8_has_one_block_a_stage():
    """3 x 3 convolutions, each with a BatchNorm, and a linear head: 6n + 2 layers for n = 1."""
    model = create_model("resnet8")
    pairs = [(3, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
    assert parameters(model) == sum(9 * a * b + 2 * b for a, b in pairs) + 64 * 10 + 10
    shapes = [tuple(m.shape) for m in model.forward_features(torch.randn(2, 3, 32, 32))]
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert [len(stage) for stage in model.stages] == [1, 1, 1]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
def test_torchvision_computes_the_same(name):
    """With its weights, and the stride where torchvision has it."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).eval()
    ours = create_model(name, stride_on="3x3").eval()
    weights = theirs.state_dict()
    for key, value in weights.items():
        if key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    ours.load_state_dict(dict(zip(ours.state_dict(), weights.values(), strict=True)))
    x = torch.randn(2, 3, 70, 97)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_stride_is_where_it_is_asked_for():
    for stride_on, strides in (("1x1", [2, 1, 1]), ("3x3", [1, 2, 1])):
        block = create_model("resnet50", stride_on=stride_on).stages[1][0]
        assert [c.stride[0] for c in (block.conv1, block.conv2, block.conv3)] == strides
    # Two 3 x 3 convolutions leave no choice.
    assert create_model("resnet18", stride_on="3x3").stages[1][0].conv1.stride == (2, 2)


def test_wide_networks_widen_their_stages_only():
    model = create_model("wideresnet18_1.5")
    assert model.conv.out_channels == 64
    assert [stage[-1].conv2.out_channels for stage in model.stages] == [96, 192, 384, 768]
    assert isinstance(model.stages[0][0].downsample, nn.Sequential)  # 64 channels become 96


def test_attention_of_a_bottleneck_stands_before_the_addition():
    torch.manual_seed(0)
    block = Bottleneck(8, 16, 2, 4, 2, "1x1", attention="cbam", reduction=4).eval()
    x = torch.randn(2, 8, 9, 6)
    out = block.bn1(block.conv1(x)).relu()
    out = block.bn3(block.conv3(block.bn2(block.conv2(out)).relu()))
    wanted = (block.attention(out) + block.downsample(x)).relu()
    torch.testing.assert_close(block(x), wanted)
    assert wanted.shape == (2, 16, 5, 3)
    assert block.conv2.groups == 2


def test_mobilenet_has_attention_in_27_places():
    layers = [m for m in create_model("mobilenet_0.7", attention="cbam").modules()
              if isinstance(m, CBAM)]  # fmt: skip
    assert len(layers) == 27
    hidden = {m.channels: m.channel.mixer[0].out_features for m in layers}
    # round(C / 16), not its floor: 3 of 44, 6 of 89, 45 of 716.
    assert hidden == {22: 1, 44: 3, 89: 6, 179: 11, 358: 22, 716: 45}


def test_mobilenets_options_reach_its_rounded_mlps():
    options = {"reduction": 4, "bias": False}
    model = create_model("mobilenet_1.0", attention="cbam", attention_options=options)
    mixer = model.conv[2].channel.mixer
    assert (mixer[0].out_features, mixer[0].bias, mixer[2].bias) == (8, None, None)
    model = create_model("mobilenet_1.0", attention="eca")
    assert isinstance(model.conv[2].channel.mixer[1], nn.Conv1d)


def test_imagenets_networks_have_a_thousand_classes_and_stages_for_a_pyramid():
    for name, dims in (
        ("resnet18", [64, 128, 256, 512]),
        ("resnext50_32x4d", [256, 512, 1024, 2048]),
        ("mobilenet_1.0", [128, 256, 512, 1024]),
    ):
        model = create_model(name).eval()
        assert model.head.out_features == model.config["num_classes"] == 1000
        maps = model.forward_features(torch.randn(1, 3, 64, 96))
        sizes = [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
        assert [tuple(m.shape[1:]) for m in maps] == [
            (d, *size) for d, size in zip(dims, sizes, strict=True)
        ]


def test_cbam_adds_what_its_formula_says():
    plain = parameters(create_model("resnet20"))
    added = parameters(create_model("resnet20", attention="cbam")) - plain
    # A block of C channels: C * h twice, h + C biases, 98 weights and BatchNorm's two.
    assert added == sum(3 * (2 * c * (c // 16) + c // 16 + c + 98 + 2) for c in (16, 32, 64))


def test_cbamnets_have_the_dims_of_their_names():
    sizes = {"tiny": (64, 128), "small": (64, 128, 256), "base": (128, 256, 512)}
    for size, dims in sizes.items():
        model = create_model(f"cbamnet_{size}")
        maps = model.forward_features(torch.randn(1, 3, 32, 32))
        wanted = [(1, d, 32 >> (i + 1), 32 >> (i + 1)) for i, d in enumerate(dims)]
        assert [tuple(m.shape) for m in maps] == wanted
        hidden = [m.channel.mixer[0].out_features for m in model.modules() if isinstance(m, CBAM)]
        assert hidden == [d // 8 for d in dims]


def test_cbamnets_have_cbam_unless_told_otherwise():
    assert any(isinstance(m, CBAM) for m in create_model("cbamnet_tiny").modules())
    assert not any(
        isinstance(m, CBAM) for m in create_model("cbamnet_tiny", attention=None).modules()
    )
    assert not any(isinstance(m, CBAM) for m in create_model("resnet20").modules())


def test_all_stages_for_a_feature_pyramid():
    maps = create_model("resnet20").forward_features(torch.randn(2, 3, 32, 48))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 32, 48), (2, 32, 16, 24), (2, 64, 8, 12)]
    maps = create_model("resnet9").forward_features(torch.randn(1, 3, 32, 32))
    assert [m.shape[1:3] for m in maps] == [(64, 32), (128, 16), (256, 8), (512, 4)]


@pytest.mark.parametrize(
    ("name", "width", "part"),
    [("cbamnet_tiny", 128, 1), ("resnet20", 64, 1), ("resnet9", 512, 8)],  # as the original has it
)
def test_a_headless_network_gives_its_pooled_features(name, width, part):
    whole = create_model(name).eval()
    headless = create_model(name, num_classes=0).eval()
    missing, extra = headless.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert set(extra) == {"head.weight", "head.bias"}
    x = torch.randn(2, 3, 32, 32)
    features = headless(x)
    assert features.shape == (2, width)
    torch.testing.assert_close(whole.head(features) / part, whole(x))


def test_pooling_is_the_mean_and_in_resnet9_the_maximum():
    x = torch.randn(2, 3, 16, 16)
    for name, pool in (
        ("resnet20", torch.mean),
        ("cbamnet_tiny", torch.mean),
        ("resnet9", torch.amax),
    ):
        model = create_model(name, num_classes=0).eval()
        torch.testing.assert_close(model(x), pool(model.forward_features(x)[-1], (2, 3)))


def test_convolutions_start_as_he_et_al_draw_them():
    torch.manual_seed(0)
    for module in create_model("resnet20").modules():
        if isinstance(module, nn.Conv2d):
            wanted = (2 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.2)


def test_loading_takes_no_memory_before_the_weights_fit(tmp_path, monkeypatch):
    save_model(small(), tmp_path / "model.safetensors")
    devices, create = [], models.create_model
    monkeypatch.setattr(
        models,
        "create_model",
        lambda **k: devices.append(torch.empty(1).device.type) or create(**k),
    )
    load_model(tmp_path / "model.safetensors")
    assert devices == ["meta"]


def test_own_dims_and_reduction():
    model = create_model(
        "cbamnet_small", dims=(4, 8), attention="cbam", attention_options={"reduction": 2}
    )
    assert [m.channel.mixer[0].out_features for m in model.modules() if isinstance(m, CBAM)] == [
        2,
        4,
    ]
    assert create_model("resnet20", dims=[8, 16]).head.in_features == 16


def test_attention_stands_after_the_last_norm_and_before_the_addition():
    torch.manual_seed(0)
    block = ResidualBlock(4, 6, stride=2, attention="cbam", reduction=2).eval()
    x = torch.randn(2, 4, 7, 7)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    shortcut = torch.zeros(2, 6, 4, 4)
    shortcut[:, :4] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), (block.attention(branch) + shortcut).relu())
    assert not torch.allclose(block(x), block.attention(branch + shortcut).relu())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("resnet21"), "did you mean .*resnet20"),
        (lambda: create_model("zzz"), "known: cbamnet_tiny, "),
        (lambda: create_model("resnet20", attention="cbma"), "did you mean cbam"),
        (lambda: create_model("resnet20", attenton="cbam"), "did you mean attention"),
        (lambda: create_model("resnet20", num_classes=-1), "num_classes must be an integer"),
        (lambda: create_model("resnet20", num_classes=2.0), "got 2.0"),
        (lambda: create_model("cbamnet_tiny", dims=(8, 0)), "dims must be a positive integer"),
        (lambda: create_model("resnet20", dims=(8, "a")), "dims must be a positive integer"),
        (lambda: create_model("resnet9", dims=(8, 8)), "four"),
        (lambda: create_model("resnet18", dims=(8, 8)), "dims must name the channels of 4 stages"),
        (lambda: create_model("resnet50", stride_on="5x5"), "stride_on must be one of 1x1, 3x3"),
        (lambda: create_model("resnet18", groups=2), "unknown option of resnet18 'groups'"),
        (
            lambda: create_model("mobilenet_1.0", dims=(8,)),
            "unknown option of mobilenet_1.0 'dims'",
        ),
        (lambda: create_model("resnet20", dims=()), "dims must name at least one stage"),
        (lambda: create_model("cbamnet_tiny", dims=()), "dims must name at least one stage"),
        (lambda: load_pretrained("resnet20_cbma"), "did you mean resnet20_cbam"),
    ],
)
def test_wrong_names_and_options_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def small(**options):
    torch.manual_seed(0)
    return create_model("cbamnet_tiny", dims=(4, 8), **options).eval()


def test_save_and_load(tmp_path):
    path = tmp_path / "model.safetensors"
    model = small(num_classes=3)
    save_model(model, path, classes=("a", "b", "c"))
    again = load_model(path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), model(x))
    assert not again.training
    assert again.about["classes"] == ["a", "b", "c"]
    assert {**again.config, "dims": (4, 8)} == model.config
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    again.train()(x).sum().backward()  # it can be trained on
    assert all(p.grad is not None for p in again.parameters())


def test_only_named_networks_are_saved(tmp_path):
    with pytest.raises(ValueError, match="made by create_model"):
        save_model(nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file has run code",))


def _written(path, weights, **metadata):
    data = safetensors.torch.save(weights, {k: json.dumps(v) for k, v in metadata.items()})
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip_header(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)


WEIGHTS = {"w": torch.zeros(2)}
CONFIG = {"name": "cbamnet_tiny", "num_classes": 10, "dims": [4, 8]}
SPOILED = {
    "truncated": (_truncate, "not a whole safetensors file"),
    "corrupted": (_flip_header, "not a whole safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole safetensors file"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(_Bomb())), "not a whole safetensors file"),
    "absurd header": (lambda p: p.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
    "not ours": (lambda p: _written(p, WEIGHTS), "holds no configuration"),
    "not JSON": (
        lambda p: p.write_bytes(safetensors.torch.save(WEIGHTS, {"cbam_edu": "{"})),
        "holds no configuration",
    ),
    "a list": (lambda p: _written(p, WEIGHTS, cbam_edu=[1]), "holds no configuration"),
    "no config": (lambda p: _written(p, WEIGHTS, cbam_edu={}), "holds no configuration"),
    "config no dict": (lambda p: _written(p, WEIGHTS, cbam_edu={"config": 3}), "does not hold"),
    "other weights": (lambda p: _written(p, WEIGHTS, cbam_edu={"config": CONFIG}), "does not hold"),
    "unknown network": (
        lambda p: _written(p, WEIGHTS, cbam_edu={"config": {"name": "resnet21"}}),
        "did you mean .*resnet20",
    ),
    "a network of terabytes": (
        lambda p: _written(p, WEIGHTS, cbam_edu={"config": {**CONFIG, "dims": [2**20, 2**20]}}),
        "does not hold",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_told_and_runs_nothing(tmp_path, case):
    path = tmp_path / "model.safetensors"
    save_model(small(), path)
    spoil, message = SPOILED[case]
    spoil(path)
    with pytest.raises(ModelFileError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(StorageError, match="is a folder"):
        load_model(tmp_path)


def test_the_pretrained_network_is_small_and_named():
    assert "resnet20_cbam" in list_pretrained()
    model = load_pretrained("resnet20_cbam")
    assert model.config == {"name": "resnet20", "num_classes": 10, "attention": "cbam"}
    assert model.about["data"] == "cifar10"


def test_the_pretrained_network_is_as_good_as_its_record_says():
    """On the 500 images at hand, within what so few can tell: four standard errors."""
    path = Path(__file__).parents[1] / "book" / "results" / "resnet20.jsonl"
    records = {r["arm"]: r for r in map(json.loads, path.read_text("utf-8").splitlines())}
    recorded = records["cbam"]["accuracy"]
    assert recorded >= 0.91
    assert records["none"]["recipe"] == records["cbam"]["recipe"]
    assert {r["test_images"] for r in records.values()} == {10_000}
    scores = evaluate(load_pretrained("resnet20_cbam"), data.load("cifar10-mini", "test"))
    assert abs(scores.accuracy - recorded) < 4 * (recorded * (1 - recorded) / 500) ** 0.5
