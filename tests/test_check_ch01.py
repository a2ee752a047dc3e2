"""The judges of chapter 01: the stored solutions pass, and each usual mistake is named."""

import pytest
import torch

from cbam_edu.check import ch01
from notebook_cells import NOTEBOOKS, exercises, refuses

EXERCISES = exercises(NOTEBOOKS / "01_why_reweight.ipynb")


def verdict(judge, answer, capsys):
    right = bool(judge(answer))
    return right, capsys.readouterr().out


def test_every_judge_has_an_exercise():
    calls = [exercise.judge_call for exercise in EXERCISES]
    for name in ("reweight", "axes", "strength_gate", "loudest"):
        assert sum(f"check.ch01.{name}(" in call for call in calls) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, c, p: x * c * p, "(N, C) met (H, W), and (N, H, W) met (C, H, W)"),
        (lambda x, c, p: x * c * p[:, None], "two axes of length 1 at the end"),
        (lambda x, c, p: x * c[:, :, None, None] * p, "an axis of length 1 for the channels"),
        (lambda x, c, p: x * c[:, :, None, None], "those of the places are missing"),
        (lambda x, c, p: x * p[:, None], "those of the channels are missing"),
        (lambda x, c, p: x + c[:, :, None, None] + p[:, None], "a weight multiplies"),
        (lambda x, c, p: x * (c[:, :, None, None] + p[:, None]), "by the sum of both"),
        (lambda x, c, p: (x * c[:, :, None, None] * p[:, None]).sum(1), "has shape (3, 3, 3)"),
        (lambda x, c, p: (x * c[:, :, None, None] * p[:, None]).numpy(), "must be a tensor"),
        (lambda x, c, p: x @ c[:2], "stopped with RuntimeError"),
    ],
)
def test_reweight_names_the_mistake(answer, words, capsys):
    refuses(ch01.reweight, answer, words, capsys)


def test_reweight_takes_any_right_spelling(capsys):
    def einsum(x, channel, place):
        return torch.einsum("nchw,nc,nhw->nchw", x, channel, place)

    assert verdict(ch01.reweight, einsum, capsys) == (True, "✓ Right.\n")


RIGHT_AXES = ["width", "channel", "image", "height", "error"]


@pytest.mark.parametrize(
    ("place", "word", "words"),
    [
        (0, "channel", "(8, 16, 10, 16) and (1, 1, 1, 16)"),
        (1, "width", "(8, 16, 10, 16) and (1, 16, 1, 1)"),
        (4, "image", "(8, 16, 10, 16) and (1, 1, 8, 16)"),
        (3, "rows", "'rows' is not one of image, channel, height, width, error"),
    ],
)
def test_axes_shows_both_shapes(place, word, words, capsys):
    answer = list(RIGHT_AXES)
    answer[place] = word
    refuses(ch01.axes, answer, words, capsys)


def test_axes_wants_five_words_and_waits_for_the_last(capsys):
    refuses(ch01.axes, RIGHT_AXES[:4], "Give a list of 5 words", capsys)
    refuses(ch01.axes, "width", "Give a list of 5 words", capsys)
    assert verdict(ch01.axes, [*RIGHT_AXES[:4], ...], capsys)[1].startswith("○")


def test_axes_are_what_torch_does():
    # An independent check of the stored answers: scale by 0 along one index and see what changed.
    for size, word in ch01.SHAPES.items():
        x = torch.ones(8, 16, 10, 16)
        weight = torch.ones(size)
        weight.flatten()[0] = 0
        if word == "error":
            with pytest.raises(RuntimeError):
                x * weight
            continue
        zero = (x * weight == 0).float()
        varies = [bool((zero != zero.mean(d, keepdim=True)).any()) for d in range(4)]
        assert [a for a, v in zip(ch01.AXES, varies, strict=False) if v] == [word]


def gate(strength, level):
    return torch.sigmoid(strength - level)[:, :, None, None]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda x: gate(
                x.mean((0, 2, 3)).expand(len(x), -1), x.mean((0, 2, 3)).mean(0, keepdim=True)
            ),
            "averaged over the batch",
        ),
        (lambda x: gate(x.mean((2, 3)), x.mean()), "One bug is left"),
        (lambda x: gate(x.mean((2, 3)), x.mean((0, 2, 3))), "the other channels of its own image"),
        (
            lambda x: gate(x.mean((2, 3)), x.mean((2, 3)).amax()),
            "its neighbours in the batch must not change",
        ),
        (
            lambda x: (x.mean((2, 3)) - x.mean((1, 2, 3))[:, None])[:, :, None, None],
            "Is the sigmoid there?",
        ),
        (lambda x: gate(x.mean((2, 3)), 0), "it should be"),
        (
            lambda x: (x.mean((2, 3), True) > x.mean((1, 2, 3), True)).float(),
            "Take the sigmoid of the difference",
        ),
        (lambda x: gate(x.mean((2, 3)), x.mean((1, 2, 3))[:, None])[..., 0, 0], "has shape (4, 3)"),
    ],
)
def test_strength_gate_names_the_mistake(answer, words, capsys):
    refuses(ch01.strength_gate, answer, words, capsys)


def shares(winners, channels=4):
    return torch.bincount(winners, minlength=channels) / len(winners)


def relative(x):
    strength = x.mean((2, 3))
    return strength / strength.mean(0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: shares(x.mean((2, 3)).argmax(1)), "with the largest numbers wins"),
        (lambda x: torch.bincount(relative(x).argmax(1), minlength=4), "These are counts"),
        (lambda x: shares(relative(x).argmin(1)), "quietest"),
        (lambda x: relative(x).argmax(1), "has shape (50,)"),
        (lambda x: relative(x).softmax(1).sum(0), "The shares add up to 50"),
        (lambda x: relative(x).softmax(1).mean(0), "it should be"),
        (lambda x: shares(relative(x).argmax(1), 0), "see `minlength`"),
    ],
)
def test_loudest_names_the_mistake(answer, words, capsys):
    refuses(ch01.loudest, answer, words, capsys)
