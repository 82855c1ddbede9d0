"""RunConfig: everything that decides what a run computes, composed of the dataclasses that each package owns."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dap import PruneConfig
from pipeline.data.names import parse_subset
from pipeline.methods import GATED, METHODS, ON_LATENCY, RELEASED
from pipeline.model_names import MICRO, check_size, patch_of
from targets import TARGETS, strict

OWN = "dense"
"""a run's teacher that is its own dense reference"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained in one stage."""

    epochs: int
    """passes over the training split"""
    epochs_for: int | None = None
    """training images that `epochs` are meant for: more images get fewer, fewer images more (pipeline.plan).
    None: `epochs` it is"""
    cpu_share: float = 1.0
    """share of such epochs that a machine without a GPU is given"""
    batch_size: int = 64
    """images per step, of all processes"""
    lr: float = 5e-4
    """peak learning rate"""
    lr_batch: int | None = None
    """images per step that `lr` is meant for (see `lr_at`); None: `lr` it is"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """shape of the learning rate after warm-up"""
    warmup_epochs: float = 0.0
    """linear warm-up"""
    weight_decay: float = 0.05
    """AdamW; none on biases, norms, tokens and position embedding"""
    label_smoothing: float = 0.1
    """share of the target spread over all classes"""
    mixup: float = 0.0
    """mixup alpha, 0: off"""
    cutmix: float = 0.0
    """cutmix alpha, 0: off"""
    drop_path: float = 0.0
    """stochastic depth of the last block"""
    balanced: bool = False
    """every class is seen as often as any other: images of rare ones more often, of frequent ones not in every epoch"""
    early_stop: int | None = None
    """end after so many epochs without a better one; None: never. Not while pruning, which needs its schedule"""
    evaluate_every: int = 1
    """epochs from one look at the validation split to the next; after the last there is one in any case"""
    compile: bool = False
    """train what torch.compile makes of the model"""
    clip_grad: float = 1.0
    """largest gradient norm"""
    checkpoint_seconds: float = 60.0
    """time between checkpoints"""
    in_memory: bool | None = None
    """hold all training images on the device and augment them there; None: on a GPU, if loader.obstacle finds none"""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be 1 or more")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size} must be even: mixup and cutmix mix two images each")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be above 0")
        for name in ("epochs_for", "lr_batch", "early_stop", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if not 0 < self.cpu_share <= 1:
            raise ValueError(f"cpu_share={self.cpu_share} must be a share above 0")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule={self.schedule!r} is unknown. Known: cosine, constant")

    def evaluates(self, epoch: int) -> bool:
        """Whether the validation split is looked at after this epoch, counted from 1."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs

    def lr_at(self, images: int) -> float:
        """Peak learning rate with so many images a step.

        Below `lr_batch` in proportion, as DeiT has it (arXiv 2012.12877): a step of AdamW moves weights by about the
        rate, however few images it has seen, so that an epoch still moves them as far. Above it with the square root,
        as stochastic differential equations have it for Adam (Malladi et al., arXiv 2205.10287): the rates that were
        measured are not far below those that fail.
        """
        if self.lr_batch is None:
            return self.lr
        ratio = images / self.lr_batch
        return self.lr * min(ratio, math.sqrt(ratio))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, from pretrained weights to a fine-tuned small model."""

    dataset: str
    """a name that pipeline.data knows, or folder:PATH"""
    data: str | None = None
    """the data set's own folder; None: data/<name>"""
    max_bad_share: float = 0.001
    """share of unreadable images above which nothing is trained"""
    keep_duplicates: bool = False
    """whether images of a folder's val or test that are in its train too stay there"""
    subset: str | None = None
    """CLASSESxIMAGES: so many classes, spread evenly, and so many training images of each; None: everything"""
    model: str
    """a timm DeiT or ViT name"""
    img_size: int | None = None
    """height and width of the model's images, pixels, a multiple of its patch; None: its own"""
    model_path: str | None = None
    """weights file or folder, or hf-hub:OWNER/NAME, to begin from; None: the model's own pretrained weights"""
    from_scratch: bool = False
    """begin from random weights"""
    method: str = "dap"
    """a key of METHODS"""
    released: bool = False
    """repeat the known mistakes of the method's released code"""
    seed: int = 0
    """of the new head, the order of images, augmentation and stochastic depth"""
    teacher: str | None = None
    """folder of a dense model that pruning and fine-tuning learn from too; "dense": the run's own reference"""
    teach: Literal["streams", "logits"] = "streams"
    """what is learned from the teacher: its logits, and its residual stream where the small model's corresponds to it;
    or its logits alone"""
    rotate: bool = True
    """whether DAP and its controls prune attention heads in the basis of dap.rotate"""
    compensate: bool = False
    """whether a one-shot method's small model is fitted to the one that it was cut from (dap.baselines.compensate)"""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """in which models are multiplied while they train: weights, probes, scores and masks are float32 in any case.
    None: as accelerate's environment has it, else bf16 where a GPU has it, else fp32"""
    target: str = "host"
    """a key of TARGETS: the device whose rule for widths pruning keeps to"""
    latency_ms: float | None = None
    """median milliseconds on the target that are pruned for, as its profile predicts them: they decide the sparsity in
    place of pruning.sparsity; None: pruning.sparsity it is"""
    pruning: PruneConfig
    """how much goes, and how it is chosen"""
    dense: TrainConfig | None
    """training of the dense reference that accuracy and latency are compared with; None: no reference"""
    prune: TrainConfig | None
    """training while pruning; None: the method prunes in one shot, before any training"""
    finetune: TrainConfig | None
    """training of the small model; None: the method ends with pruning"""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"METHOD={self.method} is unknown. Known: {', '.join(METHODS)}")
        if self.released and self.method not in RELEASED:
            raise ValueError(f"--released is for {' and '.join(RELEASED)}; METHOD={self.method} has no such variant")
        if self.target not in TARGETS:
            raise ValueError(f"TARGET={self.target} is unknown. Known: {', '.join(TARGETS)}")
        if (self.latency_ms is None) == (self.pruning.cost == "latency"):
            raise ValueError('LATENCY_MS and pruning.cost="latency" belong together: give both or neither')
        if self.latency_ms is not None:
            if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
                raise ValueError(f"LATENCY_MS={self.latency_ms} must be a number of milliseconds above 0")
            if self.method not in ON_LATENCY:
                raise ValueError(f"LATENCY_MS is for METHOD={', '.join(ON_LATENCY)}; {self.method} takes SPARSITY")
            if self.pruning.gates == "heads":
                raise ValueError("HEADS=1 takes SPARSITY, not LATENCY_MS: profiles are of narrower heads, not of fewer")
        if self.pruning.gates == "heads" and self.method not in GATED:
            raise ValueError(f"HEADS=1 is for METHOD={', '.join(GATED)}; {self.method} decides about heads by itself")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"MAX_BAD_SHARE={self.max_bad_share} must be a share between 0 and 1")
        if self.precision not in (None, "fp32", "bf16", "fp16"):
            raise ValueError(f"PRECISION={self.precision} is unknown. Known: fp32, bf16, fp16")
        if self.seed < 0:
            raise ValueError(f"SEED={self.seed} must be 0 or more")
        if self.img_size is not None:
            check_size(self.img_size, patch_of(self.model))
        if self.subset is not None:
            parse_subset(self.subset)
        if self.teacher == OWN and (self.dense is None or self.method == "dense"):
            raise ValueError(
                "--distill learns from the dense reference: it needs one (DENSE_EPOCHS) and a METHOD that prunes"
            )
        if self.compensate and not METHODS[self.method].one_shot:
            raise ValueError(
                f"compensate is for methods that cut in one shot; METHOD={self.method} leaves nothing to fit"
            )
        if self.prune is not None and self.prune.early_stop is not None:
            raise ValueError("early_stop is not for pruning: its masks move, and sharpen, until the last epoch")
        if self.model_path and self.from_scratch:
            raise ValueError("MODEL_PATH and --from-scratch exclude each other")

    @property
    def stages(self) -> dict[str, TrainConfig]:
        """The stages that train, in order."""
        stages = {"dense": self.dense, "prune": self.prune, "finetune": self.finetune}
        return {stage: train for stage, train in stages.items() if train is not None}

    @property
    def data_folder(self) -> Path | None:
        """The data set's own folder, if the user named one."""
        return Path(self.data) if self.data else None


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What `make pretrain` does; saved beside its checkpoints."""

    dataset: str
    """folder:PATH"""
    model: str = MICRO
    """a timm DeiT or ViT name"""
    init: str | None = None
    """weights to begin from; None: random"""
    seed: int = 0
    """of the weights, the order and the augmentation"""
    train: TrainConfig
    """the training itself"""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON-able form of a config."""
    return dataclasses.asdict(config)


def from_dict(values: Any) -> RunConfig:
    """The config that `to_dict` made. Raises ValueError for an unknown or missing key or a value of another type."""
    return strict.parse(RunConfig, values)


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Lines `key: value of one, value of other` for every setting in which two configs differ."""
    return [f"{key}: {a}, {b}" for key, a, b in _walk("", to_dict(one), to_dict(other))]


def _walk(prefix: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [found for key in one for found in _walk(f"{prefix}.{key}".lstrip("."), one[key], other.get(key))]
    return [] if one == other else [(prefix, one, other)]
