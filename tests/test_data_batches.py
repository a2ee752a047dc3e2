"""Batches: the same images in the same order everywhere, each moved by its own chances."""

import numpy as np
import pytest
import torch
from PIL import Image

from cbam_edu.data import MEAN, STD, ImageSet, batches, in_batches, load, normalise
from cbam_edu.data.batches import Augmentation, Batches, crop_and_flip, cut_out
from cbam_edu.data.images import check_classes, per_channel, read_image
from cbam_edu.storage import StorageError


def toy(count=20, size=6, classes=2):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
    names = tuple("abcdefghij"[:classes])
    return ImageSet("toy", images, torch.arange(count) % classes, names)


def test_normalise_follows_its_formula():
    images = toy().images
    wanted = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(normalise(images), wanted, atol=1e-6)


def test_plain_batches_are_the_images_in_order():
    data = toy()
    xs, ys = zip(*Batches(data, 8), strict=True)
    assert [len(x) for x in xs] == [8, 8, 4]
    assert torch.equal(torch.cat(xs), normalise(data.images))
    assert torch.equal(torch.cat(ys), data.labels)


def test_an_incomplete_batch_can_be_left_out():
    batches = Batches(toy(), 8, drop_last=True)
    assert len(batches) == 2
    assert [len(x) for x, _ in batches] == [8, 8]
    assert len(Batches(toy(), 8)) == 3
    assert len(Batches(toy(), 5, drop_last=True)) == 4


def everything(batches):
    xs, ys = zip(*batches, strict=True)
    return torch.cat(xs), torch.cat(ys)


def test_each_epoch_has_its_own_order_and_the_same_one_each_time():
    data = toy()
    batches = Batches(data, 8, shuffle=True, seed=3)
    first, labels = everything(batches)
    again, _ = everything(Batches(data, 8, shuffle=True, seed=3))
    assert torch.equal(first, again)
    batches.set_epoch(1)
    second, _ = everything(batches)
    other_seed, _ = everything(Batches(data, 8, shuffle=True, seed=4))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other_seed)

    def rows(x):
        return sorted(map(tuple, x.flatten(1).tolist()))

    assert rows(first) == rows(second) == rows(normalise(data.images))
    # Labels stay with their images.
    index = {tuple(row): int(y) for row, y in zip(first.flatten(1).tolist(), labels, strict=True)}
    plain, true = everything(Batches(data, 8))
    assert [index[tuple(r)] for r in plain.flatten(1).tolist()] == true.tolist()


def test_crop_and_flip_against_slices():
    x = torch.randn(6, 3, 5, 7)
    shift = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3], [3, 0], [2, 4]])
    flip = torch.tensor([False, True, False, True, False, True])
    moved = crop_and_flip(x, shift, flip, pad=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for i in range(6):
        row, column = shift[i].tolist()
        wanted = padded[i, :, row : row + 5, column : column + 7]
        assert torch.equal(moved[i], wanted.flip(-1) if flip[i] else wanted)
    assert torch.equal(moved[2], x[2])  # `pad` itself leaves the image in place


def test_cut_out_sets_a_square_to_zero():
    x = torch.ones(3, 2, 6, 6)
    cut = cut_out(x, torch.tensor([[3, 3], [0, 0], [5, 2]]), side=2)
    assert (cut == 0).sum(dim=(1, 2, 3)).tolist() == [8, 2, 8]
    assert torch.equal(cut[0, 0, 2:4, 2:4], torch.zeros(2, 2))
    assert cut[1, 0, 0, 0] == 0
    assert (x == 1).all()  # the input is left alone


def test_augmentation_is_drawn_per_image_and_per_epoch():
    same = ImageSet("one", toy().images[:1].repeat(400, 1, 1, 1), torch.zeros(400).long(), ("a",))
    batches = Batches(same, 100, augmentation=Augmentation(crop=1, flip=True), seed=0)
    x, _ = everything(batches)
    kinds, counts = torch.unique(x.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 18  # nine places, mirrored or not
    assert counts.min() >= 8  # 400 / 18 = 22 on average; Poisson gives 8 or fewer once in 2,000
    batches.set_epoch(1)
    assert not torch.equal(everything(batches)[0], x)


def test_flips_and_crops_can_be_switched_off():
    data = toy()
    plain = normalise(data.images)
    x, _ = everything(Batches(data, 20, augmentation=Augmentation(crop=0, flip=True)))
    mirrored = (x == plain.flip(-1)).flatten(1).all(1)
    assert ((x == plain).flatten(1).all(1) | mirrored).all()
    assert 0 < mirrored.sum() < 20
    x, _ = everything(Batches(data, 20, augmentation=Augmentation(crop=0, flip=False, cutout=2)))
    assert ((x == 0).all(1).flatten(1).sum(1) > 0).all()


def test_batches_have_the_memory_format_asked_for():
    for channels_last in (False, True):
        for augmentation in (None, Augmentation()):
            (x, _), *_ = Batches(toy(), 8, augmentation=augmentation, channels_last=channels_last)
            wanted = torch.channels_last if channels_last else torch.contiguous_format
            assert x.is_contiguous(memory_format=wanted)


def test_wrong_batch_sizes_are_told():
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        Batches(toy(), 0)
    with pytest.raises(ValueError, match="at most 20, the number of images; got 21"):
        Batches(toy(), 21, drop_last=True)


def test_holdout_is_stratified_and_repeatable():
    data = toy(count=40, classes=4)
    rest, held = data.holdout(3)
    assert torch.bincount(held.labels).tolist() == [3] * 4
    assert torch.bincount(rest.labels).tolist() == [7] * 4
    again = data.holdout(3)[1]
    assert torch.equal(held.images, again.images)
    assert not torch.equal(held.images, data.holdout(3, seed=1)[1].images)
    both = torch.cat([rest.images, held.images]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 40
    for per_class in (10, 11):
        with pytest.raises(ValueError, match="per_class must be below 10"):
            data.holdout(per_class)


def test_of_many_classes_that_differ_five_are_named():
    names = list("abcdefgh")
    with pytest.raises(ValueError, match="lacking: none; unknown: a, b, c, d, e and 3 more"):
        check_classes("toy", [*names, "z"], ["z"])


def test_a_subset_takes_its_masks_along():
    data = toy()
    masks = torch.arange(20)[:, None, None].expand(20, 6, 6) % 2 == 0
    part = ImageSet(data.name, data.images, data.labels, data.classes, masks).subset(
        torch.tensor([3, 4])
    )
    assert len(part) == 2
    assert part.masks[:, 0, 0].tolist() == [False, True]
    assert data.subset(torch.tensor([3])).masks is None


def test_a_picture_is_read_as_a_small_square(tmp_path):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, 20:80] = (200, 100, 50)  # the middle square; its sides are black
    for kind in ("png", "webp", "jpg"):
        path = tmp_path / f"picture.{kind}"
        Image.fromarray(pixels).save(path)
        image = read_image(path)
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8
        middle = image[:, 8:24, 8:24].float().mean((1, 2))
        torch.testing.assert_close(middle, torch.tensor([200.0, 100, 50]), atol=4, rtol=0)
    exact = toy(size=32).images[0]
    Image.fromarray(exact.permute(1, 2, 0).numpy()).save(tmp_path / "exact.png")
    assert torch.equal(read_image(tmp_path / "exact.png"), exact)
    turned = Image.fromarray(exact.permute(1, 2, 0).numpy())
    orientation = turned.getexif()
    orientation[0x0112] = 3  # the camera was held upside down
    turned.save(tmp_path / "turned.png", exif=orientation)
    assert torch.equal(read_image(tmp_path / "turned.png"), exact.flip(1, 2))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", size=8).shape == (3, 8, 8)


def test_pictures_that_are_none_are_told(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    with pytest.raises(StorageError, match=r"cannot read .*picture.png: it does not exist"):
        read_image(path)
    path.write_text("no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        read_image(path)
    Image.fromarray(toy(size=32).images[0].permute(1, 2, 0).numpy()).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ValueError, match="damaged picture"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(toy(size=32).images[0].permute(1, 2, 0).numpy()).save(path)
    with pytest.raises(ValueError, match="not a picture that can be read"):
        read_image(path)


def by_slices(data, size, augmentation, epoch, channels_last):
    """The batches as one would write them with a loop over images, chances drawn alike."""
    rng = np.random.default_rng((5, epoch))
    order = rng.permutation(len(data))
    pad, (height, width) = augmentation.crop, data.images.shape[2:]
    shift = rng.integers(0, 2 * pad + 1, (len(data), 2))
    flip = rng.random(len(data)) < 0.5 if augmentation.flip else np.zeros(len(data), bool)
    centre = rng.integers(0, (height, width), (len(data), 2))
    for start in range(0, len(data), size):
        images = []
        for i in order[start : start + size]:
            x = torch.nn.functional.pad(normalise(data.images[i]), (pad, pad, pad, pad))
            x = x[:, shift[i, 0] : shift[i, 0] + height, shift[i, 1] : shift[i, 1] + width]
            x = x.flip(-1).clone() if flip[i] else x.clone()
            top, left = centre[i] - augmentation.cutout // 2
            rows, columns = (
                slice(max(0, low), max(0, low + augmentation.cutout)) for low in (top, left)
            )
            x[:, rows, columns] = 0
            images.append(x)
        chosen = torch.from_numpy(order[start : start + size])
        yield torch.stack(images), data.labels[chosen]


@pytest.mark.parametrize("block", [1, 8, 17, 1024])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(2, True, 3), Augmentation(0, False, 2), Augmentation(1, False)]
)
def test_batches_are_the_same_bits_however_many_are_made_at_once(
    monkeypatch, block, channels_last, augmentation
):
    monkeypatch.setattr(batches, "BLOCK", block)
    data = toy()
    made = Batches(
        data, 8, augmentation=augmentation, shuffle=True, seed=5, channels_last=channels_last
    )
    made.set_epoch(2)
    wanted = by_slices(data, 8, augmentation, 2, channels_last)
    for (x, y), (x_wanted, y_wanted) in zip(made, wanted, strict=True):
        assert torch.equal(x, x_wanted)
        assert torch.equal(y, y_wanted)
        wanted_format = torch.channels_last if channels_last else torch.contiguous_format
        assert x.is_contiguous(memory_format=wanted_format)


def test_shares_of_a_block_are_those_of_its_batches(monkeypatch):
    """Seven images by five processes: the last batch's share may be larger than the first's."""
    data = toy(15)
    for block in (1, 1024):
        monkeypatch.setattr(batches, "BLOCK", block)
        parts = [list(Batches(data, 8, part=(r, 5))) for r in range(5)]
        assert [[len(x) for x, _ in part] for part in parts] == [
            [1, 1],
            [2, 1],
            [1, 2],
            [2, 1],
            [2, 2],
        ]
        whole = sorted(tuple(x.flatten().tolist()) for part in parts for xs, _ in part for x in xs)
        assert whole == sorted(tuple(x.flatten().tolist()) for x in normalise(data.images))


def test_normalise_takes_its_numbers_as_tensors():
    images, numbers = toy().images, ([0.1, 0.2, 0.3], (0.4, 0.5, 0.6))
    tensors = [per_channel(v, images.device) for v in numbers]
    assert tensors[0].shape == (3, 1, 1)
    assert torch.equal(normalise(images, *tensors), normalise(images, *numbers))


def test_full_batches_need_no_rest_and_one_batch_may_hold_all():
    batches = Batches(toy(20), 5)
    assert len(batches) == 4
    assert [len(x) for x, _ in batches] == [5] * 4
    assert [len(x) for x, _ in Batches(toy(20), 20, drop_last=True)] == [20]


@pytest.mark.parametrize(("count", "shares"), [(8, 2), (12, 3), (16, 4)])
def test_a_share_of_even_size_holds_positions_with_their_mirrors(count, shares):
    parts = [batches.share(count, (r, shares)) for r in range(shares)]
    assert sorted(np.concatenate(parts)) == list(range(count))
    for part in parts:
        assert list(count - 1 - part[::-1]) == list(part)


def test_images_in_memory_come_in_batches_of_them():
    [(x, y)] = in_batches(toy(4), 4, channels_last=True)
    assert torch.equal(x, normalise(toy(4).images))
    assert torch.equal(y, toy(4).labels)


@pytest.mark.parametrize("name", ["shapes", "cifar10", "cifar10-mini"])
def test_a_part_that_there_is_not_is_told(name):
    with pytest.raises(ValueError, match=r"unknown split 'val'; known: train, test"):
        load(name, "val", download=False)
