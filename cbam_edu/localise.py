"""Does a map name the right places? Scores against true masks, and by taking places away.

A map is ``(N, H, W) float``, as large as the images, the higher the more important. Against a mask,
places with equal values share what one of them would get, so that a map without a highest place,
such as an empty one, gets what chance gets.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cbam_edu.data import ImageSet, normalise
from cbam_edu.explain import attention_maps, grad_cam, resize
from cbam_edu.measure import evaluating
from cbam_edu.models import create_model

IMAGES = 500  # of the test images, on which deletion and insertion are measured
STEPS = 16  # in which an image is taken away
_BATCH = 250
_OTHER = 10_000  # added to a seed, so that controls draw other numbers than the training did


def _check(maps: Tensor, masks: Tensor) -> None:
    right = maps.is_floating_point() and masks.dtype == torch.bool
    if not right or maps.ndim != 3 or masks.shape != maps.shape:
        raise ValueError(
            f"maps are (N, H, W) float and masks (N, H, W) bool; got {tuple(maps.shape)} of "
            f"{maps.dtype} and {tuple(masks.shape)} of {masks.dtype}"
        )
    _check_finite(maps)


def _check_finite(maps: Tensor) -> None:
    if not maps.isfinite().all():
        raise ValueError("a map holds infinity or NaN, as those of a network that diverged do")


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return, for each image, whether the map's highest place lies in the mask, (N,) float.

    J. Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, section 4.1,
    without their tolerance. Where several places are the highest: the part of them in the mask.
    """
    _check(maps, masks)
    highest = maps == maps.amax((1, 2), keepdim=True)
    return (highest & masks).sum((1, 2)) / highest.sum((1, 2))


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Return, for each image, the part of the map's sum that lies in the mask, (N,) float.

    H. Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3. The map may not be negative; an
    empty one counts as the same everywhere.
    """
    _check(maps, masks)
    if (maps < 0).any():
        raise ValueError("a map whose energy is asked for may not be negative")
    total = maps.sum((1, 2))
    part = (maps * masks).sum((1, 2)) / total
    return torch.where(total > 0, part, masks.float().mean((1, 2)))


def overlap(maps: Tensor, masks: Tensor) -> Tensor:
    """Return, for each image, the IoU of the mask and the map's highest places, (N,) float.

    As many places are taken as the mask has, so that there is no threshold to choose. Of places
    that are equal, those within the mask count as often as is to be expected.
    """
    _check(maps, masks)
    flat, inside = maps.flatten(1), masks.flatten(1)
    area = inside.sum(1)
    if (area == 0).any():
        raise ValueError("every mask must hold at least one place")
    limit = flat.sort(1, descending=True).values.gather(1, area[:, None] - 1)
    above, level = flat > limit, flat == limit
    share = (area - above.sum(1)) / level.sum(1)  # of the places on the limit
    common = (above & inside).sum(1) + share * (level & inside).sum(1)
    return common / (2 * area - common)


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pointing": pointing_game,
    "energy": energy_inside,
    "iou": overlap,
}


@torch.no_grad()
def fading(model: nn.Module, x: Tensor, maps: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Take an image's places away, the highest of the map first; and bring them in that order.

    Deletion and insertion of V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for
    Explanation of Black-box Models", BMVC 2018, section 4.1; what is away is zero, the mean colour.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    x : Tensor
        Normalised images, ``(N, 3, H, W) float``.
    maps : Tensor
        ``(N, H, W) float``; places of equal value go in an order that is no line nor block, the
        same for all images.
    classes : Tensor
        ``(N,) int64``, whose probability is followed.

    Returns
    -------
    tuple of Tensor
        The class's probability under deletion and under insertion, ``(N, 17)`` each: with none, a
        sixteenth, two sixteenths, ... of the places away, or there.

    Raises
    ------
    ValueError
        For maps that are not as large as the images, or hold infinity or NaN.
    """
    if maps.shape != (len(x), *x.shape[2:]):
        raise ValueError(
            f"one map for each image, as large, is wanted; got maps {tuple(maps.shape)} for images "
            f"{tuple(x.shape)}"
        )
    _check_finite(maps)
    places = x.shape[2] * x.shape[3]
    # Grad-CAM has many zeros: in the order of memory they would go as one block, from the top left.
    mixed = torch.randperm(places, generator=torch.Generator().manual_seed(0)).to(maps.device)
    order = mixed[maps.flatten(1)[:, mixed].argsort(dim=1, descending=True, stable=True)]
    ranks = order.argsort(dim=1).view_as(maps)
    curves = []
    for deleting in (True, False):
        points = []
        for step in range(STEPS + 1):
            first = ranks < places * step // STEPS
            kept = first if not deleting else ~first
            chances = model(x * kept[:, None]).float().softmax(1)
            points.append(chances.gather(1, classes[:, None])[:, 0])
        curves.append(torch.stack(points, 1))
    return curves[0], curves[1]


def area_under(curves: Tensor) -> Tensor:
    """Return the areas under curves, ``(N, points)``, over an axis from 0 to 1: (N,)."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1))


def saliency(model: nn.Module, x: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return all maps that a network gives of images, by name, as large as they are.

    "grad-cam" is that of the last stage; M_s of each layer that has one is named after it, as in
    "M_s 0.0", the first block of the first stage. The network, one of
    `cbam_edu.models.create_model`, is in evaluation mode.
    """
    size = (x.shape[2], x.shape[3])
    last = model.get_submodule(f"stages.{len(list(model.get_submodule('stages').children())) - 1}")
    maps = {"grad-cam": resize(grad_cam(model, x, classes, last), size)}
    try:
        layers = attention_maps(model, x)
    except ValueError:  # no gate to look at
        return maps
    for layer in layers:
        if layer.spatial is not None:
            name = layer.name.removeprefix("stages.").removesuffix(".attention")
            maps[f"M_s {name}"] = resize(layer.spatial[:, 0], size)
    return maps


def centred(count: int, size: tuple[int, int]) -> Tensor:
    """Return maps that are highest in the middle of the image, whatever is in it: (N, H, W)."""
    rows, columns = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-2 * (rows[:, None] ** 2 + columns**2)).expand(count, *size)


def _all_maps(
    model: nn.Module, fresh: nn.Module, x: Tensor, classes: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the maps of a network, of the untrained one, and two that have not seen the images."""
    count, size = len(x), (x.shape[2], x.shape[3])
    maps = saliency(model, x, classes)
    maps |= {f"{name}, untrained": m for name, m in saliency(fresh, x, classes).items()}
    controls = {
        "chance": torch.rand(count, *size, generator=generator),
        "centre": centred(count, size),
    }
    return maps | {name: m.to(x.device) for name, m in controls.items()}


def _batches(test: ImageSet, device: torch.device) -> Iterator[tuple[Tensor, Tensor, slice]]:
    for start in range(0, len(test), _BATCH):
        part = slice(start, start + _BATCH)
        yield normalise(test.images[part]).to(device), test.labels[part].to(device), part


def _mean(parts: dict[str, list[Tensor]]) -> dict[str, float]:
    return {name: torch.cat(values).double().mean().item() for name, values in parts.items()}


def _untrained(model: nn.Module, seed: int) -> nn.Module:
    """Return the same network with weights that have learnt nothing."""
    with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
        torch.default_generator.manual_seed(_OTHER + seed)
        fresh = create_model(**vars(model)["config"])
    return fresh.to(next(model.parameters()).device).eval()


def localisation_scores(model: nn.Module, test: ImageSet, seed: int) -> dict[str, float]:
    """Measure a network's maps, and controls, against the masks of the images.

    Parameters
    ----------
    model : torch.nn.Module
        Of `cbam_edu.models.create_model`, trained for class alone.
    test : ImageSet
        With masks.
    seed : int
        Of the controls.

    Returns
    -------
    dict
        Means over the images, named such as ``"grad-cam: pointing"``. "untrained" is the same
        network with random weights, "chance" a random map, "centre" one that is highest in the
        middle of every image.
    """
    if test.masks is None:
        raise ValueError(f"{test.name} has no masks to measure against")
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {}
    fresh, generator = _untrained(model, seed), torch.Generator().manual_seed(_OTHER + seed)
    with evaluating(model):
        for x, y, where in _batches(test, device):
            masks = test.masks[where].to(device)
            for name, m in _all_maps(model, fresh, x, y, generator).items():
                for score, measure in SCORES.items():
                    parts.setdefault(f"{name}: {score}", []).append(measure(m, masks).cpu())
    return _mean(parts)


def deletion_scores(model: nn.Module, test: ImageSet, seed: int) -> dict[str, float]:
    """Measure a network's maps, and controls, by deletion and insertion on the first images.

    Returns
    -------
    dict
        Mean areas under the curves of the predicted class's probability, named such as
        ``"grad-cam: deletion"`` (lower is better) and ``"grad-cam: insertion"`` (higher is). The
        controls are those of `localisation_scores`.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {}
    fresh, generator = _untrained(model, seed), torch.Generator().manual_seed(_OTHER + seed)
    first = test.subset(torch.arange(min(IMAGES, len(test))))
    with evaluating(model):
        for x, _, _ in _batches(first, device):
            with torch.no_grad():
                predicted = model(x).argmax(1)
            for name, m in _all_maps(model, fresh, x, predicted, generator).items():
                curves = fading(model, x, m, predicted)
                for score, curve in zip(("deletion", "insertion"), curves, strict=True):
                    parts.setdefault(f"{name}: {score}", []).append(area_under(curve).cpu())
    return _mean(parts)
