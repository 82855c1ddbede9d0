"""Each owner's layout, in miniature; folders and zips of a user's own photos."""

import csv
import io
import json
import pickle
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from photos import jpeg, members, put

from pipeline.data.datasets import load_dataset

SPECIES = Path(__file__).parent.parent.parent / "shared" / "data" / "species.zip"


# iNaturalist 2019


def inat19(folder: Path, real_names: bool = True) -> Path:
    """Category ids and their order, groups and hidden names as the owner has them."""
    pictures = {  # file: (image id, category id)
        "train_val2019/Plants/400/aa.jpg": (10, 400),
        "train_val2019/Plants/400/bb.jpg": (11, 400),
        "train_val2019/Birds/202/cc.jpg": (12, 202),
        "train_val2019/Birds/202/dd.jpg": (13, 202),
        "train_val2019/Reptiles/35/ee.jpg": (14, 35),
        "train_val2019/Reptiles/35/ff.jpg": (15, 35),
    }
    put(folder, *pictures)
    categories = [{"id": n, "name": f"nat{n:04d}", "supercategory": "x"} for n in (202, 35, 400)]
    for part, files in (("train", list(pictures)[::2]), ("val", list(pictures)[1::2])):
        images = [{"id": pictures[f][0], "file_name": f, "width": 12, "height": 8, "license": 0} for f in files]
        annotations = [{"id": i["id"], "image_id": i["id"], "category_id": pictures[i["file_name"]][1]} for i in images]
        content = {"info": {}, "images": images, "categories": categories, "annotations": annotations[::-1]}
        (folder / f"{part}2019.json").write_text(json.dumps(content))
    if real_names:
        species = [
            {"id": 400, "name": "Rosa canina"},
            {"id": 35, "name": "Anguis fragilis"},
            {"id": 202, "name": "Anas"},
        ]
        (folder / "categories.json").write_text(json.dumps(species))
    return folder


def test_inat19(tmp_path):
    dataset = load_dataset("inat19", folder=inat19(tmp_path))
    assert dataset.classes == ("Anguis fragilis", "Anas", "Rosa canina")  # in the order of the category ids
    assert list(zip(members(dataset.train), dataset.train.labels, strict=True)) == [
        ("train_val2019/Plants/400/aa.jpg", 2),
        ("train_val2019/Birds/202/cc.jpg", 1),
        ("train_val2019/Reptiles/35/ee.jpg", 0),
    ]
    assert dataset.val.labels.tolist() == [2, 1, 0]
    assert dataset.skipped == ()


def test_inat19_without_the_species_names(tmp_path):
    assert load_dataset("inat19", folder=inat19(tmp_path, real_names=False)).classes == (
        "nat0035",
        "nat0202",
        "nat0400",
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [], "annotations": []}', '{"categories": 5}'])
def test_a_damaged_annotation_file_is_named(tmp_path, content):
    inat19(tmp_path)
    (tmp_path / "train2019.json").write_text(content)
    with pytest.raises(ValueError, match=r"train2019\.json"):
        load_dataset("inat19", folder=tmp_path)


def test_images_that_have_a_label_but_are_missing_are_named(tmp_path):
    inat19(tmp_path)
    (tmp_path / "train_val2019/Plants/400/bb.jpg").rename(tmp_path / "elsewhere.jpg")
    annotations = json.loads((tmp_path / "val2019.json").read_text())
    annotations["images"].append({"id": 99, "file_name": "../outside.jpg"})
    annotations["annotations"].append({"image_id": 99, "category_id": 400})
    (tmp_path / "val2019.json").write_text(json.dumps(annotations))
    put(tmp_path.parent, "outside.jpg")  # it exists, but not below the dataset
    with pytest.raises(ValueError, match="2 of 7 images cannot be used") as error:
        load_dataset("inat19", folder=tmp_path)
    for name in ("train_val2019/Plants/400/bb.jpg", "../outside.jpg"):
        assert f"{name}: has a label but is missing" in str(error.value)
    with pytest.raises(ValueError, match="class Rosa canina has no usable images in val"):
        load_dataset("inat19", folder=tmp_path, max_bad_share=0.5)


@pytest.mark.parametrize(
    ("name", "make", "folder"),
    [
        ("inat19", lambda path: inat19(path), "train_val2019"),
        ("ifood", lambda path: ifood(path, kaggle=False), "val_set"),
        ("imagenet", lambda path: in_folders(path), "val"),
        ("imagenet", lambda path: in_folders(path), "train"),
        ("cifar10", lambda path: cifar(path, "cifar10"), "cifar-10-batches-py"),
    ],
)
def test_a_missing_folder_says_which_command_gets_it(tmp_path, name, make, folder):
    make(tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(ValueError, match=rf"{folder}.* is missing\. `make data DATASET={name} DATA="):
        load_dataset(name, folder=tmp_path)


# iFood 2019


def ifood(folder: Path, kaggle: bool) -> Path:
    """As the owners' tars unpack (annot/, tables without header), or as on Kaggle."""
    put(folder, *(f"{part}_set/{part}_{n:05d}.jpg" for part in ("train", "val", "test") for n in range(3)))
    tables = folder if kaggle else folder / "annot"
    tables.mkdir(exist_ok=True)
    (tables / "class_list.txt").write_text("0 macaron\n1 beignet\n2 stuffed_cabbage\n")
    for part, labels in (("train", (2, 0, 1)), ("val", (1, 2, 0))):
        with (tables / f"{part}_{'labels' if kaggle else 'info'}.csv").open("w", newline="") as file:
            rows = [(f"{part}_{n:05d}.jpg", label) for n, label in enumerate(labels)]
            csv.writer(file).writerows([("img_name", "label"), *rows] if kaggle else rows)
    return folder


@pytest.mark.parametrize("kaggle", [False, True])
def test_ifood(tmp_path, kaggle):
    dataset = load_dataset("ifood", folder=ifood(tmp_path, kaggle))
    assert dataset.classes == ("macaron", "beignet", "stuffed_cabbage")
    assert members(dataset.train) == [f"train_set/train_{n:05d}.jpg" for n in range(3)]
    assert dataset.train.labels.tolist() == [2, 0, 1]
    assert dataset.val.labels.tolist() == [1, 2, 0]


def test_ifood_label_without_a_class_is_refused(tmp_path):
    ifood(tmp_path, kaggle=True)
    (tmp_path / "class_list.txt").write_text("0 macaron\n1 beignet\n")
    with pytest.raises(ValueError, match=r"train_labels\.csv is damaged"):
        load_dataset("ifood", folder=tmp_path)


# ImageNet

WNIDS = ("n01440764", "n02012849", "n03126707")  # tench, crane the bird, crane the machine
FLAT = {3: 2, 1: 0, 2: 1}  # number of a validation image: class


def imagenet(folder: Path) -> Path:
    put(folder, *(f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in (5, 60)))
    return put(folder, *(f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in FLAT))


def in_folders(folder: Path) -> Path:
    imagenet(folder)
    for n, label in FLAT.items():
        name = f"ILSVRC2012_val_{n:08d}.JPEG"
        (folder / "val" / WNIDS[label]).mkdir()
        (folder / "val" / name).rename(folder / "val" / WNIDS[label] / name)
    return folder


def with_devkit(folder: Path) -> Path:
    """The kit numbers the classes in an order of its own, and lists inner nodes of WordNet after them."""
    from scipy.io import savemat

    data = imagenet(folder) / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    nodes = [(2, WNIDS[0], 0), (3, WNIDS[1], 0), (1, WNIDS[2], 0), (4, "n00001740", 3)]
    synsets = np.empty((len(nodes), 1), dtype=[(name, object) for name in names])
    for row, (key, wnid, children) in enumerate(nodes):
        synsets[row, 0] = (float(key), wnid, "words", "gloss", float(children), np.arange(children), 0.0, 1300.0)
    savemat(data / "meta.mat", {"synsets": synsets})
    number = {label: key for key, wnid, _ in nodes[:3] for label in (WNIDS.index(wnid),)}
    lines = [f"{number[FLAT[n]]}\n" for n in sorted(FLAT)]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    return folder


def from_kaggle(folder: Path) -> Path:
    imagenet(folder / "ILSVRC" / "Data" / "CLS-LOC")
    lines = [f"ILSVRC2012_val_{n:08d},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8 \n" for n, label in FLAT.items()]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    return folder


def with_wnids(folder: Path) -> Path:
    (imagenet(folder) / "val.txt").write_text(
        "".join(f"ILSVRC2012_val_{n:08d}.JPEG {WNIDS[label]}\n" for n, label in FLAT.items())
    )
    return folder


def with_labels(folder: Path) -> Path:
    positions = (0, 134, 517)  # of the three among the 1,000
    (imagenet(folder) / "val.txt").write_text(
        "".join(f"ILSVRC2012_val_{n:08d}.JPEG {positions[label]}\n" for n, label in FLAT.items())
    )
    return folder


@pytest.mark.parametrize("make", [in_folders, with_devkit, from_kaggle, with_wnids, with_labels])
def test_imagenet(tmp_path, make):
    dataset = load_dataset("imagenet", folder=make(tmp_path))
    assert dataset.classes == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    numbers = {int(Path(m).stem[-8:]): int(y) for m, y in zip(members(dataset.val), dataset.val.labels, strict=True)}
    assert numbers == FLAT


def test_flat_imagenet_without_ground_truth_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv or val\.txt.* is missing"):
        load_dataset("imagenet", folder=imagenet(tmp_path))


def test_a_damaged_devkit_is_named(tmp_path):
    (with_devkit(tmp_path) / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no matlab")
    with pytest.raises(ValueError, match=r"meta\.mat is damaged"):
        load_dataset("imagenet", folder=tmp_path)


# CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, which is how the archives were made."""

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}  # noqa: RUF012


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")


def cifar(folder: Path, name: str) -> tuple[Path, np.ndarray]:
    """Ten images per file; returns the folder and all pixels (n, 32, 32, 3), validation last."""
    pixels = np.random.default_rng(0).integers(0, 256, (60 if name == "cifar10" else 20, 32, 32, 3), np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).reshape(-1, 10, 3072)
    if name == "cifar10":
        folder = folder / "cifar-10-batches-py"
        files, labels, meta = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"], "labels", "batches.meta"
        names = {"label_names": ["airplane", *"bcdefghij"], "num_cases_per_batch": 10, "num_vis": 3072}
    else:
        folder = folder / "cifar-100-python"
        files, labels, meta = ["train", "test"], "fine_labels", "meta"
        names = {"fine_label_names": ["apple", *"bcdefghij"], "coarse_label_names": ["aquatic_mammals"]}
    folder.mkdir()
    (folder / meta).write_bytes(pickled(names))
    for file, data in zip(files, planes, strict=True):
        content = {"batch_label": file, labels: list(range(10)), "data": data, "filenames": ["a.png"] * 10}
        content |= {"coarse_labels": [7] * 10} if name == "cifar100" else {}
        (folder / file).write_bytes(pickled(content))
    return folder, pixels


@pytest.mark.parametrize(("name", "first"), [("cifar10", "airplane"), ("cifar100", "apple")])
def test_cifar(tmp_path, name, first):
    _, pixels = cifar(tmp_path, name)
    dataset = load_dataset(name, folder=tmp_path)
    assert dataset.classes == (first, *"bcdefghij")
    np.testing.assert_array_equal(np.concatenate([dataset.train.images.array, dataset.val.images.array]), pixels)
    np.testing.assert_array_equal(dataset.val.images[3].pixels(), pixels[-7])
    assert dataset.val.labels.tolist() == list(range(10))
    assert dataset.val.images.sizes.tolist() == [[32, 32]] * 10


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    folder, _ = cifar(tmp_path, "cifar10")
    content = pickle.dumps({"data": Malicious(tmp_path / "owned"), "labels": [0] * 10})
    pickle.loads(content)
    assert (tmp_path / "owned").exists()  # so the attack is one
    (tmp_path / "owned").unlink()
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged.*it wants to make a"):
        load_dataset("cifar10", folder=tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickled({"labels": [0] * 10}),
        pickled({"labels": [0] * 9, "data": np.zeros((10, 3072), np.uint8)}),
        pickled({"labels": [10] * 10, "data": np.zeros((10, 3072), np.uint8)}),
        pickled({"labels": ["x"] * 10, "data": np.zeros((10, 3072), np.uint8)}),
        pickled({"labels": [0] * 10, "data": np.zeros((10, 3072), np.float32)}),
    ],
)
def test_a_damaged_cifar_file_is_named(tmp_path, content):
    folder, _ = cifar(tmp_path, "cifar10")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch is damaged"):
        load_dataset("cifar10", folder=tmp_path)


# A user's own folders and zips


def zipped(folder: Path, path: Path) -> Path:
    return Path(shutil.make_archive(str(path), "zip", folder))


def both(folder: Path, tmp_path: Path):
    """The dataset from the folder, which the zip of it must equal."""
    one = load_dataset(f"folder:{folder}")
    other = load_dataset(f"folder:{zipped(folder, tmp_path / 'packed')}")
    assert one.classes == other.classes
    assert one.fingerprint == other.fingerprint
    for ours, theirs in ((one.train, other.train), (one.val, other.val)):
        assert ours.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_array_equal(ours.images.sizes, theirs.images.sizes)
        for index in range(len(ours.labels)):
            np.testing.assert_array_equal(ours.images[index].pixels(), theirs.images[index].pixels())
    return one


def test_nested_folders_any_suffix_and_junk(tmp_path):
    good = ["train/cat/1.JPG", "train/cat/2021/summer/2.jpeg", "train/dog/a.Png", "val/cat/1.jpg", "val/dog/x.webp"]
    junk = ["__MACOSX/train/cat/._1.jpg", "train/cat/._1.jpg", "train/dog/@eaDir/a.jpg", ".git/x/y.jpg", "val/.x/1.jpg"]
    folder = put(tmp_path / "photos", *good, *junk)
    for name in ("train/cat/.DS_Store", "train/dog/Thumbs.db", "train/notes.txt"):
        (folder / name).write_bytes(b"x")
    dataset = both(folder, tmp_path)
    assert members(dataset.train) + members(dataset.val) == good
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.sizes.tolist() == [[8, 12]] * 3


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV", "eval", "valid_set", "seg_val", "val2017"])
def test_val_by_its_usual_names(tmp_path, val):
    put(tmp_path, "Train/a/1.jpg", "Train/b/1.jpg", f"{val}/a/2.jpg", f"{val}/b/2.jpg")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert members(dataset.val) == [f"{val}/a/2.jpg", f"{val}/b/2.jpg"]


@pytest.mark.parametrize("prefix", ["", "train/", "photos/", "photos/train/"])
def test_without_val_a_fifth_of_each_class_is_split_off(tmp_path, prefix):
    """Also in a single folder around everything, with or without train/."""
    many, few = [f"{prefix}cat/{n}.jpg" for n in range(20)], [f"{prefix}dog/{n}.jpg" for n in range(2)]
    dataset = both(put(tmp_path / "x", *many, *few), tmp_path)
    assert np.bincount(dataset.val.labels).tolist() == [4, 1]
    assert np.bincount(dataset.train.labels).tolist() == [16, 1]
    assert sorted(members(dataset.train) + members(dataset.val)) == sorted(many + few)
    assert members(load_dataset(f"folder:{tmp_path / 'x'}").val) == members(dataset.val)


def test_names_in_any_script_and_composition(tmp_path):
    """train/ copied from a Mac (é as two characters), val/ from elsewhere."""
    apart, whole = (unicodedata.normalize(form, "Crème brûlée") for form in ("NFD", "NFC"))
    put(tmp_path / "x", f"train/{apart}/é.jpg", "train/寿司/1.jpg", f"val/{whole}/1.jpg", "val/寿司/ü.jpg")
    dataset = both(tmp_path / "x", tmp_path)
    assert dataset.classes == (whole, "寿司")
    assert dataset.val.labels.tolist() == [0, 1]


def test_a_zip_whose_names_are_utf8_without_saying_so(tmp_path):
    """macOS's archives."""

    class Unflagged(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):  # noqa: N802
            return self.filename.encode(), self.flag_bits & ~0x800

    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for shade, name in enumerate(("café/0", "café/1", "thé/0", "thé/1")):
            archive.writestr(Unflagged(f"{name}.jpg"), jpeg(shade))
    assert load_dataset(f"folder:{tmp_path / 'mac.zip'}").classes == ("café", "thé")


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "x", *(f"{label}/{n}.jpg" for label in "ab" for n in range(2)))
    put(tmp_path, *"1234", "elsewhere/1.jpg", "elsewhere/2.jpg")  # other shades than those in x
    (tmp_path / "x/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "x/a/up").symlink_to(tmp_path / "x")
    dataset = load_dataset(f"folder:{tmp_path / 'x'}")
    assert dataset.classes == ("a", "b", "c")
    assert len(dataset.train.labels) + len(dataset.val.labels) == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least two classes; found none"),
        (["1.jpg"], "at least two classes; found none"),
        (["train/a/1.jpg", "val/a/1.jpg"], "at least two classes; found a"),
        (["a/1.jpg", "a/2.jpg"], "at least two classes; found a"),
        (["val/a/1.jpg", "val/b/1.jpg", "x/a/1.jpg"], "has val/ but no train/"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"], "class c is in val/ but not in train/"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], "class b has no usable images in val"),
        (["train/a/1.jpg", "train/b/", "val/a/1.jpg", "val/b/1.jpg"], "class b has no usable images in train"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg"], "class b has 1 usable images to share between training and validation"),
        (["Cat/1.jpg", "Cat/2.jpg", "cat/1.jpg", "cat/2.jpg"], "classes Cat and cat differ only in case"),
        (["train/Cat/1.jpg", "train/b/1.jpg", "val/cat/1.jpg", "val/b/1.jpg"], "Cat and cat differ only in case"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "3.jpg"], r"3\.jpg: lies in no class folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "train/1.jpg", "val/a/1.jpg", "val/b/1.jpg"], "lies in no class folder"),
    ],
)
def test_layouts_that_cannot_be_trained_on_say_why(tmp_path, names, message):
    folder = put(tmp_path / "x", *(name for name in names if not name.endswith("/")))
    for name in ("", *(name for name in names if name.endswith("/"))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in (folder, zipped(folder, tmp_path / "packed")):
        with pytest.raises(ValueError, match=message):
            load_dataset(f"folder:{path}")


@pytest.mark.slow
@pytest.mark.skipif(not SPECIES.exists(), reason="../shared/data/species.zip is not here")
def test_the_transfer_benchmark_just_works():
    found = load_dataset(f"folder:{SPECIES}").duplicates
    assert {one.where: one.count for one in found} == {"train and val": 1, "two classes": 3}
    assert found[0].pairs == (("train/goose/0044.jpg", "val/black_stork/0010.jpg"),)
    dataset = load_dataset(f"folder:{SPECIES}", keep_duplicates=True)
    assert len(dataset.classes) == 60
    assert set(np.bincount(dataset.train.labels)) == {300}
    assert set(np.bincount(dataset.val.labels)) == {50}
    assert dataset.skipped == ()
