"""Options that several commands share, and what is made of them."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")
EXIT_CODES = (
    "Exit codes: 0 done and within budget, 1 budget missed (the report is written), 2 wrong use or bad input, "
    "3 this machine cannot do it or could not measure a limit, 130 interrupted (repeat the command to go on), "
    "70 a defect in this program."
)

DatasetOption = Annotated[
    str,
    typer.Option(
        help="digits (embedded), cifar10, cifar100, ifood, inat19, imagenet, or folder:PATH of a directory or zip with "
        "{train,val}/CLASS/IMAGE or CLASS/IMAGE."
    ),
]
SubsetOption = Annotated[
    str | None, typer.Option(help="CLASSESxIMAGES, such as 12x200: a fixed small part of DATASET, for experiments.")
]
DataOption = Annotated[Path | None, typer.Option(help="Folder of a named data set.  \\[default: data/NAME]")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A timm DeiT or plain ViT name.  \\[default: deit_micro_patch8_64 for digits, else deit_tiny_patch16_224]"
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def configure(config, *, epochs: dict[str, int | None], lr: float | None, batch_size: int | None):
    """`config` with the user's epochs per stage (dense 0: no reference), learning rate and batch size."""
    shared = {key: value for key, value in (("lr", lr), ("batch_size", batch_size)) if value is not None}
    changes: dict[str, object] = {}
    for stage, count in epochs.items():
        own = {**shared, **({} if count is None else {"epochs": count})}
        leave_out = stage == "dense" and count == 0
        changes[stage] = None if leave_out else dataclasses.replace(getattr(config, stage), **own)
    return dataclasses.replace(config, **changes)
