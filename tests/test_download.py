"""`make data` against a server on this machine that breaks off, lies and stalls."""

import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from bad_server import Server
from scipy.io import savemat
from tars import tar

from pipeline.data import transfer
from pipeline.data.catalog import KNOWN, Known
from pipeline.data.download import fetch, lacks
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.files import locked


def quiet(*_: object) -> None:
    """Progress that nobody sees."""


def cifar(folder: str, batches: list[str], meta: str, kind: str) -> bytes:
    pixels = np.zeros((2, 3072), np.uint8)
    members = {batch: {"data": pixels, f"{kind}labels": [0, 1]} for batch in batches}
    members[meta] = {f"{kind}label_names": ["cat", "ship"]}
    return tar({f"{folder}/{name}": pickle.dumps(value, protocol=4) for name, value in members.items()}, "w:gz")


def inat19() -> dict[str, bytes]:
    def part(ids: list[int]) -> bytes:
        images = [{"id": n, "file_name": f"train_val2019/Birds/{n % 2}/{n:032x}.jpg"} for n in ids]
        categories = [{"id": n, "name": str(n)} for n in range(2)]
        annotations = [{"image_id": n, "category_id": n % 2} for n in ids]
        return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()

    return {
        "train_val2019.tar.gz": tar({f"train_val2019/Birds/{n % 2}/{n:032x}.jpg": bytes(99) for n in range(6)}, "w:gz"),
        "train2019.json.tar.gz": tar({"train2019.json": part([0, 1, 2, 3])}, "w:gz"),
        "val2019.json.tar.gz": tar({"val2019.json": part([4, 5])}, "w:gz"),
        "categories.json.tar.gz": tar(
            {"categories.json": json.dumps([{"id": 0, "name": "owl"}, {"id": 1, "name": "tit"}]).encode()}, "w:gz"
        ),
    }


def ifood() -> dict[str, bytes]:
    tables = {"class_list.txt": b"0 macaron\n1 beignet\n", "test_info.csv": b"test_000000.jpg\n"}
    tables["train_info.csv"] = b"".join(b"train_%06d.jpg,%d\n" % (n, n % 2) for n in range(4))
    tables["val_info.csv"] = b"".join(b"val_%06d.jpg,%d\n" % (n, n % 2) for n in range(2))
    return {
        "annot.tar": tar(tables),
        "train.tar": tar({f"train_set/train_{n:06}.jpg": bytes(99) for n in range(4)}),
        "val.tar": tar({f"./val_set/val_{n:06}.jpg": bytes(99) for n in range(2)}),
    }


def imagenet() -> dict[str, bytes]:
    wnids = ["n01440764", "n01443537"]
    fields = [("ILSVRC2012_ID", "i4"), ("WNID", "U9"), ("num_children", "i4")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([(2, wnids[0], 0), (1, wnids[1], 0), (3, "n00000000", 2)], fields)})
    kit = "ILSVRC2012_devkit_t12/data"
    return {
        "ILSVRC2012_devkit_t12.tar.gz": tar(
            {f"{kit}/meta.mat": meta.getvalue(), f"{kit}/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n"}, "w:gz"
        ),
        "ILSVRC2012_img_val.tar": tar({f"ILSVRC2012_val_{n:08}.JPEG": bytes(99) for n in (1, 2)}),
        "ILSVRC2012_img_train.tar": tar(
            {f"{wnid}.tar": tar({f"{wnid}_{n}.JPEG": bytes(99) for n in range(2)}) for wnid in wnids}
        ),
    }


MINIATURES = {
    "cifar10": lambda: {
        "cifar-10-python.tar.gz": cifar(
            "cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], "batches.meta", ""
        )
    },
    "cifar100": lambda: {"cifar-100-python.tar.gz": cifar("cifar-100-python", ["train", "test"], "meta", "fine_")},
    "ifood": ifood,
    "inat19": inat19,
    "imagenet": imagenet,
}


def miniature(name: str, server: Server) -> Known:
    """The dataset `name` in small: two classes, true names and layout, served by `server`."""
    server.files = MINIATURES[name]()
    known = KNOWN[name]
    assert {archive.name for archive in known.archives} == set(server.files)
    archives = [
        replace(
            archive,
            url=archive.url and f"{server.url}/{archive.name}",
            bytes=len(server.files[archive.name]),
            unpacked_bytes=len(server.files[archive.name]),
            checksum=archive.checksum and f"md5:{hashlib.md5(server.files[archive.name]).hexdigest()}",
        )
        for archive in known.archives
    ]
    train, val = {"cifar10": (10, 2), "cifar100": (2, 2)}.get(name, (4, 2))
    return replace(known, classes=2, train_images=train, val_images=val, archives=tuple(archives))


def by_hand(known: Known, server: Server, folder: Path) -> None:
    """What a person does who follows the steps."""
    folder.mkdir(exist_ok=True)
    for archive in known.archives:
        (folder / archive.name).write_bytes(server.files[archive.name])


@pytest.fixture
def food(server):
    return miniature("ifood", server)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "ifood", "inat19"])
def test_a_dataset_is_fetched_as_its_owner_packs_it_and_only_once(name, server, tmp_path):
    known, seen = miniature(name, server), []
    fetch(known, tmp_path, lambda *told: seen.append(told))
    assert lacks(known, tmp_path) is None
    assert sorted(server.asked) == sorted(server.files)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", *server.files, *(archive.gives for archive in known.archives)
    }  # fmt: skip
    assert all(0 <= done <= total for _, done, total in seen)
    assert {what.split()[0] for what, _, _ in seen} == {"get", "check", "unpack"}

    for archive in server.files:
        (tmp_path / archive).unlink()
    fetch(known, tmp_path, quiet)
    assert len(server.asked) == len(server.files)


def test_imagenet_asks_for_registration_then_takes_the_tars_that_the_user_fetched(server, tmp_path):
    known = miniature("imagenet", server)
    with pytest.raises(EnvironmentLacks) as refused:
        fetch(known, tmp_path, quiet)
    for part in ("Register at image-net.org", "ILSVRC2012_img_train.tar", known.archives[0].checksum, str(tmp_path),
                 f"make data DATASET=imagenet DATA={tmp_path}"):  # fmt: skip
        assert part in str(refused.value)
    by_hand(known, server, tmp_path)
    fetch(known, tmp_path, quiet)
    assert lacks(known, tmp_path) is None
    assert (tmp_path / "train/n01443537/n01443537_1.JPEG").exists()
    assert not server.asked


def test_archives_put_there_by_hand_are_used_and_what_was_unpacked_by_hand_too(server, food, tmp_path):
    by_hand(food, server, tmp_path / "tars")
    fetch(food, tmp_path / "tars", quiet)
    for data in server.files.values():
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
    fetch(food, tmp_path / "unpacked", quiet)
    assert not server.asked


def test_interrupted_at_any_time_it_goes_on_and_fetches_no_byte_twice(server, food, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK", 1000)
    interruptions = 0
    for _ in range(1000):
        calls = 0

        def interrupt(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                raise Interrupted("interrupted")

        try:
            fetch(food, tmp_path, interrupt)
            break
        except Interrupted:
            interruptions += 1
        assert not (tmp_path / ".unpacking").exists()
        for archive in food.archives:  # unpacked whole or not at all
            folder = tmp_path / archive.gives
            assert not folder.exists() or len(list(folder.iterdir())) == (2 if archive.gives == "val_set" else 4)
    assert interruptions > 5
    assert lacks(food, tmp_path) is None
    assert sorted(request for request in server.asked if "bytes=" not in request) == sorted(server.files)
    assert len(server.asked) > len(server.files)


def test_other_bytes_are_put_aside_and_fetched_again(server, food, tmp_path):
    right = server.files["val.tar"]
    server.files["val.tar"] = right[:-1] + b"x"
    with pytest.raises(ValueError, match=r"val\.tar is not the file that its owner publishes: its md5 is .*damaged"):
        fetch(food, tmp_path, quiet)
    assert not (tmp_path / "val_set").exists()
    assert (tmp_path / "val.tar.damaged").exists()
    server.files["val.tar"] = right
    fetch(food, tmp_path, quiet)
    assert lacks(food, tmp_path) is None


@pytest.mark.parametrize("data", [b"<html>please log in</html>", b"", "truncated", "flipped", tar({"other.json": b""})])
def test_damage_is_noticed_where_no_checksum_is_published(data, server, tmp_path):
    known = miniature("inat19", server)
    right = server.files["categories.json.tar.gz"]
    server.files["categories.json.tar.gz"] = {
        "truncated": right[:-30],
        "flipped": right[:-8] + bytes([right[-8] ^ 1]) + right[-7:],  # in gzip's own checksum
    }.get(data, data)
    with pytest.raises(ValueError, match=r"categories\.json\.tar\.gz is not the file .* (damaged|does not hold)"):
        fetch(known, tmp_path, quiet)
    assert not (tmp_path / "categories.json").exists()


def test_a_length_that_is_never_kept_ends_with_what_has_come(server, food, tmp_path):
    server.cuts = [700, 0]
    with pytest.raises(EnvironmentLacks, match=r"cut after 700 bytes of .* \(700 bytes are kept\)"):
        fetch(food, tmp_path, quiet)
    assert (tmp_path / "annot.tar.part").stat().st_size == 700


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_repeated_and_the_steps_are_told(status, server, food, tmp_path):
    server.statuses = [status]
    with pytest.raises(EnvironmentLacks) as refused:
        fetch(food, tmp_path, quiet)
    assert server.asked == ["annot.tar"]
    facts = [fact for archive in food.archives for fact in (archive.url, archive.checksum)]
    for part in (f"HTTP {status}", f"make data DATASET=ifood DATA={tmp_path}", food.licence, *facts):
        assert part in str(refused.value)


def test_a_busy_server_is_asked_again(server, food, tmp_path):
    server.statuses = [503, 429]
    fetch(food, tmp_path, quiet)
    assert lacks(food, tmp_path) is None


def test_a_server_that_stalls_is_given_up_or_asked_again(server, food, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    server.stalls = 1
    fetch(food, tmp_path / "patient", quiet)
    assert lacks(food, tmp_path / "patient") is None
    server.stalls = 3
    with pytest.raises(EnvironmentLacks, match="timed out"):
        fetch(food, tmp_path, quiet)


def test_no_network_is_said_at_once_with_the_steps(server, food, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", lambda _: pytest.fail("waited although nobody ever answered"))
    archive = replace(food.archives[0], url="http://nowhere.invalid/annot.tar")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(EnvironmentLacks, match=r"(?s)nowhere\.invalid.*1\. Download.*2\. Put them.*3\. Repeat"):
        fetch(replace(food, archives=(archive,)), tmp_path, quiet)


def test_a_small_disk_is_noticed_before_the_first_byte_and_what_is_there_counts(server, food, tmp_path, monkeypatch):
    need = (food.download_bytes + food.unpacked_bytes) * 21 // 20
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need - 1))
    with pytest.raises(ValueError, match=r"needs .* more in .* are free\. Make room"):
        fetch(food, tmp_path, quiet)
    assert not server.asked
    by_hand(food, server, tmp_path)
    fetch(food, tmp_path, quiet)


def test_two_at_once_are_refused(server, food, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another process"):
        fetch(food, tmp_path, quiet)


def test_too_few_images_are_no_dataset(server, food, tmp_path):
    with pytest.raises(ValueError, match=r"2 classes, 4 training and 2 validation images; .* has 2, 9 and 2\. Remove"):
        fetch(replace(food, train_images=9), tmp_path, quiet)


def test_a_python_without_safe_extraction_is_refused(server, food, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(EnvironmentLacks, match=r"Python 3\.11\.4"):
        fetch(food, tmp_path, quiet)


def test_the_command_can_be_pasted_into_a_shell():
    known = KNOWN["inat19"]
    assert known.command(known.folder) == "make data DATASET=inat19"
    assert known.command(Path("my data")) == "make data DATASET=inat19 DATA='my data'"


def test_the_catalogue_agrees_with_torchvision():
    datasets = torchvision.datasets
    published = {
        datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5,
        datasets.CIFAR100.filename: datasets.CIFAR100.tgz_md5,
        "train_val2019.tar.gz": datasets.inaturalist.DATASET_MD5["2019"],
        **dict(datasets.imagenet.ARCHIVE_META.values()),
    }
    urls = {datasets.CIFAR10.url, datasets.CIFAR100.url, datasets.inaturalist.DATASET_URLS["2019"]}
    archives = [archive for known in KNOWN.values() for archive in known.archives]
    assert published == {a.name: a.checksum.removeprefix("md5:") for a in archives if a.name in published}
    assert urls == {a.url for a in archives if a.name in published and a.url}
    for archive in archives:
        assert archive.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum)
    assert [archive.name for archive in archives if archive.checksum is None] == ["categories.json.tar.gz"]
