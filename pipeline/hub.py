"""Models by the names of their repositories on the Hugging Face hub: which of timm's they are, and their weights.

Loads neither torch nor timm, and the hub's client only where a repository has to be asked.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import EnvironmentLacks, short
from pipeline.model_names import WIDTHS, registered
from targets import strict

SOURCE = "hf-hub:"
"""in front of a repository's name where weights could be a file as well"""
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""what a repository's weights may be called, the first that is there is taken"""

# What the repository's own config.json does not say, or not as timm calls it: the family and with it the view.
_KNOWN = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"facebook/deit-(tiny|small|base)-patch16-(224|384)", r"deit_\1_patch16_\2"),
        (r"facebook/deit-(tiny|small|base)-distilled-patch16-(224|384)", r"deit_\1_distilled_patch16_\2"),
        (r"google/vit-(base|large|huge)-patch(14|16|32)-(224|384)(?:-in21k)?", r"vit_\1_patch\2_\3"),
        (r"facebook/dinov2-(small|base|large|giant)(?:-imagenet1k-1-layer)?", r"vit_\1_patch14_dinov2"),
        (
            r"facebook/dinov2-with-registers-(small|base|large|giant)(?:-imagenet1k-1-layer)?",
            r"vit_\1_patch14_reg4_dinov2",
        ),
        (r"facebook/dino-vits(8|16)", r"vit_small_patch\1_224.dino"),
        (r"facebook/dino-vitb(8|16)", r"vit_base_patch\1_224.dino"),
    )
]
_FAMILIES = {
    "vit": ("vit_{word}_patch{patch}_{size}", "vit_{word}_patch{patch}_224"),
    "deit": ("deit_{word}_distilled_patch{patch}_{size}", "deit_{word}_distilled_patch{patch}_224"),
    "dinov2": ("vit_{word}_patch{patch}_dinov2",),
    "dinov2_with_registers": ("vit_{word}_patch{patch}_reg4_dinov2",),
}
"""model_type of transformers -> timm's names, the first that there is; transformers' DeiT has a distillation token"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What config.json says of a model, as timm or transformers write it."""

    architecture: str | None = None
    """timm's name"""
    model_type: str | None = None
    """transformers' word for the architecture; what follows is of transformers too"""
    hidden_size: int | None = None
    """width of the residual stream"""
    patch_size: int | tuple[int, ...] | None = None
    """pixels"""
    image_size: int | tuple[int, ...] | None = None
    """pixels"""
    hidden_act: str = "gelu"


def is_source(weights: str | Path) -> bool:
    """Whether weights are named as a repository, and not as a file."""
    return str(weights).startswith(SOURCE)


def resolve(model: str) -> tuple[str, str | None]:
    """timm's name for what MODEL names, and SOURCE and a repository if its weights are not that name's own.

    model: a name of timm's, or a repository's OWNER/NAME, after hf-hub: or without. Repositories of timm's names, and
    well known ones, are told by their name; others are asked for their config.json.
    Raises ValueError for a repository whose model is of another kind, EnvironmentLacks if it cannot be asked.
    """
    repository = re.sub(r"^hf[-_]hub:", "", model)
    if "/" not in repository:
        return repository, None
    if Path(model).exists():
        raise ValueError(
            f"MODEL={model} is on this machine: name the model by MODEL, its weights by MODEL_PATH={model}"
        )
    owner, name = repository.split("/", 1)
    if owner == "timm" and name.split(".")[0] in registered():
        return name, None
    for pattern, known in _KNOWN:
        if found := pattern.fullmatch(repository):
            return found.expand(known), SOURCE + repository
    path = _downloaded(repository, CONFIG)
    if path is None:
        raise ValueError(f"MODEL={model}: the repository has no {CONFIG}, so there is no telling which model it is. "
                         "Download its weights and pass MODEL, as timm calls it, and MODEL_PATH")  # fmt: skip
    return _name(strict.read_json(path, Config, source="foreign"), model), SOURCE + repository


def fetched(source: str | Path, model: str) -> Path:
    """The weights file of a repository, downloaded unless it is here already.

    source: as resolve returns it;  model: timm's name for it, for messages
    Raises ValueError if there is none, EnvironmentLacks if it can't be fetched.
    """
    repository = str(source).removeprefix(SOURCE)
    for name in WEIGHTS:
        if path := _downloaded(repository, name, model):
            return path
    raise ValueError(f"hub repository {repository} has no {' and no '.join(WEIGHTS)}")


def _name(config: Config, model: str) -> str:
    """timm's name for what a config.json describes. Raises ValueError if timm has none."""
    if config.architecture:
        return config.architecture
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"MODEL={model} is a {config.model_type or 'model of an unknown kind'}; of transformers' models only "
            f"{', '.join(_FAMILIES)} can be pruned, and timm's"
        )
    if config.hidden_act != "gelu":
        raise ValueError(f"MODEL={model} activates by {config.hidden_act}; of transformers' models only gelu is known")
    patch, size = (one[-1] if isinstance(one, tuple) else one for one in (config.patch_size, config.image_size))
    word = WIDTHS.get(config.hidden_size or 0)
    names = [name.format(word=word, patch=patch, size=size) for name in _FAMILIES[config.model_type]]
    if fitting := [name for name in names if name in registered()]:
        return fitting[0]
    raise ValueError(
        f"MODEL={model} is a {config.model_type} of width {config.hidden_size} with patches of {patch} pixels: "
        "timm has no such model"
    )


def _downloaded(repository: str, name: str, model: str | None = None) -> Path | None:
    """A file of a repository, from the cache if it is there; None if the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download  # a second, which names of timm's need not wait for

    try:
        return Path(hf_hub_download(repository, name))
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no repository {repository} on the hub, or it is not for everybody (`hf auth login`)"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"MODEL={repository} can be no repository of the hub ({short(error)})") from error
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):  # which says that the hub was not reached
            return None
        raise _unreachable(repository, model, error) from error
    except Exception as error:  # its client has dozens of kinds, and those of the library below it
        raise _unreachable(repository, model, error) from error


def _unreachable(repository: str, model: str | None, error: Exception) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"hub repository {repository} could not be fetched ({short(error)}). Either go online once and repeat the "
        f"command, or download {WEIGHTS[0]} of hub repository {repository} elsewhere and pass "
        f"MODEL={model or 'NAME, as timm calls it,'} MODEL_PATH={WEIGHTS[0]}"
    )
