"""The matrix: its cheap part, that it sees what is wrong, and the record of the whole."""

import itertools
import json

import pytest
import torch
from torch import nn

import matrix
from cbam_edu import create_model, list_models
from cbam_edu.models import CIFARResNet

SMALL = ((32, 32), (97, 131))


@pytest.mark.parametrize(
    ("name", "attention", "dtype", "options"),
    [
        ("cbamnet_tiny", "cbam", "float32", {"dims": (8, 16)}),
        ("resnet20", "bam", "bfloat16", {"dims": (8, 8)}),
        ("resnet9", "spatial", "bfloat16", {"dims": (8, 8, 8, 8)}),
        ("resnet18", "cbam", "bfloat16", {"dims": (8, 8, 8, 8)}),
        ("resnet50", "se", "bfloat16", {"dims": (8, 8, 8, 8)}),
        ("mobilenet_0.7", "eca", "bfloat16", {}),
    ],
)
def test_the_cheap_ones(name, attention, dtype, options):
    torch.manual_seed(0)
    model = create_model(name, 10, attention=attention, **options)
    results = matrix.every_way(model, dtype, SMALL)
    assert {way: r["sizes"] for way, r in results.items()} == {
        way: {"32x32": "ok", "97x131": "ok"} for way in matrix.WAYS[dtype]
    }


# ---- It sees what is wrong


class Broken(CIFARResNet):
    """A small network that one part of is wrong."""

    def __init__(self, **options):
        super().__init__(1, dims=(4, 4), **options)


class Shrinking(Broken):
    def stem(self, x):
        return super().stem(x)[:, :, 1:]


class Single(Broken):
    def pool(self, x):
        return super().pool(x)[:1]


class Infinite(Broken):
    def pool(self, x):
        return super().pool(x) / 0


class Unmoved(Broken):
    def pool(self, x):
        return super().pool(x).detach()


class Widened(Broken):
    def forward(self, x):
        return super().forward(x).float()


class Doubled(Broken):
    """Its forward pass is not that of its maps."""

    def forward(self, x):
        return 2 * super().forward(x)


class Sized(Broken):
    """What it does depends on the size, which torch.export cannot record."""

    def pool(self, x):
        return x.amax((2, 3)) if x.shape[3] > 40 else super().pool(x)


class Refusing(Broken):
    def stem(self, x):
        raise OSError("not today\nnor tomorrow")


@pytest.mark.parametrize(
    ("kind", "way", "message"),
    [
        (Shrinking, "eager", "AssertionError: maps"),
        (Single, "eager", "AssertionError: logits (1, 10)"),
        (Infinite, "eager", "AssertionError: logits is not finite"),
        (Unmoved, "eager", "RuntimeError: One of the differentiated Tensors"),
        (Doubled, "torch.export", "AssertionError: logits differs by"),
        (Widened, "torch.export", "AssertionError: logits is torch.float32"),
        (Sized, "torch.export", "RuntimeError: Expected input at *args[0].shape[3] to be >= 81"),
        (Refusing, "eager", "OSError: not today"),
        (Refusing, "torch.export", "AssertionError: ExportError: Refusing cannot be exported"),
    ],
)
def test_what_is_wrong_is_seen_and_named(kind, way, message, monkeypatch):
    monkeypatch.setitem(matrix.STRIDES, kind, (1, 2))
    torch.manual_seed(0)
    results = matrix.every_way(kind(), "bfloat16", ((32, 32),))
    verdict = results[way]["sizes"]["32x32"]
    assert verdict.startswith(message), verdict
    assert "\n" not in verdict


def test_what_onnx_gives_is_compared(monkeypatch):
    model = create_model("cbamnet_tiny", dims=(4, 4))
    near = lambda network: lambda x: network(x) * (1 + 2e-5)  # noqa: E731
    monkeypatch.setattr(matrix, "as_onnx", near)
    results = matrix.every_way(model, "float32", ((8, 8),))
    assert results["eager"]["sizes"] == {"8x8": "ok"}
    assert results["onnx"]["sizes"]["8x8"].startswith("AssertionError: logits differs by")


def test_gradients_are_compared_with_the_largest():
    wanted = {"logits": torch.ones(2), "a": torch.tensor([0.0, 10]), "b": torch.tensor([1e-9])}
    matrix.check_close(wanted, wanted, 0)
    near = wanted | {"b": torch.tensor([2e-9])}
    matrix.check_close(near, wanted, 1e-6)
    far = wanted | {"a": torch.tensor([1e-3, 10])}
    with pytest.raises(AssertionError, match=r"a differs by 1\.0e-03 of 1\.0e\+01"):
        matrix.check_close(far, wanted, 1e-6)
    with pytest.raises(AssertionError, match=r"not both have \{'b'\}"):
        matrix.check_close({k: wanted[k] for k in ("logits", "a")}, wanted, 1)


# ---- The command


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Make the matrix small, and its networks' results up."""
    ran = []

    def every_way(model: nn.Module, dtype: str, sizes):
        ran.append((model.config["name"], model.config["attention"], dtype))
        verdict = "ValueError: no" if ran[-1] in wrong else "ok"
        done = {"sizes": {"8x8": verdict}, "seconds": 1.0}
        return dict.fromkeys(matrix.WAYS[dtype], done)

    wrong = set()
    monkeypatch.setattr(matrix, "ARMS", ("none", "cbam"))
    monkeypatch.setattr(matrix, "SIZES", ((8, 8),))
    monkeypatch.setattr(matrix, "every_way", every_way)
    path = tmp_path / "folder" / "matrix.jsonl"

    def command(*words: str):
        ran.clear()
        return matrix.main(["--out", str(path), *words]), list(ran)

    return command, wrong, path


def test_the_command_writes_a_line_each_and_goes_on_where_it_stopped(quick, capsys):
    command, wrong, path = quick
    wrong.add(("cbamnet_tiny", "cbam", "bfloat16"))
    code, ran = command("--models", "resnet20", "cbamnet_tiny")
    assert (code, len(ran)) == (1, 8)
    assert {name for name, _, _ in ran[:4]} == {"cbamnet_tiny"}  # the lightest first
    out = capsys.readouterr().out
    assert ["cbamnet_tiny", "5/5", "3/5"] in [line.split() for line in out.splitlines()]
    assert '"sizes": {"8x8": "ValueError: no"}' in out
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == len(matrix.read(path)) == 20
    assert {r["torch"] for r in records} == {torch.__version__}
    assert {len(r["commit"].removesuffix("-dirty")) for r in records} == {40}
    wrong.clear()
    code, ran = command("--models", "resnet20", "cbamnet_tiny")
    assert (code, ran) == (0, [("cbamnet_tiny", "cbam", "bfloat16")])  # the rest is known
    assert command("--models", "resnet20", "cbamnet_tiny") == (0, [])


def test_another_version_is_run_again(quick):
    command, _, path = quick
    assert command("--models", "cbamnet_tiny")[0] == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["commit"] = "0" * 40
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    _, ran = command("--models", "cbamnet_tiny")
    assert len(ran) == 1


def test_shards_are_the_whole(quick):
    command, _, _ = quick
    models = ("--models", "cbamnet_tiny", "resnet20", "resnet9")
    parts = [command(*models, "--shard", f"{i}/3")[1] for i in (1, 2, 3)]
    whole = list(itertools.product(models[1:], (None, "cbam"), ("float32", "bfloat16")))
    assert [len(part) for part in parts] == [4, 4, 4]
    assert sorted(map(str, itertools.chain(*parts))) == sorted(map(str, whole))


def test_an_unknown_network_is_told():
    with pytest.raises(ValueError, match="unknown model 'resnet21'; did you mean"):
        matrix.main(["--models", "resnet21"])


# ---- The record of the whole


def test_every_network_attention_type_and_way_is_recorded_as_right():
    records = matrix.read(matrix.RECORDED)
    wanted = {
        (name, arm, dtype, way)
        for name, arm in itertools.product(list_models(), matrix.ARMS)
        for dtype, ways in matrix.WAYS.items()
        for way in ways
    }
    missing = wanted - records.keys()
    assert not missing, f"{len(missing)} are missing: run `python tests/matrix.py` and commit"
    wrong = [records[key] for key in wanted if not matrix.passed(records[key])]
    assert not wrong
