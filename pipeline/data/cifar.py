"""CIFAR-10 and CIFAR-100 from the Python archives, unpickled safely.

Source: cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

FILES = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta"),
}
"""directory, training files, validation file, file with the class names"""

Arrays = tuple[np.ndarray, np.ndarray]
"""uint8 (n, 32, 32, 3) RGB and int64 (n,)"""


def load(name: str, folder: Path) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """Class names, training and validation images of `cifar10` or `cifar100` (fine labels).

    Raises FileNotFoundError for a missing file, ValueError for a damaged one.
    """
    directory, train_files, val_file, meta_file = FILES[name]
    kind = "fine_" if name == "cifar100" else ""
    folder = folder / directory
    classes = tuple(map(str, _unpickle(folder / meta_file, f"{kind}label_names")[0]))

    def batch(file: Path) -> Arrays:
        pixels, labels = map(np.asarray, _unpickle(file, "data", f"{kind}labels"))
        whole = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072)
        if not whole or not np.isin(labels, range(len(classes))).all():
            raise ValueError(f"{file} is damaged: its images or labels are not CIFAR's. Unpack it again")
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return images, labels.astype(np.int64)

    images, labels = zip(*(batch(folder / file) for file in train_files), strict=True)
    return classes, (np.concatenate(images), np.concatenate(labels)), batch(folder / val_file)


class _Unpickler(pickle.Unpickler):
    """Makes arrays and plain values, nothing else: any other pickle could run whatever code its author liked."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # the same function, wherever this numpy keeps it
        raise pickle.UnpicklingError(f"it wants to make a {module}.{name}")


def _unpickle(file: Path, *keys: str) -> list[Any]:
    with file.open("rb") as content:
        try:
            values = _Unpickler(content, encoding="latin1").load()  # written by Python 2
            return [values[key] for key in keys]
        except Exception as error:  # damage can look like anything
            raise ValueError(
                f"{file} is damaged, or not what its owner publishes ({error}). Unpack it again"
            ) from error
