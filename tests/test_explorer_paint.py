"""The data of the painting page: PyTorch's weights, and maps that a brush could have made."""

import json
import math
import re

import numpy as np
import pytest
import torch

import explorer
import explorer_paint as data
from cbam_edu import CBAM

PREFIX = '"use strict";\nvar cbam = globalThis.cbam || {};\ncbam.paint = '
PLACES = [(name, r, k) for name in data.MODULES for r in data.REDUCTIONS for k in data.KERNELS]


@pytest.fixture(scope="module")
def written():
    """Return what the script sets, as a browser reads it."""
    text = data.paint_data()
    assert text.startswith(PREFIX)
    assert text.endswith(";\n")
    return json.loads(text.removeprefix(PREFIX).removesuffix(";\n"))


def test_the_page_has_a_layer_for_each_setting(written):
    found = [
        (name, int(r), int(k))
        for name, layers in written["layers"].items()
        for r, kernels in layers.items()
        for k in kernels
    ]
    assert found == PLACES


@pytest.mark.parametrize(("name", "r", "k"), PLACES)
def test_the_numbers_written_are_those_of_the_module(written, name, r, k):
    layer = written["layers"][name][str(r)][str(k)]
    module = data.MODULES[name](r, k)
    first, _, second = module.channel.mixer
    for key, values in (
        ("w0", first.weight),
        ("b0", first.bias),
        ("w1", second.weight),
        ("b1", second.bias),
        ("conv", module.spatial.conv.weight),
    ):
        there = torch.tensor(layer[key], dtype=torch.float32)
        assert torch.equal(there, values.detach().flatten())  # to the last bit
    assert layer["hidden"] == data.CHANNELS // r
    assert layer["kernel"] == k
    z = torch.linspace(-3, 3, 7)[None, None, None]
    with torch.no_grad():
        wanted = module.spatial.norm(z)
    torch.testing.assert_close(z * layer["scale"] + layer["shift"], wanted)


def test_fresh_weights_are_what_the_page_says():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    module = data.fresh(2, 5)
    assert torch.equal(torch.rand(1), before)  # nobody else's draws are disturbed
    torch.manual_seed(data.SEED)
    for ours, theirs in zip(module.parameters(), CBAM(4, 2, 5).parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not module.training


@pytest.mark.parametrize("r", data.REDUCTIONS)
def test_a_fresh_mlp_of_few_inputs_has_large_weights(r):
    first, _, second = data.fresh(r, 7).channel.mixer
    assert 0.25 < first.weight.abs().max() <= 1 / math.sqrt(4)
    assert 0.25 < second.weight.abs().max() <= 1 / math.sqrt(4 / r)
    x = torch.tensor(data.EXAMPLES["objects"][1], dtype=torch.float32)[None]
    with torch.no_grad():
        assert (data.fresh(r, 7).channel(x) - 0.5).abs().max() > 0.1


@pytest.mark.parametrize("r", data.REDUCTIONS)
def test_a_question_compares_and_an_even_map_has_no_answer(r):
    w0, w1 = (np.array(w) for w in data.questions(r))
    assert w0.shape == (data.CHANNELS // r, data.CHANNELS)
    assert w1.shape == (data.CHANNELS, data.CHANNELS // r)
    assert not w0.sum(1).any()
    assert ((w0 > 0) == (w1.T > 0)).all()  # one votes for whom one asks about
    even = torch.full((1, *data.SHAPE), 0.7)
    with torch.no_grad():
        np.testing.assert_allclose(data.made(r, 7).channel(even).flatten(), 0.5, atol=1e-6)


def test_with_one_unit_left_the_map_turns_on_one_dial():
    maps = torch.rand(50, *data.SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = data.made(4, 7).channel.logits(maps).flatten(1)
        pairs = data.made(2, 7).channel.logits(maps).flatten(1)
    assert torch.linalg.matrix_rank(logits) == 1
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert torch.equal(pairs[:, 2], pairs[:, 3])


@pytest.mark.parametrize("k", data.KERNELS)
def test_the_kernel_says_nothing_of_an_even_area(k):
    kernel = np.array(data.centre_surround(k))
    assert kernel.shape == (2, k, k)
    np.testing.assert_allclose(kernel.sum((1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(kernel[0], 2 * kernel[1])  # the maxima speak twice as loud
    assert kernel[0, k // 2, k // 2] > 0 > kernel[0, 0, 0]


def test_a_brush_could_have_made_every_example(written):
    assert [example["name"] for example in written["examples"]] == list(data.EXAMPLES)
    for example in written["examples"]:
        features = np.array(example["features"])
        assert features.size == np.prod(data.SHAPE)
        assert np.abs(features).max() <= 1
        np.testing.assert_array_equal(features, features.round(2))  # a link keeps two digits
        np.testing.assert_allclose(features.reshape(data.SHAPE), data.EXAMPLES[example["name"]][1])


def shown(name):
    """Return the rows of the table for an example, as numbers."""
    rows = data.rows(data.EXAMPLES[name][1])
    return {row[0]: [float(text.replace("−", "-")) for text in row[1:]] for row in rows}


def test_the_experiments_show_what_the_page_promises():
    def weights(name, r=1):
        x = torch.tensor(data.EXAMPLES[name][1], dtype=torch.float32)[None]
        with torch.no_grad():
            return data.made(r, 7).channel(x).flatten().tolist()

    assert weights("spot").index(max(weights("spot"))) == 0
    assert weights("texture").index(max(weights("texture"))) == 2
    votes = shown("both")
    assert int(np.argmax(votes["the means' vote"])) == 2
    assert int(np.argmax(votes["the maxima's vote"])) == 0
    for r in data.REDUCTIONS:
        assert weights("corners", r) == pytest.approx([0.5] * 4)
    x = torch.tensor(data.EXAMPLES["objects"][1], dtype=torch.float32)[None]
    with torch.no_grad():
        wide, narrow = (data.made(1, k)(x)[0, 1] / data.made(1, k).channel(x)[0, 1] for k in (7, 3))
    assert wide[2, 2] > wide[1, 1]  # the middle of the object
    assert narrow[2, 2] < narrow[1, 1]  # and its corner


def test_a_fresh_gate_knows_its_channels_and_not_their_places():
    corners = torch.tensor(data.EXAMPLES["corners"][1], dtype=torch.float32)[None]
    moved = corners.clone()
    moved[:, 0] = corners[:, 3]  # the first blob where the last one is
    with torch.no_grad():
        for r in data.REDUCTIONS:
            gate = data.fresh(r, 7).channel
            weights = gate(corners).flatten()
            torch.testing.assert_close(gate(moved).flatten(), weights)
            assert weights.max() - weights.min() > 0.2
            assert (data.made(r, 7).channel(corners) == 0.5).all()


def test_a_fresh_gate_of_one_hidden_unit_does_not_answer_to_any_example():
    gate = data.fresh(4, 7).channel
    with torch.no_grad():
        weights = [
            gate(torch.tensor(features, dtype=torch.float32)[None])
            for _, features in data.EXAMPLES.values()
        ]
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0])


def test_an_object_lies_in_two_channels_and_only_a_narrow_kernel_finds_its_last_place():
    features = data.objects()
    assert [bool(channel[1:4, 1:4].max() > 0.5) for channel in features] == [1, 1, 0, 0]
    last = features[1, 2, 2]
    features[:2, 1:4, 1:4] = 0
    features[1, 2, 2] = last
    x = torch.tensor(features, dtype=torch.float32)[None]
    with torch.no_grad():
        found = {}
        for k in data.KERNELS:
            module = data.made(1, k)
            found[k] = float(module.spatial(x * module.channel(x))[0, 0, 2, 2])
    assert found[3] > 0.9
    assert max(found[5], found[7]) < 0.35


def test_the_table_and_the_sentence_are_computed():
    features = data.EXAMPLES["both"][1]
    rows = {row[0]: row[1:] for row in data.rows(features)}
    assert rows["mean"] == [f"{value:.2f}" for value in features.mean((1, 2))]
    assert rows["maximum"] == [f"{value:.2f}" for value in features.max((1, 2))]
    numbers = shown("both")
    weights = 1 / (1 + np.exp(-np.array(numbers["logit"])))
    np.testing.assert_allclose(numbers["weight, σ(logit)"], weights, atol=0.006)
    module = data.made(1, 7)
    x = torch.tensor(features, dtype=torch.float32)[None]
    with torch.no_grad():
        spatial = module.spatial(x * module.channel(x))[0, 0]
    found = re.findall(r"(\d\.\d\d) at row (\d), column (\d)", data.places(features))
    for (value, row, column), wanted in zip(found, (spatial.max(), spatial.min()), strict=True):
        assert f"{spatial[int(row), int(column)]:.2f}" == value == f"{wanted:.2f}"


@pytest.mark.parametrize("script", [s for s in explorer.PARTS["paint"] if s not in explorer.DATA])
def test_a_script_runs_from_a_folder(script):
    text = (explorer.SOURCE / script).read_text("utf-8")
    assert '"use strict";' in text
    assert not re.search(
        r"^\s*(import|export)\b|\bfetch\(|XMLHttpRequest|(?<!\.)\beval\(", text, re.M
    )
    assert all(len(line) <= 100 for line in text.splitlines())
