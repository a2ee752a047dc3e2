"""Our networks in timm: made by name, and trained by a script of timm's kind."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

import cbam_edu.timm_models  # registers them
from cbam_edu import create_model, list_models
from cbam_edu.attention import CBAM
from cbam_edu.models import ResNet
from cbam_edu.neighbours import SqueezeExcitation


def kinds(model: nn.Module, kind: type) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


def test_every_network_is_registered():
    names = {"cbam_edu_" + name.replace(".", "_") for name in list_models()}
    assert names == set(timm.list_models("cbam_edu_*"))


def test_timm_makes_a_resnet50_with_cbam():
    torch.manual_seed(0)
    model = timm.create_model("cbam_edu_resnet50")
    assert isinstance(model, ResNet)
    assert kinds(model, CBAM) == 16
    assert model.num_classes == model.head.out_features == 1000
    torch.manual_seed(0)
    ours = create_model("resnet50", attention="cbam")
    assert all(map(torch.equal, model.state_dict().values(), ours.state_dict().values()))


def test_a_name_with_a_dot():
    model = timm.create_model("cbam_edu_wideresnet18_1_5")
    assert model.config["name"] == "wideresnet18_1.5"


def test_options_reach_the_network():
    model = timm.create_model(
        "cbam_edu_resnet18", num_classes=7, attention="se", attention_options={"reduction": 4}
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert kinds(model, SqueezeExcitation) == 8
    assert model.stages[0][0].attention.channel.mixer[0].out_features == 16
    assert kinds(timm.create_model("cbam_edu_resnet18", attention="none"), CBAM) == 0
    assert timm.create_model("cbam_edu_resnet50", stride_on="3x3").config["stride_on"] == "3x3"


def test_timm_finds_size_and_colours():
    config = resolve_data_config({}, model=timm.create_model("cbam_edu_resnet18"))
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    config = resolve_data_config({}, model=timm.create_model("cbam_edu_resnet20"))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == cbam_edu.data.MEAN


def test_arguments_of_timms_scripts_that_change_nothing():
    """What train.py passes where its user asked for none of it."""
    model = timm.create_model(
        "cbam_edu_resnet20",
        pretrained=False,
        in_chans=3,
        num_classes=10,
        drop_rate=0.0,
        drop_path_rate=None,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        checkpoint_path="",
    )
    assert model.num_classes == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "timm has no weights of resnet20; see cbam_edu.load_pretrained"),
        ({"in_chans": 1}, "in_chans must be 3 for resnet20, got 1"),
        ({"drop_rate": 0.2}, "drop_rate must be 0.0 for resnet20, got 0.2"),
        ({"global_pool": "max"}, "global_pool must be 'avg' for resnet20, got 'max'"),
        ({"attention": "cbma"}, "did you mean cbam"),
        ({"drop_path_rate": 0.1}, "unknown option of resnet20 'drop_path_rate'"),
    ],
)
def test_what_it_cannot_do_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("cbam_edu_resnet20", **options)


SCRIPT = """
import sys, timm
assert __name__ == "__main__"
model = timm.create_model(sys.argv[1])
print(sys.argv, type(model).__name__)
"""


def run_module(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cbam_edu.timm_models", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_script_that_knows_nothing_of_us_finds_them(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = run_module(str(script), "cbam_edu_resnet18")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"{[str(script), 'cbam_edu_resnet18']} ResNet"
    assert "Overwriting" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "which script?"), (["none.py"], "none.py is no file; give the path")],
)
def test_no_script_is_told(words, message):
    done = run_module(*words)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
