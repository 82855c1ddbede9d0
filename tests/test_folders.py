"""A user's folders as people make them: what is train, val, test and a class, what is left out or twice."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from photos import jpeg, members, put
from PIL import Image
from rich.console import Console

from pipeline.data import duplicates, overview
from pipeline.data.datasets import load_dataset
from pipeline.data.folders import split_of


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """Folders of the tests have equal names, sizes and times sooner or later."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def load(folder: Path, **options):
    return load_dataset(f"folder:{folder}", **options)


def classes(around: str, count: int = 5, names: str = "ab", first: int = 0) -> list[str]:
    """Names of `count` images of each class."""
    return [f"{around}{name}/{first + n}.jpg" for name in names for n in range(count)]


def sizes(dataset) -> dict[str, int]:
    return {name: len(split.labels) for name, split in dataset.splits.items()}


def left_out(dataset) -> dict[str, tuple[int, str]]:
    return {one.what: (one.count, one.reason) for one in dataset.left_out}


def shown(dataset) -> str:
    file = io.StringIO()
    for table in overview.tables(overview.summary(dataset), dataset.name):
        Console(width=300, file=file).print(table)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "train",
            "train Train TRAINING training_set training-set trainset seg_train train_images train2017 Train Data",
        ),
        ("val", "val Valid validation Validation_Set dev EVAL evaluation seg_val images_val val2017 devset"),
        ("test", "test Testing test_set testset seg_test Test-Images test_2019 testdata"),
        (
            None,
            "trainer tests valley devices testament evaluate retrain seg_pred pretest cat fold1 test_unlabelled 2017",
        ),
    ],
)
def test_split_names(kind, names):
    for name in names.replace("Train Data", "Train_Data").split():
        assert split_of(name) == kind, name


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training/", "Validation/", "Testing/"),
        ("archive/seg_train/seg_train/", "archive/seg_dev/seg_dev/", "archive/seg_test/seg_test/"),
        ("data/TRAIN/train/", "data/valid/valid/", "data/test/"),
        ("x/y/training_set/training_set/", "x/y/eval/", "x/y/test_set/test_set/images/"),
    ],
)
def test_splits_are_found_by_their_names_and_seen_through(tmp_path, train, val, test):
    names = classes(train), classes(val, 2, first=10), classes(test, 3, first=20)
    dataset = load(put(tmp_path, *(name for part in names for name in part)))
    assert dataset.classes == ("a", "b")
    assert [sorted(members(split)) for split in dataset.splits.values()] == [sorted(part) for part in names]
    assert dataset.top1_split == "test"
    assert dataset.test.labels.tolist() == [0] * 3 + [1] * 3


def test_test_is_no_val_which_is_split_off_train(tmp_path):
    """Not for both: what the gate has chosen by says too much good of what it has chosen."""
    dataset = load(put(tmp_path, *classes("train/", 10), *classes("Test/", 4, first=10)))
    assert sizes(dataset) == {"train": 16, "val": 4, "test": 8}
    assert all(name.startswith("Test/") for name in members(dataset.test))
    assert all(name.startswith("train/") for name in members(dataset.val))
    assert dataset.sources == {"train": "train/", "val": "a fifth of train/", "test": "Test/"}
    assert "Top-1 is reported of test" in shown(dataset)


def test_test_may_lack_a_class_but_not_have_one_more(tmp_path):
    put(tmp_path, *classes("train/", 10), *classes("test/", 4, "a", first=10))
    assert np.bincount(load(tmp_path).test.labels).tolist() == [4]
    assert "b: 0" in shown(load(tmp_path))
    put(tmp_path, "test/c/1.jpg")
    with pytest.raises(ValueError, match="class c is in test/ but not in train/"):
        load(tmp_path)


@pytest.mark.parametrize("test", ["test/", "test/unknown/", "test/test/", "Testing/0/"])
def test_a_test_without_labels_is_named_and_is_no_validation_set(tmp_path, test):
    dataset = load(put(tmp_path, *classes("train/", 10), *(f"{test}{n}.jpg" for n in range(7))))
    assert sizes(dataset) == {"train": 16, "val": 4}
    assert dataset.top1_split == "val"
    [(what, (count, reason))] = left_out(dataset).items()
    assert (what, count) == (f"{test.split('/')[0]}/", 7)
    assert "no labels" in reason and "no labels" in shown(dataset)


def test_a_val_without_labels_is_asked_about(tmp_path):
    put(tmp_path, *classes("train/", 10), "val/1.jpg", "val/2.jpg")
    with pytest.raises(ValueError, match=r"val/ holds none of the class folders of train/\. Sort its images"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "Dev", "valid", "training"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    dataset = load(put(tmp_path, *(f"{label}/{n}.jpg" for label in ("car", name, "plane") for n in range(5))))
    assert set(dataset.classes) == {"car", name, "plane"}
    assert sizes(dataset) == {"train": 12, "val": 3}


def test_a_class_called_train_may_have_albums_beside_its_images(tmp_path):
    names = [f"{label}/{n}.jpg" for label in ("car", "train") for n in range(5)]
    assert load(put(tmp_path, *names, "train/2020/x.jpg")).classes == ("car", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (classes("fold1/") + classes("fold2/") + classes("fold3/"), "fold1, fold2, fold3 hold the same folders, a, b"),
        (classes("images/") + classes("masks/"), "images, masks hold the same folders, a, b"),
        (classes("one/", names="abc") + classes("two/", names="abd"), "one, two hold the same folders, a, b"),
        (classes("cat/", names=("images", "masks")) + classes("dog/", names=("images", "masks")), "images, masks"),
        (classes("cat/", names=("train", "test")) + classes("dog/", names=("train", "test")), "cat, dog hold the same"),
        (classes("fold1/", names="a") + classes("fold2/", names="a"), "fold1, fold2 hold the same folders, a"),
        (classes("train/") + classes("training/"), "train, training may each be the same split"),
        (classes("train/") + classes("val/") + classes("dev/"), "dev, val may each be the same split"),
        (classes("train/", names=("2020", "2021")) + classes("", names=("car", "plane")), "train is a class like"),
        (["train/1.jpg", "train/2.jpg", "test/3.jpg"], "images lie directly in train/. Sort them into train/<class>/"),
        (["train/1.jpg", *classes("val/")], "images lie directly in train/"),
        (["train/1.jpg", "test/3.jpg", "car/4.jpg"], "images lie directly in train/"),
        (["train/images/1.jpg", "train/labels/1.txt", "val/images/2.jpg", "val/labels/2.txt"], "for detection"),
        (["images/1.jpg", "annotations/1.xml"], "for detection or segmentation"),
        (classes("test/"), "has test/ but no train/"),
    ],
)  # fmt: skip
def test_what_may_mean_more_than_one_thing_is_asked_about(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        load(put(tmp_path, *names))


def test_folders_of_annotations_and_everything_beside_the_splits_are_named(tmp_path):
    dataset = load(put(tmp_path / "one", *classes("images/"), "annotations/a/0.xml", "annotations/b/1.xml"))
    assert dataset.classes == ("a", "b")
    assert left_out(dataset) == {
        "annotations/": (0, "holds no images; images/ beside it does"),
        ".xml files": (2, "no images"),
    }
    splits = classes("seg_train/") + classes("seg_test/", first=10)
    dataset = load(put(tmp_path / "two", *splits, "seg_pred/1.jpg", "seg_pred/2.jpg", "docs/x.txt", "sample.jpg"))
    reason = "lies beside seg_train, seg_test, and is called like no split"
    assert left_out(dataset) == {
        "docs/": (0, reason),
        "seg_pred/": (2, reason),
        "sample.jpg": (1, reason),
        ".txt files": (1, "no images"),
    }
    assert "seg_pred/" in shown(dataset)


def test_classes_that_each_keep_their_images_in_a_folder_images(tmp_path):
    dataset = load(put(tmp_path, *classes("cat/", names=("images",)), *classes("dog/", names=("images",))))
    assert dataset.classes == ("cat", "dog")


def test_albums_of_classes_may_share_one_name(tmp_path):
    names = classes("cat/", names=("2020", "2021")) + classes("dog/", names=("2021", "2022"))
    assert load(put(tmp_path, *names)).classes == ("cat", "dog")


# duplicates


@pytest.fixture
def doubled(tmp_path) -> Path:
    """train/ has one image of val/ and one of test/, which share another."""
    put(tmp_path, *classes("train/", 10), *classes("val/", 4, first=10), *classes("test/", 4, first=20))
    for source, copy in (("val/a/10", "train/a/copy"), ("test/b/20", "train/b/again"), ("val/b/11", "test/b/x")):
        shutil.copy(tmp_path / f"{source}.jpg", tmp_path / f"{copy}.jpg")
    return tmp_path


def test_what_is_in_train_and_val_or_test_is_left_out_of_train(doubled):
    dataset = load(doubled)
    assert sizes(dataset) == {"train": 20, "val": 8, "test": 9}
    found = {one.where: one for one in dataset.duplicates}
    assert {where: (one.count, one.left_out) for where, one in found.items()} == {
        "train and val": (1, True),
        "train and test": (1, True),
        "val and test": (1, False),
    }
    assert found["train and val"].pairs == (("train/a/copy.jpg", "val/a/10.jpg"),)
    assert "train/b/again.jpg = test/b/20.jpg" in shown(dataset) and "KEEP_DUPLICATES=1" in shown(dataset)


def test_unless_it_is_asked_to_stay(doubled):
    dataset = load(doubled, keep_duplicates=True)
    assert sizes(dataset) == {"train": 22, "val": 8, "test": 9}
    assert [one.count for one in dataset.duplicates] == [1, 1, 1]
    assert not any(one.left_out for one in dataset.duplicates)
    assert dataset.fingerprint != load(doubled).fingerprint


def test_also_where_val_is_split_off(tmp_path):
    """Each image ten times: whichever comes into val, its copies leave train."""
    put(tmp_path, *classes("", 10))
    for n in range(10):
        for copy in range(9):
            for label in "ab":
                shutil.copy(tmp_path / label / f"{n}.jpg", tmp_path / label / f"{n}-{copy}.jpg")
    dataset = load(tmp_path)
    contents = [{(tmp_path / name).read_bytes() for name in members(split)} for split in dataset.splits.values()]
    assert not contents[0] & contents[1]
    assert dataset.duplicates[0].count > len(dataset.duplicates[0].pairs) == duplicates.PAIRS


def test_a_class_of_which_nothing_is_left_says_why(tmp_path):
    put(tmp_path, *classes("train/", 2), *classes("val/", 2, first=10))
    for n in (0, 1):
        shutil.copy(tmp_path / f"train/b/{n}.jpg", tmp_path / f"val/b/{n}.jpg")
    with pytest.raises(ValueError, match=r"2 images of train are in val or test too.*class b has no usable.*KEEP_DUP"):
        load(tmp_path)


def test_the_same_image_in_two_classes_is_named(tmp_path):
    put(tmp_path, *classes("train/", 5), *classes("val/", 2, first=10))
    shutil.copy(tmp_path / "train/a/0.jpg", tmp_path / "train/b/same.jpg")
    [found] = load(tmp_path).duplicates
    assert (found.where, found.count, found.left_out) == ("two classes", 1, False)
    assert found.pairs == (("train/a/0.jpg", "train/b/same.jpg"),)


def test_equal_checksums_are_no_proof(tmp_path):
    put(tmp_path, *classes("train/", 5), *classes("val/", 2, first=10))
    checked = {name: _Checked() for name in ("x", "y", "z")}
    contents = {"x": b"one", "y": b"two", "z": b"one"}
    rows = {"train": [("x", 0)], "val": [("y", 0), ("z", 0)]}
    left, [found] = duplicates.find(rows, checked, contents.__getitem__, keep=False)
    assert left == {"x"} and found.pairs == (("x", "z"),)


class _Checked:
    size, crc = 3, 77


# what is an image


def test_images_are_found_by_what_they_hold_and_others_counted(tmp_path):
    put(tmp_path, *classes("", 5))
    for suffix in (".mpo", ".jif", ".JFIF", "", ".dat", ".photo"):
        (tmp_path / f"a/more{suffix}").write_bytes(jpeg(50 + len(suffix) + ord(suffix[-1:] or "x")))
    for name, kind in (("b/x.pbm", "PPM"), ("b/x.pnm", "PPM"), ("b/no suffix", "PNG"), ("b/x.bin", "BMP")):
        Image.new("1" if name.endswith("pbm") else "RGB", (9, len(name)), 1).save(tmp_path / name, kind)
    others = {
        "notes.txt": b"x",
        "film.mp4": b"\0\0\0\x18ftypisom",
        "raw.NEF": b"II*\0",
        "raw.cr2": b"II*\0",
        "two.mp4": b"",
    }
    for name, content in others.items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "a" / "Thumbs.db").write_bytes(jpeg())
    dataset = load(tmp_path)
    assert sum(sizes(dataset).values()) == 10 + 6 + 4
    assert left_out(dataset) == {
        ".mp4 files": (2, "no images"),
        ".txt files": (1, "no images"),
        ".nef files": (1, "no images"),
        ".cr2 files": (1, "no images"),
    }


def test_heic_without_a_suffix_is_named_not_left_out(tmp_path):
    put(tmp_path, *classes("", 5))
    (tmp_path / "a/IMG_1").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(ValueError, match=r"a/IMG_1: .*HEIC.*convert it to JPEG"):
        load(tmp_path)


def test_a_folder_whose_name_is_no_text_is_refused_by_name(tmp_path):
    put(tmp_path, *classes("", 5))
    (tmp_path / "caf\udc82").mkdir()
    with pytest.raises(ValueError, match=r"the name of a folder, 'caf\\udc82', is not in UTF-8. Rename"):
        load(tmp_path)


# the table


def test_the_table_of_an_unbalanced_folder(tmp_path):
    names = [f"train/{label}/{n}.jpg" for label, count in (("hat", 2), ("shirt", 9), ("shoe", 4)) for n in range(count)]
    names += [f"validation/{label}/x.jpg" for label in ("hat", "shirt", "shoe")]
    dataset = load(put(tmp_path, *names))
    found = overview.summary(dataset)
    assert found == {
        "classes": 3,
        "class_names": ["hat", "shirt", "shoe"],
        "top1_split": "val",
        "splits": {
            "train": {"source": "train/", "images": 15, "least": ["hat", 2], "median": 4.0, "most": ["shirt", 9]},
            "val": {"source": "validation/", "images": 3, "least": ["hat", 1], "median": 1.0, "most": ["hat", 1]},
        },
        "left_out": [],
        "duplicates": [],
    }
    text = shown(dataset)
    for said in ("validation/", "hat: 2", "shirt: 9", "3 classes: hat, shirt, shoe", "Top-1 is reported of val"):
        assert said in text


def test_the_table_names_ten_classes_and_counts_what_cannot_be_read(tmp_path):
    put(tmp_path, *(f"{n:02d}/{m}.jpg" for n in range(14) for m in range(3)))
    for n in range(3):
        (tmp_path / "00" / f"bad{n}.jpg").write_bytes(b"")
    dataset = load(tmp_path, max_bad_share=0.1)
    assert "08, 09 and 4 more" in shown(dataset)
    [unusable] = overview.summary(dataset)["left_out"]
    assert unusable == {"what": "00/bad0.jpg and 2 more", "count": 3, "reason": "is empty, or no ordinary file"}


def test_data_in_memory_have_a_table_too():
    assert "its owner's" in shown(load_dataset("digits"))


def test_a_subset_keeps_its_part_of_test(tmp_path):
    put(tmp_path, *classes("train/", 6, "abcd"), *classes("test/", 2, "abcd", first=10))
    part = load(tmp_path, subset="2x3")
    assert sizes(part) == {"train": 6, "val": 2, "test": 4}
    assert part.test.labels.tolist() == [0, 0, 1, 1]
