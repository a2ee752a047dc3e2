"""The stopwatch: what it times computes what it should, and what it counts is right by hand."""

import json
import sys
from itertools import groupby

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cbam_edu import fused
from cbam_edu.attention import CBAM
from cbam_edu.benchmark import (
    IMPLEMENTATIONS,
    AuthorsCBAM,
    CommonCBAM,
    _network,
    compare,
    compare_networks,
    in_turns,
    kept_bytes,
    peak_bytes,
)
from cbam_edu.cli import main


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.double()


def carried(theirs: nn.Module, ours: CBAM, flip: bool = False) -> CBAM:
    """Give our CBAM the weights of another in the same order; `flip` swaps the pooled maps."""
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other.reshape(mine.shape))
        if flip:
            ours.spatial.conv.weight.copy_(ours.spatial.conv.weight.flip(1))
    return ours


X = torch.randn(3, 32, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_what_is_timed_as_the_authors_is_the_papers_cbam():
    theirs = drawn(AuthorsCBAM(32))
    ours = carried(theirs, CBAM(32).double())
    assert_close(theirs(X), ours(X), rtol=1e-12, atol=1e-12)


def test_what_is_timed_as_common_lacks_biases_and_norm_and_swaps_the_maps():
    theirs = drawn(CommonCBAM(32))
    ours = carried(theirs, CBAM(32, bias=False, norm=False).double(), flip=True)
    assert_close(theirs(X), ours(X), rtol=1e-12, atol=1e-12)


def test_what_is_timed_as_fused_is_fused(monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 0)
    module = drawn(IMPLEMENTATIONS["fused"](32))
    ours = carried(module, CBAM(32).double())
    x = X.clone().requires_grad_()
    assert_close(module(x), ours(X), rtol=1e-10, atol=1e-12)
    assert kept_bytes(lambda: module(x), []) < 0.8 * kept_bytes(lambda: ours(x), [])


def test_kept_bytes_by_hand():
    x = torch.randn(10, 4, requires_grad=True)
    weight = torch.randn(4, 7, requires_grad=True)
    assert kept_bytes(lambda: x @ weight, [weight]) == 10 * 4 * 4  # x, for weight's gradient
    assert kept_bytes(lambda: x * x, []) == 10 * 4 * 4  # once, though kept twice
    assert kept_bytes(lambda: x.sigmoid().exp(), []) == 2 * 10 * 4 * 4  # both results
    assert kept_bytes(lambda: x + 1, []) == 0


def test_peak_bytes_by_hand():
    x, cpu = torch.randn(10, 100), torch.device("cpu")
    assert peak_bytes(lambda: x, cpu) == 0
    assert peak_bytes(lambda: x.exp(), cpu) == x.nbytes
    assert peak_bytes(lambda: x.exp().sum(), cpu) == x.nbytes + 4
    assert peak_bytes(lambda: x.exp().exp().exp(), cpu) == 2 * x.nbytes  # never three at a time


def test_tasks_are_timed_in_turns():
    calls = []
    times = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    turns = [name for name, _ in groupby(calls)]  # torch's Timer warms up before each time
    assert turns == ["a", "b"] * 4  # the first turn only warms up
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(t > 0 for seconds in times.values() for t in seconds)


def test_every_implementation_gets_its_line():
    lines = compare((2, 16, 5, 4), ways=["eager"], rounds=3)
    assert [(r["implementation"], r["mode"]) for r in lines] == [
        (name, mode) for name in IMPLEMENTATIONS for mode in ("forward", "training")
    ]
    for line in lines:
        assert 0 < line["low"] <= line["milliseconds"] <= line["high"]
        assert line["copies"] > 0
        assert ("kept_maps" in line) == (line["mode"] == "training")
        assert line.get("peak_maps", 9) >= 1.9  # output and gradient, less what frees as it goes
        assert (line["shape"], line["rounds"], line["way"]) == ([2, 16, 5, 4], 3, "eager")


def test_a_network_gets_the_layers_of_an_implementation():
    kinds = {
        name: {type(m).__name__ for m in _network("cbamnet_tiny", name).modules()}
        for name in ("none", *IMPLEMENTATIONS)
    }
    assert not {"CBAM", "CbamModule", "AuthorsCBAM", "CommonCBAM"} & kinds["none"]
    for name, kind in (("timm", "CbamModule"), ("authors", "AuthorsCBAM"), ("fused", "CBAM")):
        assert kind in kinds[name]
    plain = [m for m in _network("cbamnet_tiny", "plain").modules() if isinstance(m, CBAM)]
    assert plain
    assert {type(m) for m in plain} == {CBAM}


def test_networks_are_timed_beside_the_one_without():
    lines = compare_networks("cbamnet_tiny", ways=["eager"], batch_size=4, rounds=2)
    assert [line["implementation"] for line in lines] == ["none", "plain", "fused", "timm"]
    assert lines[0]["times_none"] == 1
    assert all(line["times_none"] > 0 and line["peak_megabytes"] > 0 for line in lines)
    assert lines[1]["peak_megabytes"] > lines[0]["peak_megabytes"]
    (alone,) = compare_networks("resnet20", names=["timm"], ways=["eager"], batch_size=2, rounds=2)
    assert "times_none" not in alone


def test_without_timm_the_others_can_be_timed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm.layers.cbam", None)
    words = ["benchmark", "--device", "cpu", "--shape", "1x4x2x2", "--rounds", "2"]
    assert main(words) == 2
    assert "pip install timm, or choose other names" in capsys.readouterr().err
    assert main([*words, "--names", "fused"]) == 0


def test_an_unknown_implementation_is_told():
    with pytest.raises(ValueError, match="unknown implementation 'tim'; did you mean timm"):
        compare((1, 1, 1, 1), names=["tim"])
    with pytest.raises(ValueError, match="unknown implementation 'no'; did you mean none"):
        compare_networks("resnet20", names=["no"])


def test_the_command_prints_a_table_and_adds_lines(tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    words = ["benchmark", "--shape", "2x16x4x4", "--rounds", "2", "--device", "cpu", "--out"]
    for count in (1, 2):  # a second run loses nothing of the first
        assert main([*words, str(out)]) == 0
        lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert len(lines) == count * 2 * len(IMPLEMENTATIONS)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("2 x 16 x 4 x 4, float32, contiguous, CPU (")
    assert [line.split()[0] for line in shown[2:12:2]] == list(IMPLEMENTATIONS)


def test_the_command_times_networks(tmp_path, capsys):
    words = ["benchmark", "--model", "cbamnet_tiny", "--batch", "4", "--rounds", "2", "--out"]
    assert main([*words, str(tmp_path / "lines.jsonl"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("cbamnet_tiny, 4 images, float32, contiguous, CPU (")
    assert [line.split()[0] for line in shown[2:]] == ["none", "plain", "fused", "timm"]
    assert len((tmp_path / "lines.jsonl").read_text("utf-8").splitlines()) == 4
    assert main([*words[:-1], "--device", "cpu", "--names", "timm", "none"]) == 0
    assert [s.split()[0] for s in capsys.readouterr().out.splitlines()[2:]] == ["timm", "none"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "64x64"], "a shape is N x C x H x W, such as 64x64x32x32; got '64x64'"),
        (["--shape", "1x0x2x2"], "got '1x0x2x2'"),
        (["--shape", "axbxcxd"], "got 'axbxcxd'"),
        (["--names", "tim"], "unknown implementation 'tim'; did you mean timm"),
        (["--model", "resnet21"], "unknown model 'resnet21'; did you mean resnet32 or resnet20"),
        (["--model", "resnet20", "--batch", "0"], "batch must be a positive integer, got 0"),
        (["--rounds", "1"], "rounds must be 2 or more, to tell a spread; got 1"),
        (["--shape", f"{10**20}x1x1x1"], "is a map of more than 1,099,511,627,776 values"),
        (["--precision", "float8"], "unknown precision 'float8'; did you mean float"),
        (["--out", "none/lines.jsonl", "--shape", "1x4x2x2", "--rounds", "2"], "cannot write none"),
    ],
)
def test_wrong_words_are_told(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--device", "cpu", *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_timing_leaves_the_callers_seed_alone():
    """It draws, but what comes after still hangs on the seed that the caller has set."""
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        compare((1, 4, 4, 4), names=("plain",), ways=("eager",), rounds=2, number=1)
        compare_networks("resnet8", names=("none",), ways=("eager",), batch_size=1, rounds=2)
        after.append(torch.rand(4))
    assert not torch.equal(*after)
