"""What a data set was understood to be, before anything is trained on it: as a table, and for a report."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.data.datasets import Dataset

NAMED = 10
"""classes, files and pairs that are named; others are counted"""


def summary(dataset: Dataset) -> dict[str, Any]:
    """JSON types: classes, and for each split where it comes from and its images a class; what is left out or twice."""
    unusable = Counter(file.reason for file in dataset.skipped)
    first = {file.reason: file.path for file in reversed(dataset.skipped)}
    left_out = [
        {"what": first[reason] if count == 1 else f"{first[reason]} and {count - 1} more", "count": count}
        | {"reason": reason}
        for reason, count in unusable.most_common(NAMED)
    ]
    return {
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes[:NAMED]),
        "top1_split": dataset.top1_split,
        "splits": {name: _split(dataset, name) for name in dataset.splits},
        "left_out": left_out + [asdict(one) for one in dataset.left_out[: 2 * NAMED]],
        "duplicates": [{**asdict(one), "pairs": [list(pair) for pair in one.pairs]} for one in dataset.duplicates],
    }


def _split(dataset: Dataset, name: str) -> dict[str, Any]:
    counts = np.bincount(dataset.splits[name].labels, minlength=len(dataset.classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    return {
        "source": dataset.sources.get(name),
        "images": int(counts.sum()),
        "least": [dataset.classes[least], int(counts[least])],
        "median": float(np.median(counts)),
        "most": [dataset.classes[most], int(counts[most])],
    }


def tables(found: dict[str, Any], title: str) -> list[Table]:
    """A `summary`, to be shown: the splits and, if there are any, what is left out or there twice."""
    more = found["classes"] - len(found["class_names"])
    names = ", ".join(found["class_names"]) + (f" and {more} more" if more else "")
    splits = Table(
        title=Text(title),
        caption=Text(f"{found['classes']} classes: {names}\nTop-1 is reported of {found['top1_split']}"),
        title_justify="left",
        caption_justify="left",
        box=box.ROUNDED,
    )
    columns = ("split", "from", "images", "a class: least", "median", "most")
    for column in columns:
        splits.add_column(column, justify="left" if column in columns[:2] else "right", overflow="fold")
    for name, split in found["splits"].items():
        even = split["least"][1] == split["most"][1]
        least, most = (
            f"{count:,}" if even else f"{label}: {count:,}" for label, count in (split["least"], split["most"])
        )
        cells = (name, split["source"] or "its owner's", f"{split['images']:,}", least, f"{split['median']:,g}", most)
        splits.add_row(*map(Text, cells))
    rows = [(one["what"], one["count"], one["reason"]) for one in found["left_out"]]
    for one in found["duplicates"]:
        what = "left out of train (KEEP_DUPLICATES=1 keeps them)" if one["left_out"] else "kept"
        examples = "; ".join(f"{a} = {b}" for a, b in one["pairs"][:3]) + ("; …" if one["count"] > 3 else "")
        rows.append((f"the same image in {one['where']}", one["count"], f"{what}: {examples}"))
    if not rows:
        return [splits]
    beside = Table("files", "", "left out, or worth a look", box=box.ROUNDED)
    beside.columns[1].justify = "right"
    for shown in beside.columns:
        shown.overflow = "fold"
    for what, count, reason in rows:
        beside.add_row(Text(what), Text(f"{count:,}" if count else ""), Text(reason))
    return [splits, beside]
