"""What a network costs: parameters and multiply-accumulates."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Parameters, and multiply-accumulates of one image's forward pass."""

    parameters: int
    multiply_accumulates: int


def count(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> Cost:
    """Count a network's parameters and the multiply-accumulates for one image.

    Counted are convolutions and matrix products, by torch's `FlopCounterMode`, whose two
    operations make one multiply-accumulate; not counted are biases, pooling, BatchNorm, sigmoid and
    the gates' products. The model is left as it was.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes ``(1, *input_size)``.
    input_size : tuple of int
        Channels, height and width of the input.
    """
    parameters = sum(p.numel() for p in model.parameters())
    first = next(model.parameters())
    image = torch.zeros(1, *input_size, device=first.device, dtype=first.dtype)
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    finally:
        model.train(training)
    return Cost(parameters, counter.get_total_flops() // 2)
