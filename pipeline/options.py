"""Options that several commands share, what is made of them, and make's way to give them."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_CODES = (
    "Exit codes: 0 done and within budget, 1 budget missed (the report is written), 2 wrong use or bad input, "
    "3 this machine cannot do it or could not measure a limit, 130 interrupted (repeat the command to go on), "
    "70 a defect in this program."
)

DatasetOption = Annotated[
    str,
    typer.Option(
        help="digits (embedded), cifar10, cifar100, ifood, inat19, imagenet, or the path of a directory or zip with "
        "{train,val,test}/CLASS/IMAGE or CLASS/IMAGE (folder:PATH, if it is called like one of those); "
        "wds:PATTERN: tars, as make shards writes them."
    ),
]
BadShareOption = Annotated[
    float,
    typer.Option(help="Share of unreadable images up to which they are left out; above it nothing is trained."),
]
KeepDuplicatesOption = Annotated[
    bool, typer.Option("--keep-duplicates", help="Train on images of val and test that are in train too.")
]
SubsetOption = Annotated[
    str | None, typer.Option(help="CLASSESxIMAGES, such as 12x200: a fixed small part of DATASET, for experiments.")
]
DataOption = Annotated[Path | None, typer.Option(help="Folder of a named data set.  \\[default: data/NAME]")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A timm DeiT or plain ViT name, or a hub repository's such as facebook/deit-tiny-patch16-224.  "
        "\\[default: deit_micro_patch8_64 for digits, else deit_tiny_patch16_224]"
    ),
]
ModelPathOption = Annotated[
    Path | None,
    typer.Option(help="Weights to begin from, instead of the model's own: a file (.safetensors, .pth) or its folder."),
]
ImgSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the model's images in pixels, a multiple of its patch.  \\[default: the model's own]"
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def configure(
    config,
    *,
    epochs: dict[str, int | None],
    lr: float | None,
    batch_size: int | None,
    balanced: bool = False,
    early_stop: int | None = None,
    compile: bool = False,
):
    """`config` with the user's epochs per stage (dense 0: no reference), learning rate, batch size and other ways.

    Epochs and a learning rate that the user gives are taken as they are, whatever the images and the batch.
    """
    if early_stop is not None and early_stop < 1:
        raise ValueError(f"EARLY_STOP={early_stop} must be a number of epochs, 1 or more")
    shared: dict[str, object] = {"balanced": balanced, "compile": compile}
    if batch_size is not None:
        shared["batch_size"] = batch_size
    if lr is not None:
        shared |= {"lr": lr, "lr_batch": None}
    changes: dict[str, object] = {}
    for stage, count in epochs.items():
        own = {**shared, **({} if count is None else {"epochs": count, "epochs_for": None})}
        if stage != "prune":
            own["early_stop"] = early_stop
        leave_out = stage == "dense" and count == 0
        changes[stage] = None if leave_out else dataclasses.replace(getattr(config, stage), **own)
    return dataclasses.replace(config, **changes)


SWITCH = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}


def from_make(application: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """`VERB NAME=VALUE ...`, as make forwards what stood on its own command line, as `VERB --name VALUE ...`.

    An option without a value is 1, 0, yes, no, ... here; an empty value counts as not given. Other arguments stay.
    Raises ValueError for a name that the verb does not have, with the nearest one that it has.
    """
    commands: dict[str, Any] = typer.main.get_command(application).commands  # type: ignore[attr-defined]
    verb = next((argument for argument in arguments if argument in commands), None)
    if verb is None:
        return list(arguments)
    known = {parameter.name.upper(): parameter for parameter in commands[verb].params}
    found = []
    for argument in arguments:
        given = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", argument, re.DOTALL)
        if given is None:
            found.append(argument)
            continue
        name, value = given.groups()
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ValueError(f"make {verb} has no option {name}. {hint}Known: {', '.join(known)}")
        found += _one(known[name], name, value)
    return found


def _one(parameter: Any, name: str, value: str) -> list[str]:
    if value == "":
        return []
    if parameter.param_type_name == "argument":
        return [value]
    if not parameter.is_flag:
        return [parameter.opts[0], value]
    if value.lower() not in SWITCH:
        raise ValueError(f"{name}={value} is neither on (1) nor off (0)")
    if SWITCH[value.lower()]:
        return [parameter.opts[0]]
    return parameter.secondary_opts[:1]  # --no-distill; what is off anyway has none
