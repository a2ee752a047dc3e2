"""The data of the page on the trained network: weights folded, photographs, mean maps."""

import base64
import json

import numpy as np
import pytest
import torch

import explorer_network
from cbam_edu import data
from cbam_edu.attention import ChannelAttention, SpatialAttention
from cbam_edu.explain import attention_maps


@pytest.fixture(scope="module")
def written():
    """Return what the script holds, as a page reads it."""
    *_, line = explorer_network.network_data().splitlines()
    return json.loads(line.removeprefix("cbam.networkData = ").removesuffix(";"))


@pytest.fixture(scope="module")
def arrays(written):
    """Return the arrays by name, as the page takes them apart."""
    numbers = np.frombuffer(base64.b64decode(written["weights"]), "<f4")
    found, start = {}, 0
    for name, shape in written["layout"]:
        size = int(np.prod(shape))
        found[name] = numbers[start : start + size].reshape(shape)
        start += size
    assert start == len(numbers)
    return found


def test_it_is_under_two_megabytes_and_twice_the_same(written):
    assert len(explorer_network.network_data()) < 2_000_000
    explorer_network.network_data.cache_clear()
    *_, line = explorer_network.network_data().splitlines()
    assert json.loads(line.removeprefix("cbam.networkData = ").removesuffix(";")) == written


def test_every_number_of_the_network_is_there(arrays):
    """Each BatchNorm's four numbers a channel become one bias; all else stays."""
    model = explorer_network.network()
    channels = [m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    learnt = sum(p.numel() for p in model.parameters()) - 2 * sum(channels)
    spatial = [n for n in channels if n == 1]
    folded = sum(channels) - len(spatial)  # a bias for each; the spatial gates' have two numbers
    total = sum(a.size for name, a in arrays.items() if ".mean." not in name)
    assert total == learnt + folded + 2 * len(spatial)
    assert all(np.isfinite(a).all() for a in arrays.values())


def test_a_folded_convolution_is_the_convolution_and_its_norm():
    block = explorer_network.network().stages[1][0]
    folded = explorer_network.fold(block.conv2, block.bn2)
    x = torch.randn(2, 32, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    weight, bias = (torch.from_numpy(folded[key]) for key in ("weight", "bias"))
    got = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    with torch.no_grad():
        wanted = block.bn2(block.conv2(x.float()))
    torch.testing.assert_close(got.float(), wanted, atol=1e-4, rtol=1e-4)


def test_the_photographs_are_the_data_sets_and_some_are_named_wrongly(written):
    found = written["photographs"]
    photos = data.load("cifar10-mini", "test")
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(-1, 3, 32, 32)
    assert (pixels == photos.images[found["indices"]].numpy()).all()
    assert found["labels"] == photos.labels[found["indices"]].tolist()
    assert len(set(found["indices"])) == len(found["indices"]) == 60
    for label in range(10):
        answers = [a for a, k in zip(found["answers"], found["labels"], strict=True) if k == label]
        assert len(answers) == 6
        assert sum(answer != label for answer in answers) == 1
    assert written["accuracy"]["of"] == 500
    assert written["accuracy"]["right"] == int((explorer_network.answers() == photos.labels).sum())


def test_the_mean_maps_are_means(arrays):
    photos = explorer_network.photographs()
    maps = attention_maps(explorer_network.network(), data.normalise(photos.images))[6]
    for kind, found in (("channel", maps.channel), ("spatial", maps.spatial)):
        wanted = found.double().mean(0).squeeze().numpy()
        assert np.abs(arrays[f"block6.mean.{kind}"] - wanted).max() < 1e-5


def answers_with(kind, replace):
    """Return what the network names the page's photographs, with all gates of a kind replaced."""
    model, maps = explorer_network.network(), explorer_network.mean_maps()
    hooks, found = [], {layer.name: layer for layer in maps}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            layer = found[name.rpartition(".")[0]]
            mean = layer.channel if kind is ChannelAttention else layer.spatial
            fixed = (torch.ones_like(mean) if replace == "open" else mean).float()
            hooks.append(module.register_forward_hook(lambda m, x, out, f=fixed: f.expand_as(out)))
    images = explorer_network.photographs().images[explorer_network.chosen()]
    with torch.no_grad():
        answers = model(data.normalise(images)).argmax(1)
    for hook in hooks:
        hook.remove()
    return answers


def test_what_the_page_says_of_the_second_experiment():
    """With 1 in place of the spatial gates few are right, most an automobile; with means, most."""
    indices = explorer_network.chosen()
    labels = explorer_network.photographs().labels[indices]
    untouched = int((explorer_network.answers()[indices] == labels).sum())
    opened = answers_with(SpatialAttention, "open")
    assert (opened == labels).sum() < 20
    assert (opened == data.CLASSES.index("automobile")).sum() > 40
    averaged = answers_with(SpatialAttention, "mean")
    assert abs(int((averaged == labels).sum()) - untouched) <= 3


def test_the_gate_that_the_page_calls_not_missed_is_not_missed():
    """With 1 in place of the spatial gate of block 9, the network names all as before."""
    model, photos = explorer_network.network(), explorer_network.photographs()
    gate = model.stages[2][2].attention.spatial
    hook = gate.register_forward_hook(lambda m, x, out: torch.ones_like(out))
    with torch.no_grad():
        answers = model(data.normalise(photos.images)).argmax(1)
    hook.remove()
    assert (answers != explorer_network.answers()).sum() <= 2


def test_what_the_page_says_of_the_first_experiment():
    """Blocks 7 and 8 say nearly the same of all; block 7 is open below, block 8 in the middle."""
    images = explorer_network.photographs().images
    maps = attention_maps(explorer_network.network(), data.normalise(images))

    def habit(found):
        return float(found.mean(0).var() / found.flatten(1).var(1).mean())

    shares = [habit(layer.spatial) for layer in maps]
    assert shares[6] > 0.7
    assert shares[7] > 0.7
    assert shares[5] < 0.5
    seven, eight = (maps[i].spatial.mean((0, 1)) for i in (6, 7))
    assert seven[5:].min() > 0.8 > 0.2 > seven[:2].max()
    assert eight[3:5, 3:5].min() > 0.8 > 0.2 > eight[[0, 0, -1, -1], [0, -1, 0, -1]].max()


def test_the_still_picture_has_the_page_s_first_photograph_and_nine_maps():
    drawing, sentence, rows = explorer_network.still()
    assert drawing.count("<image") == 10
    assert len(rows) == 9
    assert "http" not in drawing
    index = explorer_network.chosen()[explorer_network.FIRST]
    assert sentence.startswith(f"Test photograph {index}, a horse")


def test_the_page_begins_with_a_photograph_that_it_is_not_too_sure_of(written):
    index = written["photographs"]["indices"][written["photographs"]["first"]]
    with torch.no_grad():
        x = data.normalise(explorer_network.photographs().images[[index]])
        sure = explorer_network.network()(x).softmax(1).max()
    assert 0.5 < sure < 0.95


def test_the_scale_of_colours_runs_from_white_to_dark():
    values = np.linspace(0, 1, 101)[None]
    found = explorer_network.colours(values)[0].astype(float)
    assert found[0].tolist() == [255, 255, 255]
    light = found @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) < 0).all()
