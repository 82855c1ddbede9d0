"""A few random pictures in the layout of a named data set, to try a long command on before the data is there."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, TRAIN, VAL = 3, 8, 4  # images per class and split


def write(dataset: str, folder: Path, size: tuple[int, int] = (300, 240)) -> Path:
    """A miniature of `dataset` ("ifood" or "inat19") in `folder`, which is returned; images of `size` pixels.

    Raises ValueError for a data set without a miniature.
    """
    if dataset not in WRITERS:
        raise ValueError(f"there is no miniature of {dataset}. Known: {', '.join(WRITERS)}")
    draw = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        pictures = []
        for label in range(CLASSES):
            for number in range(count):
                name = PLACES[dataset].format(part=part, label=label, number=number)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize(size).save(folder / name, quality=90)
                pictures.append((name, label))
        WRITERS[dataset](folder, part, pictures)
    return folder


def _ifood(folder: Path, part: str, pictures: list[tuple[str, int]]) -> None:
    (folder / "class_list.txt").write_text("".join(f"{label} dish_{label}\n" for label in range(CLASSES)))
    lines = [f"{Path(name).name},{label}\n" for name, label in pictures]
    (folder / f"{part}_info.csv").write_text("".join(lines))


def _inat19(folder: Path, part: str, pictures: list[tuple[str, int]]) -> None:
    content = {
        "categories": [{"id": label, "name": f"nat{label:04d}"} for label in range(CLASSES)],
        "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(pictures)],
        "annotations": [{"id": i, "image_id": i, "category_id": label} for i, (_, label) in enumerate(pictures)],
    }
    (folder / f"{part}2019.json").write_text(json.dumps(content))


PLACES = {
    "ifood": "{part}_set/{part}_{label}_{number}.jpg",
    "inat19": "train_val2019/Plants/{label}/{part}{number}.jpg",
}
WRITERS = {"ifood": _ifood, "inat19": _inat19}
