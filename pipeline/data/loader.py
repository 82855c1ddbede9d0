"""Loaders: training batches from any step on, and evaluation batches that are made once.

Every random number of an image comes from (run seed, epoch, image, repeat), or from (run seed, step) where a batch is
augmented at once; so a step's images are the same with any number of workers and of processes, however many of them
are taken at a time, and after any interruption.
"""

import functools
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline.data.augment import Augmentation, eval_transform, train_transform
from pipeline.data.batch_augment import augment_batch, send
from pipeline.data.datasets import Arrays, Dataset, Split
from pipeline.data.images import Picture
from pipeline.data.view import View
from pipeline.errors import EnvironmentLacks

Batch = tuple[torch.Tensor, torch.Tensor]
"""uint8 (B, 3, size, size) and int64 (B,)"""
Key = tuple[int, ...]
"""index of an image, and what its transform takes beside it"""

SHARED_MEMORY = "/dev/shm"
"""through which worker processes hand over their batches"""
IN_MEMORY_BYTES = 2**30
"""the largest set of uint8 images that is kept in memory"""


class Batches(Protocol):
    """Training batches of one process, without end: as many to a step as `rows` has."""

    batch_size: int
    """images of a step, of all processes: fewer than were asked for if the split has fewer"""
    rows: list[np.ndarray]
    """for each of a step's batches, which of the step's images are in it"""

    def __len__(self) -> int:
        """Steps of an epoch."""

    def starting_at(self, step: int) -> Generator[Batch, None, None]:
        """The batches of step, step + 1, ... across epochs. Raises ValueError that names an image it cannot read."""


class Share(NamedTuple):
    """What one process has of a training."""

    process: int
    """which of them it is, from 0"""
    processes: int
    """how many there are"""
    device: torch.device
    """that it trains on"""
    micro_batch: int | None = None
    """images of a batch at most; None: all that the process has of a step"""
    rounds: int | None = None
    """batches of a step; None: as `micro_batch` has it"""

    def rows(self, batch_size: int) -> list[np.ndarray]:
        """Which of a step's images this process has, for each of its batches; all are of one size.

        Raises ValueError if they cannot be.
        """
        own, rest = divmod(batch_size, self.processes)
        if rest or not own:
            raise ValueError(
                f"{batch_size} images a step cannot be shared out equally to {self.processes} processes. Take a "
                f"BATCH_SIZE that is a multiple of {self.processes}, or another number of processes"
            )
        rounds = self.rounds
        if rounds is None:
            least = -(-own // (self.micro_batch or own))
            even = own % 2 == 0 and self.micro_batch != 1  # as mixup wants it
            rounds = next(r for r in range(least, own + 1) if own % r == 0 and not (even and own // r % 2))
        elif own % rounds:
            raise ValueError(
                f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={rounds}: {own} images of a step and process cannot be taken "
                f"in so many equal parts. Take another number or another BATCH_SIZE"
            )
        parts = rounds * self.processes
        return [rows_of(number * self.processes + self.process, parts, batch_size) for number in range(rounds)]


def rows_of(part: int, parts: int, batch_size: int) -> np.ndarray:
    """(batch_size / parts,) Which of a step's images one of its equal parts has.

    A step is the same whatever its parts are. Image i and the last but i, which timm's mixup mixes, are in one part, as
    far from its ends; and every second or fourth image of a part (those that probes look at, dap.tap) is one of the
    whole step's, where parts have a multiple of 4 or 8 images.
    """
    own = batch_size // parts
    if own % 2:
        return np.arange(part, batch_size, parts)
    side_by_side = next(count for count in (4, 2, 1) if own % (2 * count) == 0)
    front = np.arange(batch_size // 2).reshape(-1, side_by_side)[part::parts].ravel()
    return np.concatenate([front, batch_size - 1 - front[::-1]])


class Order:
    """Which images each step sees, and their seeds: shuffled by (seed, epoch), no short last batch.

    Repeated augmentation is DeiT's (timm's RepeatAugSampler): an image comes `repeats` times in a row, each time with
    another seed. An epoch keeps its number of steps and leaves out other images each time. Not as there: an epoch's
    length is not first rounded down to 256 images, and copies of an image may meet in one process, where nothing comes
    of it: all that depends on a whole batch is made for the whole step.

    With labels, every class has the same share of an epoch: images of a rare one come several times, each time with
    another seed, those of a frequent one take turns between epochs.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        repeats: int,
        labels: np.ndarray | None = None,
    ) -> None:
        if count < 1:
            raise ValueError("the training split holds 0 images: too few to train on")
        self.count, self.seed, self.repeats = count, seed, repeats
        self.classes = None if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.batch_size = batch_size if batch_size <= count else max(1, count // 2 * 2)  # even, as mixup wants it

    def __len__(self) -> int:
        return self.count // self.batch_size

    def starting_at(self, step: int) -> Generator[list[Key], None, None]:
        """(image, seed) of every image of a step, for step, step + 1, ... across epochs."""
        while True:
            epoch, first = divmod(step, len(self))
            draw = np.random.default_rng([self.seed, epoch])
            order, seeds = self._shuffled(draw), draw.integers(0, 2**31, (self.count, self.repeats))
            for batch in range(first, len(self)):
                rows = batch * self.batch_size + np.arange(self.batch_size)
                place, repeat = np.divmod(rows, self.repeats)
                images = order[place]
                own = images if self.classes is None else place  # an image that comes twice is not the same twice
                yield list(zip(images.tolist(), seeds[own, repeat].tolist(), strict=True))
            step += len(self) - first

    def _shuffled(self, draw: np.random.Generator) -> np.ndarray:
        """(count,) the images of an epoch."""
        if self.classes is None:
            return draw.permutation(self.count)
        share = -(-self.count // len(self.classes))
        rows = [np.resize(draw.permutation(images), share) for images in self.classes]
        return draw.permutation(np.concatenate(rows))[: self.count]


class _Once(Picture):
    """A picture that is decoded once for all of its copies."""

    def __init__(self, picture: Picture) -> None:
        self.height, self.width = picture.height, picture.width
        self.pixels = functools.cache(picture.pixels)  # type: ignore[method-assign]


class _Transformed(torch.utils.data.Dataset):
    """Batches of keys to batches of transformed images; an image that cannot be read is returned as its error.

    Returned, because an error that a worker process raises arrives as the text of its traceback.
    """

    def __init__(self, split: Split, transform: Callable[..., np.ndarray]) -> None:
        self.split, self.transform = split, transform

    def __getitems__(self, keys: list[Key]) -> Batch | ValueError:
        batch: torch.Tensor | None = None
        row = 0
        try:
            for index, copies in itertools.groupby(keys, key=lambda key: key[0]):
                picture = _Once(self.split.images[index])
                for _, *arguments in copies:
                    image = self.transform(picture, *arguments)
                    if batch is None:
                        batch = _room(len(keys), *image.shape[:2])
                    assert image.shape[:2] == batch.shape[2:]
                    cv2.split(image, list(batch[row].numpy()))  # planes, where they stay
                    row += 1
        except ValueError as error:
            return error
        assert batch is not None
        return batch, torch.from_numpy(self.split.labels[[index for index, *_ in keys]])

    def batches(self, keys: Iterable[list[Key]], workers: int) -> Iterator[Batch]:
        """One batch for every list of keys, in that order, made by so many processes; 0: by this one."""
        loader = DataLoader(
            self,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # its own: a loader must not consume the training's random numbers
        )
        try:
            for batch in loader:
                if isinstance(batch, ValueError):
                    raise batch
                yield batch
        except Exception as error:
            # An error from a worker is held by a frame of torch that it holds itself, as is the loader: both would stay
            # until the end, when Python waits for processes that nobody has told to end.
            error.with_traceback(None)
            if isinstance(error, RuntimeError):
                explain(error)
            raise

    def in_order(self, batch_size: int, workers: int) -> Iterator[Batch]:
        """Every image once."""
        keys: list[Key] = [(index,) for index in range(len(self.split.labels))]
        return self.batches((keys[i : i + batch_size] for i in range(0, len(keys), batch_size)), workers)


class PerImage:
    """Training batches augmented image by image: in worker processes, or in this one if there are none."""

    def __init__(
        self, dataset: Dataset, size: int, order: Order, workers: int, rows: list[np.ndarray] | None = None
    ) -> None:
        """rows: of a step's images, for each batch; None: one batch of all."""
        self.images = _Transformed(dataset.train, train_transform(dataset.augmentation, size))
        self.order, self.workers, self.batch_size = order, workers, order.batch_size
        self.rows = rows or [np.arange(order.batch_size)]

    def __len__(self) -> int:
        return len(self.order)

    def starting_at(self, step: int) -> Generator[Batch, None, None]:
        # one pass without end, so that the workers live, and work ahead, from one epoch into the next
        keys = ([step[row] for row in rows] for step in self.order.starting_at(step) for rows in self.rows)
        yield from self.images.batches(keys, self.workers)


class InMemory:
    """Training batches of images that are all on the device, as uint8, and are augmented there a step at a time.

    Every process augments the whole step, and takes its rows of it.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        order: Order,
        workers: int,
        device: torch.device,
        rows: list[np.ndarray] | None = None,
    ) -> None:
        """rows: of a step's images, for each batch; None: one batch of all."""
        self.split, self.augmentation, self.size = dataset.train, dataset.augmentation, size
        self.order, self.workers, self.device = order, workers, device
        self.batch_size = order.batch_size
        self.rows = rows or [np.arange(order.batch_size)]

    def __len__(self) -> int:
        return len(self.order)

    def starting_at(self, step: int) -> Generator[Batch, None, None]:
        images, labels = self._whole_split
        for number, keys in enumerate(self.order.starting_at(step), step):
            index = send(np.array([index for index, _ in keys]), self.device)
            draw = np.random.default_rng([self.order.seed, number, 0])
            augmented = augment_batch(self.augmentation, images[index], self.size, draw), labels[index]
            if len(self.rows) == 1 and len(self.rows[0]) == len(keys):
                yield augmented
                continue
            for rows in self.rows:
                mine = send(rows, self.device)
                yield augmented[0][mine], augmented[1][mine]

    @functools.cached_property
    def _whole_split(self) -> Batch:
        transform = _pixels
        if self.augmentation.crop_scale is None:  # then a resize comes first, the same every time
            transform = functools.partial(train_transform(Augmentation(), self.size), seed=0)
        images, labels = zip(*_Transformed(self.split, transform).in_order(256, self.workers), strict=True)
        return torch.cat(images).to(self.device), torch.cat(labels).to(self.device)


def obstacle(dataset: Dataset, size: int) -> str | None:
    """Why the training images cannot be held in memory and augmented in batches; None: they can."""
    shape, count = np.full(2, size), len(dataset.train.labels)
    if dataset.augmentation.crop_scale is not None:
        sizes = dataset.train.images.sizes
        shape = sizes[0]
        if (sizes != shape).any():
            return "the training images differ in size"
        if shape.max() > size:
            return f"the training images, {shape[0]} x {shape[1]}, are larger than the model's input, {size} x {size}"
    if (needed := 3 * count * int(shape.prod())) > IN_MEMORY_BYTES:
        return f"the training images take {needed >> 20} MiB, more than {IN_MEMORY_BYTES >> 20}"
    return None


class Evaluation:
    """The batches of a split in order; after the first whole pass they are kept, if that takes not too many bytes.

    Processes take whole batches in turn, so that each batch is what it is in one process.
    """

    def __init__(self, split: Split, view: View, batch_size: int, workers: int, share: Share | None = None) -> None:
        self.rows = np.arange(len(split.labels))
        """images of the split that this process has"""
        if share is not None and share.processes > 1:
            self.rows = self.rows[self.rows // batch_size % share.processes == share.process]
            split = Split(images=split.images.chosen(self.rows), labels=split.labels[self.rows])
        self.images = _Transformed(split, eval_transform(view))
        self.batch_size, self.workers = batch_size, workers
        self.keep = 3 * view.size**2 * len(split.labels) <= IN_MEMORY_BYTES
        self._kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        batches: list[Batch] = []
        for images, labels in self.images.in_order(self.batch_size, self.workers):
            if self.keep:  # a copy: workers hand over theirs in shared memory, of which there may be little
                batches.append((images.clone(), labels))
            yield images, labels
        self._kept = batches


def train_loader(
    dataset: Dataset,
    size: int,
    batch_size: int,
    seed: int,
    workers: int,
    in_memory: bool | None = None,
    *,
    share: Share,
    balanced: bool = False,
) -> Batches:
    """The training batches of this process, of steps of `batch_size` images in all.

    size:      height and width that the model expects
    seed:      of the order and the augmentation
    workers:   processes that read and augment images; 0: this one does
    in_memory: hold all images on the device and augment them there, a batch at a time. None: on a GPU, if the images
               are of one size, no larger than the model's input (for a recipe with a crop), and take no more than
               IN_MEMORY_BYTES. On a CPU a step of training takes as long either way
    share:     of this process
    balanced:  every class equally often
    Raises ValueError if there are too few images or they cannot be shared out, or for in_memory=True where that cannot
    be done.
    """
    labels = dataset.train.labels
    order = Order(len(labels), batch_size, seed, dataset.augmentation.repeats, labels if balanced else None)
    rows = share.rows(order.batch_size)
    reason = obstacle(dataset, size)
    if in_memory and reason:
        raise ValueError(f"in_memory=True: {reason}. Leave it out")
    if in_memory or (in_memory is None and not reason and share.device.type == "cuda"):
        return InMemory(dataset, size, order, workers, share.device, rows)
    return PerImage(dataset, size, order, workers, rows)


def eval_loader(split: Split, view: View, batch_size: int, workers: int, share: Share | None = None) -> Evaluation:
    """The whole split in order; with a share, this process's batches of it."""
    return Evaluation(split, view, batch_size, workers, share)


def default_workers(dataset: Dataset) -> int:
    """Loader processes: none for images that are in memory already, else one per core up to eight."""
    return 0 if isinstance(dataset.train.images, Arrays) else min(8, os.cpu_count() or 1)


def _room(count: int, height: int, width: int) -> torch.Tensor:
    """For a batch: uint8 (count, 3, height, width); in a worker, in memory that the parent shares from the start."""
    room = torch.empty((count, 3, height, width), dtype=torch.uint8)
    # Here, where an error reaches the parent: the thread of torch that would do it otherwise prints it and drops the
    # batch, for which the parent then waits without end.
    return room.share_memory_() if torch.utils.data.get_worker_info() else room


def _pixels(picture: Picture) -> np.ndarray:
    return picture.pixels()


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and TERM those of a service or a cluster's job; workers must live
    until the parent has written its checkpoint. One whose parent is gone ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def explain(error: RuntimeError) -> None:
    """Raises EnvironmentLacks, with what to do, if torch's loader says that a process of its has died or cannot go on.

    It is in no variable of the caller, which its traceback holds: see _Transformed.batches.
    """
    text = str(error)
    if "DataLoader worker" not in text:
        return
    if any(sign in text for sign in ("Bus error", "shared memory", "No space left", "unable to write to file")):
        free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 0
        raise EnvironmentLacks(
            f"shared memory ({SHARED_MEMORY}, {free >> 20} MiB free) is too small for the processes that read images: "
            "enlarge it (docker run --shm-size=1g), or take a smaller BATCH_SIZE. What was computed is kept: repeat "
            "the command to go on"
        ) from error
    if "killed by signal" in text or "exited unexpectedly" in text:
        raise EnvironmentLacks(
            f"a process that reads images has ended ({text.splitlines()[0]}): has the memory run out? A smaller "
            "BATCH_SIZE takes less. What was computed is kept: repeat the command to go on"
        ) from error
