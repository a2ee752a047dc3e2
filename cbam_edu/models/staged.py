"""What all networks share: stages one after the other, their maps, and a linear head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cbam_edu.attention import check_positive, shown
from cbam_edu.neighbours import attention_layer

MOST_STAGES = 32  # each but the first halves the map: more would need images of 2**32 pixels a side


def check_dims(dims: Sequence[int]) -> None:
    """Raise ValueError unless `dims` are the channels of one stage or more."""
    if not isinstance(dims, list | tuple):
        raise ValueError(f"dims must be a list of the stages' channels, got {shown(dims)}")
    if not dims:
        raise ValueError("dims must name at least one stage's channels, got none")
    if len(dims) > MOST_STAGES:
        raise ValueError(f"dims must name at most {MOST_STAGES} stages, got {len(dims):,}")
    for dim in dims:
        check_positive("dims", dim)


def in_block(attention: str | None) -> str | None:
    """Return the attention that stands inside a block: all but BAM, which ends a stage."""
    return None if attention == "bam" else attention


def initialise(model: nn.Module) -> None:
    """Draw every 2-D convolution's weights as He et al. (2015) do: normal, scaled by fan-out."""
    for module in model.modules():
        # A weight without memory (meta) has no numbers to draw, and torch needs 2 s to find out.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Staged(nn.Module):
    """What all networks here do: a stem, one stage after the other, pooling, a linear head."""

    image_size = 32  # side of the images that the network was made for; it takes any
    stages: nn.ModuleList
    head: nn.Module

    def finish(
        self,
        dims: Sequence[int],
        num_classes: int,
        attention: str | None,
        attention_options: dict[str, Any],
    ) -> None:
        """Put BAM where the next stage halves the map, add the head, draw the weights."""
        if attention == "bam":
            for stage, dim in zip(list(self.stages)[:-1], dims, strict=False):
                stage.add_module("bam", attention_layer("bam", dim, **attention_options))
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """Return what the first stage sees: here the image itself."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Return the features that the head sees: (N, C, H, W) -> (N, C), here the mean."""
        return x.mean((2, 3))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the map after each stage: (N, 3, H, W) float -> list of (N, dims[i], H_i, W_i)."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_head(self, x: Tensor) -> Tensor:
        """Return logits from the last stage's map: (N, C, H, W) float -> (N, num_classes)."""
        return self.head(self.pool(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (N, 3, H, W) float -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x)[-1])
