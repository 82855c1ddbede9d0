"""Datasets by name, subsets, and data that are not there."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import presets
from pipeline.data import augment
from pipeline.data.catalog import KNOWN
from pipeline.data.datasets import load_dataset
from pipeline.data.images import of_array
from pipeline.data.names import check_name, resolve


def test_digits_are_split_once_and_for_all():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert (len(first.train.labels), len(first.val.labels)) == (1257, 540)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.val.images.array, second.val.images.array)
    assert np.bincount(first.val.labels).min() >= 52  # equal shares of each class


def test_digits_are_never_mirrored():
    """A flip would turn the left half into the right one; rotation, shift and scale hardly move the mass."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 1:3] = 255
    transform = augment.train_transform(load_dataset("digits").augmentation, 64)
    for seed in range(200):
        out = transform(of_array(image), seed).astype(float)
        assert out[:, :32].sum() > out[:, 32:].sum()


def test_a_subset_is_spread_over_the_classes_and_keeps_their_order(image_folder):
    whole, part = load_dataset(f"folder:{image_folder}"), load_dataset(f"folder:{image_folder}", "2x5")
    assert part.classes == ("across", "along")
    assert part.train.labels.tolist() == [0] * 5 + [1] * 5
    assert part.val.labels.tolist() == [0] * 6 + [1] * 6
    np.testing.assert_array_equal(part.train.images[5].pixels(), whole.train.images[16].pixels())
    assert part.train.images.sizes.tolist() == [[64, 64]] * 10
    assert part.fingerprint != whole.fingerprint
    assert whole.spare is None and part.spare.labels.tolist() == [0] * 11 + [1] * 11  # what was left of the 16
    np.testing.assert_array_equal(part.spare.images[11].pixels(), whole.train.images[16 + 5].pixels())
    digits = load_dataset("digits", "3x10")
    assert digits.classes == ("0", "3", "6")
    assert digits.train.images.array.shape == (30, 8, 8, 3)


@pytest.mark.parametrize("subset", ["12", "ax3", "1x5", "4x5", "2x500", "2x0", "-2x5"])
def test_a_subset_that_is_not_there_is_refused(image_folder, subset):
    with pytest.raises(ValueError, match=f"SUBSET={subset}"):
        load_dataset(f"folder:{image_folder}", subset)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cifar11", "Known: digits, cifar10"), ("", "Known: digits"), ("folder:/nowhere", "does not exist")],
)
def test_unknown_dataset_names_what_is_known(name, message):
    for function in (check_name, load_dataset):
        with pytest.raises(ValueError, match=message):
            function(name)


@pytest.mark.parametrize("name", KNOWN)
def test_missing_data_say_which_command_gets_them_and_how_much_that_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gigabytes = f"{KNOWN[name].download_bytes / 1e9:.2g} GB to download"
    for function in (check_name, load_dataset):
        with pytest.raises(ValueError, match=f"data/{name} does not exist") as error:
            function(name)
        assert f"`make data DATASET={name}` gets" in str(error.value)
        assert gigabytes in str(error.value)
        with pytest.raises(ValueError, match=f"elsewhere does not exist.*`make data DATASET={name} DATA=elsewhere`"):
            function(name, folder=Path("elsewhere"))
    (tmp_path / "data" / name).mkdir(parents=True)  # there, but with nothing in it
    check_name(name)
    with pytest.raises(ValueError, match=f"data/{name}/.* is missing. `make data DATASET={name}` gets"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["digits", "folder:."])
def test_data_that_need_no_folder_refuse_one(name, tmp_path):
    with pytest.raises(ValueError, match="leave it out"):
        check_name(name, tmp_path)


def test_a_file_that_is_no_zip(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="neither a directory nor a zip"):
        load_dataset(f"folder:{path}")


@pytest.mark.parametrize("size", [128, 200])
def test_a_folder_gets_a_recipe_for_fine_tuning_whatever_the_size_of_its_images(tmp_path, size):
    """DeiT's is made for hundreds of epochs, and a folder gets some dozen."""
    for shade, (split, label) in enumerate(itertools.product(("train", "val"), ("a", "b"))):
        (tmp_path / split / label).mkdir(parents=True)
        Image.new("RGB", (size, size // 2), (shade, 0, 0)).save(tmp_path / split / label / "1.png")
    assert load_dataset(f"folder:{tmp_path}").augmentation == augment.LIGHT


def test_a_folder_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    written = ["photos", "./photos", "folder:photos", "folder:./photos/", "folder:x/../photos", f"{tmp_path}/photos"]
    assert {resolve(name) for name in written} == {"folder:photos"}
    (tmp_path / "cifar10").mkdir()
    assert [resolve(name) for name in ("cifar10", "nothing", "folder:nothing")] == [
        "cifar10",
        "nothing",
        "folder:nothing",
    ]
    assert resolve("/") == "folder:/"
    assert presets.of("./photos", None, 0.5).dataset == "folder:photos"
    with pytest.raises(ValueError, match="folder: lacks the path"):
        check_name("folder:")
    with pytest.raises(ValueError, match=r"DATASET=nothing is unknown.*no directory or zip of that name"):
        check_name("nothing")
