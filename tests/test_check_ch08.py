"""The judges of chapter 08 accept what is right, and name the usual mistakes."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.check import ch08
from cbam_edu.recipe import Recipe
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "08_training.ipynb")


def test_there_are_six_exercises() -> None:
    assert len(EXERCISES) == 6


# 8.1


def loop(
    *,
    mode: bool | None = True,
    zero: str | None = "before",
    rate: str = "each",
    groups: int = 9,
    mean: str = "images",
    step: bool = True,
    times: int = 1,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    order: int = 1,
    own: bool = False,
) -> Callable[..., Any]:
    """Return a training loop, right or with a mistake."""

    def answer(model: Any, optimizer: Any, batches: Any, rates: Any) -> Any:
        if mode is not None:
            model.train(mode)
        losses, sizes = [], []
        if own:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for i, (x, y) in enumerate(batches[::order]):
            for group in optimizer.param_groups[:groups]:
                if rate != "none" and not (rate == "late" and i == 0):
                    place = {"each": i, "first": 0, "last": -1, "late": i - 1}[rate]
                    group["lr"] = rates[place]
            for _ in range(times):
                loss = loss_of(model(x), y)
                if zero == "before":
                    optimizer.zero_grad()
                loss.backward()
                if zero == "between":
                    optimizer.zero_grad()
                if step:
                    optimizer.step()
                if zero == "after":
                    model.zero_grad()
            losses.append(loss)
            sizes.append(len(x))
        kept = torch.stack(losses)
        weights = torch.tensor(sizes)
        found = {
            "images": lambda: ((kept.detach() * weights).sum() / weights.sum()).item(),
            "tensor": lambda: (kept.detach() * weights).sum() / weights.sum(),
            "graph": lambda: (kept * weights).sum() / weights.sum(),
            "batches": lambda: kept.mean().item(),
            "sum": lambda: kept.sum().item(),
            "all": lambda: (kept.detach() * weights).sum().item(),
            "last": lambda: kept[-1].item(),
            "text": lambda: "low",
            "NumPy": lambda: np.float32(((kept.detach() * weights).sum() / weights.sum()).item()),
            "list": kept.tolist,
            "full": lambda: (kept.detach() * weights).sum().item() / (len(sizes) * sizes[0]),
            "none": lambda: math.nan,
        }
        return found[mean]()

    return answer


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ({"zero": None}, "gradients of earlier batches"),
        ({"zero": "between"}, "No weight has changed"),
        ({"step": False}, "No weight has changed"),
        ({"mode": None}, "trained in evaluation mode"),
        ({"rate": "none"}, "that the optimizer was made with"),
        ({"rate": "first"}, "All steps had the first rate"),
        ({"rate": "last"}, "All steps had the last rate"),
        ({"rate": "late"}, "one step too late"),
        ({"groups": 1}, "Only the optimizer's first group"),
        ({"times": 2}, "once for each batch"),
        ({"mean": "batches"}, "The mean over batches is"),
        ({"mean": "sum"}, "This is a sum"),
        ({"mean": "all"}, "This is a sum"),
        ({"mean": "last"}, "it should be"),
        ({"mean": "graph"}, "the whole graph"),
        ({"mean": "text"}, "must be a number"),
        ({"mean": "list"}, "must be a number, but is a list"),
        ({"mean": "full"}, "of each batch as it was before its step"),
        ({"mean": "none"}, "The mean loss is nan"),
        ({"own": True}, "the optimizer that was given has taken no step"),
        ({"loss_of": lambda z, y: F.cross_entropy(z.softmax(1), y)}, "yours is the second"),
        ({"loss_of": lambda z, y: -F.cross_entropy(z, y)}, "each downhill"),
        ({"loss_of": lambda z, y: F.cross_entropy(z, y).detach()}, "does not require grad"),
        ({"order": -1}, "once for each batch, in order"),
    ],
)
def test_train_epoch_names_the_mistake(mistake: Any, reason: str, capsys: Any) -> None:
    refuses(ch08.train_epoch, loop(**mistake), reason, capsys)


def test_train_epoch_wants_the_model_left_in_training_mode(capsys: Any) -> None:
    def answer(model: Any, optimizer: Any, batches: Any, rates: Any) -> Any:
        mean = loop()(model, optimizer, batches, rates)
        model.eval()
        return mean

    refuses(ch08.train_epoch, answer, "leave it in training mode", capsys)


def test_train_epoch_takes_other_spellings(capsys: Any) -> None:
    accepts(ch08.train_epoch, loop(zero="after"), capsys)
    accepts(ch08.train_epoch, loop(mean="tensor"), capsys)
    accepts(ch08.train_epoch, loop(mean="NumPy"), capsys)
    waits(ch08.train_epoch, lambda model, optimizer, batches, rates: ..., capsys)


# 8.2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 450}, "That is one epoch"),
        ({"steps": 20_000}, "5,000 are held out"),
        ({"rate after 900 steps": 0.4}, "half of the warm-up"),
        ({"rate after 900 steps": 0.02}, "not all of it"),
        ({"rate after 9,900 steps": 0.18}, "shorter than the training"),
        ({"last rate, advanced once an epoch": 0}, "it has not come far"),
        ({"first loss": math.log(10)}, "here are 20"),
        ({"first loss": 0.05}, "minus its logarithm"),
        ({"first loss": 4}, "Minus the logarithm"),
        ({"loss when sure and wrong": 1}, "no largest value"),
        ({"loss when sure and wrong": "large"}, "must be a number"),
        ({"epochs": 40}, "an answer for each of"),
        ({"steps": math.nan}, "'steps' is not nan"),
        ({"steps": [18_000]}, "'steps' must be a number, but is a list"),
        ({"rate after 900 steps": 50}, "A straight line from 0"),
        ({"first loss": -math.log(20)}, "Minus the logarithm"),
        ({"loss when sure and wrong": math.log(7)}, "Minus ln of exp(0)"),
    ],
)
def test_plan_says_why(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch08.plan, ch08.PLAN | change, reason, capsys)


def test_plan_is_that_of_the_package_and_of_torch(capsys: Any) -> None:
    recipe = Recipe(epochs=40, lr=0.4, warmup=0.1)
    for name, step in (
        ("rate after 900 steps", 900),
        ("rate after 9,900 steps", 9_900),
        ("last rate, advanced once an epoch", 40),
    ):
        assert recipe.learning_rate(step / ch08.STEPS) == pytest.approx(ch08.PLAN[name])
    logits = torch.zeros(1, 20)
    assert F.cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(
        ch08.PLAN["first loss"]
    )
    logits[0, 0] = 7
    assert F.cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(
        ch08.PLAN["loss when sure and wrong"]
    )
    rounded = {"loss when sure and wrong": 7.0, "first loss": torch.tensor(2.996)}
    accepts(ch08.plan, ch08.PLAN | rounded, capsys)
    during = {"last rate, advanced once an epoch": 0.4 * 39 / 1800}
    accepts(ch08.plan, ch08.PLAN | during, capsys)
    accepts(ch08.plan, {name: np.float32(value) for name, value in ch08.PLAN.items()}, capsys)
    accepts(ch08.plan, ch08.PLAN | {"steps": np.int64(18_000)}, capsys)
    waits(ch08.plan, ch08.PLAN | {"steps": ...}, capsys)


# 8.3

ALL = {1, 10, 12, 14, 16, 18, 21}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (ALL - {10}, "6 of 7 bugs found. Think of another: What is in p.grad"),
        (ALL - {14}, "Which mean and variance"),
        (ALL - {18}, "the last batch"),
        ({12}, "1 of 7 bugs found"),
        (ALL | {5}, "Line 5 is innocent. Training mode belongs here"),
        (ALL | {6}, "Line 6 is innocent"),
        (ALL | {23}, "There is no line 23"),
        (12, "as a set"),
        ("12", "as a set"),
        (set(range(1, 23)), "Line 3 is innocent"),
        ({line - 1 for line in ALL}, "There is no line 0"),
        ({str(line) for line in {12}}, "'12' must be a number, but is a str"),
        ([[1, 2], [10]], "[1, 2] must be a number, but is a list"),
        ([True], "True must be a number, but is a bool"),
        ([1.5], "There is no line 1.5"),
        (torch.tensor(sorted(ALL)), "as a set"),
        (set(), "0 of 7 bugs found"),
    ],
)
def test_bugs_says_what_is_missing_or_innocent(lines: Any, reason: str, capsys: Any) -> None:
    refuses(ch08.bugs, lines, reason, capsys)


@pytest.mark.parametrize(
    "lines",
    [
        [2, 9, 12, 13, 16, 19, 20],
        (1, 11, 12, 15, 16, 18, 22),
        np.array(sorted(ALL)),
        ALL - {10} | {7},  # zero_grad may come first in the loop
        ALL - {10} | {8},
        set(range(7, 17)) | ALL,
    ],
)
def test_bugs_takes_either_side_of_a_gap(lines: Any, capsys: Any) -> None:
    accepts(ch08.bugs, lines, capsys)
    waits(ch08.bugs, {1, ...}, capsys)


def test_every_line_of_the_script_is_faulty_or_innocent() -> None:
    faulty = frozenset().union(*ch08.FAULTS)
    assert sum(map(len, ch08.FAULTS)) == len(faulty)
    assert faulty | set(ch08.INNOCENT) == set(range(1, 23))
    assert not faulty & set(ch08.INNOCENT)


# 8.4


def measured(
    *,
    mode: bool | None = False,
    back: bool = True,
    grad: bool = False,
    drop: bool = False,
    how: str = "count",
    of: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(1),
) -> Callable[..., Any]:
    def answer(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Any:
        had, rights = model.training, []
        if mode is not None:
            model.train(mode)
        with torch.set_grad_enabled(grad):
            for x, y in zip(images.split(size), labels.split(size), strict=True):
                if not (drop and len(x) < size):
                    rights.append((of(model(x)) == y).float().flatten())
        if back:
            model.train(had)
        count = torch.cat(rights).sum().item() if rights else 0.0
        return {
            "count": count / len(images),
            "percent": 100 * count / len(images),
            "sum": count,
            "means": torch.stack([r.mean() for r in rights]).mean().item() if rights else 0.0,
            "full": count / (len(rights) * size) if rights else 0.0,
            "wrong": 1 - count / len(images),
            "NumPy": np.float32(count / len(images)),
            "last": rights[-1].mean().item() if rights else 0.0,
            "whole": count // len(images),
            "text": f"{count / len(images):.1%}",
            "pair": (count, len(images)),
            "tensor": torch.cat(rights).mean() if rights else torch.zeros(()),
        }[how]

    return answer


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ({"mode": None}, "measured in training mode: call model.eval() first. Its running"),
        ({"grad": True}, "under torch.no_grad()"),
        ({"drop": True}, "Of 19 images the model saw 16"),
        ({"how": "means"}, "the mean of the batches' accuracies"),
        ({"how": "percent"}, "not a percentage"),
        ({"how": "sum"}, "divide by the number of images"),
        ({"how": "full"}, "the last one is smaller"),
        ({"how": "wrong"}, "names wrongly"),
        ({"how": "last"}, "the last batch alone"),
        ({"how": "whole"}, "The accuracy is 0.0000; it should be"),
        ({"how": "text"}, "must be a number, but is a str"),
        ({"how": "pair"}, "must be a number, but is a tuple"),
        ({"of": lambda z: z.argmax(1, keepdim=True)}, "Have predictions and labels the same shape"),
        ({"of": lambda z: z.argmin(1)}, "it should be 0.8947"),
        ({"of": lambda z: z.amax(1)}, "The accuracy is 0.0000"),
        ({"of": lambda z: z.argmax(0)}, "must match the size"),
        ({"back": False}, "came in training mode and is not in it any more"),
    ],
)
def test_accuracy_names_the_mistake(mistake: Any, reason: str, capsys: Any) -> None:
    refuses(ch08.accuracy, measured(**mistake), reason, capsys)


def test_accuracy_sees_a_model_that_is_always_set_to_training(capsys: Any) -> None:
    def answer(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
        value = measured()(model, images, labels, size)
        model.train()
        return value

    refuses(ch08.accuracy, answer, "came in evaluation mode", capsys)


def test_accuracy_sees_images_that_are_shown_twice_or_changed(capsys: Any) -> None:
    @torch.no_grad()
    def twice(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Any:
        found = measured()(model, images, labels, size)
        model.eval()(images)
        return found

    def scaled(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Any:
        return measured()(model, images - images.mean(), labels, size)

    refuses(ch08.accuracy, twice, "Of 19 images the model saw 38", capsys)
    refuses(ch08.accuracy, scaled, "was shown other images than those given", capsys)


def test_accuracy_takes_other_spellings(capsys: Any) -> None:
    accepts(ch08.accuracy, measured(how="tensor"), capsys)
    accepts(ch08.accuracy, measured(how="NumPy"), capsys)

    @torch.inference_mode()
    def in_one(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
        had = model.training
        value = (model.eval()(images).argmax(1) == labels).double().mean().item()
        model.train(had)
        return value

    accepts(ch08.accuracy, in_one, capsys)

    def of_a_copy(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
        return measured()(copy.deepcopy(model), images, labels, size)

    accepts(ch08.accuracy, of_a_copy, capsys)
    waits(ch08.accuracy, lambda model, images, labels, size: ..., capsys)


# 8.5


def by(wanted: Callable[[str, nn.Parameter], bool], once: bool = True) -> Callable[..., Any]:
    """Return groups with decay for those parameters that `wanted` names."""

    def answer(model: nn.Module, decay: float) -> list[dict[str, Any]]:
        named = list(model.named_parameters(remove_duplicate=once))
        return [
            {"params": [p for n, p in named if wanted(n, p)], "weight_decay": decay},
            {"params": [p for n, p in named if not wanted(n, p)], "weight_decay": 0.0},
        ]

    return answer


def only_decayed(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    return [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay}]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (by(lambda n, p: "bias" not in n), "should have 0"),
        (by(lambda n, p: "bn" not in n and "bias" not in n), "should have 0"),
        (by(lambda n, p: not n.endswith("bias") and "bn" not in n), "should have 0"),
        (by(lambda n, p: p.ndim == 4), "should have 0.0005"),
        (by(lambda n, p: True), "should have 0"),
        (by(lambda n, p: p.ndim < 2), "should have 0.0005"),
        (by(lambda n, p: p.ndim > 1, once=False), "stands there twice"),
        (only_decayed, "is in no group"),
        (lambda m, decay: [{"params": [n for n, _ in m.named_parameters()]}], "Each group needs"),
        (
            lambda m, decay: [{"params": dict(m.named_parameters()), "weight_decay": decay}],
            "the parameters themselves",
        ),
        (lambda m, decay: m.parameters(), "Return a list of dicts"),
        (lambda m, decay: by(lambda n, p: p.ndim > 1)(m, 5e-4), "Take the `decay` that is given"),
        (lambda m, decay: by(lambda n, p: p.ndim > 1)(m, "high"), "must be a number, but is a str"),
        (lambda m, decay: [{"params": 3, "weight_decay": decay}], "but is a int"),
        (
            lambda m, decay: [{"params": list(m.named_parameters()), "weight_decay": decay}],
            "the parameters themselves",
        ),
        (
            lambda m, decay: [
                {"params": [p.detach() for p in m.parameters()], "weight_decay": decay}
            ],
            "is in no group",
        ),
        (lambda m, decay: torch.optim.SGD(m.parameters(), weight_decay=decay), "a list of dicts"),
        (by(lambda n, p: p.ndim != 1), "temperature, of shape (), has the decay"),
        (by(lambda n, p: p.numel() > 64), "should have 0.0005"),
    ],
)
def test_decay_groups_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch08.decay_groups, answer, reason, capsys)


def test_decay_groups_takes_other_spellings(capsys: Any) -> None:
    accepts(ch08.decay_groups, by(lambda n, p: p.ndim >= 2), capsys)  # frozen ones in it, too
    accepts(
        ch08.decay_groups,
        lambda model, decay: by(lambda n, p: p.ndim >= 2)(model, torch.tensor(decay)),
        capsys,
    )
    accepts(
        ch08.decay_groups,
        lambda model, decay: (
            torch.optim.SGD(by(lambda n, p: p.ndim >= 2)(model, decay), lr=1).param_groups
        ),
        capsys,
    )
    accepts(
        ch08.decay_groups,
        lambda model, decay: [
            {"params": [p], "weight_decay": decay * (p.ndim > 1)}
            for p in model.parameters()
            if p.requires_grad
        ],
        capsys,
    )
    accepts(
        ch08.decay_groups,
        lambda model, decay: [  # torch takes a single tensor, too
            {"params": p, "weight_decay": decay * (p.ndim > 1)}
            for p in model.parameters()
            if p.requires_grad
        ],
        capsys,
    )
    waits(ch08.decay_groups, lambda model, decay: ..., capsys)


# 8.6

PARTS = ("model", "optimizer", "scheduler", "order", "chance", "step")


def pack(run: ch08.Run) -> dict[str, Any]:
    return {
        **{part: getattr(run, part).state_dict() for part in PARTS[:3]},
        "order": run.order.get_state(),
        "chance": torch.get_rng_state(),
        "step": run.step,
    }


def unpack_but(*missing: str) -> Callable[[ch08.Run, dict[str, Any]], None]:
    def unpack(run: ch08.Run, state: dict[str, Any]) -> None:
        for part in PARTS[:3]:
            if part not in missing:
                getattr(run, part).load_state_dict(state[part])
        if "order" not in missing:
            run.order.set_state(state["order"])
        if "chance" not in missing:
            torch.set_rng_state(state["chance"])
        if "step" not in missing:
            run.step = state["step"]

    return unpack


def parameters_only(run: ch08.Run, state: dict[str, Any]) -> None:
    names = dict(run.model.named_parameters())
    weights = {k: v for k, v in state["model"].items() if k in names}
    run.model.load_state_dict(weights, strict=False)


@functools.wraps(ch08.checkpoint)
def checkpoint(answer: tuple[Any, Any]) -> Any:
    """Judge the pair that the exercise asks for as one answer."""
    return ch08.checkpoint(*answer)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (("model",), "The weights are not"),
        (("optimizer",), "momentum is missing"),
        (("scheduler",), "scheduler does not know"),
        (("order",), "generator of the order"),
        (("chance",), "Dropout's chances"),
        (("step",), "how many steps it has done"),
        (("optimizer", "scheduler"), "momentum is missing"),
    ],
)
def test_checkpoint_names_what_is_missing(missing: Any, reason: str, capsys: Any) -> None:
    refuses(checkpoint, (pack, unpack_but(*missing)), reason, capsys)


def test_checkpoint_sees_other_mistakes(capsys: Any) -> None:
    refuses(checkpoint, (pack, parameters_only), "buffers, not parameters", capsys)
    refuses(checkpoint, (lambda run: {"run": run}, unpack_but()), "cannot be saved", capsys)
    refuses(
        checkpoint,
        (lambda run: pack(run) | {"f": run.model}, unpack_but()),
        "cannot be saved",
        capsys,
    )
    refuses(checkpoint, (lambda run: [pack(run)], unpack_but()), "must return a dict", capsys)

    def draws(run: ch08.Run) -> dict[str, Any]:
        run.advance(1)
        return pack(run)

    refuses(checkpoint, (draws, unpack_but()), "pack changed it", capsys)

    def reseeded(run: ch08.Run) -> dict[str, Any]:
        torch.manual_seed(0)
        return pack(run)

    refuses(checkpoint, (reseeded, unpack_but()), "pack changed it", capsys)

    def another_model(run: ch08.Run, state: dict[str, Any]) -> None:
        unpack_but()(run, state)
        run.model = ch08.Run().model
        run.model.load_state_dict(state["model"])
        torch.set_rng_state(state["chance"])

    refuses(checkpoint, (pack, another_model), "momentum is missing", capsys)


def then(
    change: Callable[[ch08.Run, dict[str, Any]], Any],
) -> Callable[[ch08.Run, dict[str, Any]], Any]:
    """Return an unpack that restores everything and does something else besides."""

    def unpack(run: ch08.Run, state: dict[str, Any]) -> Any:
        unpack_but()(run, state)
        return change(run, state)

    return unpack


def one_more(run: ch08.Run, state: dict[str, Any]) -> None:
    run.step = state["step"] + 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((lambda run: pack(run) | {"order": run.order}, unpack_but()), "it holds a Generator"),
        ((lambda run: pack(run) | {"x": np.ones(2)}, unpack_but()), "'x' cannot be saved and read"),
        ((pack, lambda run, state: None), "The weights are not those that were saved"),
        ((pack, then(lambda run, state: run)), "unpack returns a run"),
        ((pack, then(lambda run, state: torch.manual_seed(0) and None)), "Dropout's chances"),
        ((pack, then(lambda run, state: run.order.manual_seed(0) and None)), "order begins anew"),
        ((pack, then(one_more)), "how many steps it has done"),
        ((lambda run: {"model": run.model.state_dict()}, unpack_but()), "KeyError: 'optimizer'"),
        ((pack(ch08.Run()), unpack_but()), "Hand over the function itself, not a dict"),
    ],
)
def test_checkpoint_names_what_goes_wrong(answer: Any, reason: str, capsys: Any) -> None:
    refuses(checkpoint, answer, reason, capsys)


def test_checkpoint_waits_for_both_functions(capsys: Any) -> None:
    waits(ch08.checkpoint, pack, capsys)
    waits(checkpoint, (pack, ...), capsys)


def test_checkpoint_takes_other_designs_and_leaves_the_chances_alone(capsys: Any) -> None:
    before = torch.get_rng_state()
    accepts(checkpoint, (pack, unpack_but()), capsys)

    def flat(run: ch08.Run) -> dict[str, Any]:
        state = pack(run)
        return {"all": [state[part] for part in PARTS]}

    def from_flat(run: ch08.Run, state: dict[str, Any]) -> None:
        unpack_but()(run, dict(zip(PARTS, state["all"], strict=True)))

    accepts(checkpoint, (flat, from_flat), capsys)
    waits(checkpoint, (lambda run: ..., lambda run, state: ...), capsys)
    assert torch.equal(before, torch.get_rng_state())
