"""`make models`: which of timm's ViTs DAP prunes, and why not the others. Built without weights: half a minute."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules

from dap.gates import check_prunable
from pipeline import files
from pipeline.models import shell_of

MODULES = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
)
"""timm's files of ViTs: one width, one resolution"""
PAGE = Path("docs/models.md")
BEGIN, END = "<!-- written by make models -->", "<!-- end of what make models writes -->"


def entries() -> list[str]:
    """Names of the models in MODULES."""
    return [name for name in timm.list_models() if is_model_in_modules(name, MODULES)]


def row(name: str) -> dict[str, Any]:
    """Whether DAP prunes a model as timm builds it, with the reason if it does not."""
    with torch.device("meta"):
        model: Any = shell_of(name, 10)
    try:
        check_prunable(model)
    except ValueError as error:
        reason = re.sub(r"^\w+ is not supported: |block \d+ |\. DAP works on .*", "", str(error))
        reason = re.sub(r"^it is another architecture.*", f"{type(model).__name__} is another architecture", reason)
        return {"model": name, "accepted": False, "pool": None, "reason": reason}
    return {"model": name, "accepted": True, "pool": model.global_pool, "reason": None}


READS = {"token": "the class token", "avg": "the mean of the tokens", "map": "what attention pools of the tokens"}


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: accepted models by what their head reads, the others by reason."""
    accepted = sum(row["accepted"] for row in rows)
    groups: dict[str, list[str]] = defaultdict(list)
    for one in rows:
        groups[f"head reads {READS[one['pool']]}" if one["accepted"] else f"not: {one['reason']}"].append(one["model"])
    found = Counter(pattern for names in groups.values() for pattern in {_pattern(name) for name in names})

    lines = [
        f"{accepted} of {len(rows)} entries of timm {timm.__version__} are pruned as they are:",
        "",
        "| | models | names (* for sizes) |",
        "| --- | --- | --- |",
    ]
    for what, names in sorted(groups.items(), key=lambda group: (group[0].startswith("not"), -len(group[1]), group[0])):
        # a refused name is written in full where others of its pattern are accepted, or refused for another reason
        whole = {name for name in names if what.startswith("not") and found[_pattern(name)] > 1}
        shown = dict.fromkeys(name if name in whole else _pattern(name) for name in names)
        lines.append(f"| {what} | {len(names)} | {', '.join(f'`{name}`' for name in shown)} |")
    return "\n".join(lines) + "\n"


def _pattern(name: str) -> str:
    """The name without its sizes."""
    return re.sub(r"_[a-z0-9]+_patch\d+", "_*", re.sub(r"_\d{2,3}$", "", name))


def write(page: Path, text: str) -> None:
    """Put the text between the page's two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    files.write_text(page, f"{before}{BEGIN}\n{text}{END}{after}")
