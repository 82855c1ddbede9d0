"""Data sets in tars: they train as the files do that they were made from, locally and over http, from any step on."""

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import presets
from pipeline.data import augment, index, names, shards, tars
from pipeline.data.datasets import Dataset, load_dataset
from pipeline.data.loader import train_loader
from pipeline.data.write_shards import write
from pipeline.train import runtime
from tests.tars import tar


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Indexes of the tests do not belong into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def made(image_folder: Path, tmp_path: Path) -> Path:
    """Shards of the test images, several of each split."""
    told: list[tuple[str, int, int]] = []
    paths = write(
        load_dataset(f"folder:{image_folder}"), tmp_path / "shards", 100_000, lambda *so_far: told.append(so_far)
    )
    assert len(paths) >= 4
    assert told[-1] == ("val", 18, 18)
    return tmp_path / "shards"


@contextlib.contextmanager
def served(folder: Path, *, ranges: bool = True) -> Iterator[tuple[str, list[str]]]:
    """An address on this machine with the files of a folder, and the requests that come there."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path} {self.headers['Range'] or ''}".strip())
            path = folder / self.path.strip("/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status = path.read_bytes(), 200
            content_range = None
            if ranges and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")):
                first, last = map(int, found.groups())
                content_range, status = f"bytes {first}-{last}/{len(data)}", 206
                data = data[first : last + 1]
            self.send_response(status)
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.send_header("Content-Length", str(len(data)))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def batches(dataset: Dataset, step: int, workers: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches of 16 of 48 images: an epoch's length, from any step on."""
    recipe = replace(dataset, augmentation=augment.CIFAR)
    stream = train_loader(recipe, 64, 16, 0, workers, share=runtime.share()).starting_at(step)
    return [(images.clone(), labels.clone()) for images, labels in itertools.islice(stream, 3)]


def same(one: list, other: list) -> bool:
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_train_as_their_files_do_and_go_on_inside_an_epoch(image_folder, made, workers):
    files, packed = load_dataset(f"folder:{image_folder}"), load_dataset(f"wds:{made}")
    assert packed.fingerprint == files.fingerprint
    assert packed.classes == files.classes
    assert (packed.train.images.sizes == files.train.images.sizes).all()
    for step in (0, 1, 4):
        assert same(batches(packed, step, workers), batches(files, step))
    part = load_dataset(f"wds:{made}", "2x5")
    assert part.fingerprint.endswith("2x5")
    assert len(part.train.images) == 10
    assert part.train.images[0].pixels().shape == (64, 64, 3)


def test_tars_behind_http_train_as_their_files_do(image_folder, made):
    files = load_dataset(f"folder:{image_folder}")
    train, val = (len(list(made.glob(f"{split}-*.tar"))) for split in ("train", "val"))
    with served(made) as (url, asked):
        pattern = f"wds:{url}/{{train-{{000000..{train - 1:06}}},val-{{000000..{val - 1:06}}}}}.tar"
        packed = load_dataset(pattern)
        assert packed.train.labels.tolist() == files.train.labels.tolist()
        assert packed.classes == files.classes
        assert same(batches(packed, 1, 2), batches(files, 1))
        first = len(asked)
        load_dataset(pattern)
        assert [line for line in asked[first:] if ".tar" in line and not line.startswith("HEAD")] == []  # remembered


def test_a_server_that_cannot_do_it_or_is_not_there_is_told(made):
    with (
        served(made, ranges=False) as (url, _),
        pytest.raises(ValueError, match=r"train-000000\.tar cannot be read.*no ranges"),
    ):
        load_dataset(f"wds:{url}/train-000000.tar")
    with served(made) as (url, _):
        with pytest.raises(ValueError, match=r"none\.tar cannot be read .*the server has no"):
            load_dataset(f"wds:{url}/none.tar")
        listing, layout = shards.list_shards(f"{url}/train-000000.tar")
        files = listing.images([layout.train[0][0]], np.array([[64, 64]]))
        assert files[0].pixels().shape == (64, 64, 3)
    for connection in tars._kept.connections.values():  # one that is open is answered on
        connection.close()
    with pytest.raises(ValueError, match=rf"{url}/train-000000\.tar: train-000000\.tar/00000000\.\w+ cannot be read"):
        files[0]
    with pytest.raises(ValueError, match=r"classnames\.txt cannot be read .*refused"):
        shards.list_shards(f"{url}/train-000000.tar")


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b-00.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert tars.expand("{a,b}-{00..00}.tar") == ["a-00.tar", "b-00.tar"]
    assert tars.expand("a-{00..02}.tar") == tars.expand("a-*.tar") == ["a-00.tar", "a-01.tar", "a-02.tar"]
    assert [Path(path).name for path in tars.expand(str(tmp_path))] == ["a-00.tar", "a-01.tar", "a-02.tar", "b-00.tar"]
    assert tars.expand("https://host/x-{9..11}.tar") == [f"https://host/x-{n}.tar" for n in (9, 10, 11)]
    for pattern, message in {
        "a-{00..05}.tar": "a-03.tar does not exist",
        "d-*.tar": "there is no tar file d-",
        "a-{05..00}.tar": "must go up",
        "a-{0..999999}.tar": "100,000 tars at most",
    }.items():
        with pytest.raises(ValueError, match=message):
            tars.expand(pattern)
    names.check_name("wds:a-{00..02}.tar")
    names.check_name("wds:https://host/t.tar")  # nothing is asked yet
    with pytest.raises(ValueError, match=r"DATASET=wds:z\.tar: z\.tar does not exist"):
        names.check_name("wds:z.tar")
    with pytest.raises(ValueError, match="lacks tars"):
        names.check_name("wds:")


def photo(image_folder: Path) -> bytes:
    return next((image_folder / "train").rglob("*.png")).read_bytes()


def test_tars_of_others(image_folder, tmp_path):
    """As the webdataset library writes them: any keys, other files beside the images, labels without names."""
    data = photo(image_folder)
    members = {}
    for number, label in enumerate((7, 3, 7, 3)):
        members |= {f"x/{number}.seg.png": data, f"x/{number}.cls": f"{label}\n".encode(), f"x/{number}.json": b"{}"}
    (tmp_path / "set-train-0.tar").write_bytes(tar({**members, "x/9.jpg": data, "x/._8.png": data, "y.cls": b"3"}))
    (tmp_path / "set-valid-0.tar").write_bytes(tar(dict(list(members.items())[:6])))
    listing, layout = shards.list_shards(str(tmp_path / "set-*.tar"))
    assert layout.classes == ("3", "7")
    assert layout.train == [(f"set-train-0.tar/x/{n}.seg.png", label) for n, label in enumerate((1, 0, 1, 0))]
    assert layout.val == [("set-valid-0.tar/x/0.seg.png", 1), ("set-valid-0.tar/x/1.seg.png", 0)]
    assert [(file.path, "no label" in file.reason) for file in layout.stray] == [("set-train-0.tar/x/9.jpg", True)]
    assert listing.images([layout.train[0][0]], np.zeros((1, 2), int)).read(layout.train[0][0]) == data
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"label 7 has no name: classnames\.txt beside .* has 3 lines"):
        shards.list_shards(str(tmp_path / "set-*.tar"))
    (tmp_path / "classnames.txt").write_text("a\n\nc\n")
    with pytest.raises(ValueError, match=r"classnames\.txt: a line is empty"):
        shards.list_shards(str(tmp_path / "set-*.tar"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tar at all" * 100, "cannot be read as an uncompressed tar"),
        (b"", "cannot be read as an uncompressed tar"),
        (tar({"a.png": b"x" * 3000, "a.cls": b"1"}, "w:gz"), "cannot be read as an uncompressed tar"),
        (tar({"a.png": b"x" * 3000})[:2000], "cannot be read as an uncompressed tar"),
        (tar({"a.png": b"x" * 3000}), "holds no image with a label"),
        (tar({"a.png": b"x" * 3000, "a.cls": b"one"}), "holds no image with a label"),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, content, message):
    (tmp_path / "train-0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        shards.list_shards(str(tmp_path))


def test_a_tar_that_changes_is_gone_through_again(image_folder, tmp_path):
    data, path = photo(image_folder), tmp_path / "train-0.tar"
    for labels in ((0, 1), (1, 0, 1)):
        path.write_bytes(tar({f"{n}.{kind}": data if kind == "png" else str(label).encode()
                              for n, label in enumerate(labels) for kind in ("png", "cls")}))  # fmt: skip
        _, layout = shards.list_shards(str(tmp_path))
        assert [label for _, label in layout.train] == list(labels)
    for file in (index.index_path(path).parent).glob("*.tar.json"):
        file.write_text("{")
    assert len(shards.list_shards(str(tmp_path))[1].train) == 3
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar"):
        shards.list_shards(str(tmp_path))


def test_nothing_half_written_is_left(image_folder, tmp_path):
    dataset = load_dataset(f"folder:{image_folder}")

    def stop(split: str, done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(dataset, tmp_path / "out", 10**6, stop)
    assert list(tmp_path.iterdir()) == []
    write(dataset, tmp_path / "out", 10**6, lambda *_: None)
    with pytest.raises(ValueError, match="out exists"):
        write(dataset, tmp_path / "out", 10**6, lambda *_: None)
    with pytest.raises(ValueError, match="DATASET=digits is no set of files"):
        write(load_dataset("digits"), tmp_path / "other", 10**6, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tars_are_made_by_one_process_at_a_time_and_anew_after_a_killed_one(image_folder, tmp_path):
    dataset, refused = load_dataset(f"folder:{image_folder}"), []
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "train-000009.tar").touch()

    def again(split: str, done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(ValueError, match="in use by another process") as error:
                write(dataset, tmp_path / "out", 10**6, lambda *_: None)
            refused.append(error)

    paths = write(dataset, tmp_path / "out", 10**6, again)
    assert len(refused) == len(dataset.splits)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {shards.NAMES, *(path.name for path in paths)}
    assert not any(path.name == "train-000009.tar" for path in paths)


def test_runs_of_tars_have_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patterns = "birds", "birds/{train,val}-{0..3}.tar", "http://host/birds/t-{0..3}.tar", "http://host/{a,b}/t.tar"
    runs = [presets.of(f"wds:{pattern}", None, 0.5) for pattern in patterns]
    assert [presets.dataset_name(run) for run in runs] == ["birds", "birds", "birds", "-a-b-"]
    assert len({presets.run_name(run) for run in runs}) == 4
    assert runs[0].prune == presets.of("folder:birds", None, 0.5).prune
