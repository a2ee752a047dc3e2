"""Exported files against the networks they come from, for images of all numbers and sizes."""

import copy
import json
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cbam_edu import attention_layer, create_model, load_pretrained
from cbam_edu.attention import GATES, ORDERS, POOLINGS
from cbam_edu.data import CLASSES, MEAN, STD
from cbam_edu.export import FORMATS, OPSET, TOLERANCE, ExportError, export, trace
from cbam_edu.storage import StorageError

ROOT = Path(__file__).resolve().parents[1]
if torch.__version__ < "2.10":
    pytest.skip("exporting takes torch 2.10 or newer", allow_module_level=True)


def with_lively_numbers(model: nn.Module) -> nn.Module:
    """Draw every number, so that no norm or bias is what it is by default."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def run(path: Path, format: str, images: Tensor) -> Tensor:
    with torch.no_grad():
        return FORMATS[format].read(path.read_bytes())(images)


# ---- Every option of every attention

LAYERS = [
    *[(name, {}) for name in ("se", "eca", "bam", "channel", "spatial", "cbam")],
    *[("cbam", {"order": order}) for order in ORDERS],
    *[("cbam", {"gate": gate}) for gate in GATES],
    ("cbam", {"order": "parallel", "gate": "softmax"}),
    *[("channel", {"pooling": [pooling]}) for pooling in POOLINGS],
    *[("spatial", {"kernel_size": k, "norm": norm}) for k, norm in ((1, True), (3, False))],
    ("channel", {"pooling": list(POOLINGS), "reduction": 2}),
    ("channel", {"pooling": ["max", "lse"], "mixer": "conv1d", "bias": False}),
    ("se", {"bias": False}),
    ("bam", {"reduction": 2, "dilation": 1}),
]


class Layers(nn.Module):
    """All of them side by side, as one network whose channels tell what each gave."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(attention_layer(name, 8, **options) for name, options in LAYERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.cat([layer(x) for layer in self.layers], dim=1)


@pytest.fixture(scope="module")
def layers():
    return with_lively_numbers(Layers()).eval()


@pytest.fixture(scope="module", params=FORMATS)
def exported_layers(request, layers, tmp_path_factory):
    path = tmp_path_factory.mktemp("layers") / "layers"
    export(layers, path, request.param)
    return FORMATS[request.param].read(path.read_bytes())


@settings(max_examples=12, deadline=None)
@given(shape=st.tuples(st.integers(1, 4), st.just(3), *[st.integers(1, 70)] * 2))
def test_every_option_gives_what_it_gave_before(layers, exported_layers, shape):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    with torch.no_grad():
        wanted, got = layers(images).split(8, 1), exported_layers(images).split(8, 1)
        largest = layers.conv(images).abs().max()
    assert len(wanted) == len(got) == len(LAYERS)
    for layer, one, other in zip(LAYERS, got, wanted, strict=True):
        assert one.shape == other.shape
        difference = (one - other).abs().max()
        # onnxruntime's sigmoid is exact to 1.7e-7 of 1, not of itself: a gate that is nearly closed
        # is that much less exact.
        allowed = 1e-5 * other.abs().max() + 4e-7 * largest
        assert difference <= allowed, f"{layer}, {shape}: {difference:.1e}"


# ---- Every kind of network


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet9", {"dims": (4, 8, 8, 8), "attention": "se"}),
        ("resnet20", {"dims": (4, 8)}),
        ("resnet18", {"dims": (8, 8, 16, 16), "attention": "eca", "num_classes": 0}),
    ],
)
def test_networks_give_what_they_gave_before(name, options, tmp_path):
    model = with_lively_numbers(create_model(name, **options)).eval()
    assert 0 < export(model, tmp_path / "a") <= TOLERANCE
    for shape in ((1, 3, 1, 1), (2, 3, 32, 32), (1, 3, 45, 70), (5, 3, 66, 31)):
        images = torch.randn(shape)
        with torch.no_grad():
            wanted = model(images)
        got = run(tmp_path / "a", "onnx", images)
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_smallest_images_are_not_refused():
    model = create_model("resnet20", dims=(4, 4, 4)).eval()
    program = trace(model).module()
    for shape in ((1, 3, 1, 1), (2, 3, 2, 3), (1, 3, 4, 1), (3, 3, 5, 4)):
        images = torch.randn(shape)
        assert torch.equal(program(images), model(images))


# ---- What the file says of itself


@pytest.fixture(scope="module")
def tiny():
    return create_model("cbamnet_tiny", dims=(8, 16)).eval()


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    export(tiny, path, request.param, classes=list(CLASSES))
    return request.param, path


def said(format: str, path: Path) -> dict[str, object]:
    if format == "onnx":
        (entry,) = onnx.load(path).metadata_props
        assert entry.key == "cbam_edu"
        return json.loads(entry.value)
    files = {"cbam_edu.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["cbam_edu.json"])


def test_the_configuration_is_enough_to_make_the_network_again(exported):
    about = said(*exported)
    assert about["classes"] == list(CLASSES)
    assert "mean" not in about  # nobody knows what it will be trained on
    again = create_model(**about["config"])
    assert sum(p.numel() for p in again.parameters()) == 1_893


def test_a_trained_network_says_its_classes_and_how_images_are_normalised(tiny, tmp_path):
    model = copy.deepcopy(tiny)
    model.about = load_pretrained("resnet20_cbam").about
    export(model, tmp_path / "a", "torch-export")
    assert said("torch-export", tmp_path / "a") == {
        "config": json.loads(json.dumps(model.config)),
        "classes": list(CLASSES),
        "data": "cifar10",
        "mean": list(MEAN),
        "std": list(STD),
    }
    model.about = {"data": "pictures", "mean": [0.5] * 3, "std": [0.25] * 3}
    export(model, tmp_path / "b", "torch-export", std=[1, 1, 1])
    about = said("torch-export", tmp_path / "b")
    assert (about["mean"], about["std"]) == ([0.5] * 3, [1, 1, 1])


def test_the_onnx_file_is_whole_and_named(tiny, tmp_path):
    export(tiny, tmp_path / "tiny.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]  # no weights beside it
    model = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (image, logits)
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 10]]


@pytest.mark.parametrize("format", FORMATS)
def test_torch_that_is_too_old_is_named(tiny, tmp_path, monkeypatch, format):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    path = tmp_path / "tiny"
    with pytest.raises(ExportError, match=r"torch 2\.10 or newer, and this is 2\.9\.1\+cpu: "):
        export(tiny, path, format)
    assert not path.exists()


def test_no_pickle_is_in_a_pt2_file_nor_read_with_it(tiny, tmp_path, monkeypatch):
    path = tmp_path / "tiny.pt2"
    export(tiny, path, "torch-export")
    with zipfile.ZipFile(path) as archive:
        weights = json.loads(archive.read("archive/data/weights/model_weights_config.json"))
        assert archive.read("archive/data/sample_inputs/model.pt") == b""
    assert len(weights["config"]) == len(tiny.state_dict())
    assert not any(entry["use_pickle"] for entry in weights["config"].values())

    def unpickle(*args: object, **options: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", unpickle)
    assert run(path, "torch-export", torch.zeros(1, 3, 5, 5)).shape == (1, 10)


def test_nothing_of_this_machine_is_in_the_file(exported):
    _, path = exported
    parts = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    for folder in (ROOT, Path(torch.__file__).parent):
        assert not any(str(folder).encode() in part for part in parts)


# ---- The network is left as it was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_any_type_in_training_leaves_as_float32_in_evaluation(dtype, tmp_path, capfd):
    model = with_lively_numbers(create_model("cbamnet_tiny", dims=(4, 8))).to(dtype).train()
    model.stages[0][1].eval()  # one that is frozen
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "a", "torch-export")
    assert [m.training for m in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
    images = torch.randn(2, 3, 9, 12)
    with torch.no_grad():
        wanted = copy.deepcopy(model).float().eval()(images)
    torch.testing.assert_close(run(tmp_path / "a", "torch-export", images), wanted)
    assert capfd.readouterr() == ("", "")


def test_a_trace_keeps_mode_and_type_and_learns():
    model = create_model("cbamnet_tiny", dims=(4, 8)).bfloat16().train()
    mean = model.stages[0][1].running_mean.clone()
    program = trace(model).module()
    assert torch.equal(model.stages[0][1].running_mean, mean)  # nothing was run
    images = torch.randn(2, 3, 7, 5, dtype=torch.bfloat16)
    logits = program(images)
    assert torch.equal(logits, model(images))
    assert not torch.equal(logits, copy.deepcopy(model).eval()(images))
    logits.sum().backward()
    assert all(p.grad is not None for p in program.parameters())


# ---- A file that is not the network is not put in place


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: y + 2e-5 * y.abs().max(), r"gives \(1, 10\) that is 2\.0e-05 of the largest"),
        (lambda y: y * float("nan"), "nan of the largest logit"),
        (lambda y: y[:1].repeat(len(y), 1), r"\(3, 10\) that is"),
        (lambda y: y[:, :1], r"gives \(1, 1\) that is .* from the network's \(1, 10\)"),
    ],
    ids=["far", "nan", "one-image", "shape"],
)
def test_a_wrong_export_is_not_written(tiny, tmp_path, monkeypatch, wrong, message):
    (tmp_path / "a").write_text("the user's")
    right = FORMATS["torch-export"]

    def read(data: bytes):
        exported = right.read(data)
        return lambda images: wrong(exported(images))

    monkeypatch.setitem(FORMATS, "torch-export", right._replace(read=read))
    with pytest.raises(ExportError, match=message):
        export(tiny, tmp_path / "a", "torch-export")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "the user's")]


def test_roundings_are_allowed_and_told(tiny, tmp_path, monkeypatch):
    right = FORMATS["torch-export"]
    monkeypatch.setitem(
        FORMATS,
        "torch-export",
        right._replace(read=lambda data: lambda x: tiny(x) + 5e-6 * tiny(x).abs().max()),
    )
    assert export(tiny, tmp_path / "a", "torch-export") == pytest.approx(5e-6, rel=0.1)
    assert (tmp_path / "a").exists()


class Sized(nn.Module):
    """Does one thing with wide images, and another with others."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.shape[3] > 90 else x.amax((2, 3))


class Valued(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 64 * 96, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Several(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) / 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Sized(), "(the exported Sized gives .* nothing was written|to be >= 91, but got )"),
        (Valued(), r"Valued cannot be exported for images of every number and size \(.*data-dep"),
        (Flat(), "Flat cannot be exported for images of every number and size"),
        (Several(), r"(Several does not give one tensor|Several cannot be exported)"),
        (Endless(), r"Endless does not give one tensor of finite numbers for images \(1, 3, "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_that_cannot_leave(model, message, format, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        export(model, tmp_path / "a", format)
    assert "\n" not in str(caught.value)
    assert (caught.value.__cause__ is not None) == ("cannot be exported" in str(caught.value))
    assert not list(tmp_path.iterdir())


class WithoutONNX(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    assert export(WithoutONNX(), tmp_path / "a", "torch-export") <= TOLERANCE
    with pytest.raises(ExportError, match=r"WithoutONNX cannot be exported .*eigh") as caught:
        export(WithoutONNX(), tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- What is no network to export


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return create_model("cbamnet_tiny")


def with_a_kept_map() -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    model.kept = model(torch.zeros(1, 3, 8, 8))  # as hooks for Grad-CAM do
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "resnet20", r"^model must be a network, a torch\.nn\.Module; got a str$"),
        (lambda: nn.DataParallel(nn.Conv2d(3, 4, 3)), r"DataParallel only holds .* model\.module$"),
        (lambda: torch.compile(nn.Conv2d(3, 4, 3)), r"only holds .* export model\._orig_mod$"),
        (on_meta, "CBAMNet is on the meta device and has no numbers; load its weights"),
        (with_a_kept_map, r"Conv2d cannot be copied \(Only Tensors .*\); take out of it"),
        (lambda: Classes(), "Classes does not give one tensor of finite numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_what_cannot_be_exported_is_told(tmp_path, make, message):
    kept = make()
    with pytest.raises(TypeError if kept == "resnet20" else ExportError, match=message) as told:
        export(kept, tmp_path / "a", "torch-export")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


class Classes(nn.Conv2d):
    """Gives whole numbers."""

    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, x):
        return super().forward(x).argmax(1)


# ---- Wrong words


def test_an_unknown_format_is_told_with_the_nearest(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"unknown format 'onxx'; did you mean onnx\?"):
        export(tiny, tmp_path / "a", "onxx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_told_with_the_command(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf'needs {package}: pip install "cbam_edu\[export\]"'):
        export(tiny, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_told_before_the_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("cbam_edu.export.trace", lambda model: pytest.fail("it was exported"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*none/a: it does not exist"):
        export(tiny, tmp_path / "none" / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
