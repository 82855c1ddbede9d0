"""A checkpoint, as somebody has saved it, to tensors by name: the right file of a folder, unwrapped, without prefixes.

What is read never runs: safetensors, or PyTorch files whose pickle holds nothing but tensors and plain values.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import short

State = dict[str, Tensor]

PREFERRED = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
"""what is taken of a folder; otherwise its only file of SUFFIXES"""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
FOREIGN = {
    ".npz": "NumPy arrays, as JAX saves them",
    ".msgpack": "a Flax checkpoint",
    ".h5": "a TensorFlow or Keras model",
    ".onnx": "an exported ONNX model",
    ".tflite": "an exported TFLite model",
    ".pte": "an exported ExecuTorch program",
    ".gguf": "a GGUF file",
}
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "teacher",
)
"""entries of a training's checkpoint that hold weights; the first that is there is taken, averaged before others"""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""what wrappers put in front of every name: DistributedDataParallel, torch.compile, Lightning, self-supervision"""
HEADS = ("head.", "dino_head.", "ibot_head.", "projector.", "predictor.")
"""what stands beside a `backbone.` and is not needed; a plain linear head is"""


def file_in(path: Path) -> Path:
    """The weights file that is meant: the path itself, or that of a folder, as Hugging Face and timm lay it out.

    Raises ValueError if there is none, or no telling which.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"MODEL_PATH={path}: there is no such file")
        return path
    if known := [path / name for name in PREFERRED if (path / name).is_file()]:
        return known[0]
    if index := sorted(path.glob("*.index.json")):
        raise ValueError(
            f"MODEL_PATH={path} holds weights in several parts ({index[0].name}), which are not read: "
            "save them as one model.safetensors"
        )
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0]
    what = f"several weights files ({', '.join(one.name for one in found[:4])})" if found else "no weights file"
    raise ValueError(f"MODEL_PATH={path} is a folder with {what}: name one, such as {path / PREFERRED[0]}")


def read(path: Path) -> State:
    """The tensors of a checkpoint, unwrapped, without the prefixes that all names have.

    Raises ValueError, naming the file and what is wrong with it.
    """
    path = file_in(path)
    if path.suffix.lower() in FOREIGN:
        raise ValueError(
            f"MODEL_PATH={path} is {FOREIGN[path.suffix.lower()]}; weights are read from .safetensors or PyTorch files"
        )
    return without_prefixes(_unwrapped(_loaded(path), path))


def _loaded(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # a Namespace holds the arguments of a training, and does nothing when it is made
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if names := _foreign_globals(path):
            raise ValueError(
                f"MODEL_PATH={path} cannot be read as weights: beside tensors it holds {names}, and making those could "
                "run anything. If you trust it, save its state_dict alone, as .safetensors"
            ) from error
        raise ValueError(f"MODEL_PATH={path} cannot be read as weights: {short(error)}") from error
    except Exception as error:  # torch and safetensors raise a dozen kinds for a damaged file
        raise ValueError(f"MODEL_PATH={path} cannot be read as weights: {short(error)}") from error


def _foreign_globals(path: Path) -> str:
    """What a pickle would make, as far as it is not allowed; empty if that cannot be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of another format than torch's own
        return ""
    return ", ".join(name for name in names if name != "argparse.Namespace")


def _unwrapped(found: Any, path: Path) -> State:
    while isinstance(found, dict):
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), dict)), None)
        if inner is None:
            break
        found = inner
    entries: dict[Any, Any] = found if isinstance(found, dict) else {}
    state = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        what = f"a {type(found).__name__}" if not isinstance(found, dict) else f"the entries {some(list(entries))}"
        raise ValueError(f"MODEL_PATH={path} holds no weights: it has {what}. Save the model's state_dict")
    return state


def without_prefixes(state: State) -> State:
    """The same tensors without what wrappers put in front of every name, in any order and depth."""
    while True:
        prefix = next((prefix for prefix in PREFIXES if _common(state, prefix)), None)
        if prefix is None:
            return state
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        found |= {name: state[name] for name in ("head.weight", "head.bias") if name in state}  # beside a backbone
        state = found


def _common(state: State, prefix: str) -> bool:
    """Whether all names have the prefix, but for what may stand beside a backbone."""
    others = [name for name in state if not name.startswith(prefix)]
    if len(others) == len(state):
        return False
    return not others or (prefix == "backbone." and all(name.startswith(HEADS) for name in others))


def some(names: list[Any]) -> str:
    """The first names, for a message."""
    return ", ".join(map(str, names[:3])) + (" ..." if len(names) > 3 else "")
