"""Attention maps; Grad-CAM, derived a second time; and their sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu import CBAM, create_model, models
from cbam_edu.explain import attention_maps, grad_cam, resize
from cbam_edu.models import CBAMNet, CIFARResNet, ResNet9
from cbam_edu.neighbours import ATTENTIONS, STUDIED
from cbam_edu.train import evaluating


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


# ---- Grad-CAM

CIFAR = [n for n, (kind, _) in models._MODELS.items() if kind in (CBAMNet, CIFARResNet, ResNet9)]
CLASSES = torch.tensor([2, 0, 4])


def network(name: str, attention: str | None = None) -> nn.Module:
    """Return a narrow network for five classes, its numbers double, its BatchNorms not at rest."""
    torch.manual_seed(0)
    dims = (4, 6, 8, 4) if name == "resnet9" else (4, 6)
    model = create_model(name, 5, attention=attention, dims=dims).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def images(side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, side, side + 4, generator=generator, dtype=torch.float64)


def by_hooks(model: nn.Module, x: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
    """Equations 1 and 2 of Selvaraju et al., one image after the other, with backward hooks."""
    maps = []
    for image, wanted in zip(x, classes.tolist(), strict=True):
        kept = {}
        hooks = [
            layer.register_forward_hook(lambda m, i, out, kept=kept: kept.update(a=out.detach())),
            layer.register_full_backward_hook(lambda m, i, o, kept=kept: kept.update(g=o[0])),
        ]
        model(image[None].clone().requires_grad_())[0, wanted].backward()
        for hook in hooks:
            hook.remove()
        places = kept["a"].shape[2] * kept["a"].shape[3]
        alpha = kept["g"][0].sum((1, 2)) / places
        maps.append(torch.einsum("k,khw->hw", alpha, kept["a"][0]).clamp(min=0))
    model.zero_grad()
    return torch.stack(maps)


@pytest.mark.parametrize("name", CIFAR)
def test_grad_cam_of_every_network_by_hooks(name):
    model, x = network(name, "cbam"), images()
    found = grad_cam(model, x, CLASSES, model.stages[0])
    assert_close(found, by_hooks(model, x, CLASSES, model.stages[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cbamnet_tiny", "resnet8", "resnet9"])
@pytest.mark.parametrize("attention", [None, *ATTENTIONS, *STUDIED])
def test_grad_cam_of_every_attention_and_stage_by_hooks(name, attention):
    model, x = network(name, attention), images()
    for layer in model.stages:
        found = grad_cam(model, x, CLASSES, layer)
        assert_close(found, by_hooks(model, x, CLASSES, layer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cbamnet_tiny", "resnet8"])
def test_over_mean_pooling_grad_cam_is_cam(name):
    """Selvaraju et al., section 3.1: with a linear head after it, CAM over the number of places.

    CAM (B. Zhou et al., CVPR 2016) weights the last maps with the head's weights of the class.
    """
    model, x = network(name, "cbam"), images()
    last = model.forward_features(x)[-1].detach()
    cam = torch.einsum("nk,nkhw->nhw", model.head.weight.detach()[CLASSES], last)
    places = last.shape[2] * last.shape[3]
    assert_close(grad_cam(model, x, CLASSES, model.stages[-1]), F.relu(cam) / places)
    assert cam.min() < 0 < cam.max()


def test_over_max_pooling_each_channels_gradient_is_at_one_place():
    model, x = network("resnet9"), images(16)
    last = model.forward_features(x)[-1].detach()
    cam = torch.einsum("nk,nkhw->nhw", model.head.weight.detach()[CLASSES], last) / 8
    places = last.shape[2] * last.shape[3]
    assert_close(grad_cam(model, x, CLASSES, model.stages[-1]), F.relu(cam) / places)


def test_grad_cam_by_hand():
    """Two maps of two places; the class wants the first and not the second."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4, 1, bias=False))
    model[2].weight.data = torch.tensor([[1.0, 3.0, -1.0, 0.0]])
    x = torch.tensor([[[[5.0, 1.0]], [[2.0, 8.0]]]])
    # The mean gradients are 2 and -1/2: 2 * 5 - 2 / 2 = 9, and 2 * 1 - 8 / 2 < 0.
    assert grad_cam(model, x, torch.tensor([0]), model[0]).tolist() == [[[9.0, 0.0]]]


def test_grad_cam_works_whatever_the_mode():
    model, x = network("resnet8", "cbam"), images()
    layer = model.stages[-1]
    wanted = grad_cam(model, x, CLASSES, layer)
    assert not wanted.requires_grad
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def same() -> None:
        assert_close(grad_cam(model, x, CLASSES, layer), wanted, rtol=0, atol=0)

    with torch.no_grad():
        same()
    model.train()
    same()
    model.requires_grad_(False)
    same()
    with torch.no_grad():
        same()
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not x.requires_grad
    assert not any(m._forward_hooks for m in model.modules())
    for one in range(3):
        alone = grad_cam(model, x[one : one + 1], CLASSES[one : one + 1], layer)
        assert_close(alone, wanted[one : one + 1])
    last = x.to(memory_format=torch.channels_last)
    assert_close(grad_cam(model, last, CLASSES, layer), wanted)


def test_every_part_keeps_its_mode():
    model = network("resnet8").train()
    model.bn.eval()  # a part that is frozen
    modes = [module.training for module in model.modules()]
    grad_cam(model, images(), CLASSES, model.stages[0])
    assert [module.training for module in model.modules()] == modes
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


class Head(nn.Module):
    """A layer, and what a network does with what it returns."""

    def __init__(self, layer: nn.Module, rest):
        super().__init__()
        self.layer, self.rest = layer, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layer, x)


def test_a_layer_whose_output_is_written_over():
    """As by ReLU in place: the map is what the layer returned, not what was made of it."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3), images().float()
    new, over = (
        Head(layer, lambda part, x, act=act: act(part(x)).mean((2, 3)))
        for act in (torch.relu, torch.relu_)
    )
    wanted = grad_cam(new, x, CLASSES, layer)
    assert_close(grad_cam(over, x, CLASSES, layer), wanted)
    assert_close(by_hooks(new, x, CLASSES, layer), wanted)


@pytest.mark.parametrize(
    ("layer", "rest", "message"),
    [
        (nn.Conv2d(3, 3, 1), lambda f, x: f(f(x)).mean((2, 3)), "Conv2d returned .*, .*"),
        (nn.Conv2d(3, 3, 1), lambda f, x: x.mean((2, 3)), "Conv2d returned no tensor"),
        (nn.Flatten(), lambda f, x: f(x)[:, :5], r"Flatten returned \(3, 288\)"),
        (
            nn.LSTM(12, 5, batch_first=True),
            lambda f, x: f(x[:, 0])[0].mean(1),
            "LSTM returned no tensor",
        ),
    ],
    ids=["twice", "never", "flat", "no tensor"],
)
def test_a_layer_that_has_no_one_map_is_told(layer, rest, message):
    model, x = Head(layer, rest).train(), images().float()
    with pytest.raises(ValueError, match=r"called once and return \(N, C, h, w\); " + message):
        grad_cam(model, x, CLASSES % 3, layer)
    assert layer.training
    assert not layer._forward_hooks


def test_a_layer_without_a_say_is_told():
    layer = nn.Conv2d(3, 3, 1)
    model = Head(layer, lambda f, x: (f(x), x.mean((2, 3)))[1])
    with pytest.raises(ValueError, match="the logits do not depend on what the layer, Conv2d, ret"):
        grad_cam(model, images().float(), CLASSES % 3, layer)


def test_all_is_as_it_was_when_the_network_fails():
    model = network("resnet8").train()
    with pytest.raises(RuntimeError, match="channels"):
        grad_cam(model, torch.randn(1, 5, 8, 8).double(), CLASSES[:1], model.stages[0])
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


# ---- Resize


def test_resize_by_hand():
    """The middles of places are what values stand for: 1/4 and 3/4 of the way, and the edges."""
    maps = torch.tensor([[[0.0, 4.0]]])
    assert resize(maps, (1, 4)).tolist() == [[[0, 1, 3, 4]]]
    assert resize(maps.mT, (4, 2))[0].T.tolist() == [[0, 1, 3, 4], [0, 1, 3, 4]]


def test_resize_keeps_what_it_should():
    maps = torch.rand(2, 3, 5, dtype=torch.float64)
    assert torch.equal(resize(maps, (3, 5)), maps)
    larger = resize(maps, (12, 30))
    assert larger.shape == (2, 12, 30)
    assert larger.dtype == torch.float64
    assert larger.min() >= maps.min()
    assert larger.max() <= maps.max()
    assert_close(larger.mean((1, 2)), maps.mean((1, 2)), atol=0.1, rtol=0)
    assert_close(resize(torch.full((1, 2, 2), 0.3), (7, 9)), torch.full((1, 7, 9), 0.3))
    assert_close(resize(maps[1:], (12, 30)), larger[1:])


@pytest.mark.parametrize("classes", [[5, 0, 1], [0, -1, 2]])
def test_grad_cam_is_asked_about_classes_that_there_are(classes):
    model = network("resnet8")
    with pytest.raises(ValueError, match="classes must lie between 0 and 4, for a network of 5"):
        grad_cam(model, images(), torch.tensor(classes), model.stages[-1])
