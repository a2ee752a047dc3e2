"""The studies: that what is compared is what is said, and that nothing else differs."""

import dataclasses
import re

import pytest
import torch

from cbam_edu.attention import CBAM, ChannelAttention, SpatialAttention
from cbam_edu.models import create_model
from cbam_edu.neighbours import BAM, ECA, Half, SqueezeExcitation, Variant
from cbam_edu.recipe import RECIPES, Recipe
from cbam_edu.studies import NEIGHBOURS, STUDIES, VARIANTS, Size, Study, find

PLACES = [(name, size) for name, study in STUDIES.items() for size in study.sizes]
NEIGHBOUR_PLACES = [place for place in PLACES if place[0].startswith("neighbours")]


def network(study, size, arm):
    with torch.device("meta"):
        return create_model(size.model, 10, **study.options(arm, size))


def parameters(study, size, arm):
    return sum(p.numel() for p in network(study, size, arm).parameters())


def only(model, kind):
    """Return the layers of a kind, which are the network's attention."""
    layers = [m for m in model.modules() if isinstance(m, kind)]
    assert layers
    return layers


def test_the_studies_are_those_that_the_book_reads():
    assert list(STUDIES) == [
        "neighbours-resnet20",
        "neighbours-resnet9",
        "variants",
        "recipe",
        "where",
        "deletion",
    ]
    assert all(list(study.sizes) == ["full", "small"] for study in STUDIES.values())
    assert set(NEIGHBOURS) == {
        *("none", "se", "eca", "bam", "channel", "spatial", "cbam", "half", "wider")
    }


@pytest.mark.parametrize(("name", "size"), PLACES)
def test_each_arm_is_a_network_of_its_own(name, size):
    study, chosen = find(name, size)
    configs = [vars(network(study, chosen, arm))["config"] for arm in study.arms]
    assert {config["name"] for config in configs} == {chosen.model}
    trained = [
        (config, study.recipe(arm, chosen)) for config, arm in zip(configs, study.arms, strict=True)
    ]
    assert all(one not in trained[:i] for i, one in enumerate(trained))
    slugs = {re.sub(r"\W", "_", arm) for arm in study.arms}
    assert len(slugs) == len(study.arms)  # their checkpoints have folders of their own


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_tables_compare_arms_that_are_run_and_all_of_them(study):
    compared = set()
    for table in study.tables.values():
        assert {table.baseline, *table.arms} <= study.arms.keys()
        assert table.baseline not in table.arms
        assert len(set(table.arms)) == len(table.arms) > 0
        assert table.question.endswith("?")
        compared |= {table.baseline, *table.arms}
    assert compared == study.arms.keys()


def test_the_seeds_are_as_many_as_promised():
    seeds = {place: find(*place)[1].seeds for place in PLACES}
    assert seeds["neighbours-resnet20", "full"] == 20
    assert all(n >= 8 for (_, size), n in seeds.items() if size == "full")
    assert all(n == 5 for (_, size), n in seeds.items() if size == "small")


def test_only_the_study_of_the_recipe_trains_an_arm_in_a_way_of_its_own():
    """A recipe belongs to a size, an arm has options of the network alone."""
    assert [name for name, study in STUDIES.items() if study.changes] == ["recipe"]
    study = STUDIES["recipe"]
    assert set(study.arms) == {"recipe", *study.changes}
    for size in study.sizes.values():
        assert {arm: study.recipe(arm, size) for arm in study.arms} == {
            "recipe": size.recipe,
            **{arm: dataclasses.replace(size.recipe, **own) for arm, own in study.changes.items()},
        }
        assert size.recipe.lr == 10 * study.changes["lr / 10"]["lr"]
        assert size.recipe.lr == study.changes["lr x 10"]["lr"] / 10
    assert {field.name for field in dataclasses.fields(Size)} >= {"recipe", "seeds"}
    assert not {field.name for field in dataclasses.fields(Study)} & {"recipe", "seeds"}
    for arms in (NEIGHBOURS, VARIANTS):
        for options in arms.values():
            assert options.keys() <= {"attention", "attention_options"}
    for name, size in PLACES:
        recipe = find(name, size)[1].recipe
        assert recipe.seed == 0
        own = recipe.channel_weight_decay, recipe.spatial_weight_decay
        assert own == (None, None)  # gates decay as everything does


def test_full_studies_have_the_recipes_that_reach_what_the_literature_has():
    assert find("neighbours-resnet20", "full")[1].recipe == Recipe(epochs=100, precision="bfloat16")
    assert find("neighbours-resnet9", "full")[1].recipe == RECIPES["speed"]
    assert find("where", "full")[1].recipe.epochs == 20
    small = {"recipe": 200, "where": None}
    for name, size in PLACES:
        wanted = small.get(name, 1000) if size == "small" else None
        assert find(name, size)[1].images == wanted


@pytest.mark.parametrize(("name", "size"), NEIGHBOUR_PLACES)
def test_the_wider_network_has_cbams_parameters(name, size):
    study, chosen = find(name, size)
    cbam, wider = (parameters(study, chosen, arm) for arm in ("cbam", "wider"))
    assert abs(wider / cbam - 1) < 0.002
    config = vars(network(study, chosen, "wider"))["config"]
    assert (config["attention"], tuple(config["dims"])) == (None, chosen.wider)


@pytest.mark.parametrize(("name", "size"), NEIGHBOUR_PLACES)
def test_neighbours_are_what_they_are_called(name, size):
    study, chosen = find(name, size)
    counts = {arm: parameters(study, chosen, arm) for arm in study.arms}
    assert counts["half"] == counts["none"]  # a gate without parameters
    assert counts["none"] < counts["eca"] < counts["se"]
    # CBAM's parameters are its two gates', and no others.
    gates = counts["channel"] + counts["spatial"] - 2 * counts["none"]
    assert counts["cbam"] == counts["none"] + gates
    kinds = {"se": SqueezeExcitation, "eca": ECA, "bam": BAM, "half": Half, "cbam": CBAM}
    for arm, kind in kinds.items():
        only(network(study, chosen, arm), kind)
    for arm in ("none", "wider"):
        names = " ".join(type(m).__name__ for m in network(study, chosen, arm).modules())
        assert not re.search("Attention|CBAM|ECA|BAM|Half|Squeeze|Variant", names)


def test_the_spatial_gates_cost_what_the_paper_says():
    """98 weights of the 7x7 convolution, two of its BatchNorm; 18 and 50 for k = 3 and 5."""
    study, size = find("variants", "full")
    counts = {arm: parameters(study, size, arm) for arm in study.arms}
    gates = len(only(network(study, size, "cbam"), CBAM))
    assert gates == 9
    assert counts["cbam"] - counts["avg & max"] == gates * (98 + 2)
    assert counts["k = 3"] - counts["avg & max"] == gates * (18 + 2)
    assert counts["k = 5"] - counts["avg & max"] == gates * (50 + 2)
    assert counts["cbam"] - counts["no norm"] == gates * 2
    same = ("avg", "max", "lp", "lse")
    assert {counts[arm] for arm in same} == {counts["avg & max"]}
    same = ("spatial first", "parallel", "softmax", "hard-sigmoid", "norm from 0")
    assert {counts[arm] for arm in same} == {counts["cbam"]}
    ratios = [counts[f"r = {r}"] for r in (2, 4, 8)] + [counts["cbam"], counts["r = 32"]]
    assert ratios == sorted(ratios, reverse=True)
    assert len(set(ratios)) == 5


def test_variants_differ_in_what_they_are_named_after():
    study, size = find("variants", "small")

    def channel(arm):
        return only(network(study, size, arm), ChannelAttention)[0]

    def spatial(arm):
        return only(network(study, size, arm), SpatialAttention)[0]

    for arm in ("avg", "max", "lp", "lse"):
        assert channel(arm).pooling == (arm,)
    assert channel("avg & max").pooling == channel("cbam").pooling == ("avg", "max")
    for k in (3, 5):
        assert spatial(f"k = {k}").conv.kernel_size == (k, k)
    assert spatial("cbam").conv.kernel_size == (7, 7)
    orders = {"cbam": "channel-spatial", "spatial first": "spatial-channel", "parallel": "parallel"}
    for arm, order in orders.items():
        assert only(network(study, size, arm), CBAM)[0].order == order
    for arm, gate in {"cbam": "sigmoid", **{g: g for g in ("softmax", "hard-sigmoid")}}.items():
        assert channel(arm).gate == spatial(arm).gate == gate
    assert spatial("no norm").norm is None
    for arm in ("conv, k = 3", "conv, k = 5", "conv, k = 7", "norm from 0"):
        only(network(study, size, arm), Variant)


def test_the_norm_from_zero_starts_there():
    study, size = find("variants", "small")
    model = create_model(size.model, 10, **study.options("norm from 0", size))
    plain = create_model(size.model, 10, **study.options("cbam", size))
    starts = [
        [m.norm.weight.item() for m in each.modules() if isinstance(m, SpatialAttention)]
        for each in (model, plain)
    ]
    assert starts == [[0.0] * 3, [1.0] * 3]


def test_images_are_the_same_every_time_and_the_rest_is_left_alone():
    size = dataclasses.replace(find("variants", "small")[1], images=30)
    study = dataclasses.replace(STUDIES["variants"], data="cifar10-mini")
    (training, test), (again, _) = study.images(size), study.images(size)
    assert torch.equal(training.images, again.images)
    assert training.labels.bincount().tolist() == [30] * 10
    assert len(test) == 500
    assert len(study.images(dataclasses.replace(size, images=None))[0]) == 1000


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="unknown study 'variant'; did you mean variants"):
        find("variant", "full")
    with pytest.raises(ValueError, match="unknown size 'smal'; did you mean small"):
        find("variants", "smal")
