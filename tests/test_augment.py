"""Augmentation held against timm's operations; evaluation held against timm's transform, to the bit."""

import functools
import io
import json
import random
from collections.abc import Callable
from dataclasses import asdict

import albumentations as A
import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from pipeline import models
from pipeline.data import augment, rand_augment
from pipeline.data.augment import CIFAR, DEIT, DIGITS, LIGHT, Augmentation
from pipeline.data.images import Picture, of_array, open_picture
from pipeline.data.view import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def photo(height: int, width: int, seed: int = 0, patch: int = 24) -> np.ndarray:
    """uint8 (H, W, 3): patches of colour that run into each other, edges and some noise."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // patch + 2, width // patch + 2, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(float)
    image += draw.normal(0, 4, image.shape)
    image[height // 3 : height // 2, width // 5 : width // 2] = draw.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


VARIED = {
    "photo": photo(224, 224),
    "small photo": photo(33, 47, seed=1),
    "noise": np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
    "little contrast": np.random.default_rng(1).integers(60, 70, (40, 50, 3), np.uint8),
    "one colour": np.full((30, 31, 3), (77, 0, 255), np.uint8),
    "ramp": np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 20, 3)),
    "two pixels": np.array([[[0, 128, 255], [255, 3, 9]]], np.uint8),
}
PHOTOMETRIC = {  # the largest difference, in grey levels
    "AutoContrast": 0, "Equalize": 0, "Invert": 0, "PosterizeIncreasing": 0, "SolarizeIncreasing": 0, "SolarizeAdd": 0,
    "BrightnessIncreasing": 0, "ContrastIncreasing": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
}  # fmt: skip
GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]
MAGNITUDES = [0, 0.7, 3, 5.5, 8.4, 9, 9.6, 9.99]


def timms(name: str, image: np.ndarray, level: float, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What timm's operation of this name makes of an image at magnitude |level| * 10 in the direction of its sign."""
    parameters = {"img_mean": rand_augment.FILL, "interpolation": Image.Resampling.BICUBIC}
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=abs(level) * 10, hparams=parameters)
    monkeypatch.setattr(random, "random", lambda: 1.0 if np.signbit(level) else 0.0)
    return np.asarray(operation(Image.fromarray(image)))


def test_the_operations_are_timms():
    assert list(rand_augment.OPERATIONS) == auto_augment._RAND_INCREASING_TRANSFORMS
    assert set(PHOTOMETRIC) | set(GEOMETRIC) == set(rand_augment.OPERATIONS)


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("kind", VARIED)
def test_photometric_operations_equal_timms(name: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    image = VARIED[kind]
    for magnitude in MAGNITUDES:
        for level in (magnitude / 10, -magnitude / 10):
            expected = timms(name, image, level, monkeypatch).astype(int)
            difference = np.abs(rand_augment.OPERATIONS[name](image, level) - expected)
            assert difference.max() <= PHOTOMETRIC[name], f"at level {level}"


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_equal_timms_but_for_the_interpolation(name: str, monkeypatch: pytest.MonkeyPatch):
    """Mean difference below a grey level, on a picture whose pixels differ by 12 from their neighbours'.

    A shift by half a pixel, or the wrong sign or centre, would show as several grey levels.
    """
    image = photo(96, 128, seed=2)
    for magnitude in MAGNITUDES:
        for level in (magnitude / 10, -magnitude / 10):
            expected = timms(name, image, level, monkeypatch).astype(int)
            result = rand_augment.OPERATIONS[name](image, level)
            filled = (expected == rand_augment.FILL).all(-1)
            assert ((result == rand_augment.FILL).all(-1) == filled).mean() > 0.95  # the same corners
            assert np.abs(result - expected)[~filled].mean() < 1.6, f"at level {level}"


def test_posterize_keeps_a_bit_where_pillow_refuses_to_keep_none():
    assert set(np.unique(rand_augment.OPERATIONS["PosterizeIncreasing"](VARIED["noise"], 1.0))) == {0, 128}


def test_rand_augment_draws_as_often_and_as_strongly_as_timm():
    transform, random_numbers = augment.RandAugment("rand-m9-mstd0.5-inc1"), random.Random(0)
    draws = [transform.chosen(random_numbers) for _ in range(6000)]
    assert np.bincount([len(draw) for draw in draws]) / 6000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    names = [name for draw in draws for name, _ in draw]
    for name in rand_augment.OPERATIONS:
        assert names.count(name) / len(names) == pytest.approx(1 / 15, abs=0.015)
    levels = np.array([level for draw in draws for _, level in draw])
    assert np.abs(levels).mean() == pytest.approx(0.9, abs=0.01)
    assert np.abs(levels).std() == pytest.approx(0.05, abs=0.005)
    assert np.abs(levels).max() == 1.0
    assert (levels > 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "recipe",
    ["", "rand", "augmix-m3", "rand-m9", "rand-m9-inc0", "rand-m9-inc1-w0", "rand-m11-inc1", "rand-m9-n1.5-inc1"],
)
def test_recipes_that_are_not_understood_are_refused(recipe: str):
    with pytest.raises(ValueError, match="rand_augment="):
        Augmentation(rand_augment=recipe)


@pytest.mark.parametrize(
    "fields",
    [
        {"flip": 1.5},
        {"erasing": -0.1},
        {"affine": 2},
        {"colour_jitter": 1.01},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0, 1)},
        {"crop_ratio": (2, 1)},
        {"repeats": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.* must be"):
        Augmentation(**fields)


def jpeg(image: np.ndarray, **options) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, **options)
    return open_picture(file.getvalue(), "a.jpg")


EVERYTHING = Augmentation(
    crop_scale=(0.1, 1.0), flip=0.5, affine=0.5, rand_augment="rand-m9-mstd0.5-inc1", colour_jitter=0.4, erasing=0.5
)


@pytest.mark.parametrize("config", [DIGITS, LIGHT, CIFAR, DEIT, EVERYTHING])
@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (300, 400), (1, 1), (3, 90), (700, 20)])
def test_training_images_depend_on_picture_and_seed_alone(config: Augmentation, shape: tuple[int, int]):
    picture, size = jpeg(photo(*shape)), 64
    transform = augment.train_transform(config, size)
    once = [transform(picture, seed) for seed in range(30)]
    for image in once:
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
    again = augment.train_transform(config, size)
    for seed in (7, 3, 29, 3):
        random.seed(seed)
        np.random.seed(seed)
        np.testing.assert_array_equal(again(picture, seed), once[seed])
    if shape == (300, 400):
        assert len({image.tobytes() for image in once}) > 10


def test_digits_are_what_they_were():
    """The published numbers for digits rest on these very pixels."""
    image = photo(8, 8)
    before = A.Compose(
        [
            A.Resize(64, 64, interpolation=cv2.INTER_CUBIC),
            A.Affine(rotate=(-6, 6), translate_percent=(-0.03, 0.03), scale=(0.95, 1.05), p=0.5),
        ]
    )
    transform = augment.train_transform(DIGITS, 64)
    for seed in range(20):
        before.set_random_seed(seed)
        np.testing.assert_array_equal(transform(of_array(image), seed), before(image=image)["image"])


def test_crops_lie_and_are_as_large_as_timms():
    """Read from the colours: red and green of the picture are the place, x and y."""
    y, x = np.mgrid[:200, :250]
    place = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    transform = augment.train_transform(Augmentation(crop_scale=(0.08, 1.0), flip=0.5), 32)
    ours = [transform(of_array(place), seed) for seed in range(1500)]
    crop = create_transform(32, is_training=True, interpolation="bicubic", hflip=0.5, color_jitter=0).transforms[:2]
    random.seed(0)
    torch.manual_seed(0)
    timms_ = [np.asarray(crop[1](crop[0](Image.fromarray(place)))) for _ in range(1500)]

    def measures(images: list[np.ndarray]) -> np.ndarray:
        corners = np.array([[image[16, 2, 0], image[16, -3, 0], image[2, 16, 1], image[-3, 16, 1]] for image in images])
        left, right, top, bottom = corners.astype(float).T
        width, height = np.abs(right - left) * 32 / 27, (bottom - top) * 32 / 27
        area, middle_x, middle_y = width * height / place[..., 0].size, (left + right) / 2, (top + bottom) / 2
        parts = [area, width / height, middle_x, middle_y, (right < left).astype(float)]
        return np.array([[part.mean(), part.std()] for part in parts])

    np.testing.assert_allclose(measures(ours), measures(timms_), rtol=0.06, atol=0.02)


@pytest.mark.parametrize("shape", [(200, 250), (64, 64), (1, 1), (3, 90), (700, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.4, 1.0)])
def test_boxes_are_those_that_albumentations_draws(shape: tuple[int, int], scale: tuple[float, float]):
    """Including the box in the middle of a strip, where ten draws fit none."""
    theirs = A.RandomResizedCrop((8, 8), scale=scale, ratio=(3 / 4, 4 / 3))
    for seed in range(200):
        theirs.set_random_state(np.random.default_rng(seed), random.Random(seed))
        expected = theirs.get_params_dependent_on_data({"shape": shape}, {})["crop_coords"]
        assert augment.random_box(*shape, scale, (3 / 4, 4 / 3), random.Random(seed)) == expected


def test_flips_and_erasures_are_as_frequent_as_asked_for_and_independent():
    flip, erase = augment.Flip(0.5), augment.RandomErasing(0.25)
    ramp = np.tile(np.arange(32, dtype=np.uint8)[:, None], (32, 1, 3))
    draws = [augment.Draw(seed) for seed in range(4000)]
    flipped = np.array([flip(ramp, draw)[0, 0, 0] > 0 for draw in draws])
    erased = np.array([erase(ramp, draw) is not ramp for draw in draws])
    assert flipped.mean() == pytest.approx(0.5, abs=0.03)
    assert erased.mean() == pytest.approx(0.25, abs=0.03)
    assert erased[flipped].mean() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_at_reduced_scale_gives_the_same_training_image(orientation: int):
    """Of one picture, the same crop of the JPEG, decoded at a fraction, and of its pixels in memory."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = jpeg(photo(900, 1203, patch=150), exif=exif)
    taken: list[int] = []

    class Noted(Picture):
        def pixels(self, reduction: int = 1) -> np.ndarray:
            taken.append(reduction)
            return picture.pixels(reduction)

    transform = augment.train_transform(Augmentation(crop_scale=(0.08, 1.0)), 100)
    whole = of_array(picture.pixels())
    for seed in range(30):
        reduced, full = transform(Noted(picture.pixels()), seed), transform(whole, seed)
        assert np.abs(reduced.astype(int) - full).mean() < 5  # another crop would differ by 20 or more
    assert set(taken) == {2, 4, 8}


@pytest.mark.parametrize("side", [60, 111, 130, 170, 215, 380])
def test_training_images_are_as_sharp_as_evaluation_ones(side: int):
    image = photo(side, side)
    ours = augment.train_transform(Augmentation(), 112)(of_array(image), 0)
    pillows = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - pillows).mean() < 2
    sharpness = [cv2.Laplacian(each, cv2.CV_32F).std() for each in (ours, pillows)]
    assert sharpness[0] / sharpness[1] == pytest.approx(1, abs=0.2)


def test_erasing_covers_what_timms_covers_with_normal_noise():
    grey = np.full((100, 100, 3), 255, np.uint8)
    transform = augment.RandomErasing(p=1.0)
    shares, noise = [], []
    for seed in range(400):
        out = transform(grey, random.Random(seed))
        rows, columns = np.nonzero((out != grey).any(-1))
        box = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shares.append(box[..., 0].size / 1e4)
        noise.append(box.reshape(-1, 3))
    assert grey.min() == 255  # the input is left alone
    assert min(shares) < 0.04
    assert 0.28 < max(shares) < 0.34
    assert np.mean(shares) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    values = np.concatenate(noise) / 255
    np.testing.assert_allclose(values.mean(0), MEAN, atol=0.01)
    np.testing.assert_allclose(values.std(0), STD, atol=0.015)  # a little less, as some of it is cut off
    assert np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1] == pytest.approx(0, abs=0.01)


def test_colour_jitter_changes_colours_and_nothing_else():
    image = np.tile(np.array([60, 120, 180], np.uint8), (16, 16, 1))
    transform = augment.train_transform(Augmentation(colour_jitter=0.4), 16)
    colours = np.array([transform(of_array(image), seed)[0, 0] for seed in range(200)], int)
    assert (np.ptp(colours, axis=0) > 40).all()
    assert (np.diff(colours, axis=1) >= -1).all()  # no change of hue: the order of the channels stays


def view_of(model: torch.nn.Module | None = None, **changes) -> View:
    return View.of(model) if model else View(**{"size": 224, "crop_ratio": 0.9, "mean": MEAN, "std": STD, **changes})


def timms_eval(view: View) -> Callable[[Image.Image], np.ndarray]:
    transform = create_transform(
        (3, view.size, view.size),
        crop_pct=view.crop_ratio,
        interpolation=view.interpolation,
        crop_mode=view.crop_mode,
        use_prefetcher=True,  # uint8 comes out
    )
    return lambda image: transform(image).permute(1, 2, 0).numpy()


VIEWS = {
    **{f"224 / {ratio}": view_of(crop_ratio=ratio) for ratio in (0.875, 0.9, 0.95, 1.0)},
    "64 / 1": view_of(size=64, crop_ratio=1.0),
    "384 / 1, bilinear": view_of(size=384, crop_ratio=1.0, interpolation="bilinear"),
    "96 / 0.9, squash": view_of(size=96, crop_mode="squash"),
}
SHAPES = [(8, 8), (1, 1), (3, 200), (90, 7), (64, 64), (224, 224), (375, 500), (500, 333), (1500, 700), (2000, 3008)]


@pytest.mark.parametrize("name", VIEWS)
def test_evaluation_equals_timms_to_the_bit(name: str):
    view = VIEWS[name]
    ours, theirs = augment.eval_transform(view), timms_eval(view)
    for shape in SHAPES:
        image = photo(*shape)
        np.testing.assert_array_equal(ours(of_array(image)), theirs(Image.fromarray(image)), err_msg=str(shape))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_evaluation_equals_timms_on_any_jpeg(mode: str, orientation: int):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo(301, 400)).convert(mode).save(file, "JPEG", quality=85, exif=exif)
    with Image.open(file) as image:
        expected = timms_eval(VIEWS["224 / 0.9"])(ImageOps.exif_transpose(image).convert("RGB"))
    ours = augment.eval_transform(VIEWS["224 / 0.9"])(open_picture(file.getvalue(), "a.jpg"))
    np.testing.assert_array_equal(ours, expected)


def test_the_embedded_models_own_transform_gives_timms_predictions():
    model = models.create_model("deit_micro_patch8_64", 10).eval()
    config = timm.data.resolve_model_data_config(model)
    theirs, ours, view = create_transform(**config), augment.eval_transform(View.of(model)), View.of(model)
    pictures = [photo(60 + 9 * n, 90 - n, seed=n) for n in range(12)]
    expected = torch.stack([theirs(Image.fromarray(picture)) for picture in pictures])
    got = torch.stack([torch.from_numpy(ours(of_array(picture)).copy()).permute(2, 0, 1) for picture in pictures])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (view.mean, view.std))
    normalised = (got / 255 - mean) / std
    torch.testing.assert_close(normalised, expected)
    with torch.inference_mode():
        assert torch.equal(model(normalised).argmax(1), model(expected).argmax(1))


def test_a_strip_does_not_fill_the_memory():
    strip = np.random.default_rng(0).integers(0, 256, (2, 60_000, 3), np.uint8)
    out = augment.eval_transform(view_of())(of_array(strip))  # resized as a whole: 1.9 thousand million pixels
    assert out.shape == (224, 224, 3)
    assert out.std() > 20


def by_the_rule(image: np.ndarray, rule: dict) -> np.ndarray:
    """What an app does that knows the rule in preprocess.json and nothing else."""
    height, width = image.shape[:2]
    side = rule["shorter_side"]
    if rule["longer_side"] == "shorter_side":
        shape = side, side
    else:
        longer = side * max(height, width) // min(height, width)
        shape = (longer, side) if width <= height else (side, longer)
    assert rule["antialias"] is True
    swapped = shape[0] < height and height - shape[0] > 2 * (width - shape[1])
    result = image.astype(float)
    for axis in (0, 1) if swapped else (1, 0):
        result = np.moveaxis(np.tensordot(weights(result.shape[axis], shape[axis], rule), result, (1, axis)), 0, axis)
        result = np.floor(result + 0.5).clip(0, 255)
    crop = rule["centre_crop"]
    top, left = (round((each - crop) / 2) for each in shape)
    return result[top : top + crop, left : left + crop]


def weights(inputs: int, outputs: int, rule: dict) -> np.ndarray:
    """(outputs, inputs)"""
    if inputs == outputs:
        return np.eye(inputs)
    scale = inputs / outputs
    i, j = np.arange(outputs)[:, None], np.arange(inputs)
    x, a = np.abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1), -0.5
    if rule["interpolation"] == "bicubic":
        inner, outer = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        kernel = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    else:
        kernel = np.where(x < 1, 1 - x, 0)
    steps = 2**22
    return np.round(kernel / kernel.sum(1, keepdims=True) * steps) / steps


@pytest.mark.parametrize("name", VIEWS)
def test_the_rule_in_preprocess_json_is_enough_to_repeat_it(name: str):
    rule, transform = augment.resize_rule(VIEWS[name]), augment.eval_transform(VIEWS[name])
    for shape in [(8, 8), (1, 1), (3, 200), (64, 64), (375, 500), (450, 200), (1001, 480)]:
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)  # any mistake shows
        difference = np.abs(by_the_rule(noise, rule) - transform(of_array(noise)))
        assert difference.max() <= 1, f"{shape}: {(difference > 1).mean():.1%} of the values"
        assert (difference > 0).mean() < 0.001


def test_views_that_are_not_supported_are_refused():
    with pytest.raises(ValueError, match="interpolation=nearest"):
        view_of(interpolation="nearest")
    with pytest.raises(ValueError, match="crop_mode=border"):
        view_of(crop_mode="border")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "64"}, "size: must be a whole number"),
        ({"size": 0}, "size=0"),
        ({"mean": 0.5}, "mean: must be a list"),
        ({"std": [0.5, 0.5, 0]}, "no image is made like that"),
        ({"mean": [0.5, 0.5]}, "no image is made like that"),
        ({"sizes": 64}, "has the unknown key 'sizes'"),
        ({"interpolation": None}, "interpolation: must be text"),
    ],
)
def test_a_damaged_preprocess_json_is_named(tmp_path, change, message):
    path = tmp_path / "preprocess.json"
    view = VIEWS["96 / 0.9, squash"]
    path.write_text(json.dumps({**asdict(view), "resize": augment.resize_rule(view)}))
    assert View.read(path) == view
    path.write_text(json.dumps({**asdict(view), **change}))
    with pytest.raises(ValueError, match=rf"preprocess\.json: .*{message}"):
        View.read(path)


def test_a_view_survives_preprocess_json():
    view = VIEWS["96 / 0.9, squash"]
    assert View.from_json({**asdict(view), "resize": augment.resize_rule(view)}) == view
    older = {"size": 64, "crop_ratio": 0.9, "mean": list(MEAN), "std": list(STD)}
    assert View.from_json(older) == view_of(size=64)
