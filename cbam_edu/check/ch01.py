"""Judges of chapter 01, "Why reweight features"."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, between, close, judge, shape, tensor

AXES = ("image", "channel", "height", "width", "error")
SHAPES = {(16,): "width", (16, 1, 1): "channel", (8, 1, 1, 1): "image", (10, 1): "height"}
SHAPES |= {(8, 16): "error"}


@judge
def reweight(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Judge `answer(x, channel, place)`, (N, C, H, W), (N, C), (N, H, W) -> (N, C, H, W)."""
    torch.manual_seed(0)
    # First a size at which every wrong alignment runs without an error, so that it can be named.
    for n, c, h, w in ((3, 3, 3, 3), (2, 5, 3, 4), (1, 2, 1, 6)):
        x, channel, place = torch.randn(n, c, h, w), torch.rand(n, c), torch.rand(n, h, w)
        value = answer(x.clone(), channel.clone(), place.clone())
        right_channel, right_place = channel[:, :, None, None], place[:, None]
        mistakes = {
            "The weights of the channels are there, those of the places are missing.": (
                x * right_channel
            ),
            "The weights of the places are there, those of the channels are missing.": (
                x * right_place
            ),
            "You added the weights; a weight multiplies.": x + right_channel + right_place,
            "You multiplied by the sum of both weights; multiply by one, then by the other.": (
                x * (right_channel + right_place)
            ),
        }
        if n == c == h == w:
            mistakes |= {
                "You multiplied by the weights as they are. PyTorch lines shapes up from the "
                "right, so (N, C) met (H, W), and (N, H, W) met (C, H, W). Insert the missing "
                "axes of length 1.": x * channel * place,
                "(N, C) met (H, W): give the weights of the channels two axes of length 1 at the "
                "end.": x * channel * right_place,
                "(N, H, W) met (C, H, W): give the weights of the places an axis of length 1 for "
                "the channels, after N.": x * right_channel * place,
            }
        known(value, mistakes)
        close(value, x * right_channel * right_place, "The weighted map")


@judge
def axes(answer: Sequence[object]) -> None:
    """Judge five words: along which axis a weight of each shape varies over (8, 16, 10, 16)."""
    if not isinstance(answer, list | tuple | np.ndarray) or len(answer) != len(SHAPES):
        raise Wrong(f"Give a list of {len(SHAPES)} words, one for each shape.")
    if any(word is ... or word is None for word in answer):
        raise NotImplementedError
    x = torch.zeros(8, 16, 10, 16)
    for (size, right), word in zip(SHAPES.items(), answer, strict=True):
        if word not in AXES:
            raise Wrong(f"{word!r} is not one of {', '.join(AXES)}.")
        if word != right:
            padded = (1,) * (x.ndim - len(size)) + size
            raise Wrong(
                f"For a weight of shape {size}, {word!r} is not right. Write the two shapes one "
                f"above the other, flush right: {tuple(x.shape)} and {padded}. Where the weight "
                "has a 1 it is repeated; two other lengths must be equal."
            )


@judge
def strength_gate(answer: Callable[[Tensor], Tensor]) -> None:
    """Judge `answer(x)`, (N, C, H, W) -> (N, C, 1, 1): the mended gate of exercise 1.3."""
    torch.manual_seed(1)
    for n, c, h, w in ((4, 3, 5, 6), (1, 2, 3, 3)):
        x = torch.randn(n, c, h, w) + 3 * torch.randn(n, c, 1, 1)
        value = answer(x.clone())
        shape(value, (n, c, 1, 1), "The gate", "One weight for each channel of each image.")
        strength = x.mean((2, 3))
        if n > 1:
            per_batch = x.mean((0, 2, 3))
            expanded = torch.sigmoid(per_batch - per_batch.mean()).expand(n, c)
            known(
                value.flatten(1),
                {
                    "Every image gets the same weights: the strength is still averaged over the "
                    "batch (dimension 0).": expanded,
                    "One bug is left: the level that the strengths are compared with is the mean "
                    "over all images. Each image needs its own.": torch.sigmoid(
                        strength - strength.mean()
                    ),
                    "You compare each channel with the same channel of the other images. Compare "
                    "it with the other channels of its own image.": torch.sigmoid(
                        strength - strength.mean(0)
                    ),
                },
            )
            alone = torch.cat([answer(image[None].clone()) for image in x])
            close(
                value,
                alone,
                "The gate",
                "That is what each image gets when it is alone: its neighbours in the batch must "
                "not change its weights.",
            )
        between(value, 0, 1, "The gate", "Is the sigmoid there?")
        louder = (strength > strength.mean(1, keepdim=True)).to(x.dtype)
        all_or_nothing = "This gate is either open or shut. Take the sigmoid of the difference."
        known(value.flatten(1), {all_or_nothing: louder})
        wanted = torch.sigmoid(strength - strength.mean(1, keepdim=True))[:, :, None, None]
        close(value, wanted, "The gate")


@judge
def loudest(answer: Callable[[Tensor], Tensor]) -> None:
    """Judge `answer(features)`, (N, C, H, W) -> (C,): how often each channel is the loudest."""
    torch.manual_seed(2)
    scale = torch.tensor([1.0, 10.0, 0.1, 2.0])[None, :, None, None]
    x = scale * torch.rand(50, 4, 3, 5) * torch.rand(50, 4, 1, 1)
    value = tensor(answer(x.clone()), "The result")
    strength = x.mean((2, 3))
    relative = strength / strength.mean(0)
    counts = torch.bincount(relative.argmax(1), minlength=4) / len(x)
    raw = torch.bincount(strength.argmax(1), minlength=4) / len(x)
    quietest = torch.bincount(relative.argmin(1), minlength=4) / len(x)
    known(
        value,
        {
            "These are counts. Divide by the number of images.": counts * len(x),
            "The channel with the largest numbers wins nearly always. Divide each channel's "
            "strength by its mean over the images first.": raw,
            "These are the shares of the quietest channel.": quietest,
        },
    )
    shape(value, (4,), "The result", "One share a channel.")
    total = float(value.double().sum())
    if abs(total - 1) > 1e-4:
        raise Wrong(f"The shares add up to {total:.3g}; every image has one loudest channel.")
    close(value, counts, "The share")
    never = torch.ones(6, 3, 2, 2)  # the last channel is always as usual
    never[:4, 0] = never[4:, 1] = 9.0
    value = answer(never.clone())
    shape(
        value,
        (3,),
        "The result",
        "A channel that is never the loudest still has a share, 0: see `minlength` of "
        "torch.bincount.",
    )
    close(value, torch.tensor([4.0, 2.0, 0.0]) / 6, "For 6 images of 3 channels the share")
