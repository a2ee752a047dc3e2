"""One image's pass through a network, written down."""

import pytest
import torch
from torch import nn

from cbam_edu.recording import is_map, record

SIZE = (3, 8, 8)


def names(model: nn.Module, size: tuple[int, int, int] = SIZE) -> list[str]:
    return [operation.name for operation in record(model, size)[0]]


class Step(nn.Module):
    """A network of one function."""

    def __init__(self, step, *parts: nn.Module):
        super().__init__()
        self.step = step
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return self.step(x, *self.parts)


def test_operations_know_whose_results_they_take():
    conv, relu = nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(inplace=True)

    def step(x, conv, relu):
        y = conv(x)
        y += x  # in place: the same tensor, another value
        torch.ones(3) * 2  # has nothing to do with the image
        return relu(y).clone() + y

    operations, calls = record(Step(step, conv, relu), SIZE)
    assert [(o.name, o.parents) for o in operations] == [
        ("image", ()),
        ("convolution", (0,)),
        ("add", (1, 0)),
        ("relu", (2,)),
        ("clone", (3,)),
        ("add", (4, 3)),
    ]
    assert {o.shape for o in operations} == {(1, *SIZE)}
    assert [(c.module, c.operation) for c in calls[:2]] == [(conv, 1), (relu, 3)]
    assert calls[-1].operation == 5
    assert [o.pointwise for o in operations] == [False, False, True, True, True, True]


def test_a_module_that_passes_its_input_through():
    parts = [nn.Identity(), nn.Dropout(), nn.ReLU(inplace=True), nn.Sequential(nn.Identity())]
    _, calls = record(nn.Sequential(nn.Conv2d(3, 3, 1), *parts).train(), SIZE)
    passing = {call.module: call.passes_through for call in calls}
    assert [passing[part] for part in parts] == [True, True, False, True]


@pytest.mark.parametrize(
    ("step", "flag"),
    [
        (lambda x: x.split(1, 1)[0], "piece"),
        (lambda x: x.chunk(3, 1)[0], "piece"),
        (lambda x: x[:, :2], "piece"),
        (lambda x: x * torch.ones(3, 1, 1), "scales"),
        (lambda x: nn.functional.interpolate(x, scale_factor=2), "grows"),
        (lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bicubic"), "grows"),
        (lambda x: nn.functional.conv_transpose2d(x, torch.ones(3, 3, 2, 2)), "grows"),
        (lambda x: torch.cat([x, x], 1), "channel_cat"),
        (lambda x: torch.cat([x, x], dim=-3), "channel_cat"),
        (lambda x: x.permute(0, 2, 3, 1), "channels_last"),
    ],
)
def test_what_an_operation_is(step, flag):
    last = record(Step(step), SIZE)[0][-1]
    flags = ("piece", "scales", "grows", "channel_cat", "channels_last")
    assert [f for f in flags if getattr(last, f)] == [flag]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x[:, :, ::2],
        lambda x: x * 2,
        lambda x: x * torch.tensor(2.0),
        lambda x: x * x,
        lambda x: nn.functional.conv2d(x, torch.ones(3, 3, 1, 1)),
        lambda x: nn.functional.max_pool2d(x, 2),
        lambda x: torch.cat([x, x]),
        lambda x: torch.cat([x, x], 2),
        lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1),
        lambda x: x.permute(0, 1, 3, 2),
    ],
)
def test_what_an_operation_is_not(step):
    last = record(Step(step), SIZE)[0][-1]
    flags = ("piece", "scales", "grows", "channel_cat", "channels_last")
    assert not any(getattr(last, flag) for flag in flags)


LINEAR = nn.Linear(3, 8)


@pytest.mark.parametrize(
    ("step", "last"),
    [
        (lambda x: LINEAR(x.permute(0, 2, 3, 1)), True),
        (lambda x: torch.relu(LINEAR(x.permute(0, 2, 3, 1))) * 2, True),
        (lambda x: LINEAR(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), False),
        (lambda x: LINEAR(x.flatten(2).transpose(1, 2)).view(1, 8, 8, 8), False),
        (lambda x: x * LINEAR(x.mean((2, 3)))[:, :3, None, None], False),
        (lambda x: nn.functional.linear(x.flatten(1), torch.ones(32, 192)).view(1, 8, 2, 2), False),
    ],
)
def test_where_the_channels_are(step, last):
    operations, calls = record(nn.Sequential(Step(step)), SIZE)
    assert operations[-1].channels_last == last
    assert calls[-1].channels_last == last
    assert is_map(calls[-1]) == (not last)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.flatten(1),
        lambda x: x[0],
        lambda x: (x, x),
        lambda x: {"out": x},
        lambda x: x.long(),
        lambda x: None,
    ],
)
def test_what_is_no_map(step):
    assert not is_map(record(Step(step), SIZE)[1][-1])


def test_what_does_not_come_from_the_image_is_no_operation():
    _, calls = record(Step(lambda x: torch.ones(1, 8, 4, 4)), SIZE)
    assert calls[-1].operation == -1
    assert is_map(calls[-1])


def test_a_network_without_numbers_of_its_own():
    assert names(nn.ReLU()) == ["image", "relu"]


class Noisy(nn.Module):
    """Random even in evaluation, and itself changed in training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.drop(self.norm(x + torch.rand_like(x)))


def test_the_network_and_the_generator_are_left_as_they_were():
    model = Noisy().train()
    model.drop.eval()
    state = torch.get_rng_state()
    record(model, SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))
    assert model.norm.num_batches_tracked == 0
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_so_are_they_where_the_pass_fails():
    def fail(x, drop):
        torch.rand(1)
        raise RuntimeError("no such\nimage")

    model = Step(fail, nn.Dropout()).train()
    state = torch.get_rng_state()
    message = r"^Step fails on an image of input_size=\(3, 8, 8\) \(RuntimeError: no such\); give"
    with pytest.raises(ValueError, match=message) as error:
        record(model, SIZE)
    assert str(error.value.__cause__) == "no such\nimage"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_image_has_the_networks_type(dtype):
    _, calls = record(nn.Conv2d(3, 4, 1).to(dtype), SIZE)
    assert calls[-1].output.dtype == dtype
