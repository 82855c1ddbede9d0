"""Datasets, transforms and the order of batches."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import augment
from pipeline.data import View, load_dataset
from pipeline.loader import eval_loader, normalise, train_loader

VIEW = View(size=64, crop_ratio=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_digits_are_split_once_and_for_all():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert (len(first.train.labels), len(first.val.labels)) == (1257, 540)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.val.images, second.val.images)
    assert np.bincount(first.val.labels).min() >= 52  # equal shares of each class


def test_digits_are_never_mirrored():
    """A flip would turn the left half into the right one; rotation, shift and scale hardly move the mass."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 1:3] = 255
    transform = augment.train_transform(load_dataset("digits").augmentation, 64)
    for seed in range(200):
        out = augment.apply(transform, image, seed).astype(float)
        assert out[:, :32].sum() > out[:, 32:].sum()


def test_folder_and_zip_give_the_same(image_folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "stripes"), "zip", image_folder)
    for name in (f"folder:{image_folder}", f"folder:{archive}"):
        dataset = load_dataset(name)
        assert dataset.classes == ("across", "along", "slanted")
        assert (len(dataset.train.labels), len(dataset.val.labels)) == (48, 18)
        images, labels = next(iter(eval_loader(dataset.val, VIEW, 18, 0)))
        assert images.shape == (18, 3, 64, 64)
        assert images.dtype == torch.uint8
        assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_a_subset_is_spread_over_the_classes_and_keeps_their_order(image_folder):
    whole, part = load_dataset(f"folder:{image_folder}"), load_dataset(f"folder:{image_folder}", "2x5")
    assert part.classes == ("across", "along")
    assert part.train.labels.tolist() == [0] * 5 + [1] * 5
    assert part.val.labels.tolist() == [0] * 6 + [1] * 6
    np.testing.assert_array_equal(part.train.images[5], whole.train.images[16])
    assert part.fingerprint != whole.fingerprint
    assert load_dataset("digits", "3x10").classes == ("0", "3", "6")


@pytest.mark.parametrize("subset", ["12", "ax3", "1x5", "4x5", "2x500", "2x0", "-2x5"])
def test_a_subset_that_is_not_there_is_refused(image_folder, subset):
    with pytest.raises(ValueError, match=f"SUBSET={subset}"):
        load_dataset(f"folder:{image_folder}", subset)


def batches(dataset, workers, step=0, seed=0):
    loader = train_loader(dataset, 64, 16, seed, workers)
    loader.batch_sampler.step = step
    return [(images.clone(), labels) for images, labels in loader]


def test_batches_do_not_depend_on_workers_or_on_where_one_begins(image_folder):
    dataset = load_dataset(f"folder:{image_folder}")
    alone, helped, late = batches(dataset, 0, step=3), batches(dataset, 2, step=3), batches(dataset, 0, step=5)
    assert len(alone) == len(helped) == 3
    assert len(late) == 1
    for one, other in [*zip(alone, helped, strict=True), (alone[2], late[0])]:
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_epochs_and_seeds_differ(image_folder):
    dataset = load_dataset(f"folder:{image_folder}")
    first = batches(dataset, 0)[0][0]
    assert not torch.equal(first, batches(dataset, 0, step=3)[0][0])
    assert not torch.equal(first, batches(dataset, 0, seed=1)[0][0])


def test_loader_leaves_the_training_random_numbers_alone(image_folder):
    dataset = load_dataset(f"folder:{image_folder}")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches(dataset, 0)
    assert torch.equal(torch.rand(4), expected)


def test_normalise():
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(VIEW.mean)) / torch.tensor(VIEW.std)
    torch.testing.assert_close(normalise(image, VIEW.mean, VIEW.std)[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cifar11", "Known: digits"), ("", "Known: digits"), ("folder:/nowhere", "does not exist")],
)
def test_unknown_dataset_names_what_is_known(name, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


def test_a_file_that_is_no_zip(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="neither a directory nor a zip"):
        load_dataset(f"folder:{path}")


def test_layouts_that_hold_no_data(tmp_path):
    with pytest.raises(ValueError, match="at least two classes"):
        load_dataset(f"folder:{tmp_path}")
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "train" / label / "1.png")
    with pytest.raises(ValueError, match="must hold val/"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "val" / "c").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "val" / "c" / "1.png")
    with pytest.raises(ValueError, match="class c is in val/ but not in train/"):
        load_dataset(f"folder:{tmp_path}")


def test_a_damaged_image_is_named(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"):
            archive.writestr(name, buffer.getvalue())
        archive.writestr("val/b/broken.jpg", buffer.getvalue()[:80])
    dataset = load_dataset(f"folder:{tmp_path / 'd.zip'}")
    with pytest.raises(ValueError, match=r"val/b/broken\.jpg cannot be read"):
        normalise(next(iter(eval_loader(dataset.val, VIEW, 8, 0)))[0], VIEW.mean, VIEW.std)


def test_adding_an_image_changes_the_fingerprint(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "copy")
    before = load_dataset(f"folder:{tmp_path / 'copy'}").fingerprint
    shutil.copy(tmp_path / "copy/train/along/0.png", tmp_path / "copy/train/along/new.png")
    assert load_dataset(f"folder:{tmp_path / 'copy'}").fingerprint != before
