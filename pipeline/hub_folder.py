"""`make hub`: a run's small model as a folder that timm loads, with a card of what was measured. Uploads nothing."""

from pathlib import Path
from typing import Any

from dap import load_compact, save_for_hub
from pipeline import models
from pipeline.config import RunConfig
from pipeline.data.catalog import KNOWN
from pipeline.hub import SOURCE
from pipeline.runs import Run
from targets import strict

FOLDER = "hub"


def prepare(run: Run) -> Path:
    """Write the run's hub folder; returns it. Raises ValueError if the run has no fine-tuned small model yet."""
    folder = run.folder / "model"
    if "top1" not in run.results("finetune"):
        hint = "METHOD=dense makes none" if run.config.method == "dense" else "Finish `make prune` first"
        raise ValueError(f"{run.folder} has no small model. {hint}")
    report = strict.read_json(run.folder / "report.json", dict[str, Any])
    labels = strict.read_json(folder / "labels.json", tuple[str, ...])
    licence, out = licence_of(run.config), run.folder / FOLDER
    save_for_hub(load_compact(folder), out, labels=labels, licence=licence, card=card(report, run.config, licence))
    return out


def licence_of(config: RunConfig) -> str | None:
    """Of the pretrained weights that the run began with, as timm notes it; None: not known, or there were none."""
    return None if config.from_scratch or config.model_path else models.licence_of(config.model)


def card(report: dict[str, Any], config: RunConfig, licence: str | None) -> str:
    """The model card, Markdown with the hub's front matter. report: of report.json."""
    name, split = report["run"], {"val": "validation", "test": "test"}[report["top1_split"]]
    return f"""---
tags:
- image-classification
- timm
- pruned
library_name: timm
pipeline_tag: image-classification
license: {licence or "other"}
---
# {name}

`{config.model}` pruned by Depth Aware Pruning (arXiv 2506.23675) while it was fine-tuned:
{_percent(report["sparsity"])} of its parameters are gone.

| | before | after |
| --- | --- | --- |
| parameters | {_count(report["params_dense"])} | {_count(report["params"])} |
| multiply-accumulates | {_count(report["macs_dense"])} | {_count(report["macs"])} |
| top-1 on {split} images, % | {_number(report["top1_dense"])} | {_number(report["top1"])} |
{_artifacts(report["artifacts"])}
## Use

```python
import timm
import dap.hub  # pip install depth-aware-pruning: registers dap_compact with timm

model = timm.create_model("hf-hub:USER/{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
labels = model.pretrained_cfg["label_names"]
```

## Where it comes from

- **Pretrained weights:** {_weights(config, licence)}
- **Data:** {_data(config)}
- **Method:** {report["method"]}, seed {report["seed"]}
"""


def _artifacts(artifacts: list[dict[str, Any]]) -> str:
    """What devices have measured of the exported files."""
    shipped = [one for one in artifacts if one["shipped"]]
    if not shipped:
        return ""
    lines = ["", "| target | file | MB | top-1, % | ms (median) | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for one in shipped:
        device, latency, size = one["device"] or {}, one["latency_ms"] or {}, one["size_bytes"]
        cells = (
            f"{one['target']}, {device['cpu']}" if device else one["target"],
            f"{one['format']} {one['precision']}",
            *map(_number, (size and size / 1e6, one["top1"], latency.get("p50"))),
            one["verdict"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _weights(config: RunConfig, licence: str | None) -> str:
    if config.from_scratch:
        return "none, trained from random weights"
    if config.model_path and config.model_path.startswith(SOURCE):
        return f"`{config.model_path}`; its licence is on that page: state it here before you publish"
    if config.model_path:
        return f"{Path(config.model_path).name}; state their licence here before you publish"
    return f"timm's `{config.model}`, licence: {licence or 'not noted; look it up before you publish'}"


def _data(config: RunConfig) -> str:
    known = KNOWN.get(config.dataset)
    if known is not None:
        return f"{known.title}; licence: {known.licence}"
    kind, _, place = config.dataset.partition(":")
    return f"{Path(place).name if place else kind}; say whose it is before you publish"


def _count(number: int | None) -> str:
    return "not measured" if number is None else f"{number:,}"


def _number(number: float | None) -> str:
    return "not measured" if number is None else f"{number:.2f}"


def _percent(share: float | None) -> str:
    return "some" if share is None else f"{100 * share:.0f} %"
