"""Known wrong answers: a learner who is told which mistake it was mends it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cbam_edu.check.verdict import Wrong


def known(value: Any, mistakes: Mapping[str, Tensor]) -> None:
    """Raise `Wrong` with the sentence whose tensor `value` equals, if there is one."""
    for why, wrong in mistakes.items():
        here = isinstance(value, Tensor) and value.device == wrong.device
        if (
            here
            and value.shape == wrong.shape
            and torch.allclose(value.double(), wrong.double(), rtol=1e-4, atol=1e-6)
        ):
            raise Wrong(why)
