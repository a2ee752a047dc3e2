"""The studies: what is compared with what, on which images, and how all of it is trained."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn

from cbam_edu import data
from cbam_edu.data import ImageSet
from cbam_edu.localise import deletion_scores, localisation_scores
from cbam_edu.neighbours import check_name
from cbam_edu.recipe import RECIPES, Recipe

Options = Mapping[str, Any]
Scores = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How large a study is: the network, its training, the number of seeds.

    Attributes
    ----------
    model : str
        One of `cbam_edu.models.list_models`.
    recipe : Recipe
        The same for every arm; nothing in it was chosen for one of them.
    seeds : int
        Runs an arm: seeds from 0 up.
    images : int or None
        Training images of each class; None takes all. Which ones, never changes.
    options : mapping
        For `cbam_edu.models.create_model`, in every arm.
    wider : tuple of int
        Channels of the stages that give the plain network about as many parameters as CBAM adds.
    """

    model: str
    recipe: Recipe
    seeds: int
    images: int | None = None
    options: Options = field(default_factory=dict)
    wider: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A comparison within a study: every arm against the baseline."""

    question: str
    baseline: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Arms, each trained with every seed; what is compared; and how large it can be.

    Attributes
    ----------
    question : str
        What it is to answer.
    arms : mapping
        An arm's name: its options for `cbam_edu.models.create_model`.
    tables : mapping
        The comparisons, by name.
    sizes : mapping
        "full", for a GPU, and "small", for two cores of a CPU.
    data : str
        As for `cbam_edu.data.load`.
    scores : callable, optional
        ``(model, test images, seed) -> dict`` of what else is measured once a network is trained.
    changes : mapping
        What an arm changes in the size's recipe, in a study of the recipe itself.
    """

    question: str
    arms: Mapping[str, Options]
    tables: Mapping[str, Table]
    sizes: Mapping[str, Size]
    data: str = "cifar10"
    scores: Callable[[nn.Module, ImageSet, int], Scores] | None = None
    changes: Mapping[str, Options] = field(default_factory=dict)

    def options(self, arm: str, size: Size) -> dict[str, Any]:
        """Return an arm's options for `cbam_edu.models.create_model`."""
        own = {"dims": size.wider} if arm == "wider" else {}
        return {"attention": None, **size.options, **self.arms[arm], **own}

    def recipe(self, arm: str, size: Size) -> Recipe:
        """Return what an arm is trained by."""
        return replace(size.recipe, **self.changes.get(arm, {}))

    def images(self, size: Size, **options: Any) -> tuple[ImageSet, ImageSet]:
        """Return the images to train and to test on; `options` go to `cbam_edu.data.load`."""
        training, test = (
            cast(ImageSet, data.load(self.data, split, **options)) for split in data.SPLITS
        )
        if size.images is not None:
            training = training.holdout(size.images)[1]
        return training, test


# What the literature trains a ResNet-20 for is 64,000 steps of 128 images, 164 epochs; a rate that
# falls in a straight line needs fewer.
FULL = Recipe(epochs=100, precision="bfloat16")
# The rate is the best of three for the plain ResNet-20 on training images that no small study uses,
# and ResNet-9 has its own. ResNet-8 takes ResNet-20's; for it alone, 0.4 would have been better
# (tests/tuning.py; records in book/results/checks/tuning.jsonl, one seed each).
SMALL = Recipe(epochs=2, batch_size=64, lr=0.1, precision="bfloat16")
IMAGES = 1000  # of each class, in a small study

NEIGHBOURS: dict[str, Options] = {
    "none": {},
    "se": {"attention": "se"},
    "eca": {"attention": "eca"},
    "bam": {"attention": "bam"},
    "channel": {"attention": "channel"},
    "spatial": {"attention": "spatial"},
    "cbam": {"attention": "cbam"},
    "half": {"attention": "half"},
    "wider": {},
}


def _with(attention: str, **options: Any) -> Options:
    return {"attention": attention, "attention_options": options}


VARIANTS: dict[str, Options] = {
    "none": {},
    "avg": _with("channel", pooling=("avg",)),
    "max": _with("channel", pooling=("max",)),
    "avg & max": {"attention": "channel"},
    "lp": _with("channel", pooling=("lp",)),
    "lse": _with("channel", pooling=("lse",)),
    "cbam": {"attention": "cbam"},
    "k = 3": _with("cbam", kernel_size=3),
    "k = 5": _with("cbam", kernel_size=5),
    "conv, k = 3": _with("variant", squeeze="conv", kernel_size=3),
    "conv, k = 5": _with("variant", squeeze="conv", kernel_size=5),
    "conv, k = 7": _with("variant", squeeze="conv"),
    "spatial first": _with("cbam", order="spatial-channel"),
    "parallel": _with("cbam", order="parallel"),
    **{f"r = {r}": _with("cbam", reduction=r) for r in (2, 4, 8, 32)},
    "softmax": _with("cbam", gate="softmax"),
    "hard-sigmoid": _with("cbam", gate="hard-sigmoid"),
    "no norm": _with("cbam", norm=False),
    "norm from 0": _with("variant", norm_scale=0.0),
}
# What the recipe leaves out, or has more or less of, or adds.
RECIPE_CHANGES: dict[str, Options] = {
    "no augmentation": {"crop": 0, "flip": False},
    "no weight decay": {"weight_decay": 0.0},
    "no momentum": {"momentum": 0.0},
    "no warm-up": {"warmup": 0.0},
    "lr / 10": {"lr": 0.01},
    "lr x 10": {"lr": 1.0},
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.2},
}
_LOOKING: dict[str, Options] = {name: NEIGHBOURS[name] for name in ("none", "se", "cbam")}
_TABLE = functools.partial(Table, baseline="none")
_RESNETS = {
    "full": Size("resnet20", FULL, 8),
    "small": Size("resnet8", SMALL, 5, IMAGES),
}


def _neighbours(sizes: Mapping[str, Size]) -> Study:
    question = "Does attention help, more than its parameters and its scaling would?"
    arms = tuple(name for name in NEIGHBOURS if name != "none")
    return Study(question, NEIGHBOURS, {"neighbours": _TABLE(question, arms=arms)}, sizes)


#: The studies by name.
STUDIES: dict[str, Study] = {
    "neighbours-resnet20": _neighbours(
        {
            "full": Size("resnet20", FULL, 20, wider=(16, 33, 64)),
            "small": Size("resnet20", SMALL, 5, IMAGES, wider=(16, 33, 64)),
        }
    ),
    "neighbours-resnet9": _neighbours(
        {
            "full": Size("resnet9", RECIPES["speed"], 8, wider=(64, 130, 256, 513)),
            "small": Size(
                "resnet9",
                replace(SMALL, lr=0.4),
                5,
                IMAGES,
                options={"dims": (16, 32, 64, 128)},
                wider=(18, 33, 64, 128),
            ),
        }
    ),
    "variants": Study(
        "Which of CBAM's choices matter?",
        VARIANTS,
        {
            "pooling": _TABLE(
                "Which pooling should the channel gate see?",
                arms=("avg", "max", "avg & max", "lp", "lse"),
            ),
            "spatial": Table(
                "What should the spatial gate see, and through which kernel?",
                "avg & max",
                ("k = 3", "k = 5", "cbam", "conv, k = 3", "conv, k = 5", "conv, k = 7"),
            ),
            "order": Table(
                "Which gate should come first?", "avg", ("cbam", "spatial first", "parallel")
            ),
            "reduction": Table(
                "How small may the hidden layer be?",
                "cbam",
                ("r = 2", "r = 4", "r = 8", "r = 32"),
            ),
            "gate": Table("Why a sigmoid?", "cbam", ("softmax", "hard-sigmoid")),
            "norm": Table(
                "Does the spatial gate need its BatchNorm, and from where does it start?",
                "cbam",
                ("no norm", "norm from 0"),
            ),
        },
        _RESNETS,
    ),
    "recipe": Study(
        "Which ingredients of the recipe matter?",
        {"recipe": {}, **{arm: {} for arm in RECIPE_CHANGES}},
        {
            "recipe": Table(
                "What does the plain network lose or win without an ingredient, or with another?",
                "recipe",
                tuple(RECIPE_CHANGES),
            )
        },
        {
            "full": Size("resnet20", replace(FULL, lr=0.1), 8),
            # Images so few, and epochs so many, that a network can learn them by heart.
            "small": Size("resnet8", replace(SMALL, epochs=30), 5, 200),
        },
        changes=RECIPE_CHANGES,
    ),
    "where": Study(
        "Do the gates look at the object?",
        _LOOKING,
        {"accuracy": _TABLE("Does attention help to name the shape?", arms=("se", "cbam"))},
        {
            "full": Size("resnet20", replace(FULL, epochs=20), 8),
            "small": Size("resnet8", replace(SMALL, epochs=8), 5),
        },
        data="shapes",
        scores=localisation_scores,
    ),
    "deletion": Study(
        "Are the places that the maps name those that the network needs?",
        _LOOKING,
        {"accuracy": _TABLE("Does attention help?", arms=("se", "cbam"))},
        _RESNETS,
        scores=deletion_scores,
    ),
}


def find(study: str, size: str) -> tuple[Study, Size]:
    """Return a study and its size by their names.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest known ones.
    """
    check_name("study", study, list(STUDIES))
    check_name("size", size, list(STUDIES[study].sizes))
    return STUDIES[study], STUDIES[study].sizes[size]
