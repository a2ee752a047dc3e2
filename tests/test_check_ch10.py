"""The judges of chapter 10 accept what is right, and name the usual mistakes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu import explain, localise
from cbam_edu.check import ch10
from cbam_edu.models import create_model
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "10_what_does_it_look_at.ipynb")


def test_there_are_five_exercises() -> None:
    assert len(EXERCISES) == 5


# 10.1


def weighted(
    axes: tuple[int, ...] = (2, 3), then: Callable[[Tensor], Tensor] = F.relu
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, g: then((g.mean(axes, keepdim=True) * a).sum(1))


def over_their_maxima(maps: Tensor) -> Tensor:
    return maps.relu() / maps.relu().amax((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (weighted(then=lambda maps: maps), "The negative sums are still there"),
        (weighted(then=torch.abs), "the absolute value"),
        (weighted(axes=(1,)), "averaged over the channels"),
        (weighted(axes=(0, 2, 3)), "averaged over the images as well"),
        (weighted(then=over_their_maxima), "divided by their largest values"),
        (lambda a, g: weighted()(g, a), "The two are swapped"),
        (lambda a, g: weighted()(a, g)[:, None], "The axis of the channels is still there"),
        (lambda a, g: (g * a).sum(1).relu(), "HiResCAM"),
        (lambda a, g: (g.sum((2, 3), True) * a).sum(1).relu(), "The weights are sums"),
        (lambda a, g: (g.mean((2, 3), True) * a).mean(1).relu(), "The channels are averaged"),
        (lambda a, g: (g.mean((2, 3), True) * a).relu().sum(1), "each channel by itself"),
        (lambda a, g: (g.mean((2, 3), True).relu() * a).sum(1).relu(), "This cuts the weights"),
        (lambda a, g: weighted()(a, g).sum(0), "has shape (4, 5)"),
        (lambda a, g: weighted()(a, -g), "it should be"),
        (lambda a, g: weighted()(a, g).tolist(), "must be a tensor, but is a list"),
        (lambda a, g: a @ g, "Your code stopped with RuntimeError"),
        (lambda a, g: (g.mean((2, 3)) * a).sum(1).relu(), "must match the size of tensor"),
        (lambda a, g: weighted()(a, g).reshape(2, 4, 5), "is invalid for input of size"),
        (lambda a, g: weighted()(a[:1], g[:1]), "has shape (1, 4, 5); it should have (2, 4, 5)"),
        (lambda a, g: weighted()(a, g.relu()), "it should be 0.9153"),
        (lambda a, g: weighted()(a, g.abs()), "it should be 0.9153"),
        (weighted(then=torch.sigmoid), "it should be 0"),
        (lambda a, g: torch.zeros(len(a), *a.shape[2:]), "is 0; it should be 0.9153"),
        (lambda a, g: F.interpolate(weighted()(a, g)[:, None], (32, 32))[:, 0], "(2, 32, 32)"),
        (lambda a, g: weighted()(a, g).numpy(), "must be a tensor, but is a ndarray"),
    ],
)
def test_cam_names_the_mistake(
    answer: Callable[[Tensor, Tensor], Any], reason: str, capsys: Any
) -> None:
    refuses(ch10.cam, answer, reason, capsys)


def test_cam_takes_other_spellings(capsys: Any) -> None:
    def by_einsum(a: Tensor, g: Tensor) -> Tensor:
        return torch.einsum("nchw,nc->nhw", a, g.flatten(2).mean(2)).clamp_min(0)

    accepts(ch10.cam, by_einsum, capsys)
    accepts(ch10.cam, weighted(axes=(-1, -2)), capsys)
    waits(ch10.cam, lambda a, g: None, capsys)


# 10.2


def highest(maps: Tensor) -> Tensor:
    return maps == maps.amax((1, 2), keepdim=True)


def first_of_the_highest(maps: Tensor, masks: Tensor) -> Tensor:
    return masks.flatten(1)[torch.arange(len(maps)), maps.flatten(1).argmax(1)]


def of_all_images(maps: Tensor, masks: Tensor) -> Tensor:
    found = maps == maps.max()
    return (found & masks).sum((1, 2)) / found.sum()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (first_of_the_highest, "this takes the first of them"),
        (lambda m, k: (highest(m) & k).any(2).any(1), "if one of them lies in the mask"),
        (lambda m, k: ~(highest(m) & ~k).flatten(1).any(1), "only if all of them"),
        (of_all_images, "the highest place of all images together"),
        (lambda m, k: (highest(m) & k).sum((1, 2)) / k.sum((1, 2)), "the size of the mask"),
        (lambda m, k: (highest(m) & k).sum((1, 2)), "This counts the highest places"),
        (localise.energy_inside, "the energy inside the mask"),
        (lambda m, k: localise.pointing_game(m, k).mean(), "one number for all images"),
        (localise.overlap, "it should be"),
        (lambda m, k: localise.pointing_game(m, k).tolist(), "must be a tensor"),
        (lambda m, k: localise.pointing_game(m, k)[:, None], "has shape (5, 1)"),
        (lambda m, k: 1 - localise.pointing_game(m, k), "is 1; it should be 0"),
        (lambda m, k: localise.pointing_game(-m, k), "it should be 0"),
        (lambda m, k: (m * k).amax((1, 2)), "it should be 0"),
        (lambda m, k: k.float().mean((1, 2)), "it should be 1"),
        (lambda m, k: m.masked_fill(~k, -1).amax((1, 2)) == m.amax((1, 2)), "if one of them"),
        (lambda m, k: (highest(m) & k).sum(1) / highest(m).sum(1), "has shape (5, 6)"),
        (lambda m, k: localise.pointing_game(m, k).mean().item(), "must be a tensor"),
    ],
)
def test_pointing_names_the_mistake(
    answer: Callable[[Tensor, Tensor], Any], reason: str, capsys: Any
) -> None:
    refuses(ch10.pointing, answer, reason, capsys)


def test_pointing_takes_the_packages_answer_and_waits(capsys: Any) -> None:
    accepts(ch10.pointing, localise.pointing_game, capsys)
    accepts(ch10.pointing, lambda m, k: localise.pointing_game(m, k).double(), capsys)
    waits(ch10.pointing, lambda m, k: ..., capsys)


# 10.3

CHANGES = {question: right for question, (right, _) in ch10.CHANGES.items()}
QUESTIONS = list(CHANGES)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, "the same", "goes through the head"),
        (1, "another", "comes after the gate"),
        (2, "another", "does not stand in the logit's gradient"),
        (3, "the same", "All gradients double"),
        (4, "the same", "another row of the head"),
        (5, "another", "no image sees another"),
        (3, "another", "All gradients double"),
        (0, "yes", "answer with one of 'the same', 'a factor', 'another', not 'yes'"),
        (0, "Another", "answer with one of"),
        (3, 2, "not 2"),
        (1, True, "not True"),
        (1, ["the same"], "not ['the same']"),
        (1, np.array(["the same", "another"]), "answer with one of"),
    ],
)
def test_changes_says_why(place: int, value: Any, reason: str, capsys: Any) -> None:
    refuses(ch10.changes, CHANGES | {QUESTIONS[place]: value}, reason, capsys)


def test_changes_wants_the_six_questions_and_waits(capsys: Any) -> None:
    refuses(ch10.changes, CHANGES | {"and": "another"}, "Keep the six questions", capsys)
    refuses(ch10.changes, list(CHANGES.values()), "Keep the six questions", capsys)
    refuses(ch10.changes, {q: CHANGES[q] for q in QUESTIONS[1:]}, "Keep the six questions", capsys)
    refuses(ch10.changes, dict.fromkeys(QUESTIONS, "the same"), "goes through the head", capsys)
    accepts(ch10.changes, CHANGES, capsys)
    accepts(ch10.changes, dict(reversed(CHANGES.items())), capsys)
    waits(ch10.changes, CHANGES | {QUESTIONS[2]: ...}, capsys)


def test_what_is_said_to_change_does_change() -> None:
    """The answers of exercise 10.3, seen on a network."""
    torch.manual_seed(0)
    model = create_model("resnet8", attention="cbam").eval()
    x, classes = torch.randn(3, 3, 16, 16), torch.tensor([1, 5, 7])

    def cam(model: nn.Module, classes: Tensor) -> Tensor:
        return explain.grad_cam(model, x, classes, model.get_submodule("stages.2"))

    def gate(model: nn.Module, x: Tensor) -> Tensor:
        found = explain.attention_maps(model, x)[-1].spatial
        assert found is not None
        return found

    def changed(name: str, by: Callable[[Tensor], Tensor]) -> nn.Module:
        other = copy.deepcopy(model)
        with torch.no_grad():
            weight = other.get_parameter(f"head.{name}")
            weight.copy_(by(weight))
        return other

    other_head = changed("weight", torch.randn_like)
    pairs = [
        (cam(model, classes), cam(other_head, classes)),
        (gate(model, x), gate(other_head, x)),
        (cam(model, classes), cam(changed("bias", torch.randn_like), classes)),
        (cam(model, classes), cam(changed("weight", lambda w: 2 * w), classes)),
        (cam(model, classes), cam(model, classes + 1)),
        (gate(model, x)[:1], gate(model, x[:1])),
    ]
    for (question, right), (before, after) in zip(CHANGES.items(), pairs, strict=True):
        factor = after.sum() / before.sum()
        seen = (
            "the same"
            if torch.allclose(before, after, atol=1e-6)
            else "a factor"
            if torch.allclose(factor * before, after, rtol=1e-3, atol=1e-6)
            else "another"
        )
        assert seen == right, question


# 10.4


def mended(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    layer: nn.Module,
    *,
    unhook: bool = True,
    after: Callable[[nn.Module, bool], Any] = lambda model, training: model.train(training),
) -> Tensor:
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, out: kept.append(out))
    training = model.training
    logits = model.eval()(x)
    if unhook:
        hook.remove()
    after(model, training)
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept[0])
    return F.relu((gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1))


def runs_once_more(model: nn.Module, *rest: Any) -> Tensor:
    maps = explain.grad_cam(model, *rest)
    model(rest[0])  # in whatever mode it is
    return maps


def keeps_its_mode(answer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def repaired(model: nn.Module, *rest: Any) -> Tensor:
        training = model.training
        maps = answer(model, *rest)
        model.train(training)
        return maps

    return repaired


def colleague(model: nn.Module, x: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
    kept: list[Tensor] = []
    layer.register_forward_hook(lambda module, given, out: kept.append(out))
    chances = model(x).softmax(1)
    chosen = chances.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, kept[0])
    weights = gradient.mean(1, keepdim=True)
    return F.relu((weights * kept[0].detach()).sum(1))


def test_repaired_knows_the_colleague(capsys: Any) -> None:
    refuses(ch10.repaired, colleague, "all three are still wrong", capsys)


@pytest.mark.parametrize(("reason", "answer"), list(ch10.BUGS.items()))
def test_repaired_knows_its_bugs(answer: Callable[..., Tensor], reason: str, capsys: Any) -> None:
    refuses(ch10.repaired, keeps_its_mode(answer), reason, capsys)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (partial(mended, unhook=False), "1 hook is left"),
        (partial(mended, after=lambda model, training: None), "is now in evaluation mode"),
        (partial(mended, after=lambda model, training: model.train()), "is now in training mode"),
        (runs_once_more, "BatchNorm's stored means have changed"),
        (torch.no_grad()(mended), "does not require grad"),
        (lambda model, *rest: explain.grad_cam(copy.deepcopy(model), *rest), "ValueError"),
        (lambda *given: mended(*given).numpy(), "must be a tensor, but is a ndarray"),
        (lambda *given: over_their_maxima(mended(*given)), "it should be"),
        (lambda *given: 2 * mended(*given), "it should be"),
        (lambda *given: mended(*given)[:, None], "The map has shape"),
    ],
)
def test_repaired_refuses_what_is_left_undone(
    answer: Callable[..., Tensor], reason: str, capsys: Any
) -> None:
    refuses(ch10.repaired, answer, reason, capsys)


def test_repaired_takes_what_is_right_and_waits(capsys: Any) -> None:
    def by_backward(model: nn.Module, x: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: Any, out: Tensor) -> None:
            out.retain_grad()
            kept.append(out)

        hook, training = layer.register_forward_hook(keep), model.training
        model.eval()
        model(x)[torch.arange(len(x)), classes].sum().backward()
        hook.remove()
        model.train(training)
        gradient = kept[0].grad
        assert gradient is not None
        return F.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1))

    def on_a_copy(model: nn.Module, x: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
        (name,) = (name for name, module in model.named_modules() if module is layer)
        other = copy.deepcopy(model)
        return mended(other, x, classes, other.get_submodule(name))

    accepts(ch10.repaired, mended, capsys)
    accepts(ch10.repaired, by_backward, capsys)
    accepts(ch10.repaired, explain.grad_cam, capsys)
    accepts(ch10.repaired, on_a_copy, capsys)
    waits(ch10.repaired, lambda *given: None, capsys)


# 10.5


class Blindfolded(nn.Module):
    def __init__(self, model: nn.Module, start: float = 0.5, end: float = 1.0):
        super().__init__()
        self.model, self.start, self.end = model, start, end

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.clone(), x.shape[3]
        x[..., int(self.start * width) : int(self.end * width)] = 0
        out: Tensor = self.model(x)
        return out


def halved(x: Tensor) -> Tensor:
    return torch.cat([x[..., : x.shape[3] // 2], 0 * x[..., x.shape[3] // 2 :]], 3)


def share(maps: Tensor, of: str = "whole") -> Tensor:
    left, right = maps.split(maps.shape[2] // 2, 2)
    total = {"whole": maps, "left": left}[of]
    return right.sum((1, 2)) / total.sum((1, 2))


def lower(maps: Tensor) -> Tensor:
    return maps[:, maps.shape[1] // 2 :].sum((1, 2)) / maps.sum((1, 2))


def half_of(maps: Tensor) -> Tensor:
    return maps[..., maps.shape[2] // 2 :]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda e, m, x: share(e(m, x)), "was not blindfolded: it saw the whole"),
        (lambda e, m, x: share(e(m, halved(x))), "The picture was covered"),
        (lambda e, m, x: share(e(Blindfolded(m), halved(x))), "both covered"),
        (lambda e, m, x: 1 - share(e(Blindfolded(m), x)), "in the left half"),
        (lambda e, m, x: share(e(Blindfolded(m, 0, 0.5), x)), "The left half was covered"),
        (lambda e, m, x: half_of(e(Blindfolded(m), x)).sum((1, 2)), "This is the sum"),
        (lambda e, m, x: half_of(e(Blindfolded(m), x)).mean((1, 2)), "This is the mean"),
        (lambda e, m, x: share(e(Blindfolded(m), x), "left"), "by the left one"),
        (lambda e, m, x: share(e(Blindfolded(m), x)).mean(), "one number for each image"),
        (lambda e, m, x: share(e(Blindfolded(m), x)) / 3, "it should be"),
        (lambda e, m, x: share(e(Blindfolded(m.train()), x)), "left as it was"),
        (lambda e, m, x: torch.zeros(len(x)), "is 0; it should be 0.5"),
        (lambda e, m, x: torch.full((len(x),), 0.5), "is 0.5; it should be"),
        (lambda e, m, x: e(Blindfolded(m), x), "Return one number for each image"),
        (lambda e, m, x: 100 * share(e(Blindfolded(m), x)), "is 50; it should be 0.5"),
        (lambda e, m, x: share(e(Blindfolded(m, 16 / x.shape[3]), x)), "was not blindfolded"),
        (lambda e, m, x: share(e(Blindfolded(m, 0.6), x)), "it should be"),
        (lambda e, m, x: lower(e(Blindfolded(m), x)), "is 0.5556; it should be 0.5"),
        (lambda e, m, x: share(e(Blindfolded(m), x)).tolist(), "must be a tensor, but is a list"),
        (lambda e, m, x: torch.no_grad()(lambda: share(e(Blindfolded(m), x)))(), "require grad"),
        (lambda e, m, x: share(e(x, Blindfolded(m))), "Your code stopped with"),
    ],
)
def test_unseen_names_the_mistake(answer: Callable[..., Any], reason: str, capsys: Any) -> None:
    refuses(ch10.unseen, answer, reason, capsys)


def test_unseen_wants_the_model_back_as_it_was(capsys: Any) -> None:
    def by_a_hook(explain: Any, model: nn.Module, x: Tensor, remove: bool = False) -> Tensor:
        hook = model.register_forward_pre_hook(lambda module, given: halved(given[0]))
        maps = explain(model, x)
        if remove:
            hook.remove()
        return share(maps)

    refuses(ch10.unseen, by_a_hook, "left as it was", capsys)
    accepts(ch10.unseen, partial(by_a_hook, remove=True), capsys)


def test_unseen_takes_what_is_right_and_waits(capsys: Any) -> None:
    accepts(ch10.unseen, lambda e, m, x: share(e(Blindfolded(m).eval(), x)), capsys)
    accepts(ch10.unseen, lambda e, m, x: share(e(lambda v: m(halved(v)), x)), capsys)
    waits(ch10.unseen, lambda e, m, x: None, capsys)


def test_the_control_tells_an_honest_map_from_others() -> None:
    model, x = ch10._Network(0).eval(), torch.randn(2, 3, 8, 8)
    blind = ch10._Half(model)
    assert ch10._part(ch10._by_gradient(blind, x)).tolist() == [0, 0]
    assert ch10._part(ch10._flat(blind, x)).tolist() == [0.5, 0.5]
    assert bool((ch10._part(ch10._by_picture(blind, x)) > 0.2).all())
