"""Batches: the same with any number of workers and from any step on; repeats; images in memory; what is kept."""

import gc
import itertools
import multiprocessing
import pickle
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from pipeline.data import augment, loader
from pipeline.data.datasets import Arrays, Dataset, Split, load_dataset
from pipeline.data.images import Picture, of_array
from pipeline.data.loader import Order, PerImage, Share, default_workers, eval_loader, obstacle, train_loader
from pipeline.data.view import View, normalise
from pipeline.errors import EnvironmentLacks
from pipeline.train import runtime

VIEW = View(size=64, crop_ratio=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MODES = pytest.mark.parametrize("in_memory", [False, True], ids=["per image", "in memory"])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Indexes of the tests do not belong into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def dataset(image_folder) -> Dataset:
    """48 training images of 64x64 pixels with everything that a recipe can ask for but repeats."""
    recipe = replace(augment.CIFAR, affine=0.5, colour_jitter=0.3)
    return replace(load_dataset(f"folder:{image_folder}"), augmentation=recipe)


def of_arrays(array: np.ndarray, recipe: augment.Augmentation) -> Dataset:
    split = Split(images=Arrays(array), labels=np.arange(len(array)) % 2)
    return Dataset(name="x", classes=("0", "1"), train=split, val=split, augmentation=recipe, fingerprint="x")


def batches(dataset, count, *, step=0, seed=0, workers=0, in_memory=False):
    """`count` batches of 16 from `step` on; 3 are an epoch."""
    stream = train_loader(dataset, 64, 16, seed, workers, in_memory, share=runtime.share()).starting_at(step)
    return [(images.clone(), labels.clone()) for images, labels in itertools.islice(stream, count)]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@MODES
def test_batches_do_not_depend_on_workers_or_on_where_one_begins(dataset, in_memory):
    alone = batches(dataset, 5, step=2, in_memory=in_memory)
    assert same(alone, batches(dataset, 5, step=2, workers=2, in_memory=in_memory))
    assert same(alone[2:], batches(dataset, 3, step=4, in_memory=in_memory))
    assert all(images.shape == (16, 3, 64, 64) and images.dtype == torch.uint8 for images, _ in alone)


@MODES
def test_epochs_and_seeds_differ(dataset, in_memory):
    first = batches(dataset, 1, in_memory=in_memory)
    assert not same(first, batches(dataset, 1, step=3, in_memory=in_memory))
    assert not same(first, batches(dataset, 1, seed=1, in_memory=in_memory))


def test_both_modes_take_the_images_in_the_same_order(dataset):
    per_image, in_memory = batches(dataset, 4), batches(dataset, 4, in_memory=True)
    assert [labels.tolist() for _, labels in per_image] == [labels.tolist() for _, labels in in_memory]


@MODES
def test_loader_leaves_the_training_random_numbers_alone(dataset, in_memory):
    def numbers():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    def seed():
        for function in (torch.manual_seed, np.random.seed, random.seed):
            function(3)

    seed()
    expected = numbers()
    seed()
    batches(dataset, 4, in_memory=in_memory)
    assert numbers() == expected


def test_an_epoch_shows_every_image_once():
    order = Order(50, 8, seed=0, repeats=1)
    assert len(order) == 6
    keys = list(itertools.chain(*itertools.islice(order.starting_at(0), 6)))
    assert len({image for image, _ in keys}) == 48


@pytest.mark.parametrize("size", [5, 10])
def test_a_balanced_order_shows_every_class_equally_often(size):
    labels = np.array([0] * 40 + [1] * 15 + [2] * 5)
    order = Order(60, size, 0, 1, labels)
    assert len(order) == 60 // size
    epochs = [
        [key for keys in itertools.islice(order.starting_at(first), len(order)) for key in keys]
        for first in (0, len(order))
    ]
    for keys in epochs:
        counts = np.bincount(labels[[image for image, _ in keys]])
        assert counts.tolist() == [20, 20, 20]
        shown = np.bincount([image for image, _ in keys if labels[image]], minlength=60)[40:]
        assert set(shown[:15]) == {1, 2} and set(shown[15:]) == {4}  # as evenly as can be
        assert len(set(keys)) == len(keys)  # no copy is augmented as another one is
    assert {image for image, _ in epochs[0]} != {image for image, _ in epochs[1]}  # frequent ones take turns
    whole = list(itertools.islice(order.starting_at(0), 9))
    assert list(itertools.islice(order.starting_at(4), 5)) == whole[4:]


def test_a_small_split_is_one_batch_of_an_even_size_and_an_empty_one_an_error():
    for count, size in ((5, 4), (6, 6), (1, 1)):
        order = Order(count, 64, seed=0, repeats=3)
        assert [len(keys) for keys in itertools.islice(order.starting_at(0), 2)] == [size, size]
    with pytest.raises(ValueError, match="holds 0 images"):
        Order(0, 64, seed=0, repeats=1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_repeats_are_those_of_timm(processes):
    """The places of timm's unshuffled sampler, of all processes together, once images are called by the order in which
    they appear first.
    """
    count, size = 96, 4
    order = Order(count, size * processes, 0, 3)
    keys = list(itertools.chain(*itertools.islice(order.starting_at(0), len(order))))
    names = {image: name for name, image in enumerate(dict.fromkeys(image for image, _ in keys))}
    timms = [RepeatAugSampler(range(count), processes, process, shuffle=False, selected_round=0)
             for process in range(processes)]  # fmt: skip
    assert [names[image] for image, _ in keys] == list(itertools.chain(*zip(*timms, strict=True)))
    assert len(keys) == count
    assert len(set(keys)) == count  # no copy is augmented as another one is
    assert {names[image] for image, _ in keys} == set(range(count // 3))


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("batch_size", "processes", "micro_batch", "sizes"),
    [
        (64, 1, None, [64]),
        (64, 4, None, [16]),
        (64, 2, 8, [8, 8, 8, 8]),
        (48, 3, 5, [4, 4, 4, 4]),  # at most 5, an even number, equal parts
        (24, 3, None, [8]),
        (20, 2, None, [10]),
        (15, 3, None, [5]),
        (15, 1, 4, [3, 3, 3, 3, 3]),
        (6, 3, 1, [1, 1]),
    ],
)
def test_the_parts_of_a_step_are_the_whole_step(batch_size, processes, micro_batch, sizes):
    parts = [Share(process, processes, CPU, micro_batch).rows(batch_size) for process in range(processes)]
    assert [[len(rows) for rows in mine] for mine in parts] == [sizes] * processes
    rows = [rows for mine in parts for rows in mine]
    assert sorted(np.concatenate(rows)) == list(range(batch_size))
    for mine in rows:
        if len(mine) % 2 == 0:
            assert (mine + mine[::-1] == batch_size - 1).all()  # mixed with those that the whole step mixes them with
        for every in (2, 4):
            if len(mine) % (2 * every) == 0:
                assert (mine[::every] % every == 0).all() and (mine % every == np.arange(len(mine)) % every).all()
    if len(rows) == 1:
        assert (rows[0] == np.arange(batch_size)).all()


def test_rounds_may_be_asked_for_instead_of_a_size():
    assert [len(rows) for rows in Share(0, 2, CPU, rounds=4).rows(64)] == [8] * 4
    with pytest.raises(ValueError, match="ACCUMULATION_STEPS=3: 32 images of a step and process cannot be taken in so"):
        Share(0, 2, CPU, rounds=3).rows(64)


@pytest.mark.parametrize(("batch_size", "processes"), [(16, 3), (2, 4)])
def test_a_step_that_cannot_be_shared_out_is_refused(batch_size, processes):
    with pytest.raises(ValueError, match=f"{batch_size} images a step cannot be shared out equally to {processes} pro"):
        Share(0, processes, CPU).rows(batch_size)


@MODES
@pytest.mark.parametrize(("processes", "micro_batch"), [(2, None), (1, 4), (2, 2)])
def test_a_step_is_the_same_whatever_its_parts(dataset, in_memory, processes, micro_batch):
    """Images, augmentation and labels of the second and third step."""
    found = {}
    for process in range(processes):
        share = Share(process, processes, CPU, micro_batch)
        loader = train_loader(dataset, 64, 16, 0, 0, in_memory, share=share)
        assert loader.batch_size == 16 and len(loader) == 3
        stream = loader.starting_at(1)
        for step in (1, 2):
            for rows in loader.rows:
                images, labels = next(stream)
                for row, image, label in zip(rows.tolist(), images.clone(), labels, strict=True):
                    found[step, row] = image, label
    for step, (images, labels) in enumerate(batches(dataset, 2, step=1, in_memory=in_memory), 1):
        for row in range(16):
            assert torch.equal(found[step, row][0], images[row]) and found[step, row][1] == labels[row]


def test_repeats_go_on_in_the_middle_of_an_epoch_and_leave_out_other_images_in_the_next():
    order = Order(48, 16, seed=1, repeats=3)
    whole = list(itertools.islice(order.starting_at(0), 3 * len(order)))
    assert list(itertools.islice(order.starting_at(4), 5)) == whole[4:9]
    seen = [{image for keys in whole[n : n + 3] for image, _ in keys} for n in (0, 3, 6)]
    assert seen[0] != seen[1] != seen[2]


def test_copies_of_an_image_are_decoded_once():
    decoded = []

    class Counted(Picture):
        def pixels(self, reduction: int = 1) -> np.ndarray:
            decoded.append(reduction)
            return super().pixels(reduction)

    class Images(Arrays):
        def __getitem__(self, index: int) -> Picture:
            return Counted(self.array[index])

    array = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    split = Split(images=Images(array), labels=np.zeros(12, np.int64))
    three = replace(of_arrays(array, replace(augment.LIGHT, repeats=3)), train=split)
    images, _ = next(train_loader(three, 64, 12, 0, 0, share=runtime.share()).starting_at(0))
    assert len(decoded) == 4
    assert len({image.numpy().tobytes() for image in images}) == 12  # but augmented one by one


def test_what_workers_are_given_can_be_pickled(dataset):
    """As it must be where processes are not forked."""
    images = PerImage(dataset, 64, Order(48, 16, 0, 1), 2).images
    copy = pickle.loads(pickle.dumps(images))
    assert same([copy.__getitems__([(3, 5)])], [images.__getitems__([(3, 5)])])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_after_the_start_is_named(image_folder, tmp_path, workers):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    changed = load_dataset(f"folder:{copy}")
    broken = copy / "train" / "along" / "3.png"
    broken.write_bytes(broken.read_bytes()[:400])
    for in_memory in (False, True):
        with pytest.raises(ValueError, match=r"train/along/3\.png cannot be read") as error:
            batches(changed, 3, workers=workers, in_memory=in_memory)
        assert "Traceback" not in str(error.value)
    broken.unlink()
    with pytest.raises(ValueError, match=r"train/along/3\.png"):
        batches(changed, 3, workers=workers)


def test_shared_memory_that_is_too_small_is_told_and_no_process_is_left(dataset, monkeypatch):
    """As the kernel answers in a worker; tests/test_pipeline.py has a real one of that size."""

    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    others = set(multiprocessing.active_children())  # a converter that an earlier test has started stays
    with pytest.raises(EnvironmentLacks, match=r"shared memory \(/dev/shm, \d+ MiB free\) is too small"):
        batches(dataset, 1, workers=2)
    assert set(multiprocessing.active_children()) <= others


def test_what_nobody_expects_of_a_worker_ends_all_of_them(dataset, monkeypatch):
    """They ignore TERM, with which Python would end them before it waits for them."""
    monkeypatch.setattr(loader._Transformed, "__getitems__", lambda self, keys: {}["a defect"])
    others = set(multiprocessing.active_children())
    gc.disable()
    try:
        with pytest.raises(KeyError, match="a defect"):
            batches(dataset, 1, workers=2)
        assert set(multiprocessing.active_children()) <= others
    finally:
        gc.enable()


def test_evaluation_gives_every_image_in_order(dataset):
    for workers in (0, 2):
        images, labels = zip(*eval_loader(dataset.val, VIEW, 7, workers), strict=True)
        assert [len(batch) for batch in images] == [7, 7, 4]
        assert torch.cat(labels).tolist() == [0] * 6 + [1] * 6 + [2] * 6
        for image, picture in zip(torch.cat(images), dataset.val.images, strict=True):
            assert torch.equal(image, torch.from_numpy(picture.pixels()).permute(2, 0, 1))  # 64x64 is the model's input


@pytest.mark.parametrize("limit", [2**30, 18 * 3 * 64 * 64 - 1])
def test_evaluation_reads_a_small_split_once(image_folder, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", limit)
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    evaluation = eval_loader(load_dataset(f"folder:{copy}").val, VIEW, 7, 0)
    next(iter(evaluation))  # a pass that is broken off leaves nothing behind
    first = list(evaluation)
    shutil.rmtree(copy)
    if limit == 2**30:
        assert same(list(evaluation), first)
    else:
        with pytest.raises(ValueError, match="cannot be read"):
            list(evaluation)


def test_images_in_memory_are_those_of_the_other_mode(dataset):
    """Without anything random both modes give the same; a recipe without a crop is resized as the other mode does."""
    for plain in (replace(dataset, augmentation=augment.Augmentation()), load_dataset("digits", "10x4")):
        plain = replace(plain, augmentation=augment.Augmentation())
        assert same(batches(plain, 2), batches(plain, 2, in_memory=True))


@pytest.mark.parametrize(
    ("height", "widths", "recipe", "reason"),
    [
        (64, (64, 64), augment.LIGHT, None),
        (32, (48, 48), augment.LIGHT, None),
        (64, (64, 48), augment.LIGHT, "differ in size"),
        (64, (65, 65), augment.LIGHT, "64 x 65, are larger than the model's input, 64 x 64"),
        (200, (64, 65), augment.DIGITS, None),
    ],
)
def test_which_images_can_be_held_in_memory(height, widths, recipe, reason):
    class Images(Arrays):
        def __getitem__(self, index: int) -> Picture:
            return of_array(self.array[index][:, : widths[index % 2]])

    images = Images(np.zeros((8, height, max(widths), 3), np.uint8))
    images.sizes = np.array([(height, widths[n % 2]) for n in range(8)])
    split = Split(images=images, labels=np.zeros(8, np.int64))
    mixed = replace(of_arrays(images.array, recipe), train=split)
    if reason is None:
        assert obstacle(mixed, 64) is None
        assert batches(mixed, 1, in_memory=True)[0][0].shape == (8, 3, 64, 64)
    else:
        with pytest.raises(ValueError, match=f"in_memory=True: .*{reason}.*Leave it out"):
            batches(mixed, 1, in_memory=True)
        assert batches(mixed, 1, in_memory=None)[0][0].shape == (8, 3, 64, 64)


def test_too_many_images_are_not_held_in_memory(monkeypatch):
    many = of_arrays(np.zeros((8, 64, 64, 3), np.uint8), augment.LIGHT)
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 8 * 64 * 64 * 3)
    assert obstacle(many, 64) is None
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 8 * 64 * 64 * 3 - 1)
    assert "take" in obstacle(many, 64)


def test_images_in_memory_need_no_workers(dataset):
    assert default_workers(load_dataset("digits")) == 0
    assert default_workers(dataset) >= 1


def test_normalised_values_are_those_of_the_arithmetic_to_the_bit():
    images = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.uint8)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (VIEW.mean, VIEW.std))
    for view in (images, images[:1], images[:, :, ::2, 3:], images.permute(0, 1, 3, 2), images[:0]):
        assert torch.equal(normalise(view, VIEW.mean, VIEW.std), (view.float() / 255 - mean) / std)


def test_normalise():
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(VIEW.mean)) / torch.tensor(VIEW.std)
    with torch.inference_mode():  # whoever comes first, training can use it
        normalise(image, VIEW.mean, VIEW.std)
    torch.testing.assert_close(normalise(image, VIEW.mean, VIEW.std)[0, :, 0, 0], expected)
    weight = torch.ones(3, requires_grad=True)
    (normalise(image, VIEW.mean, VIEW.std)[0, :, 0, 0] * weight).sum().backward()
    torch.testing.assert_close(weight.grad, expected)
