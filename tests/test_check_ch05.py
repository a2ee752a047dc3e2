"""The judges of chapter 05 accept what is right, and name the usual mistakes."""

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cbam_edu.attention import CBAM, ORDERS
from cbam_edu.check import ch05
from cbam_edu.complexity import count
from notebook_cells import NOTEBOOKS, ROOT, accepts, constant, exercises, refuses, waits

PATH = NOTEBOOKS / "05_cbam.ipynb"
EXERCISES = exercises(PATH)
FACTORS = {
    "shape": (2, 32, 5, 9),
    "one": 0.25,
    "three in a row": 1 / 64,
    "parallel": 0.5,
    "channel-only": 0.5,
}
VERDICTS = {
    "A": "both gates read F",
    "B": "x added at the end",
    "C": "none",
    "D": "channel gate applied twice",
    "E": "spatial before channel",
}


def test_there_are_five_exercises() -> None:
    assert len(EXERCISES) == 5


def test_published_figures_in_the_notebook_are_those_on_record() -> None:
    table = constant(PATH, "paper-table-3", "TABLE_3")
    recorded = json.loads((ROOT / "book/results/paper_tables.json").read_text("utf-8"))
    assert {k: list(v) for k, v in table.items()} == recorded["table3_arrangement_resnet50"]


# 5.1


def in_place(x: Tensor, channel: ch05.Gate, spatial: ch05.Gate) -> Tensor:
    x *= channel(x)
    return x * spatial(x)


def first_then_both(x: Tensor, c: ch05.Gate, s: ch05.Gate) -> Tensor:
    first = x * c(x)
    return s(first) * first + x


def channel_twice(x: Tensor, c: ch05.Gate, s: ch05.Gate) -> Tensor:
    for _ in range(2):
        x = x * c(x)
    return x * s(x)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, c, s: x * c(x) * s(x), "Both gates read F"),
        (lambda x, c, s: (x * s(x)) * c(x * s(x)), "The order is swapped"),
        (first_then_both, "You added x at the end"),
        (channel_twice, "The channel gate was applied twice"),
        (lambda x, c, s: x * c(x) * c(x) * s(x * c(x)), "was multiplied in twice"),
        (lambda x, c, s: x * s(x * c(x)), "the channel map got lost"),
        (lambda x, c, s: x * c(x), "This is F'"),
        (lambda x, c, s: x * s(x), "without the channel gate"),
        (lambda x, c, s: c(x) * s(x * c(x)), "The feature map itself is missing"),
        (lambda x, c, s: x * c(x) + x * s(x), "You added: x * (M_c + M_s)"),
        (in_place, "in place"),
        (lambda x, c, s: x, "it should be"),
        (lambda x, c, s: c(x), "F'' has shape (2, 8, 1, 1)"),
        (lambda x, c, s: c(x) @ s(x), "Your code stopped with RuntimeError"),
    ],
)
def test_refine_names_the_mistake(answer: ch05.Formula, reason: str, capsys: Any) -> None:
    refuses(ch05.refine, answer, reason, capsys)


def test_refine_takes_any_spelling(capsys: Any) -> None:
    def spelt(x: Tensor, channel: ch05.Gate, spatial: ch05.Gate) -> Tensor:
        first = torch.mul(channel(x), x)
        return torch.einsum("nchw,nhw->nchw", first, spatial(first)[:, 0])

    def in_one_line(x: Tensor, channel: ch05.Gate, spatial: ch05.Gate) -> Tensor:
        return (first := channel(x) * x) * spatial(first)

    accepts(ch05.refine, spelt, capsys)
    accepts(ch05.refine, in_one_line, capsys)
    waits(ch05.refine, lambda x, channel, spatial: None, capsys)


# 5.2


def test_silent_factors_takes_fractions_and_tensors(capsys: Any) -> None:
    accepts(ch05.silent_factors, FACTORS, capsys)
    tensors = {k: v if k == "shape" else torch.tensor(v) for k, v in FACTORS.items()}
    accepts(ch05.silent_factors, tensors | {"shape": [2, 32, 5, 9]}, capsys)
    accepts(ch05.silent_factors, FACTORS | {"three in a row": Fraction(1, 64)}, capsys)
    accepts(ch05.silent_factors, FACTORS | {"one": np.float32(0.25)}, capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": (2, 32, 1, 1)}, "'shape' is not (2, 32, 1, 1)"),
        ({"one": 0.5}, "There are two of them"),
        ({"three in a row": 0.75}, "a quarter of that"),
        ({"parallel": 0.25}, "one sigmoid only"),
        ({"channel-only": 0.25}, "one gate only"),
        ({"one": "a quarter"}, "must be a number, but is a str"),
        ({"one": True}, "must be a number, but is a bool"),
        ({"two": 0.1}, "an answer for each of"),
        ({"one": float("nan")}, "'one' is not nan"),
        ({"one": 25}, "There are two of them"),
        ({"one": [0.25]}, "must be a number, but is a list"),
        ({"one": torch.full((2, 32, 5, 9), 0.25)}, "must be a number, but is a Tensor"),
        ({"shape": 2880}, "'shape' is not 2880"),
        ({"parallel": 1.0}, "one sigmoid only"),
    ],
)
def test_silent_factors_says_why(change: dict[str, Any], reason: str, capsys: Any) -> None:
    refuses(ch05.silent_factors, FACTORS | change, reason, capsys)


@pytest.mark.parametrize("name", FACTORS)
def test_silent_factors_waits_for_every_answer(name: str, capsys: Any) -> None:
    waits(ch05.silent_factors, FACTORS | {name: ...}, capsys)


def test_silent_factors_wants_a_dict(capsys: Any) -> None:
    refuses(ch05.silent_factors, [0.25], "Give a dict", capsys)


# 5.3


def test_suspects_are_the_same_each_time_and_leave_the_random_numbers_alone() -> None:
    x = torch.randn(2, 16, 8, 8)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    first, second = ch05.suspects(), ch05.suspects()
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(first[k](x), second[k](x)) for k in VERDICTS)


def test_suspects_can_be_told_apart() -> None:
    x = torch.randn(4, 16, 8, 8)
    for letter, suspect in ch05.suspects().items():
        agree = [
            bug
            for bug, formula in ch05.BUGS.items()
            if torch.allclose(suspect(x), formula(x, suspect.channel, suspect.spatial), atol=1e-6)
        ]
        assert agree == [VERDICTS[letter]]


@pytest.mark.parametrize("letter", VERDICTS)
@pytest.mark.parametrize("bug", ch05.BUGS)
def test_named_refuses_every_false_claim(letter: str, bug: str, capsys: Any) -> None:
    if bug == VERDICTS[letter]:
        accepts(ch05.named, VERDICTS, capsys)
    else:
        refuses(ch05.named, VERDICTS | {letter: bug}, f"Suspect {letter} is not {bug!r}", capsys)


def test_named_lists_the_bugs_to_choose_from(capsys: Any) -> None:
    refuses(ch05.named, VERDICTS | {"B": "too slow"}, "choose one of 'none'", capsys)
    refuses(ch05.named, {"A": "none"}, "an answer for each of 'A'", capsys)
    refuses(ch05.named, list(VERDICTS.values()), "an answer for each of 'A'", capsys)
    refuses(ch05.named, VERDICTS | {"A": ["both gates read F"]}, "choose one of 'none'", capsys)
    refuses(ch05.named, VERDICTS | {"A": ch05.BUGS["none"]}, "choose one of 'none'", capsys)


def test_named_takes_the_letters_in_any_order(capsys: Any) -> None:
    accepts(ch05.named, dict(reversed(VERDICTS.items())), capsys)
    waits(ch05.named, VERDICTS | {"E": ...}, capsys)


# 5.4


def shut_and_shout(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    shut = torch.ones(1, x.shape[1], 1, 1)
    shut[:, 0] = 0
    module.channel.register_forward_hook(lambda gate, inputs, out: shut)
    loud = x.clone()
    loud[:, 0] += 9 * torch.rand_like(loud[:, 0])
    return module(x), module(loud)


def not_shut(module: nn.Module, x: Tensor) -> bool:
    return not torch.allclose(module(x), module(x.roll(1, 0)))


def one_channel_compared(module: nn.Module, x: Tensor) -> bool:
    quiet, loud = shut_and_shout(module, x)
    return not torch.equal(quiet[:, 0], loud[:, 0])


def differs(module: nn.Module, x: Tensor) -> bool:
    quiet, loud = shut_and_shout(module, x)
    return bool((quiet != loud).any())


def whispered(module: nn.Module, x: Tensor) -> bool:
    module.channel.register_forward_hook(lambda gate, inputs, out: torch.zeros_like(out))
    return bool((module(x) != module(x + 1)).any())


def unbound(module: nn.Module, x: Tensor) -> bool:
    """Shut channel 0, but leave the others to the gate, which hears the shout."""
    mask = torch.ones(1, x.shape[1], 1, 1)
    mask[:, 0] = 0
    module.channel.register_forward_hook(lambda gate, inputs, out: out * mask)
    loud = x.clone()
    loud[:, 0] += 9
    return bool((module(x) != module(loud)).any())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_shut, "a sound CBAM hears a shut channel"),
        (one_channel_compared, "a module whose spatial gate reads F"),
        (lambda module, x: False, "a module whose spatial gate reads F"),
        (lambda module, x: True, "a sound CBAM hears a shut channel"),
        (lambda module, x: isinstance(module, ch05.Suspect), "the order spatial-channel"),
        (lambda module, x: module(x), "must return True or False, but returns a Tensor"),
        (lambda module, x: not differs(module, x), "a sound CBAM hears a shut channel"),
        (lambda module, x: str(differs(module, x)), "but returns a str"),
        (lambda module, x: int(differs(module, x)), "but returns a int"),
        (lambda module, x: module.order != "channel-spatial", "stopped with AttributeError"),
        (whispered, "Shout into the shut channel"),
        (unbound, "a sound CBAM hears a shut channel"),
        (lambda module, x: torch.equal(module(x), module(x)), "a sound CBAM hears"),
    ],
)
def test_hears_shut_channel_is_itself_tested(
    answer: Callable[[nn.Module, Tensor], Any], reason: str, capsys: Any
) -> None:
    refuses(ch05.hears_shut_channel, answer, reason, capsys)


def test_hears_shut_channel_takes_any_right_way(capsys: Any) -> None:
    def replaced(module: nn.Module, x: Tensor) -> bool:
        class Shut(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return (torch.arange(z.shape[1]) > 0).float()[None, :, None, None]

        module.channel = Shut()
        loud = x.clone()
        loud[:, 0] *= -3
        return bool((module(x) - module(loud)).abs().max() > 1e-6)

    accepts(ch05.hears_shut_channel, differs, capsys)
    accepts(ch05.hears_shut_channel, replaced, capsys)
    accepts(ch05.hears_shut_channel, lambda *args: torch.tensor(differs(*args)), capsys)
    accepts(ch05.hears_shut_channel, lambda *args: np.bool_(differs(*args)), capsys)
    waits(ch05.hears_shut_channel, lambda module, x: None, capsys)


# 5.5


def counted(order: str) -> tuple[int, int]:
    return count(CBAM(64, order=order), (64, 32, 32))[:2]


def without_biases(order: str) -> tuple[int, int]:
    module = CBAM(64, order=order)
    weights = sum(p.numel() for name, p in module.named_parameters() if "bias" not in name)
    return weights, counted(order)[1]


def with_one_mlp_run(order: str) -> tuple[int, int]:
    parameters, macs = counted(order)
    return parameters, macs - (0 if order == "spatial-only" else 2 * 64 * 4)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda order: counted(order)[::-1], "The two numbers are swapped"),
        (lambda order: (counted(order)[0], 2 * counted(order)[1]), "These are FLOPs"),
        (without_biases, "biases and BatchNorm's weight and bias count"),
        (with_one_mlp_run, "The shared MLP runs twice"),
        (lambda order: counted(ORDERS[0]), "It has no spatial gate"),
        (lambda order: (counted(order)[0], 98), "The 7 x 7 convolution works at every place"),
        (lambda order: counted(order)[0], "Return two numbers"),
        (lambda order: ("many", 1), "'parameters' must be a number"),
        (lambda order: (*counted(order), 0), "Return two numbers"),
        (lambda order: dict(zip("ab", counted(order), strict=True)), "Return two numbers"),
        (lambda order: count(CBAM(64, 8, order=order), (64, 32, 32))[:2], "does not have 1,196"),
        (lambda order: count(CBAM(64, order=order), (64, 16, 16))[:2], "works at every place"),
        (lambda order: counted("channel-spatial"), "It has no spatial gate"),
        (lambda order: (len(CBAM(64, order=order).state_dict()), 1), "does not have"),
        (lambda order: CBAM(64, order), "stopped with ValueError"),
    ],
)
def test_cost_names_the_mistake(answer: Callable[[str], Any], reason: str, capsys: Any) -> None:
    refuses(ch05.cost, answer, reason, capsys)


def test_cost_takes_numbers_of_any_kind(capsys: Any) -> None:
    accepts(ch05.cost, counted, capsys)
    accepts(ch05.cost, lambda order: tuple(map(np.int64, counted(order))), capsys)
    accepts(ch05.cost, lambda order: list(map(float, counted(order))), capsys)
    waits(ch05.cost, lambda order: ..., capsys)
    waits(ch05.cost, lambda order: (counted(order)[0], None), capsys)
