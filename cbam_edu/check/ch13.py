"""Judges of chapter 13, "Using it for real"."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu import data
from cbam_edu.attention import CBAM
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, plain, tensor, truth, written
from cbam_edu.data.folder import MEAN, STD
from cbam_edu.models import create_model
from cbam_edu.statistics import welch

Network = Callable[[Tensor], Tensor]


def _random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ---- 13.1


@judge
def gentle(answer: Callable[[nn.Module], Any]) -> None:
    """Judge `answer(attention)`: a module from x, with its number at 0, to attention(x), at 1."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the class itself, Gentle, not a module made by it.")
    torch.manual_seed(0)
    attention = CBAM(8, 4).eval()
    x = _random(2, 8, 5, 6, seed=1)
    refined = attention(x).detach()
    module = answer(attention)
    if not isinstance(module, nn.Module):
        raise Wrong(f"Gentle must be a module, but is a {type(module).__name__}.")
    _starts_as_identity(module.eval(), x, refined)
    number = _own_near(module, attention)
    _learns(module, number, x)
    for value in (1.0, 0.5):
        with torch.no_grad():
            number.fill_(value)
            out = module(x.clone())
        known(
            out,
            {
                "With the number at 1 this is x + attention(x): the map and the refined map. Mix "
                "in the difference, attention(x) - x.": x + value * refined,
                "This only scales the map. The attention has no part in it.": value * x,
            },
        )
        close(out, x + value * (refined - x), f"the output with the number at {value:g}")


def _starts_as_identity(module: nn.Module, x: Tensor, refined: Tensor) -> None:
    given = x.clone()
    try:
        start = tensor(module(given), "the output").detach()
    except Wrong:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) and not str(error):  # not written yet
            raise
        raise Wrong(
            f"The module stops at a map {tuple(x.shape)} with {type(error).__name__}: {error}"
        ) from error
    if not torch.equal(given, x):
        raise Wrong("It changes its input in place. Write x + ..., and not x += ...")
    known(
        start,
        {
            "At the start it returns attention(x): nothing of the network's knowledge is safe. "
            "Start the number at 0.": refined,
            "At the start it returns x + attention(x). Let a number that starts at 0 decide.": (
                x + refined
            ),
            "At the start it returns zeros, and the network behind it hears nothing.": (
                torch.zeros_like(x)
            ),
        },
    )
    close(start, x, "the output at the start", "It should be the input.")
    if not torch.equal(start, x):
        raise Wrong("At the start the output is near its input, but not equal to the bit.")


def _own_near(module: nn.Module, attention: nn.Module) -> nn.Parameter:
    inside = {id(p) for p in attention.parameters()}
    parameters = list(module.parameters())
    if inside - {id(p) for p in parameters}:
        raise Wrong(
            "The attention's weights are not among the module's parameters, so no optimizer sees "
            "them: keep it, and no copy of it, as an attribute: self.attention = attention."
        )
    own = [p for p in parameters if id(p) not in inside]
    if not own:
        raise Wrong("Nothing besides the attention can be learnt: make the number an nn.Parameter.")
    if len(own) > 1 or own[0].numel() != 1:
        raise Wrong(f"It has {sum(p.numel() for p in own)} numbers of its own; it should have one.")
    return own[0]


def _learns(module: nn.Module, number: nn.Parameter, x: Tensor) -> None:
    module.zero_grad()
    output = module(x)
    if output.requires_grad:
        (output * _random(*x.shape, seed=2)).sum().backward()
    if number.grad is None or not bool(number.grad.any()):
        raise Wrong("The number gets no gradient in the first step, so it stays 0 for ever.")
    with torch.no_grad():
        number.fill_(0.5)
    module.zero_grad()
    (module(x) * _random(*x.shape, seed=2)).sum().backward()
    gates = [p for p in module.parameters() if p is not number]
    if not any(p.grad is not None and bool(p.grad.any()) for p in gates):
        raise Wrong("With the number at 0.5 the attention still gets no gradient.")


# ---- 13.2

_GATE = "stages.0.0.attention"
MOVES = {
    "head.weight": (True, "It is what is trained."),
    "stages.0.0.conv1.weight": (
        False,
        "It has no gradient, and the optimizer leaves such tensors alone, weight decay and all.",
    ),
    "stages.0.0.bn1.weight": (
        False,
        "It is a parameter, frozen like the others; a BatchNorm's statistics are none.",
    ),
    "stages.0.0.bn1.running_mean": (
        True,
        "It is a buffer: a forward pass in training mode moves it, with or without gradients.",
    ),
    f"{_GATE}.channel.mixer.0.weight": (
        False,
        "It has no gradient. The MLP has no buffer that a forward pass could move.",
    ),
    f"{_GATE}.spatial.norm.running_var": (
        True,
        "The spatial gate ends with a BatchNorm, which is in training mode like all others.",
    ),
    "stages.2.2.bn2.num_batches_tracked": (
        True,
        "It counts the batches that were seen in training mode.",
    ),
}


@judge
def moves(answer: Mapping[str, Any]) -> None:
    """Judge which tensors of a frozen network's state dict one training step changes."""
    if not isinstance(answer, Mapping) or set(answer) != set(MOVES):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(map(repr, MOVES))}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    for name, (right, why) in MOVES.items():
        said = truth(answer[name])
        if said is None:
            raise Wrong(f"{name}: answer True or False, not {answer[name]!r:.60}.")
        if said != right:
            raise Wrong(f"{name} {'changes' if right else 'does not change'}. {why}")


# ---- 13.3


def _trained_network() -> nn.Module:
    """Return a small network whose running statistics are no longer those of the start."""
    torch.manual_seed(0)
    net = create_model("resnet8", attention="cbam")
    with torch.no_grad():
        for seed in range(3):
            net(_random(16, 3, 16, 16, seed=seed) * 2 + 1)
    return net.eval()


def _pictures() -> tuple[Tensor, Tensor]:
    """Return images of three colours, ``(30, 3, 16, 16) uint8``, and their classes."""
    labels = torch.arange(30) % 3
    images = 60 + 40 * _random(30, 3, 16, 16, seed=5)
    images[torch.arange(30), labels] += 110
    return images.clamp(0, 255).byte(), labels


@judge
def fine_tune(answer: Callable[..., Any]) -> None:
    """Judge `answer(net, images, labels, classes)`: a new head on a frozen network."""
    net, (images, labels) = _trained_network(), _pictures()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[Tensor] = []
    hook = net.get_submodule("conv").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().clone())
    )
    result = answer(net, images.clone(), labels.clone(), 3)
    hook.remove()
    if result is None or result is ...:
        raise NotImplementedError
    if not isinstance(result, nn.Module):
        raise Wrong(f"Return the network, not a {type(result).__name__}.")
    _normalised(seen, images)
    _body_is_as_it_was(result, before)
    if any(m.training for m in result.modules() if isinstance(m, nn.BatchNorm2d)):
        raise Wrong(
            "It is returned in training mode: each answer would depend on the other images of its "
            "batch. Call net.eval()."
        )
    logits = result(data.normalise(images)).detach()
    if logits.shape != (30, 3):
        raise Wrong(
            f"For 3 classes and 30 images it gives {tuple(logits.shape)}; wanted is (30, 3). To "
            "change head.out_features changes a label, not the layer: put a new nn.Linear there."
        )
    loss = F.cross_entropy(logits, labels).item()
    if loss > 0.9 * math.log(3):
        raise Wrong(
            f"After training its loss on the training images is {loss:.2f}, and guessing has "
            f"{math.log(3):.2f}. Does the optimizer hold the new head's parameters?"
        )
    if (right := (logits.argmax(1) == labels).float().mean().item()) < 0.7:
        raise Wrong(
            f"After training it names {right:.0%} of the training images rightly. Has each image "
            "still its own label? Does cross_entropy get the logits themselves?"
        )
    other = answer(_trained_network(), images.clone(), labels.clone(), 5)
    if other(data.normalise(images)).shape != (30, 5):
        raise Wrong("For 5 classes the head still has 3. Take the number of classes that is given.")


def _normalised(seen: Sequence[Tensor], images: Tensor) -> None:
    """Raise `Wrong` unless what the network was shown are the images as it was trained on them."""
    if not seen:
        raise Wrong("The network given was never called.")
    first, scaled = seen[0], images / 255
    wrong = {
        "pixels from 0 to 1. Use data.normalise(images)": scaled,
        "pixels from 0 to 255. Use data.normalise(images)": images.float(),
        "images normalised by ImageNet's numbers; it was trained with CIFAR-10's, which "
        "data.normalise has": data.normalise(images, MEAN, STD),
    }
    for what, pixels in wrong.items():
        if _among(first, pixels):
            raise Wrong(f"The network is shown {what}.")
    if not _among(first, data.normalise(images)):
        raise Wrong("The network is shown other images than data.normalise(images).")


def _among(x: Tensor, images: Tensor) -> bool:
    """Say whether the first image of a batch is one of `images`."""
    if x.shape[1:] != images.shape[1:]:
        return False
    return bool((x[:1] - images).abs().amax((1, 2, 3)).min() < 1e-4)


def _body_is_as_it_was(net: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = net.state_dict()
    parameters = {name for name, _ in net.named_parameters()}
    for name, value in before.items():
        if name.startswith("head."):
            continue
        if name not in after:
            raise Wrong(f"The network has lost {name}; replace the head and nothing else.")
        if torch.equal(after[name], value):
            continue
        if name in parameters:
            raise Wrong(f"{name} was trained; all but the head should stay as it is.")
        raise Wrong(
            f"{name} has changed: BatchNorm follows the batches in training mode, though its "
            "weights are frozen. Put the frozen body into evaluation mode while you train."
        )


# ---- 13.4


class _Small(nn.Module):
    """A network with everything that makes an export go wrong, and quickly exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.attention = CBAM(8, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.norm(self.conv(x)).relu())
        return self.head(x.mean((2, 3)))


@judge
def to_program(answer: Callable[[nn.Module], Any]) -> None:
    """Judge `answer(net)`: an exported program for every number and size, in evaluation mode."""
    torch.manual_seed(0)
    net = _Small()
    with torch.no_grad():
        net(_random(8, 3, 9, 9) * 3 + 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    program = answer(net)
    if program is None or program is ...:
        raise NotImplementedError
    if not isinstance(program, torch.export.ExportedProgram):
        raise Wrong(f"Return the exported program, not a {type(program).__name__}.")
    if not all(module.training for module in net.modules()):
        raise Wrong("The network was in training mode, and is not any more: export a copy.")
    if any(not torch.equal(value, before[name]) for name, value in net.state_dict().items()):
        raise Wrong("The network's numbers have changed: export a copy, in evaluation mode.")
    plain = copy.deepcopy(net).eval()
    for shape, what in (
        ((2, 3, 48, 64), "two images of 48 x 64"),
        ((1, 3, 48, 64), "one image"),
        ((5, 3, 48, 64), "five images"),
        ((2, 3, 40, 64), "another height"),
        ((2, 3, 48, 33), "another width"),
        ((1, 3, 32, 32), "one image of 32 x 32"),
    ):
        _says_the_same(program, plain, _random(*shape), what)


def _says_the_same(
    program: torch.export.ExportedProgram, plain: nn.Module, x: Tensor, what: str
) -> None:
    wanted = plain(x).detach()
    try:
        got = program.module()(x)
    except (AssertionError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        why = (
            "The example must have the network's kind of numbers."
            if "type" in first
            else "Declare dimensions 0, 2 and 3 free by dynamic_shapes, with an example of more "
            "than one image and of two different sides."
        )
        raise Wrong(
            f"The program does not take {what}, {tuple(x.shape)}: {first}. {why}"
        ) from error
    if not torch.allclose(got, wanted, atol=1e-5):
        learning = copy.deepcopy(plain).train()(x)
        if torch.allclose(got, learning, atol=1e-5):
            raise Wrong(
                "The program says what the network says in training mode: BatchNorm takes its "
                "statistics from the batch. Export in evaluation mode."
            )
        raise Wrong(f"For {what} the program says something else than the network.")


# ---- 13.5


def _linear(x: Tensor) -> Tensor:
    """Return logits ``(N, 2)``: large, so that a difference must be a relative one.

    The largest of them, in absolute value, are negative.
    """
    means = x.mean((2, 3))
    return 1000 * torch.stack([-1 - means[:, 0], means[:, 1] - means[:, 2]], dim=1)


def _off(when: Callable[[Tensor], bool], by: float) -> Network:
    """Return an export whose first logits are off where `when(x)`, by a part of the largest."""

    def run(x: Tensor) -> Tensor:
        logits = _linear(x)
        if when(x):
            logits[:, 0] = logits[:, 0] + by * logits.abs().max()
        return logits

    return run


def _noted(seen: list[Tensor]) -> Network:
    """Return the network, which notes what it is given."""

    def net(x: Tensor) -> Tensor:
        seen.append(x)
        return _linear(x)

    return net


_SHAPES = [(1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 9, 12)]
_CASES: list[tuple[str, Network, float, str]] = [
    ("one that equals the network", _linear, 0.0, "Do both get the same images?"),
    (
        "one that is off by a hundredth of the largest logit",
        _off(lambda x: True, 0.01),
        0.01,
        "Divide the largest difference by the largest logit of the network, in absolute value.",
    ),
    (
        "one that is off downwards",
        _off(lambda x: True, -0.02),
        0.02,
        "A difference counts in both directions: take its absolute value.",
    ),
    (
        "one that is wrong for the first shape only",
        _off(lambda x: len(x) == 1, 0.05),
        0.05,
        "Take the quotient for each shape, and keep the largest of them, not the last.",
    ),
    (
        "one that is wrong for three images only",
        _off(lambda x: len(x) == 3, 0.05),
        0.05,
        "Go over all shapes, and keep the largest.",
    ),
    (
        "one that is wrong for an odd height only",
        _off(lambda x: x.shape[2] == 9, 0.05),
        0.05,
        "Use the shapes that are given.",
    ),
    (
        "one that answers for the first image only",
        lambda x: _linear(x)[:1],
        math.inf,
        "(1, 2) minus (3, 2) broadcasts: compare the shapes first.",
    ),
    (
        "one that says nan for three images",
        lambda x: _linear(x) * (math.nan if len(x) == 3 else 1),
        math.inf,
        "No comparison with nan is true; ask isfinite().all() first.",
    ),
]


@judge
def parity(answer: Callable[..., Any]) -> None:
    """Judge `answer(net, run, shapes)`: the largest relative difference of a network's export."""
    for name, run, right, why in _CASES:
        shapes = _SHAPES[1:] if right == math.inf else _SHAPES
        torch.manual_seed(0)
        seen: list[Tensor] = []
        value = number(answer(_noted(seen), run, list(shapes)), "What you return")
        if any(x.min() == x.max() for x in seen):
            raise Wrong("All pixels of the images are the same number. Give random images.")
        if not (value == right or abs(value - right) <= 1e-5):
            raise Wrong(f"For {name} it says {value:.5g}; it should say {right:.5g}. {why}")


# ---- 13.6


_NONE = (0.58, 0.61, 0.60, 0.60, 0.56)  # two equal ones, which are two runs


def _run(arm: str, seed: int, accuracy: float, seconds: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "seconds": seconds}


def _study() -> list[dict[str, Any]]:
    """Return runs of three arms in no order, one of them twice, one of them a failure."""
    cbam = [_run("cbam", i, a, 30 + i) for i, a in enumerate((0.62, 0.60, 0.61, 0.10))]
    none = [_run("none", i, a, 20 + i) for i, a in enumerate(_NONE)]
    wider = [_run("wider", 0, 0.9, 99)]
    return [*none[2:], cbam[0], *wider, *cbam, *none[:2], none[4]]


@judge
def report(answer: Callable[..., Any]) -> None:
    """Judge `answer(records, arm, baseline)`: n, difference, interval and cost of two arms."""
    records = _study()
    value = _dict(answer(copy.deepcopy(records), "cbam", "none"))
    if tuple(_listed(value["n"])) != (4, 5):
        raise Wrong(_why_n(value["n"]))
    cbam, none = ([100 * a for a in some] for some in ((0.62, 0.60, 0.61, 0.10), _NONE))
    right = welch(cbam, none)
    _near(value["difference"], right.value, "difference", _why_difference(value["difference"]))
    for name, wanted in (("low", right.low), ("high", right.high)):
        _near(value[name], wanted, name, _why_interval(value, right.value))
    cost = sum((30, 31, 32, 33)) / 4 / (sum((20, 21, 22, 23, 24)) / 5)
    _near(value["cost"], cost, "cost", "Divide the arm's mean seconds by the baseline's.")
    other = _dict(answer(copy.deepcopy(records), "none", "cbam"))
    _near(other["difference"], -right.value, "difference, with the arms exchanged,", "")
    single = _dict(answer(copy.deepcopy(records), "wider", "none"))
    if single["low"] is not None or single["high"] is not None:
        raise Wrong("One run has no spread: with a single run of an arm, low and high are None.")
    _near(single["difference"], 31.0, "difference of an arm with one run", "")


def _dict(value: Any) -> Mapping[str, Any]:
    value = written(value)
    names = ("n", "difference", "low", "high", "cost")
    if not isinstance(value, Mapping) or not set(names) <= set(value):
        raise Wrong(f"Return a dict with the keys {', '.join(names)}.")
    if any(value[name] is ... for name in names):
        raise NotImplementedError
    return {name: plain(value[name]) for name in names}


def _listed(n: Any) -> list[Any]:
    if isinstance(n, Tensor | np.ndarray) and n.ndim == 1:
        n = n.tolist()
    return list(n) if isinstance(n, Sequence) and not isinstance(n, str) else [n]


def _why_n(n: Any) -> str:
    said = f"n is {n!r}; it should be (4, 5). "
    got = tuple(_listed(n))
    if got == (5, 6):
        return said + "Two runs stand in the records twice; count each arm and seed once."
    if got == (4, 4):
        return said + "Two runs of one accuracy are two runs: arm and seed tell them apart."
    if got == (3, 5):
        return said + "The run that went badly was left out. It is a result, too."
    if got == (5, 4):
        return said + "The arm comes first, then the baseline."
    return said + "It counts the runs of the arm and of the baseline."


def _why_difference(value: Any) -> str:
    if isinstance(value, int | float):
        if abs(value - (48.25 - 59) / 100) < 1e-9:
            return "Give it in percentage points."
        if abs(value - (59 - 48.25)) < 1e-9:
            return "It is the arm minus the baseline."
        if abs(value - 1.0) < 1e-9:
            return "That is the best run minus the best run. Take the means."
    return "It is the arm's mean minus the baseline's, over all runs."


def _why_interval(value: Mapping[str, Any], difference: float) -> str:
    low, high = value["low"], value["high"]
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return "Both arms have several runs, so there is an interval."
    if low > high:
        return "low and high are exchanged."
    half = (high - low) / 2
    if abs((low + high) / 2 - difference) < 1e-6 and half < _half() * 0.999:
        return (
            "It is too narrow. Is it 1.96 standard errors, where so few runs need Student's t, or "
            "a spread divided by n instead of n - 1?"
        )
    return "Use the interval of welch(arm, baseline)."


def _half() -> float:
    found = welch([62.0, 60.0, 61.0, 10.0], [100 * a for a in _NONE])
    return (found.high - found.low) / 2


def _near(value: Any, right: float, what: str, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(f"{what} must be a number, but is {value!r}. {why}".strip())
    if not abs(value - right) <= 1e-6 * (1 + abs(right)):
        raise Wrong(f"{what} is {value:.4g}; it should be {right:.4g}. {why}".strip())
