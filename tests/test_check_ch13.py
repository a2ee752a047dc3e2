"""The judges of chapter 13 accept what is right, and name the usual mistakes."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from cbam_edu import create_model, data
from cbam_edu.check import ch13
from cbam_edu.data.folder import MEAN, STD
from cbam_edu.export import trace
from cbam_edu.statistics import welch
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "13_using_it.ipynb")


def test_there_are_six_exercises() -> None:
    assert len(EXERCISES) == 6


# 13.1


def gentle(
    rule: Callable[[Tensor, Any, nn.Module], Tensor], start: float = 0.0, learnt: bool = True
) -> type[nn.Module]:
    """Return a module whose output is ``rule(x, mix, attention)``."""

    class Gentle(nn.Module):
        def __init__(self, attention: nn.Module):
            super().__init__()
            self.attention = attention
            number = torch.full((), start)
            self.mix = nn.Parameter(number) if learnt else number

        def forward(self, x: Tensor) -> Tensor:
            return rule(x, self.mix, self.attention)

    return Gentle


class Hidden(nn.Module):
    """Keeps the attention where no optimizer finds it."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.kept = [attention]
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix * (self.kept[0](x) - x)


class ManyNumbers(Hidden):
    """Has a number for each channel."""

    def __init__(self, attention: nn.Module):
        super().__init__(attention)
        self.attention = attention
        self.mix = nn.Parameter(torch.zeros(8, 1, 1))


def mixed(x: Tensor, mix: Any, attention: nn.Module) -> Tensor:
    return x + mix * (attention(x) - x)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (gentle(mixed, start=1.0), "At the start it returns attention(x)"),
        (gentle(lambda x, mix, a: x + a(x)), "At the start it returns x + attention(x)"),
        (gentle(lambda x, mix, a: mix * a(x)), "At the start it returns zeros"),
        (gentle(lambda x, mix, a: x + mix * a(x)), "the map and the refined map"),
        (gentle(mixed, learnt=False), "make the number an nn.Parameter"),
        (gentle(lambda x, mix, a: x + mix * (a(x) - x).detach()), "still gets no gradient"),
        (gentle(lambda x, mix, a: x + mix**2 * (a(x) - x)), "no gradient in the first step"),
        (gentle(lambda x, mix, a: x + mix.detach() * (a(x) - x)), "no gradient in the first step"),
        (gentle(mixed, start=1e-7), "not equal to the bit"),
        (gentle(mixed, start=0.1), "the output at the start"),
        (gentle(lambda x, mix, a: x + torch.tanh(mix) * (a(x) - x)), "with the number at 1"),
        (Hidden, "not among the module's parameters"),
        (ManyNumbers, "8 numbers of its own"),
        (lambda attention: "no module", "must be a module, but is a str"),
        (gentle(lambda x, mix, a: 1 / 0), "ZeroDivisionError"),
        (gentle(mixed)(nn.Identity()), "Hand over the class itself"),
        (gentle(lambda x, mix, a: a(x) + mix * (x - a(x))), "returns attention(x)"),
        (gentle(lambda x, mix, a: x + mix.item() * (a(x) - x)), "no gradient in the first step"),
        (gentle(lambda x, mix, a: (mixed(x, mix, a), mix)), "must be a tensor, but is a tuple"),
        (gentle(lambda x, mix, a: x.add_(1)), "It changes its input in place"),
        (gentle(lambda x, mix, a: a(x[0])), "stops at a map (2, 8, 5, 6)"),
        (lambda attention: nn.Linear(2, 2), "stops at a map (2, 8, 5, 6)"),
        (lambda attention: gentle(mixed)(copy.deepcopy(attention)), "no copy of it"),
    ],
)
def test_gentle_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch13.gentle, answer, reason, capsys)


def test_gentle_takes_other_ways(capsys: Any) -> None:
    class OneElement(nn.Module):
        def __init__(self, gate: nn.Module):
            super().__init__()
            self.gate, self.alpha = gate, nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.lerp(x, self.gate(x), self.alpha)

    accepts(ch13.gentle, OneElement, capsys)
    accepts(ch13.gentle, gentle(lambda x, m, a: (1 - m) * x + m * a(x)), capsys)
    waits(ch13.gentle, Unwritten, capsys)


class Unwritten(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()

    def forward(self, x: Tensor) -> Any: ...


# 13.2


def right_moves() -> dict[str, Any]:
    return {name: right for name, (right, _) in ch13.MOVES.items()}


def test_the_moves_are_what_happens() -> None:
    torch.manual_seed(0)
    net = create_model("resnet20", 3, attention="cbam")
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    net(x)
    before = copy.deepcopy(net.state_dict())
    net.requires_grad_(False)
    net.get_submodule("head").requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    net.train()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    after = net.state_dict()
    changed = {name: not torch.equal(after[name], before[name]) for name in ch13.MOVES}
    assert changed == right_moves()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stages.0.0.bn1.running_mean", "It is a buffer"),
        ("stages.0.0.conv1.weight", "weight decay and all"),
        ("stages.0.0.bn1.weight", "It is a parameter"),
        ("stages.0.0.attention.spatial.norm.running_var", "ends with a BatchNorm"),
        ("stages.0.0.attention.channel.mixer.0.weight", "no buffer"),
        ("stages.2.2.bn2.num_batches_tracked", "counts the batches"),
        ("head.weight", "what is trained"),
    ],
)
def test_moves_says_why(name: str, reason: str, capsys: Any) -> None:
    answer = right_moves()
    answer[name] = not answer[name]
    refuses(ch13.moves, answer, reason, capsys)


def test_moves_wants_all_answers(capsys: Any) -> None:
    refuses(ch13.moves, {"head.weight": True}, "Give a dict with an answer for each", capsys)
    refuses(ch13.moves, right_moves() | {"head.weight": "yes"}, "answer True or False", capsys)
    refuses(ch13.moves, [True], "Give a dict", capsys)
    refuses(ch13.moves, dict.fromkeys(right_moves(), True), "weight decay and all", capsys)
    refuses(ch13.moves, dict.fromkeys(right_moves(), False), "what is trained", capsys)
    refuses(ch13.moves, right_moves() | {"head.weight": 0.5}, "answer True or False", capsys)
    several = right_moves() | {"head.weight": torch.tensor([True, False])}
    refuses(ch13.moves, several, "answer True or False, not tensor", capsys)
    accepts(ch13.moves, {k: np.bool_(v) for k, v in right_moves().items()}, capsys)
    waits(ch13.moves, right_moves() | {"head.weight": ...}, capsys)
    accepts(ch13.moves, {name: int(value) for name, value in right_moves().items()}, capsys)


# 13.3


def fine_tune(
    normalised: Callable[[Tensor], Tensor] = data.normalise,
    head: Callable[[nn.Module], nn.Module] = lambda old: nn.Linear(64, 3),
    training: bool = False,
    frozen: bool = True,
    steps: int = 20,
    ends_training: bool = False,
    lr: float = 0.1,
) -> Callable[..., nn.Module]:
    """Return a script with the faults that are asked for."""

    def answer(net: Any, images: Tensor, labels: Tensor, classes: int) -> nn.Module:
        net.requires_grad_(not frozen)
        net.head = head(net.head)
        net.train(training)
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        for _ in range(steps):
            loss = F.cross_entropy(net(normalised(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.train(ends_training)

    return answer


def renamed(head: Any) -> Any:
    """Change what a layer says of itself, and let it be trained."""
    head.out_features = 3
    return head.requires_grad_(True)


def broken(net: Any, images: Tensor, labels: Tensor, classes: int) -> Any:
    """Do what the exercise's script does."""
    net.requires_grad_(False)
    net.head.out_features = classes
    F.cross_entropy(net(images / 255), labels).backward()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (broken, "RuntimeError"),
        (fine_tune(lambda x: x / 255), "pixels from 0 to 1"),
        (fine_tune(lambda x: x.float()), "pixels from 0 to 255"),
        (fine_tune(lambda x: data.normalise(x, MEAN, STD)), "ImageNet's numbers"),
        (fine_tune(lambda x: data.normalise(x) * 2), "other images"),
        (fine_tune(head=renamed), "put a new nn.Linear there"),
        (fine_tune(training=True), "BatchNorm follows the batches"),
        (fine_tune(frozen=False), "all but the head should stay"),
        (fine_tune(steps=1), "guessing has"),
        (fine_tune(steps=0), "The network given was never called"),
        (fine_tune(ends_training=True), "returned in training mode"),
        (lambda net, images, labels, classes: 5, "not a int"),
        (fine_tune(head=lambda old: nn.Linear(64, 10)), "gives (30, 10); wanted is (30, 3)"),
        (fine_tune(), "For 5 classes the head still has 3"),
        (fine_tune(lr=0.0), "guessing has"),
        (lambda net, *rest: fine_tune()(create_model("resnet8", 3), *rest), "never called"),
        (lambda *given: fine_tune()(*given).get_submodule("head"), "has lost conv.weight"),
        (lambda *given: fine_tune()(*given).state_dict(), "not a OrderedDict"),
        (torch.no_grad()(fine_tune()), "does not require grad"),
        (
            lambda net, images, labels, classes: fine_tune()(net, images, labels.flip(0), classes),
            "Has each image still its own label?",
        ),
    ],
)
def test_fine_tune_names_the_bug(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch13.fine_tune, answer, reason, capsys)


def test_fine_tune_takes_features_once_and_small_batches(capsys: Any) -> None:
    def once(net: Any, images: Tensor, labels: Tensor, classes: int) -> nn.Module:
        net.eval()
        with torch.no_grad():
            features = net.pool(net.forward_features(data.normalise(images))[-1])
        net.head = nn.Linear(features.shape[1], classes)
        optimizer = torch.optim.AdamW(net.head.parameters(), lr=0.05)
        for _ in range(40):
            for part in torch.randperm(len(labels)).split(10):
                loss = F.cross_entropy(net.head(features[part]), labels[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return net

    def only_norms_in_evaluation(
        net: Any, images: Tensor, labels: Tensor, classes: int
    ) -> nn.Module:
        net.requires_grad_(False)
        net.head = nn.Linear(64, classes)
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(30):
            part = torch.randperm(30)[:20]
            loss = F.cross_entropy(net(data.normalise(images[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.eval()

    torch.manual_seed(3)
    accepts(ch13.fine_tune, once, capsys)
    accepts(ch13.fine_tune, only_norms_in_evaluation, capsys)
    waits(ch13.fine_tune, lambda net, images, labels, classes: ..., capsys)


# 13.4


def exported(
    size: tuple[int, ...] = (2, 3, 48, 64), free: tuple[int, ...] = (0, 2, 3), copied: bool = True
) -> Callable[[nn.Module], Any]:
    def answer(net: nn.Module) -> Any:
        plain = (copy.deepcopy(net) if copied else net).eval()
        shapes = (dict.fromkeys(free, Dim.DYNAMIC),) if free else None
        return torch.export.export(plain, (torch.zeros(*size),), dynamic_shapes=shapes)

    return answer


def learning(net: nn.Module) -> Any:
    free = dict.fromkeys((0, 2, 3), Dim.AUTO)
    return torch.export.export(
        copy.deepcopy(net), (torch.zeros(2, 3, 48, 64),), dynamic_shapes=(free,)
    )


def zeroed(net: nn.Module) -> Any:
    nn.init.zeros_(net.get_parameter("head.weight"))
    return exported()(net)


def as_script(net: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        return torch.jit.script(copy.deepcopy(net).eval())


def in_double(net: nn.Module) -> Any:
    free, plain = dict.fromkeys((0, 2, 3), Dim.DYNAMIC), copy.deepcopy(net).eval().double()
    return torch.export.export(plain, (torch.zeros(2, 3, 48, 64).double(),), dynamic_shapes=(free,))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (exported(free=()), "does not take one image"),
        (exported(free=(0,)), "does not take another height"),
        (exported(free=(2, 3)), "does not take one image"),
        (exported(size=(1, 3, 48, 64)), "stopped with"),  # torch takes a size of 1 for fixed
        (exported(copied=False), "was in training mode, and is not any more"),
        (learning, "in training mode"),
        (lambda net: net, "not a _Small"),
        (lambda net: exported()(net).module(), "not a GraphModule"),
        (lambda net: exported, "not a function"),
        (lambda net: exported()(ch13._Small()), "says something else than the network"),
        (zeroed, "The network's numbers have changed"),
        (as_script, "stopped with RuntimeError: python value of type 'dict'"),
        (in_double, "The example must have the network's kind of numbers"),
        (exported(free=(0, 2)), "does not take another width"),
    ],
)
def test_to_program_names_the_fault(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch13.to_program, answer, reason, capsys)


def test_to_program_takes_the_package_s_own_and_a_mode_put_back(capsys: Any) -> None:
    def put_back(net: nn.Module) -> Any:
        program = exported(copied=False)(net)
        net.train()
        return program

    accepts(ch13.to_program, lambda net: trace(copy.deepcopy(net).eval()), capsys)
    accepts(ch13.to_program, put_back, capsys)
    waits(ch13.to_program, lambda net: None, capsys)


# 13.5


def parity(
    one: Callable[[Tensor, Tensor], float],
    together: Callable[[list[float]], float] = max,
    careful: bool = True,
    draw: Callable[..., Tensor] = torch.randn,
    others: bool = False,
) -> Callable[..., float]:
    def answer(net: Any, run: Any, shapes: Any) -> float:
        found = []
        for shape in shapes:
            x = draw(*shape)
            want, got = net(x), run(draw(*shape) if others else x)
            if careful and (want.shape != got.shape or not got.isfinite().all()):
                return math.inf
            found.append(float(one(got, want)))
        return together(found)

    return answer


def relative(got: Tensor, want: Tensor) -> Any:
    return (got - want).abs().max() / want.abs().max()


def over_all_shapes(net: Any, run: Any, shapes: Any) -> float:
    """Divide one maximum by another, each over all shapes."""
    difference = largest = 0.0
    for shape in shapes:
        x = torch.randn(*shape)
        want, got = net(x), run(x)
        if want.shape != got.shape or not got.isfinite().all():
            return math.inf
        difference = max(difference, float((got - want).abs().max()))
        largest = max(largest, float(want.abs().max()))
    return difference / largest


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (parity(lambda got, want: (got - want).abs().max()), "by the largest logit"),
        (parity(lambda got, want: (got - want).max() / want.abs().max()), "absolute value"),
        (parity(relative, lambda found: found[-1]), "not the last"),
        (parity(relative, lambda found: found[0]), "Go over all shapes"),
        (parity(relative, careful=False), "broadcasts"),
        (parity(lambda got, want: ((got - want).abs() / want.abs()).mean()), "it should say"),
        (parity(lambda got, want: (got - want).abs().max() / want.max()), "in absolute value"),
        (over_all_shapes, "for each shape"),
        (lambda net, run, shapes: True, "must be a number, but is a bool"),
        (lambda net, run, shapes: "0", "must be a number, but is a str"),
        (parity(relative, draw=torch.zeros), "Give random images"),
        (parity(relative, draw=torch.ones), "Give random images"),
        (parity(relative, others=True), "Do both get the same images?"),
        (parity(relative, sum), "says 0.03; it should say 0.01"),
        (parity(lambda got, want: 100 * relative(got, want)), "says 1; it should say 0.01"),
        (parity(lambda got, want: (got - want).norm() / want.norm()), "it should say 0.01"),
        (
            lambda net, run, shapes: parity(relative)(net, run, [(1, 3, 8, 8)]),
            "Go over all shapes",
        ),
    ],
)
def test_parity_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch13.parity, answer, reason, capsys)


def test_parity_finds_forgotten_nan(capsys: Any) -> None:
    def only_shapes(net: Any, run: Any, shapes: Any) -> float:
        worst = 0.0
        for shape in shapes:
            x = torch.randn(*shape)
            want, got = net(x), run(x)
            if want.shape != got.shape:
                return math.inf
            worst = max(worst, float(relative(got, want)))  # max(worst, nan) is worst
        return worst

    refuses(ch13.parity, only_shapes, "isfinite", capsys)


def test_parity_takes_tensors(capsys: Any) -> None:
    def as_tensor(net: Any, run: Any, shapes: Any) -> Tensor:
        return torch.tensor(parity(relative)(net, run, shapes))

    accepts(ch13.parity, as_tensor, capsys)
    accepts(ch13.parity, lambda *given: np.float32(parity(relative)(*given)), capsys)
    waits(ch13.parity, lambda net, run, shapes: None, capsys)


# 13.6


def report(
    chosen: Callable[[list[Any]], list[Any]] = lambda runs: runs,
    once: bool = True,
    unit: float = 100,
    **changes: Callable[[list[float], list[float]], Any],
) -> Callable[..., dict[str, Any]]:
    """Return a report in which some entries are computed otherwise, from the two arms' points."""

    def answer(records: Any, arm: str, baseline: str) -> dict[str, Any]:
        kept = list({(r["arm"], r["seed"]): r for r in records}.values()) if once else records
        runs = [chosen([r for r in kept if r["arm"] == name]) for name in (arm, baseline)]
        a, b = ([unit * r["accuracy"] for r in some] for some in runs)
        seconds = [sum(r["seconds"] for r in some) / len(some) for some in runs]
        several = min(len(a), len(b)) > 1
        found = {
            "n": (len(a), len(b)),
            "difference": sum(a) / len(a) - sum(b) / len(b),
            "low": welch(a, b).low if several else None,
            "high": welch(a, b).high if several else None,
            "cost": seconds[0] / seconds[1],
        }
        return found | {name: change(a, b) for name, change in changes.items()}

    return answer


def normal(sign: int) -> Callable[[list[float], list[float]], float | None]:
    """Return an end of the interval by 1.96 standard errors."""

    def end(a: list[float], b: list[float]) -> float | None:
        if min(len(a), len(b)) < 2:
            return None
        x, y = (torch.tensor(v, dtype=torch.float64) for v in (a, b))
        error = (x.var() / len(x) + y.var() / len(y)).sqrt().item()
        return (x.mean() - y.mean()).item() + sign * 1.96 * error

    return end


def by_accuracy(records: Any, arm: str, baseline: str) -> dict[str, Any]:
    kept = {(r["arm"], r["accuracy"]): r for r in records}
    return report()(list(kept.values()), arm, baseline)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (report(once=False), "count each arm and seed once"),
        (report(lambda runs: [r for r in runs if r["accuracy"] > 0.2]), "was left out"),
        (report(n=lambda a, b: (len(b), len(a))), "The arm comes first"),
        (report(n=lambda a, b: len(a)), "of the arm and of the baseline"),
        (report(unit=1), "percentage points"),
        (report(difference=lambda a, b: sum(b) / len(b) - sum(a) / len(a)), "minus the baseline"),
        (report(difference=lambda a, b: max(a) - max(b)), "Take the means"),
        (report(low=normal(-1), high=normal(1)), "too narrow"),
        (report(low=lambda a, b: welch(a, b).high, high=lambda a, b: welch(a, b).low), "exchanged"),
        (report(cost=lambda a, b: 1.0), "mean seconds"),
        (report(low=lambda a, b: None), "so there is an interval"),
        (lambda records, arm, baseline: {"n": (4, 5)}, "Return a dict with the keys"),
        (lambda records, arm, baseline: 5, "Return a dict"),
        (report(cost=lambda a, b: "1.5"), "cost must be a number"),
        (report(n=lambda a, b: (a, b)), "of the arm and of the baseline"),
        (report(difference=lambda a, b: abs(sum(a) / len(a) - sum(b) / len(b))), "the arm minus"),
        (report(low=lambda a, b: math.nan), "low is nan"),
        (report(low=lambda a, b: welch(a, b).low), "a sample is a list of 2 or more"),
        (report(cost=lambda a, b: 22 / 31.5), "mean seconds by the baseline's"),
        (by_accuracy, "Two runs of one accuracy are two runs"),
        (lambda records, arm, baseline: report()(records, "cbam", "none"), "arms exchanged"),
        (lambda *given: tuple(report()(*given).values()), "Return a dict"),
    ],
)
def test_report_names_the_mistake(answer: Any, reason: str, capsys: Any) -> None:
    refuses(ch13.report, answer, reason, capsys)


def test_report_knows_that_one_run_has_no_spread(capsys: Any) -> None:
    def with_zero(sign: str) -> Any:
        return lambda a, b: getattr(welch(a, b), sign) if min(len(a), len(b)) > 1 else 0.0

    refuses(ch13.report, report(low=with_zero("low")), "One run has no spread", capsys)


def test_report_takes_lists_and_more_than_was_asked(capsys: Any) -> None:
    accepts(ch13.report, report(n=lambda a, b: [len(a), len(b)], best=lambda a, b: max(a)), capsys)
    arrays = report(
        n=lambda a, b: np.array([len(a), len(b)]),
        difference=lambda a, b: np.float32(np.mean(a) - np.mean(b)),
    )
    accepts(ch13.report, arrays, capsys)
    waits(ch13.report, lambda records, arm, baseline: ..., capsys)
    waits(ch13.report, report(cost=lambda a, b: ...), capsys)
