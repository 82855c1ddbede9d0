"""Augmentation in batches does what augmentation image by image does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data import augment, rand_augment
from pipeline.data.batch_augment import OPERATIONS, augment_batch, crop_and_flip, erase, random_boxes
from pipeline.data.images import of_array


def pictures(count: int, size: int = 64) -> np.ndarray:
    """uint8 (count, size, size, 3) with a natural spectrum."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) + 1 / size
    noise = np.fft.rfft2(draw.normal(size=(count, 3, size, size))) / frequency
    smooth = np.fft.irfft2(noise)
    return (120 + 50 * smooth / smooth.std()).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def to_torch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def to_numpy(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_operations_are_those_of_the_other_mode(name):
    """To one grey level, where a sum is rounded; every image at a level of its own."""
    images = pictures(9)
    levels = np.array([0, 0.1, 0.52, 0.9, 1, -0.1, -0.5, -0.93, -1])
    mine = to_numpy(OPERATIONS[name](to_torch(images), levels))
    expected = np.stack([rand_augment.OPERATIONS[name](i, level) for i, level in zip(images, levels, strict=True)])
    assert abs(mine - expected).max() <= 1


def test_there_are_no_other_operations():
    assert OPERATIONS.keys() == rand_augment.OPERATIONS.keys()


@pytest.mark.parametrize(("name", "size"), [("LIGHT", 64), ("CIFAR", 64), ("DIGITS", 64), ("DEIT", 80), ("jitter", 64)])
def test_recipes_have_the_statistics_of_the_other_mode(name, size):
    """Mean and deviation of every pixel over many draws, apart by about the standard error of the mean."""
    recipe = getattr(augment, name, augment.Augmentation(colour_jitter=0.4, flip=0.5))
    picture, count = pictures(1)[0], 800
    transform = augment.train_transform(recipe, size)
    theirs = np.stack([transform(of_array(picture), seed) for seed in range(count)]).astype(float)
    source = (
        picture if recipe.crop_scale else augment.train_transform(augment.Augmentation(), size)(of_array(picture), 0)
    )
    batch, draw = to_torch(source[None]).expand(count // 4, -1, -1, -1), np.random.default_rng(0)
    mine = np.concatenate([to_numpy(augment_batch(recipe, batch, size, draw)) for _ in range(4)])
    error = np.sqrt((mine.var(0) + theirs.var(0)) / count) + 0.05
    for statistic, limit in ((np.mean, 2.0), (np.std, 1.3)):  # more than 1 as pixels vary together
        difference = (statistic(mine, 0) - statistic(theirs, 0)) / error
        assert np.sqrt((difference**2).mean()) < limit


def test_the_same_draw_gives_the_same_batch_and_does_not_touch_its_images():
    images = to_torch(pictures(16))
    before = images.clone()
    one, again, other = (augment_batch(augment.CIFAR, images, 64, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)


def test_crops_of_whole_images_are_exact_and_a_flip_mirrors():
    images = to_torch(pictures(2))
    whole = np.tile([0, 0, 64, 64], (2, 1))
    assert torch.equal(
        crop_and_flip(images, whole, np.array([False, True]), 64), torch.stack([images[0], images[1].flip(2)])
    )
    box = np.array([[8, 16, 32, 32]] * 2)
    enlarged = crop_and_flip(images, box, np.zeros(2, bool), 96)
    assert torch.equal(enlarged[..., 1::3, 1::3], images[..., 16:48, 8:40])  # the middle of every three


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 48), (1, 1), (300, 3)])
def test_boxes_lie_within_the_image(height, width):
    left, top, w, h = random_boxes(2000, height, width, (0.08, 1), (3 / 4, 4 / 3), np.random.default_rng(0)).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (w >= 1).all() and (h >= 1).all()
    assert (left + w).max() <= width and (top + h).max() <= height
    if height == 64:
        assert (left + w).max() == width and (top + h).max() == height and left.min() == top.min() == 0
        assert (w * h / (height * width)).mean() == pytest.approx(0.5, abs=0.04)


def test_erasing_touches_only_images_that_drew_it():
    images = torch.full((400, 3, 64, 64), 7, dtype=torch.uint8)
    applied = np.arange(400) % 4 == 0
    erased = (erase(images, applied, np.random.default_rng(0)) != 7).any(1)
    share = erased.float().mean((1, 2))
    assert (share[~torch.from_numpy(applied)] == 0).all()
    assert (share[torch.from_numpy(applied)] > 0.015).all()
    assert share.max() <= 0.34
    rectangle = erased[0].any(1).sum() * erased[0].any(0).sum()
    assert erased[0].sum() > 0.98 * rectangle


def test_a_recipe_with_erasing_erases():
    images = torch.full((200, 3, 64, 64), 7, dtype=torch.uint8)
    erased = augment_batch(augment.Augmentation(erasing=0.25), images, 64, np.random.default_rng(0)) != 7
    assert erased.any(1).any(1).any(1).float().mean() == pytest.approx(0.25, abs=0.1)
    assert (images == 7).all()
