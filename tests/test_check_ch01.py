"""The judges of chapter 01: the stored solutions pass, and each usual mistake is named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cbam_edu.check import ch01
from notebook_cells import NOTEBOOKS, accepts, exercises, refuses, waits

EXERCISES = exercises(NOTEBOOKS / "01_why_reweight.ipynb")


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
        (lambda x, c, p: x * c[0, :, None, None] * p[0], "it should be"),
        (
            lambda x, c, p: x * c.view(3, 3, 1, 1) * p.view(3, 1, 3, 3),
            "is invalid for input of size",
        ),
        (lambda x, c, p: x * c[:, None, :, None] * p[:, None], "it should be"),
        (lambda x, c, p: x * c[:, :, None, None] * p[..., None], "it should be"),
        (lambda x, c, p: c[:, :, None, None] * p[:, None], "it should be"),
        (lambda x, c, p: x * c.softmax(1)[:, :, None, None] * p[:, None], "it should be"),
        (lambda x, c, p: x + x * c[:, :, None, None] * p[:, None], "it should be"),
        (lambda x, c, p: (x * c[:, :, None, None], x * p[:, None]), "but is a tuple"),
        (lambda x, c, p: c @ x @ p, "it should be"),
    ],
)
def test_reweight_names_the_mistake(answer, words, capsys):
    refuses(ch01.reweight, answer, words, capsys)


def test_reweight_takes_any_right_spelling(capsys):
    def einsum(x, channel, place):
        return torch.einsum("nchw,nc,nhw->nchw", x, channel, place)

    def loops(x, channel, place):
        made = torch.empty_like(x)
        for n, image in enumerate(x):
            for c, sheet in enumerate(image):
                made[n, c] = sheet * channel[n, c] * place[n]
        return made

    def joined(x, channel, place):
        return x * (channel.reshape(*channel.shape, 1, 1) * place.unsqueeze(1))

    accepts(ch01.reweight, einsum, capsys)
    accepts(ch01.reweight, loops, capsys)
    accepts(ch01.reweight, joined, capsys)
    waits(ch01.reweight, lambda x, channel, place: None, capsys)


RIGHT_AXES = ["width", "channel", "image", "height", "error"]


@pytest.mark.parametrize(
    ("place", "word", "words"),
    [
        (0, "channel", "(8, 16, 10, 16) and (1, 1, 1, 16)"),
        (1, "width", "(8, 16, 10, 16) and (1, 16, 1, 1)"),
        (4, "image", "(8, 16, 10, 16) and (1, 1, 8, 16)"),
        (3, "rows", "'rows' is not one of image, channel, height, width, error"),
        (0, "error", "(8, 16, 10, 16) and (1, 1, 1, 16)"),
        (2, "error", "(8, 16, 10, 16) and (8, 1, 1, 1)"),
        (3, "width", "(8, 16, 10, 16) and (1, 1, 10, 1)"),
        (4, "channel", "(8, 16, 10, 16) and (1, 1, 8, 16)"),
        (0, 3, "3 is not one of image"),
        (4, RuntimeError, "is not one of image"),
    ],
)
def test_axes_shows_both_shapes(place, word, words, capsys):
    answer = list(RIGHT_AXES)
    answer[place] = word
    refuses(ch01.axes, answer, words, capsys)


def test_axes_wants_five_words_and_waits_for_the_last(capsys):
    refuses(ch01.axes, RIGHT_AXES[:4], "Give a list of 5 words", capsys)
    refuses(ch01.axes, "width", "Give a list of 5 words", capsys)
    refuses(ch01.axes, 5, "Give a list of 5 words", capsys)
    refuses(ch01.axes, set(RIGHT_AXES), "Give a list of 5 words", capsys)
    refuses(ch01.axes, lambda: RIGHT_AXES, "Give a list of 5 words", capsys)
    waits(ch01.axes, [*RIGHT_AXES[:4], ...], capsys)


def test_axes_takes_every_kind_of_list(capsys):
    accepts(ch01.axes, RIGHT_AXES, capsys)
    accepts(ch01.axes, tuple(RIGHT_AXES), capsys)
    accepts(ch01.axes, np.array(RIGHT_AXES), capsys)


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


def right_gate(x):
    return gate(x.mean((2, 3)), x.mean((1, 2, 3))[:, None])


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
        (lambda x: x.mean((2, 3), True) > x.mean((1, 2, 3), True), "either open or shut"),
        (lambda x: gate(x.mean((2, 3)), x.mean((1, 2, 3))), "stopped with RuntimeError"),
        (lambda x: gate(x.mean((2, 3)), x.mean((2, 3))[0].mean()), "its neighbours in the batch"),
        (lambda x: gate(x.amax((2, 3)), x.mean((1, 2, 3))[:, None]), "it should be"),
        (lambda x: right_gate(x).sigmoid(), "it should be"),
        (lambda x: 1 - right_gate(x), "it should be"),
        (lambda x: x * right_gate(x), "has shape (4, 3, 5, 6)"),
        (lambda x: right_gate(x[:1]), "has shape (1, 3, 1, 1)"),
        (lambda x: right_gate(x.reshape(4, 3, 5, 6)), "is invalid for input of size"),
        (lambda x: right_gate(x).numpy(), "must be a tensor"),
        (lambda x: x.mean((2, 3)).softmax(1)[:, :, None, None], "it should be"),
        (lambda x: torch.tanh(x.mean((2, 3), True)), "Is the sigmoid there?"),
    ],
)
def test_strength_gate_names_the_mistake(answer, words, capsys):
    refuses(ch01.strength_gate, answer, words, capsys)


def test_strength_gate_takes_any_right_spelling(capsys):
    def loops(x):
        made = torch.empty(*x.shape[:2], 1, 1)
        for n, image in enumerate(x):
            strengths = [sheet.mean() for sheet in image]
            for c, strength in enumerate(strengths):
                level = sum(strengths) / len(strengths)
                made[n, c] = 1 / (1 + torch.exp(level - strength))
        return made

    def pooled(x):
        strength = F.adaptive_avg_pool2d(x, 1)
        return (strength - strength.mean(1, keepdim=True)).sigmoid()

    accepts(ch01.strength_gate, right_gate, capsys)
    accepts(ch01.strength_gate, loops, capsys)
    accepts(ch01.strength_gate, pooled, capsys)
    waits(ch01.strength_gate, lambda x: None, capsys)


def shares(winners, channels=4):
    return torch.bincount(winners, minlength=channels) / len(winners)


def relative(x):
    strength = x.mean((2, 3))
    return strength / strength.mean(0)


def right_shares(x):
    return shares(relative(x).argmax(1), x.shape[1])


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
        (lambda x: shares(relative(x).argmax(1), 4), "see `minlength`"),
        (
            lambda x: torch.bincount(relative(x).argmax(1), minlength=x.shape[1]) / 50,
            "For 6 images of 3 channels the share[0] is 0.08",
        ),
        (lambda x: 100 * right_shares(x), "The shares add up to 100"),
        (lambda x: shares(relative(x).argmax(0)), "has shape"),
        (lambda x: shares((x.mean((2, 3)) - x.mean((0, 2, 3))).argmax(1)), "it should be"),
        (lambda x: shares((x.amax((2, 3)) / x.amax((2, 3)).mean(0)).argmax(1)), "it should be"),
        (lambda x: shares((x.mean((2, 3)) / x.mean((1, 2, 3))[:, None]).argmax(1)), "with the lar"),
        (lambda x: relative(x).mean(0), "The shares add up to 4"),
        (lambda x: right_shares(x).tolist(), "must be a tensor"),
        (lambda x: right_shares(x)[None], "has shape (1, 4)"),
        (lambda x: right_shares(x).argmax(), "has shape ()"),
        (lambda x: torch.full((x.shape[1],), 1 / x.shape[1]), "it should be"),
    ],
)
def test_loudest_names_the_mistake(answer, words, capsys):
    refuses(ch01.loudest, answer, words, capsys)


def test_loudest_takes_any_right_spelling(capsys):
    def by_loop(x):
        loudest = relative(x).argmax(1)
        return torch.tensor([(loudest == c).float().mean() for c in range(x.shape[1])])

    accepts(ch01.loudest, right_shares, capsys)
    accepts(ch01.loudest, by_loop, capsys)
    accepts(
        ch01.loudest,
        lambda x: F.one_hot(relative(x).argmax(1), x.shape[1]).double().mean(0),
        capsys,
    )
    waits(ch01.loudest, lambda x: ..., capsys)
