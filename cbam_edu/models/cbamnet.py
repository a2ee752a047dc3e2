"""CBAMNet: the smallest convolutional network that shows what CBAM does."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from cbam_edu.models.staged import Staged, check_dims
from cbam_edu.neighbours import attention_layer


class CBAMNet(Staged):
    """Stages of 3 x 3 convolution, BatchNorm, ReLU, attention and 2 x 2 max-pool; a linear head.

    The book's own network, of no paper; its attention is section 3 of the CBAM paper.

    Parameters
    ----------
    dims : sequence of int
        Channels of the stages, one stage each.
    num_classes : int
        Size of the output; 0 gives the network without its head, whose output are the pooled
        features ``(N, dims[-1])``.
    attention : {None, "se", "eca", "bam", "channel", "spatial", "cbam"}
        What stands in every stage between ReLU and pooling.
    attention_options : dict, optional
        Passed to every attention layer; the reduction is 8 unless given here.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int = 10,
        attention: str | None = "cbam",
        attention_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_dims(dims)
        options = dict(attention_options or {})
        if attention in ("se", "bam", "channel", "cbam"):
            options.setdefault("reduction", 8)
        self.stages = nn.ModuleList()
        channels = 3
        for dim in dims:
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, dim, 3, padding=1, bias=False),
                    nn.BatchNorm2d(dim),
                    nn.ReLU(),
                    attention_layer(attention, dim, **options),
                    nn.MaxPool2d(2, ceil_mode=True),
                )
            )
            channels = dim
        self.finish(dims, num_classes, None, {})  # BAM, too, stands in the stages, where they pool
