"""Judges of chapter 08, "Training on CIFAR-10"."""

import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.check.verdict import Wrong, judge, number, written
from cbam_edu.models import create_model

Answer = Callable[..., Any]
Images = tuple[Tensor, Tensor]


# ---- 8.1

SIZES, RATES = (6, 6, 2), (0.5, 0.2, 0.05)


def _learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small network in evaluation mode, and its optimizer with two groups."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    groups = [{"params": list(part.parameters())} for part in (net[:1], net[1:])]
    return net.eval(), torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def _few_batches() -> list[Images]:
    chance = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=chance), torch.randint(3, (n,), generator=chance))
        for n in SIZES
    ]


def _trained(
    *,
    mode: bool = True,
    zero: str = "first",
    rates: Collection[float] = RATES,
    groups: int = 2,
    step: bool = True,
    late: bool = False,
    softmax: bool = False,
) -> tuple[Tensor, list[float]]:
    """Train as is right, or with a mistake; return the weights and each batch's loss."""
    net, optimizer = _learner()
    net.train(mode)
    losses = []
    for (x, y), rate in zip(_few_batches(), rates, strict=True):
        logits = net(x)
        loss = F.cross_entropy(logits.softmax(1) if softmax else logits, y)
        losses.append(loss.item())
        for group in optimizer.param_groups[:groups] if not late else ():
            group["lr"] = rate
        if zero == "first":
            optimizer.zero_grad()
        loss.backward()
        if zero == "last":
            optimizer.zero_grad()
        if step:
            optimizer.step()
        for group in optimizer.param_groups if late else ():
            group["lr"] = rate
    return _weights(net), losses


def _weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def _loop_mistakes() -> dict[str, Tensor]:
    found = {
        "No weight has changed. After backward the optimizer has to take its step, with the "
        "gradients still there.": _trained(step=False),
        "The gradients of earlier batches are still in the step: call zero_grad once a batch.": (
            _trained(zero="never")
        ),
        "The network was trained in evaluation mode, as you were given it. Call model.train().": (
            _trained(mode=False)
        ),
        "All steps had the learning rate that the optimizer was made with; set that of each step "
        "in every group's 'lr'.": _trained(rates=(0.1, 0.1, 0.1)),
        "cross_entropy takes the logits: there is a softmax in it already, yours is the second.": (
            _trained(softmax=True)
        ),
        "All steps had the first rate.": _trained(rates=(RATES[0],) * 3),
        "All steps had the last rate.": _trained(rates=(RATES[-1],) * 3),
        "Only the optimizer's first group got the rate; set it in all of param_groups.": (
            _trained(groups=1)
        ),
        "Each rate came into force one step too late: set it before the step.": _trained(late=True),
    }
    return {why: weights for why, (weights, _) in found.items()}


@judge
def train_epoch(answer: Answer) -> None:
    """Judge `answer(model, optimizer, batches, rates)`: one epoch; its mean loss over images."""
    net, optimizer = _learner()
    mean = answer(net, optimizer, _few_batches(), list(RATES))
    if mean is None or mean is ...:
        raise NotImplementedError
    right, losses = _trained()
    now = _weights(net)
    if not optimizer.state and not torch.equal(now, _weights(_learner()[0])):
        raise Wrong(
            "The weights have changed, but the optimizer that was given has taken no step. Use it: "
            "one of your own has other groups, and no momentum from the epochs before."
        )
    if not torch.allclose(now, right, atol=1e-5):
        for why, wrong in _loop_mistakes().items():
            if torch.allclose(now, wrong, atol=1e-6):
                raise Wrong(why)
        raise Wrong(
            "After the epoch the weights are not those of one step a batch, each downhill, with "
            "its own learning rate. Forward, loss, backward, step: once for each batch, in order."
        )
    if isinstance(mean, Tensor) and mean.requires_grad:
        raise Wrong(
            "The loss that you return still holds the whole graph of its computation, which costs "
            "memory in every step. Take its number: loss.item()."
        )
    value = number(mean, "The mean loss")
    weighted = [loss * n for loss, n in zip(losses, SIZES, strict=True)]
    over_images, over_batches = sum(weighted) / sum(SIZES), sum(losses) / len(losses)
    if math.isclose(value, over_batches, rel_tol=1e-4):
        raise Wrong(
            f"The mean over batches is {value:.4f}, but the last batch is smaller: its images "
            "count too much. Weight each loss with the number of its images."
        )
    if math.isclose(value, sum(losses), rel_tol=1e-4) or math.isclose(
        value, sum(weighted), rel_tol=1e-4
    ):
        raise Wrong("This is a sum. Divide by the number of images.")
    if not math.isclose(value, over_images, rel_tol=1e-4):
        raise Wrong(
            f"The mean loss is {value:.4f}; it should be {over_images:.4f}: of each batch as it "
            "was before its step, over all images of the epoch."
        )
    if not net.training:
        raise Wrong("The model came back in evaluation mode; leave it in training mode.")


# ---- 8.2

STEPS = 18_000
PLAN = {
    "steps": float(STEPS),
    "rate after 900 steps": 0.2,
    "rate after 9,900 steps": 0.2,
    "last rate, advanced once an epoch": 0.4 * 40 / 1800,
    "first loss": math.log(20),
    "loss when sure and wrong": math.log(math.exp(7) + 19),
}
# While the last epoch runs, only 39 advances are done.
ALSO_RIGHT = {"last rate, advanced once an epoch": 0.4 * 39 / 1800}


@judge
def plan(answer: Mapping[str, Any]) -> None:
    """Judge predictions of the number of steps, of learning rates and of losses."""
    if not isinstance(answer, Mapping) or set(answer) != set(PLAN):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(map(repr, PLAN))}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    for name, right in PLAN.items():
        value = number(answer[name], repr(name))
        rights = (right, ALSO_RIGHT.get(name, right))
        if not any(math.isclose(value, one, rel_tol=0.01) for one in rights):
            raise Wrong(f"{name!r} is not {value:g}. {_why(name, value)}")


_GUESSES: dict[str, dict[float, str]] = {
    "steps": {
        450: "That is one epoch.",
        20_000: "That would be all 50,000 images; 5,000 are held out.",
    },
    "rate after 900 steps": {
        0.4: "That is the highest rate; 900 steps are half of the warm-up.",
        0.02: "The warm-up is a tenth of the training, 1,800 steps, not all of it.",
    },
    "rate after 9,900 steps": {
        0.18: "From its top at step 1,800 it falls to zero at 18,000: the fall is shorter than the "
        "training.",
        0.22: "That is the part of the fall that is done; what is left counts.",
    },
    "last rate, advanced once an epoch": {
        0.0: "Advanced 40 times only, it has not come far: where is it after 40 of 18,000?",
        0.4: "It would be there after 1,800 advances; it has had 40.",
    },
    "first loss": {
        math.log(10): "That is for 10 classes; here are 20.",
        1 / 20: "That is the probability of the right class. The loss is minus its logarithm.",
        math.log2(20): "That is in bits; the loss takes the natural logarithm.",
    },
    "loss when sure and wrong": {
        math.exp(-7): "That is near the loss if the class were right.",
        1.0: "The loss is no error rate: it has no largest value.",
        math.log(20): "That is for equal logits.",
    },
}
_THINK = {
    "steps": "Images in training over batch size, times epochs.",
    "rate after 900 steps": "A straight line from 0 at the beginning to 0.4 at step 1,800.",
    "rate after 9,900 steps": "A straight line from 0.4 at step 1,800 to 0 at step 18,000.",
    "last rate, advanced once an epoch": "The schedule is then where it should be at step 40.",
    "first loss": "Minus the logarithm of the probability that it gives to the right class.",
    "loss when sure and wrong": "Minus ln of exp(0) / (exp(7) + 19 exp(0)).",
}


def _why(name: str, value: float) -> str:
    for guess, why in _GUESSES[name].items():
        if math.isclose(value, guess, rel_tol=0.02, abs_tol=1e-6):
            return why
    return _THINK[name]


# ---- 8.3

FAULTS: dict[frozenset[int], str] = {  # the lines that may be named for it: a hint
    frozenset({1, 2}): "Where do the constants of the normalisation come from?",
    frozenset({7, 8, 9, 10, 11}): "What is in p.grad when the second batch begins?",
    frozenset({12}): "The schedule was made for 39,000 steps. How often is it advanced?",
    frozenset({13, 14, 15}): "Which mean and variance does BatchNorm use when it is measured?",
    frozenset({16}): "Are the test images the same in every epoch, and as they are in the files?",
    frozenset(
        {18, 19}
    ): "10,000 is no multiple of 128. What does an image of the last batch count?",
    frozenset({20, 21, 22}): "Which images decided which epoch is reported?",
}
INNOCENT = {
    3: "39,000 steps is right: 100 epochs of 390 steps. Look where it is advanced.",
    4: "A hundred epochs are no mistake.",
    5: "Training mode belongs here: once an epoch, before the batches.",
    6: "A new order each epoch, and 80 of the 50,000 images left out, others each time: fine.",
    17: "Counting the right answers is right so far.",
}


@judge
def bugs(answer: Any) -> None:
    """Judge the numbers of the faulty lines of a training script."""
    if not isinstance(answer, Collection) or isinstance(answer, str | bytes | Tensor):
        raise Wrong("Give the numbers of the lines, as a set: {1, 2, 3}.")
    named = {number(line, f"{line!r:.40}") for line in answer}
    if unknown := [line for line in named if line not in range(1, 23)]:
        raise Wrong(f"There is no line {unknown[0]:g}; they are numbered from 1 to 22.")
    if blamed := sorted(set(INNOCENT) & named):
        raise Wrong(f"Line {blamed[0]} is innocent. {INNOCENT[blamed[0]]}")
    missing = [hint for lines, hint in FAULTS.items() if not lines & named]
    if missing:
        found = len(FAULTS) - len(missing)
        raise Wrong(f"{found} of {len(FAULTS)} bugs found. Think of another: {missing[0]}")


# ---- 8.4


class _Notes:
    """How a network was called; a copy of the network writes into the same notes."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []  # the sum of each image
        self.graphs = False
        self.modes: set[bool] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Notes":
        return self


class _Probe(nn.Module):
    """A network with BatchNorm and dropout that notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)
            )
            self.net.append(nn.Linear(6 * 4, 3))
            for _ in range(20):
                self.net(2 * torch.randn(16, 3, 4, 4) + 1)
        self.notes = _Notes()

    def forward(self, x: Tensor) -> Tensor:
        self.notes.seen.append(x.detach().flatten(1).sum(1))
        self.notes.graphs |= torch.is_grad_enabled()
        self.notes.modes.add(self.training)
        return self.net(x)


def _labelled(net: _Probe, count: int) -> Images:
    """Return images, and labels of which all are right but half of the last few."""
    x = 2 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(count)) + 1
    with torch.no_grad():
        y = net.net.eval()(x).argmax(1)
    y[-3:-1] = (y[-3:-1] + 1) % 3
    return x, y


@judge
def accuracy(answer: Answer) -> None:
    """Judge `answer(model, images, labels, size)`: the part of the images named rightly."""
    for count, size, mode in ((19, 8, True), (10, 4, False), (12, 4, True), (5, 9, True)):
        net = _Probe()
        x, y = _labelled(net, count)
        net.train(mode)
        statistics = [b.clone() for b in net.buffers()]
        value = number(answer(net, x.clone(), y.clone(), size), "The accuracy")
        _measured_rightly(net, statistics, x)
        parts = [
            (net.net.eval()(a).argmax(1) == b)
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
        right = torch.cat(parts).double().mean().item()
        if abs(value - right) > 1e-6:
            raise Wrong(_why_accuracy(value, right, parts, size))
        if net.training != mode:
            had = "training" if mode else "evaluation"
            raise Wrong(f"The model came in {had} mode and is not in it any more. Put it back.")


def _measured_rightly(net: _Probe, statistics: list[Tensor], x: Tensor) -> None:
    if True in net.notes.modes:
        changed = not all(map(torch.equal, statistics, net.buffers()))
        more = " Its running statistics have changed by being measured." if changed else ""
        raise Wrong(f"The model was measured in training mode: call model.eval() first.{more}")
    if net.notes.graphs:
        raise Wrong(
            "The model built the graph for a backward pass that nobody asks for: measure under "
            "torch.no_grad()."
        )
    seen = torch.cat(net.notes.seen) if net.notes.seen else torch.zeros(0)
    if len(seen) != len(x):
        raise Wrong(f"Of {len(x)} images the model saw {len(seen)}; it should see each once.")
    if not torch.allclose(seen.sort().values, x.flatten(1).sum(1).sort().values, atol=1e-3):
        raise Wrong("The model was shown other images than those given. Hand them on as they are.")


def _why_accuracy(value: float, right: float, parts: list[Tensor], size: int) -> str:
    of_batches = sum(p.double().mean().item() for p in parts) / len(parts)
    if abs(value - of_batches) < 1e-6:
        return (
            f"This is the mean of the batches' accuracies, {value:.4f}: the images of the small "
            "last batch count more than the others. Count right answers and divide once."
        )
    count = sum(map(len, parts))
    if abs(value - 100 * right) < 1e-4:
        return "Return a part from 0 to 1, not a percentage."
    if abs(value - right * count) < 1e-4:
        return "That is the number of right answers; divide by the number of images."
    if abs(value - right * count / (len(parts) * size)) < 1e-6:
        return "You divided by the number of batches times their size; the last one is smaller."
    if abs(value - (1 - right)) < 1e-6:
        return "That is the part that the model names wrongly."
    if len(parts) > 1 and abs(value - parts[-1].double().mean().item()) < 1e-6:
        return "That is the accuracy of the last batch alone. Count in all batches."
    shapes = " Have predictions and labels the same shape, (N,)?" if value > 1 else ""
    return f"The accuracy is {value:.4f}; it should be {right:.4f}.{shapes}"


# ---- 8.5


class _Odd(nn.Module):
    """Parameters whose names and kinds tell nothing of their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.biased = nn.Conv2d(3, 4, 1)  # "bias" stands in its name
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.temperature = nn.Parameter(torch.ones(()))
        self.first = nn.Linear(4, 4, bias=False)
        self.second = self.first  # one matrix, two names
        self.frozen = nn.Linear(4, 2)
        self.frozen.requires_grad_(False)


@judge
def decay_groups(answer: Answer) -> None:
    """Judge `answer(model, decay)`: an optimizer's groups, with decay from two dimensions on."""
    models = (create_model("resnet20", attention="cbam"), nn.Linear(3, 2), _Odd())
    for model, decay in zip(models, (5e-4, 0.1, 0.01), strict=True):
        groups = answer(model, decay)
        if groups is None or groups is ...:
            raise NotImplementedError
        _groups_of(model, decay, groups)


def _groups_of(model: nn.Module, decay: float, groups: Any) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    if not isinstance(groups, list | tuple) or not all(isinstance(g, Mapping) for g in groups):
        raise Wrong('Return a list of dicts: [{"params": [...], "weight_decay": ...}, ...].')
    found: dict[int, float] = {}
    for group in groups:
        if not {"params", "weight_decay"} <= set(group):
            raise Wrong('Each group needs "params" and "weight_decay".')
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else params  # torch takes both
        if not isinstance(params, Iterable):
            raise Wrong(f'"params" must hold parameters, but is a {type(params).__name__}.')
        own = number(group["weight_decay"], '"weight_decay"')
        for p in params:
            if not isinstance(p, Tensor):
                raise Wrong(f'"params" must hold the parameters themselves, not {p!r:.60}.')
            name = names.get(id(p), "a tensor")
            if id(p) in found:
                raise Wrong(f"{name} stands there twice; an optimizer refuses that.")
            found[id(p)] = own
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        about = f"{name}, of shape {tuple(p.shape)},"
        if id(p) not in found:
            raise Wrong(f"{about} is in no group: it would never be trained.")
        wanted = decay if p.ndim >= 2 else 0.0
        if not math.isclose(found[id(p)], wanted, rel_tol=1e-6):
            why = "Ask for the number of dimensions, not for the name or the kind of layer."
            if wanted and found[id(p)]:
                why = "Take the `decay` that is given."
            raise Wrong(f"{about} has the decay {found[id(p)]:g}; it should have {wanted:g}. {why}")


# ---- 8.6


class Run:
    """A training run: all that it needs to go on.

    Attributes
    ----------
    model : torch.nn.Module
        With BatchNorm and dropout; dropout's chances are those of `torch.rand`.
    optimizer : torch.optim.Optimizer
        SGD with momentum.
    scheduler : torch.optim.lr_scheduler.LRScheduler
        The learning rate, advanced after every step.
    order : torch.Generator
        It draws which images a batch has.
    step : int
        Steps done.
    """

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.8)
        self.order = torch.Generator().manual_seed(seed)
        self.step = 0
        chance = torch.Generator().manual_seed(7)
        self.images = torch.randn(40, 4, generator=chance)
        self.labels = torch.randint(3, (40,), generator=chance)

    def advance(self, steps: int) -> "Run":
        """Train on."""
        self.model.train()
        for _ in range(steps):
            chosen = torch.randperm(40, generator=self.order)[:10]
            loss = F.cross_entropy(self.model(self.images[chosen]), self.labels[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
        return self


BEFORE, AFTER = 5, 6


@judge
def checkpoint(pack: Answer, unpack: Any = ...) -> None:
    """Judge `pack(run)` -> dict and `unpack(run, state)`: resumed as if never interrupted."""
    with torch.random.fork_rng(devices=[]):
        whole = Run().advance(BEFORE + AFTER)
        run = Run().advance(BEFORE)
        file, chance = _file(pack(run)), torch.get_rng_state()
        at = _parts(run, chance)
        if not _equal(_weights(run.advance(AFTER).model), _weights(whole.model)):
            raise Wrong("The run that was packed goes on otherwise than before: pack changed it.")
        written(unpack)
        new = Run(seed=99).advance(1)  # another process: other weights, other chances
        if isinstance(unpack(new, torch.load(io.BytesIO(file), weights_only=True)), Run):
            raise Wrong(
                "unpack returns a run. Change the one that it is given, and return nothing."
            )
        _restored(at, _parts(new, torch.get_rng_state()))
        if not _equal(_weights(new.advance(AFTER).model), _weights(whole.model)):
            raise Wrong(
                "All parts are as they were, but the run goes on otherwise. Does unpack change "
                "the run's own objects, without making new ones that the others do not know?"
            )


def _file(state: Any) -> bytes:
    """Return the state as a file's bytes, which can be read without running code."""
    if not isinstance(written(state), dict):
        raise Wrong(f"pack must return a dict, but returns a {type(state).__name__}.")
    if file := _saved(state):
        return file
    for key, value in state.items():
        if not _saved({key: value}):
            raise Wrong(
                f"{key!r} cannot be saved and read again without running code from the file: it "
                f"holds a {type(value).__name__}. Put tensors, numbers and state_dicts into the "
                "dict, no objects."
            )
    raise Wrong("The dict cannot be saved and read again. Are its keys texts or numbers?")


def _saved(state: dict[Any, Any]) -> bytes:
    """Return the bytes of a file, or none if it cannot be written, or not be read safely."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception:  # whatever pickle finds
        return b""
    return buffer.getvalue()


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)


def _parts(run: Run, chance: Tensor) -> dict[str, list[Tensor]]:
    """Return copies of all that a run consists of, by what to say where it is not restored."""
    momenta = [
        run.optimizer.state[p].get("momentum_buffer", torch.zeros(()))
        for p in run.model.parameters()
    ]
    rates = [torch.tensor(group["lr"]) for group in run.optimizer.param_groups]
    parts: dict[str, list[Tensor]] = {
        "The weights are not those that were saved.": list(run.model.parameters()),
        "BatchNorm's running statistics are missing: they are buffers, not parameters.": (
            list(run.model.buffers())
        ),
        "The optimizer's momentum is missing: its first steps go elsewhere.": momenta,
        "The learning rate is not the one that the run had.": rates,
        "The scheduler does not know how many steps it has done.": [
            torch.tensor(run.scheduler.last_epoch)
        ],
        "The generator of the order begins anew, or somewhere else: the next batches are others.": [
            run.order.get_state()
        ],
        "Dropout's chances are others: the state of torch's own generator is missing "
        "(torch.get_rng_state).": [chance],
        "The run does not know how many steps it has done.": [torch.tensor(run.step)],
    }
    return {why: [t.detach().clone() for t in tensors] for why, tensors in parts.items()}


def _restored(wanted: dict[str, list[Tensor]], got: dict[str, list[Tensor]]) -> None:
    for why, tensors in wanted.items():
        if not all(map(torch.equal, tensors, got[why])):
            raise Wrong(why)
