"""What a Core ML package computes, evaluated in PyTorch: a check of the file where Core ML itself does not run.

The package's ML program (MIL) is read back from disk and its operations are carried out one by one, in float32, on the
weights as they are stored: fp16, int8 and palettes are decoded first.
Proven by it:     that graph and stored weights give the model's logits.
Not proven by it: the arithmetic of Apple's hardware. In an fp16 program nothing is rounded to fp16 between operations
                  and nothing overflows at 65504 here; Neural Engine, GPU and CPU each round in their own way.
An operation or an argument that is not known here is refused by name, and every shape is compared with the one that
coremltools infers for it.
"""

import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from targets.artifact import RuntimeUnavailable

FLOATS = ("fp16", "fp32")
CLASSIFY = "classify"
"""gives names and a dictionary, no tensors"""

# What coremltools and what it imports log whatever happens: versions they were not tested with, and, where there is no
# Core ML, each of its parts that is missing. (On macOS a missing part is worth a line.)
NOISE = (
    r"scikit-learn version .* is not supported"
    r"|has not been tested with coremltools"
    r"|register_constant\(\) on Enum subclasses"
)
NOISE_WITHOUT_CORE_ML = r"|^Failed to load _ML\w+Proxy"


def coremltools() -> Any:
    """The package, imported without the lines of NOISE. Raises RuntimeUnavailable where it is not installed."""
    pattern = NOISE if sys.platform == "darwin" else NOISE + NOISE_WITHOUT_CORE_ML
    for name in ("coremltools", "torch.utils._pytree"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, _WithoutNoise) for known in logger.filters):
            logger.addFilter(_WithoutNoise(pattern))
    # Imported here: it takes seconds, and only who exports or checks a Core ML package needs it.
    try:
        import coremltools
    except ImportError as error:
        raise RuntimeUnavailable(f"no Core ML tools ({error}): pip install coremltools") from error
    return coremltools


class _WithoutNoise(logging.Filter):
    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = pattern

    def filter(self, record: logging.LogRecord) -> bool:
        return re.search(self.pattern, record.getMessage()) is None


def read(path: Path) -> tuple[Any, Path]:
    """The package's specification (Model of coremltools' protobuf) and the folder of its weights.

    Found through Manifest.json, as Core ML does it. Raises ValueError for what is no sound package, RuntimeUnavailable
    without coremltools.
    """
    tools = coremltools()
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such package; export the model again")
    try:
        manifest = json.loads((path / "Manifest.json").read_bytes())
        entries = manifest["itemInfoEntries"]
        root = path / "Data" / entries[manifest["rootModelIdentifier"]]["path"]
        weights = [path / "Data" / entry["path"] for entry in entries.values() if entry["name"] == "weights"]
        spec = tools.proto.Model_pb2.Model()
        spec.ParseFromString(root.read_bytes())
        if spec.WhichOneof("Type") != "mlProgram":
            raise ValueError("it holds no ML program")
        if len(weights) != 1 or not weights[0].is_dir():
            raise ValueError("its weights are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
        raise ValueError(_unsound(path, error)) from error
    return spec, weights[0]


def load(path: Path) -> "Evaluator":
    """The main function of a package's program, ready to be evaluated.

    Raises ValueError for what is no sound package or holds something unknown here, RuntimeUnavailable without
    coremltools.
    """
    spec, weights = read(path)
    from coremltools.converters.mil.frontend import milproto

    try:
        program = milproto.load.load(spec, spec.specificationVersion, str(weights))
        function = program.functions["main"]
    except Exception as error:  # of any kind: coremltools checks little, so it depends on where the damage is
        raise ValueError(_unsound(Path(path), error)) from error
    return Evaluator(function)


def _unsound(path: Path, error: Exception) -> str:
    return f"{path} is not a sound Core ML package ({error or type(error).__name__}); export the model again"


class Evaluator:
    """A MIL function of one input and one output, both float tensors; a classifier's names and shares are left out.

    function: of a coremltools Program
    Raises ValueError naming an operation or an argument that is not known here.
    """

    def __init__(self, function: Any) -> None:
        outputs = [one for one in function.outputs if one.op is None or one.op.op_type != CLASSIFY]
        if len(function.inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"a program of {len(function.inputs)} inputs and {len(outputs)} outputs, not 1, 1")
        ((name, source),) = function.inputs.items()
        self.input_name: str = name
        self.input_shape: tuple[int, ...] = tuple(source.shape)
        self.kinds: set[str] = set()
        """of the operations, weights' decoding included"""
        self._constants: dict[str, Tensor] = {}
        self._steps: list[_Step] = []
        self._result: str = outputs[0].name
        for op in (one for one in function.operations if one.op_type != CLASSIFY):
            if op.op_type != "const":
                self.kinds.add(op.op_type)
            if op.op_type != "const" and not op.op_type.startswith("constexpr_"):
                self._steps.append(self._step(op))
        _note_last_uses(self._steps, self._result)
        self._check()

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """x: of input_shape, float32. Raises ValueError for another shape."""
        if tuple(x.shape) != self.input_shape:
            raise ValueError(f"the program takes {self.input_shape}, not {tuple(x.shape)}")
        values = {**self._constants, self.input_name: x}
        for step in self._steps:
            step.evaluate(values)
        return values[self._result]

    def _step(self, op: Any) -> "_Step":
        name = f"operation {op.op_type} ({op.name})"
        function = OPERATIONS.get(op.op_type)
        if function is None:
            raise ValueError(f"{name} is not known to the evaluator of ML programs in targets/mil.py")
        given = {key: var for key, var in op.inputs.items() if var is not None}
        sources: list[tuple[str, ...] | str | None] = []
        settings = {}
        for parameter in inspect.signature(function).parameters.values():
            var = given.pop(parameter.name, None)
            if var is None and parameter.default is parameter.empty:
                raise ValueError(f"{name} has no argument {parameter.name}")
            if parameter.kind is not parameter.KEYWORD_ONLY:
                sources.append(None if var is None else self._tensor(var, name))
            elif var is not None:
                settings[parameter.name] = _setting(var, f"{name}: {parameter.name}")
        if given:
            raise ValueError(f"{name}: the evaluator does not know its argument {', '.join(sorted(given))}")
        return _Step(
            name=name,
            function=partial(function, **settings),
            sources=sources,
            results=[output.name for output in op.outputs],
            shapes=[tuple(output.shape) for output in op.outputs],
        )

    def _tensor(self, var: Any, name: str) -> tuple[str, ...] | str:
        """The variable's name, or those of a list of variables; the value of a constant is decoded on the way."""
        if isinstance(var, (list, tuple)):
            return tuple(str(self._tensor(item, name)) for item in var)
        if var.op is not None and var.name not in self._constants and _is_constant(var.op):
            self._constants[var.name] = _as_tensor(_stored(var), f"{name}: {var.name}")
        return var.name

    def _check(self) -> None:
        """Evaluate an image of zeros: shapes must be those that coremltools infers. Raises ValueError."""
        values = {**self._constants, self.input_name: torch.zeros(self.input_shape)}
        with torch.inference_mode():
            for step in self._steps:
                try:
                    results = step.evaluate(values)
                except (RuntimeError, IndexError) as error:
                    raise ValueError(f"{step.name} cannot be evaluated: {error}") from error
                shapes = [tuple(result.shape) for result in results]
                if shapes != step.shapes:
                    raise ValueError(f"{step.name} gives {shapes} where the program says {step.shapes}")
        if self._result not in values:
            raise ValueError(f"no operation gives the program's output {self._result}")


@dataclass(kw_only=True)
class _Step:
    """One operation, its settings bound."""

    name: str
    function: Callable[..., Any]
    sources: list[tuple[str, ...] | str | None]
    """names of its arguments, in order; a tuple is a list of tensors, None is left out"""
    results: list[str]
    shapes: list[tuple[int, ...]]
    """of the results"""
    last_used: Sequence[str] = ()
    """names that no later operation reads"""

    def evaluate(self, values: dict[str, Tensor]) -> Sequence[Tensor]:
        """Read the sources from `values`, put the results there, drop what nobody reads any more."""
        arguments = [
            None if name is None else values[name] if isinstance(name, str) else [values[part] for part in name]
            for name in self.sources
        ]
        found = self.function(*arguments)
        results = [found] if isinstance(found, Tensor) else list(found)
        values.update(zip(self.results, results, strict=True))
        for used in self.last_used:
            del values[used]
        return results


def _note_last_uses(steps: Sequence[_Step], result: str) -> None:
    """Intermediate results are freed as early as possible: 12 blocks of them would not stay in the cache."""
    read_later = {result}
    for step in reversed(steps):
        names = {part for name in step.sources if name for part in ([name] if isinstance(name, str) else name)}
        step.last_used = sorted((names | set(step.results)) - read_later)
        read_later |= names


def _is_constant(op: Any) -> bool:
    return op.op_type == "const" or op.op_type.startswith("constexpr_")


def _stored(var: Any) -> Any:
    """Value of a constant; weights stored as int8 or as palettes are decoded. Raises ValueError."""
    op = var.op
    if op.op_type == "const":
        return var.val
    if any(source.op is None or source.op.op_type != "const" for source in op.inputs.values() if source is not None):
        raise ValueError(f"operation {op.op_type} ({op.name}): the evaluator does not know weights coded in two steps")
    return op.materialized_val_inference()


def _as_tensor(value: Any, name: str) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is no tensor of numbers")
    tensor = torch.from_numpy(np.array(array))
    return tensor.float() if tensor.is_floating_point() else tensor


def _setting(var: Any, name: str) -> Any:
    """A constant as plain Python: number, bool, str, or a list of them."""
    if isinstance(var, (list, tuple)) or var.val is None:
        raise ValueError(f"{name} is not a constant")
    return var.val.tolist() if isinstance(var.val, (np.ndarray, np.generic)) else var.val


# ---- The operations. A function's positional parameters are the tensors, its keyword parameters the constants that the
# operation may have; all others are refused. Meanings and defaults: the docstrings of coremltools' MIL operations.


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int],
    pad_type: str,
    pad: list[int],
    dilations: list[int],
    groups: int,
) -> Tensor:
    """x: (1, C, H, W); pad: top, bottom, left, right."""
    if x.dim() != 4 or pad_type not in ("valid", "custom") or (pad_type == "valid" and any(pad)):
        raise ValueError(f"operation conv of {x.dim() - 2} dimensions with padding {pad_type} {pad} is not known")
    top, bottom, left, right = pad
    padded = functional.pad(x, (left, right, top, bottom)) if any(pad) else x
    return functional.conv2d(padded, weight, bias, strides, 0, dilations, groups)


def _matmul(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """A mask of bools says what takes part, one of floats is added: both as in PyTorch, and so is the scale."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


def _layer_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, *, axes: list[int], epsilon: float
) -> Tensor:
    first = x.dim() - len(axes)
    if sorted(axis % x.dim() for axis in axes) != list(range(first, x.dim())):
        raise ValueError(f"operation layer_norm over axes {axes} of {x.dim()} is not known, only over the last ones")
    return functional.layer_norm(x, x.shape[first:], gamma, beta, epsilon)


def _gelu(x: Tensor, *, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise ValueError(f"operation gelu in mode {mode} is not known")
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _reduce_mean(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.mean(list(range(x.dim())) if axes is None else axes, keepdim=keep_dims)


def _rsqrt(x: Tensor, *, epsilon: float) -> Tensor:
    return torch.rsqrt(x + epsilon)


def _cast(x: Tensor, *, dtype: str) -> Tensor:
    """Between float types, which are one here."""
    if not (x.is_floating_point() and dtype in FLOATS):
        raise ValueError(f"operation cast from {x.dtype} to {dtype} is not known")
    return x


def _reshape(x: Tensor, *, shape: list[int]) -> Tensor:
    if 0 in shape:  # what it stands for differs between iOS 16 and 17
        raise ValueError(f"operation reshape to {shape} is not known, because of the 0")
    return x.reshape(shape)


def _transpose(x: Tensor, *, perm: list[int]) -> Tensor:
    return x.permute(perm)


def _expand_dims(x: Tensor, *, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)  # the axes are the result's
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _concat(values: list[Tensor], *, axis: int, interleave: bool = False) -> Tensor:
    if interleave:
        raise ValueError("operation concat with interleave is not known")
    return torch.cat(values, axis)


def _split(
    x: Tensor, *, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> Sequence[Tensor]:
    if split_sizes is None:
        assert num_splits is not None  # MIL wants one of the two
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return x.split(split_sizes, axis)


def _slice_by_index(
    x: Tensor,
    *,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """Python's slices; where a mask is set, begin or end are left out, or begin alone is the index."""
    none, stride = [False] * x.dim(), stride or [1] * x.dim()
    if min(stride) < 1:
        raise ValueError(f"operation slice_by_index with stride {stride} is not known")
    rows = zip(begin, end, stride, begin_mask or none, end_mask or none, squeeze_mask or none, strict=True)
    return x[
        tuple(
            first if single else slice(None if from_start else first, None if to_end else last, step)
            for first, last, step, from_start, to_end, single in rows
        )
    ]


def _slice_by_size(x: Tensor, *, begin: list[int], size: list[int]) -> Tensor:
    """A size of -1 takes the rest."""
    slices = zip(begin, size, strict=True)
    return x[tuple(slice(first, None if count == -1 else first + count) for first, count in slices)]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "conv": _conv,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "gelu": _gelu,
    "relu": lambda x: x.relu(),
    "silu": lambda x: functional.silu(x),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "reduce_mean": _reduce_mean,
    "rsqrt": _rsqrt,
    "cast": _cast,
    "identity": lambda x: x,
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "split": _split,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
}
"""by MIL's name"""
