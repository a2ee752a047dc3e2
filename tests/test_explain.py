"""Maps, costs and records."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import cbam_edu
from cbam_edu import CBAM, create_model, records
from cbam_edu.complexity import count
from cbam_edu.explain import attention_maps
from cbam_edu.train import Recipe


def test_attention_maps_are_what_the_gates_answer():
    torch.manual_seed(0)
    module = CBAM(8, 2).eval()
    x = torch.randn(2, 8, 5, 5)
    (maps,) = attention_maps(nn.Sequential(nn.Identity(), module), x)
    assert maps.name == "1"
    assert torch.equal(maps.channel, module.channel(x))
    assert torch.equal(maps.spatial, module.spatial(x * module.channel(x)))
    assert not maps.channel.requires_grad


def test_attention_maps_name_the_layers_in_order():
    model = create_model("resnet20", attention="cbam").eval()
    maps = attention_maps(model, torch.randn(1, 3, 32, 32))
    assert [m.name for m in maps] == [
        f"stages.{stage}.{block}.attention" for stage in range(3) for block in range(3)
    ]
    assert [tuple(m.channel.shape) for m in maps[::3]] == [
        (1, 16, 1, 1),
        (1, 32, 1, 1),
        (1, 64, 1, 1),
    ]
    assert [tuple(m.spatial.shape) for m in maps[::3]] == [
        (1, 1, 32, 32),
        (1, 1, 16, 16),
        (1, 1, 8, 8),
    ]
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_with_one_gate_has_one_map():
    (maps,) = attention_maps(nn.Sequential(CBAM(4, order="spatial-only")), torch.randn(1, 4, 3, 3))
    assert maps.channel is None
    assert maps.spatial is not None
    (maps,) = attention_maps(
        create_model("cbamnet_tiny", dims=(4,), attention="se"), torch.randn(1, 3, 8, 8)
    )
    assert maps.spatial is None


def test_hooks_are_gone_when_the_network_fails():
    model = nn.Sequential(CBAM(4))
    with pytest.raises(ValueError, match="expected an input"):
        attention_maps(model, torch.randn(1, 5, 3, 3))
    assert not any(m._forward_hooks for m in model.modules())


def test_a_network_without_gates_is_told():
    with pytest.raises(ValueError, match="CIFARResNet has no channel or spatial attention"):
        attention_maps(create_model("resnet20"), torch.randn(1, 3, 8, 8))


def test_a_record_holds_the_run():
    model = create_model("cbamnet_tiny", 4, dims=(4, 8))
    recipe = Recipe(epochs=2, seed=5)
    history = [
        {"accuracy": 0.4, "test_loss": 1.0, "train_accuracy": 0.3, "seconds": 1.0},
        {"accuracy": 0.5, "test_loss": 0.9, "train_accuracy": 0.6, "seconds": 2.25},
    ]
    line = records.record(
        "study",
        model,
        recipe,
        history,
        data="toy",
        images=(64, 16),
        device=torch.device("cpu"),
    )
    again = json.loads(json.dumps(line))
    assert (again["study"], again["model"], again["arm"], again["seed"]) == (
        "study",
        "cbamnet_tiny",
        "cbam",
        5,
    )
    assert (again["accuracy"], again["loss"], again["seconds"]) == (0.5, 0.9, 3.2)
    assert (again["epochs"], again["train_images"], again["test_images"]) == (2, 64, 16)
    assert (again["parameters"], again["multiply_accumulates"]) == count(model)[:2]
    assert Recipe(**again["recipe"]) == recipe
    assert again["versions"]["cbam_edu"] == cbam_edu.__version__
    assert again["device"].startswith("CPU (")


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", tmp_path, *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "cbam_edu"
    package.mkdir()
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    assert records.commit() is None  # no repository
    git("init", "-q")
    shutil.copy(Path(cbam_edu.__file__).parent / "attention.py", package)
    assert records.commit() is None  # a repository, but not of this code
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert records.commit() == git("rev-parse", "HEAD")
    (package / "attention.py").write_text("changed")
    assert records.commit() == git("rev-parse", "HEAD") + "-dirty"


def test_devices_are_named(monkeypatch):
    assert records.device_name(torch.device("mps")).startswith("MPS (")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert records.device_name(torch.device("cuda")) == "a GPU"
