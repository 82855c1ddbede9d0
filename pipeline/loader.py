"""Loaders. With augment.py the only place that knows crop, mean and std.

Every training image is augmented under a seed made of (run seed, epoch, image), so the stream of batches is the same
with any number of workers and after any interruption.
"""

import os
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline import augment
from pipeline.data import Dataset, Split, View


class _Augmented(torch.utils.data.Dataset):
    """(index, seed) -> uint8 (3, size, size) and label; seed None means the evaluation transform's data."""

    def __init__(self, split: Split, transform) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[torch.Tensor, int]:
        index, seed = key
        image = augment.apply(self.transform, self.split.images[index], seed)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), int(self.split.labels[index])


class TrainBatches:
    """Batch sampler of (index, seed) that can begin at any step; shuffled by (seed, epoch), no short last batch."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise ValueError("the training split holds no images")
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.drop_last = True
        self.step = 0
        """the step at which the next iteration begins; set it before iterating"""

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skipped = divmod(self.step, len(self))
        draw = np.random.default_rng([self.seed, epoch])
        order, seeds = draw.permutation(self.count), draw.integers(0, 2**31, self.count)
        for batch in range(skipped, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(int(i), int(seeds[i])) for i in chosen]


def train_loader(dataset: Dataset, size: int, batch_size: int, seed: int, workers: int) -> DataLoader:
    """Endless determinism in finite epochs: uint8 (B, 3, size, size), int64 (B,). Its sampler is a TrainBatches."""
    images = _Augmented(dataset.train, augment.train_transform(dataset.augmentation, size))
    return DataLoader(
        images,
        batch_sampler=TrainBatches(len(images), batch_size, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # a stream of its own: the loader must not consume the training's random numbers
    )


def eval_loader(split: Split, view: View, batch_size: int, workers: int) -> DataLoader:
    """The whole split in order: uint8 (B, 3, size, size), int64 (B,)."""
    images = _Augmented(split, augment.eval_transform(view.size, view.crop_ratio))
    keys: list = [(index, None) for index in range(len(images))]
    return DataLoader(
        images,
        batch_sampler=[keys[i : i + batch_size] for i in range(0, len(keys), batch_size)],
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers must live until the parent has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def default_workers(dataset: Dataset) -> int:
    """Loader processes: none for images that are in memory already, else one per core up to eight."""
    return 0 if isinstance(dataset.train.images, np.ndarray) else min(8, os.cpu_count() or 1)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (B, 3, H, W) 0..255 -> float32 (B, 3, H, W), zero mean and unit deviation per channel."""
    mean_3 = torch.tensor(mean, device=images.device).view(3, 1, 1)
    std_3 = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean_3) / std_3
