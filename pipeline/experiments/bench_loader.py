"""`make bench-loader`: images per second of the training loader, of timm's, and of decoding alone.

All read the same generated JPEGs in as many worker processes, augment as strongly, and end with normalised float images
on the CPU; only images held in memory are augmented on a GPU, if there is one. They take turns, so that a slow moment
of the machine hits all of them.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from timm.data import ImageDataset, create_loader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from pipeline.data import augment, tars
from pipeline.data.datasets import Dataset, Split
from pipeline.data.index import Files
from pipeline.data.loader import Batches, InMemory, Order, PerImage
from pipeline.data.view import normalise
from pipeline.data.write_shards import write
from pipeline.train import runtime

BATCH = 32
PHOTOS, SMALL = (400, 500), (64, 64)
"""height and width of the pictures: of photographs, and of a small set such as can be held in memory"""
INPUT = {PHOTOS: 224, SMALL: 64}
RECIPE = replace(augment.DEIT, repeats=1)
# timm's spelling of the same recipe, with the magnitude cut off at 9 instead of 10: at 10 it keeps 0 bits of an image,
# which Pillow 13 refuses. What an operation costs does not depend on its magnitude.
TIMM_RECIPE = f"{RECIPE.rand_augment}-mmax9"

Stream = Generator[Any, None, None]
"""batches of images"""


def bench_loader(*, quick: bool, workers: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per loader and kind of picture: images_per_s, ratio (to timm's on the same pictures) and its spread.

    quick:   few pictures and rounds, for a look rather than a result
    workers: processes that load; "in memory" has none
    """
    if workers < 1:
        raise ValueError(f"WORKERS={workers} must be 1 or more")
    measured, rounds, rows = (4 if quick else 16), (2 if quick else 9), []
    for shape in (PHOTOS, SMALL):
        pictures = f"{shape[1]}x{shape[0]} JPEG"
        say(f"  {pictures}: making them")
        with tempfile.TemporaryDirectory() as name:
            # as many batches as are under way at a time are left out at both ends
            dataset = make_pictures(Path(name), shape, BATCH * (measured + 2 * _under_way(workers)))
            starts = _loaders(Path(name), dataset, INPUT[shape], workers)
            speeds: dict[str, list[float]] = {loader: [] for loader in starts}
            for done in range(1, rounds + 1):
                for loader, start in starts.items():
                    speeds[loader].append(_images_per_s(start(), _under_way(workers), measured))
                say(f"  {pictures}: {done}/{rounds}")
        for loader, own in speeds.items():
            paired = [one / timms for one, timms in zip(own, speeds["timm"], strict=True)]
            rows.append(
                {
                    "loader": loader,
                    "pictures": pictures,
                    "input": INPUT[shape],
                    "workers": 0 if loader == "in memory" else workers,
                    "images_per_s": statistics.median(own),
                    "ratio": statistics.median(own) / statistics.median(speeds["timm"]),
                    "ratio_paired": statistics.median(paired),
                    "ratio_spread": [min(paired), max(paired)],
                    "rounds": rounds,
                }
            )
    return rows


def _under_way(workers: int) -> int:
    """Batches that are begun when one is taken: torch's loaders keep two for every worker."""
    return 2 * workers + 1


def _images_per_s(stream: Stream, skipped: int, measured: int) -> float:
    for _ in itertools.islice(stream, skipped):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(stream, measured):
        pass
    seconds = time.perf_counter() - begin
    stream.close()  # and with it the workers: they are not to work on while another loader is measured
    return BATCH * measured / seconds


def _loaders(folder: Path, dataset: Dataset, size: int, workers: int) -> dict[str, Callable[[], Stream]]:
    count = len(dataset.train.labels)

    def timm() -> Stream:
        yield from create_loader(
            ImageDataset(str(folder)),
            (3, size, size),
            BATCH,
            is_training=True,
            use_prefetcher=False,
            auto_augment=TIMM_RECIPE,
            color_jitter=0.3,  # DeiT's; timm leaves it out where there is RandAugment, and so does our recipe
            re_prob=RECIPE.erasing,
            re_mode="pixel",
            interpolation="bicubic",
            num_workers=workers,
            persistent_workers=False,
        )

    def decoding() -> Stream:
        yield from DataLoader(_Decoded(folder), BATCH, num_workers=workers)

    def normalised(batches: Batches) -> Callable[[], Stream]:
        def start() -> Stream:
            for images, _ in batches.starting_at(0):
                yield normalise(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
                if images.is_cuda:
                    torch.cuda.synchronize()

        return start

    orders = {repeats: Order(count, BATCH, 0, repeats) for repeats in (1, 3)}
    ours = {"ours": normalised(PerImage(dataset, size, orders[1], workers))}
    if INPUT[PHOTOS] == size:
        ours["ours, every image 3 times"] = normalised(PerImage(dataset, size, orders[3], workers))
        ours["ours, from tars"] = normalised(PerImage(in_tars(dataset, folder / "tars"), size, orders[1], workers))
    else:
        ours["in memory"] = normalised(InMemory(dataset, size, orders[1], workers, runtime.device()))
    return {"timm": timm, "decoding alone": decoding, **ours}


def in_tars(dataset: Dataset, folder: Path) -> Dataset:
    """The same training images in tars in a new folder."""
    few = replace(dataset.train, images=dataset.train.images.chosen(np.arange(2)), labels=dataset.train.labels[:2])
    paths = write(replace(dataset, val=few), folder, 2**28, lambda *_: None)
    entries = {
        name: entry
        for path in paths
        if path.name.startswith("train")
        for name, entry, _ in tars.entries(str(path), ".cls")
        if name.endswith(".jpg")
    }
    images = Files(folder, list(entries), dataset.train.images.sizes, entries)
    return replace(dataset, train=Split(images=images, labels=dataset.train.labels))


class _Decoded(torch.utils.data.Dataset):
    """The pictures of a folder, decoded by Pillow as timm does; gives their size only, which costs no transfer."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        with Image.open(self.paths[index]) as image:
            return np.asarray(image.convert("RGB")).size


def make_pictures(folder: Path, shape: tuple[int, int], count: int) -> Dataset:
    """Write JPEGs (quality 90) that cost as much as photographs: natural spectra, edges, grain. 500x400: 45 to 65 kB.

    shape: height and width
    Returns them as the training and validation images of a dataset with two classes and DeiT's augmentation.
    """
    draw = np.random.default_rng(0)
    textures = [_texture(draw, 1.5) for _ in range(3)]
    grain = _texture(draw, 0.0)
    members = [f"{number % 2}/{number:05}.jpg" for number in range(count)]
    for label in ("0", "1"):
        (folder / label).mkdir(parents=True)
    for first in range(0, count, 4):
        picture = _surface(textures, shape, draw)
        for _ in range(6):
            mask = Image.new("1", shape[::-1])
            corners = draw.uniform(-0.1, 1.1, (4, 2)) * shape[::-1]
            ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
            picture = np.where(np.asarray(mask)[..., None], _surface(textures, shape, draw), picture)
        picture += 2.5 * _window(grain, shape, draw)
        pixels = picture.clip(0, 255).astype(np.uint8)
        mirrored = (
            pixels,
            pixels[:, ::-1],
            pixels[::-1],
            pixels[::-1, ::-1],
        )  # making one takes longer than writing it
        for member, variant in zip(members[first : first + 4], mirrored, strict=False):
            Image.fromarray(variant).save(folder / member, quality=90)
    split = Split(images=Files(folder, members, np.tile(shape, (count, 1))), labels=np.arange(count) % 2)
    return Dataset(name="bench", classes=("0", "1"), train=split, val=split, augmentation=RECIPE, fingerprint="bench")


def _texture(draw: np.random.Generator, power: float, side: int = 1024) -> np.ndarray:
    """float32 (side, side, 1) of mean 0 and deviation 1, with an amplitude of 1 / frequency ** power."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf if power else 1
    texture = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((side, side))) / frequency**power)
    return (texture / texture.std()).astype(np.float32)[..., None]


def _window(texture: np.ndarray, shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    top, left = (int(draw.integers(have - want)) for have, want in zip(texture.shape, shape, strict=False))
    return texture[top : top + shape[0], left : left + shape[1]]


def _surface(textures: list[np.ndarray], shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """A colour with a texture, float32 (H, W, 3)."""
    texture = _window(textures[draw.integers(len(textures))], shape, draw)
    return np.float32(draw.uniform(40, 215, 3)) + np.float32(draw.uniform(20, 60)) * texture
