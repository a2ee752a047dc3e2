"""Attention maps."""

import pytest
import torch
from torch import nn

from cbam_edu import CBAM, create_model
from cbam_edu.explain import attention_maps


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
