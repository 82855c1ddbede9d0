"""The stage that validates for a target: of each format the smallest candidate that keeps to the budget is shipped."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from pipeline import console, files
from pipeline.context import Context, Results, Written
from pipeline.exporting import Budgets, Maker, files_of
from pipeline.gate import Dense, Gate, nothing, precision_of
from targets import Target, manifest
from targets.budget import FormatBudget
from targets.devices.job import Device
from targets.formats import FORMATS
from targets.latency import Protocol

SINGLE = 3.0
"""for an estimate: images one by one through two artifacts, in PyTorch's time for batches of them"""


def validate(context: Context, target: Target, budgets: Budgets, protocol: Protocol, device: Device | None) -> Written:
    """Try the candidates of each format, smallest file first, until one keeps to the budget; that one is shipped.

    One that stage export has not made is made when its turn comes: the result "exported" has what that says of it.
    All of this is judged on val. Where there is a test split, accuracy on it is reported, and decides nothing.
    If none passes, but one could not be measured and does not fail, that one is; its verdict is not_measured. What
    does not fail on this machine goes to the device. If that breaks off, what it would have measured is not measured.
    The result "unsettled" says what the same command might find otherwise, so that it tries again: a device that broke
    off or was busy, an artifact that its runtime, which can be replaced, refuses.
    """
    gate = Gate.of(context, target, protocol, device)
    exported = context.run.results(f"export {target.name}")
    timing_s = protocol.cooldown_s + protocol.seconds if device else 0.0
    formats, seconds = console.count(len(budgets), "format"), len(budgets) * (SINGLE * gate.torch_s + timing_s)
    context.say(f"  to validate: {formats}, if the smallest files pass; {console.about(seconds)}")
    results: Results = {}
    later: Results = {}
    maker = cache(lambda: Maker.of(context, gate.folder, budgets))

    def make(name: str) -> None:
        if exported[name]["error"] or "sha256" in exported[name]:
            return
        later[name] = exported[name] = entry = maker().make(name, exported[name])
        if entry["error"]:
            context.say(f"  {name}: {entry['error']}")
        else:
            gate.exported = replace(gate.exported, files=(*gate.exported.files, maker().described(name, entry)))
            gate.written.extend(files_of(gate.folder / name))

    for format, budget in budgets.items():
        names = [name for name, entry in exported.items() if entry["format"] == format]
        dense_name, candidates = names[0], names[1:]  # in the order of export
        dense, found = gate.dense(dense_name)
        tried = _try(gate, candidates, exported, budget, dense, make)
        for timed in (one for one in tried.values() if one["latency_dense_ms"]):
            found |= {"latency_ms": timed["latency_dense_ms"], "device": timed["device"]}
        results |= {dense_name: found, **tried}
    written = _ship(gate, results)
    return written, {
        "unsettled": "; ".join([*gate.broke_off.values(), *gate.unsettled]) or None,
        "threads": target.threads,
        "protocol": protocol.name,
        "artifacts": results,
        "exported": later,
    }


def _try(
    gate: Gate,
    names: list[str],
    exported: Results,
    budget: FormatBudget,
    dense: Dense,
    make: Callable[[str], None],
) -> Results:
    """The results of a format's candidates by name, one of them marked as shipped, if there is one to ship.

    make: sees to it that a candidate is in `exported`
    One that is missing, or does not run here, stops nobody: a larger one may be there, and run. Only if none of those
    passes or fails nothing, the smallest that does not run here is shipped: nothing speaks against it. What is to be
    computed in float16 and was not yet comes last of all.
    """
    results: Results = {}
    shipped, unproven = None, None

    def float16_of(name: str) -> str | None:
        entry = exported[name]
        return FORMATS[entry["format"]].precisions[entry["precision"]].float16_of

    for name in names:
        if not shipped:
            make(name)
        error = exported[name]["error"]
        if shipped:
            how = "passes" if results[shipped]["verdict"] == "pass" else "fails nothing that could be measured"
            better = "is computed in float16" if float16_of(shipped) == exported[name]["precision"] else "is smaller"
            reason = f"not tried: {exported[shipped]['precision']} {better} and {how}"
            results[name] = nothing("not_measured", reason)
        elif error:
            results[name] = nothing("not_measured" if exported[name]["unavailable"] else "fail", error)
        else:
            results[name] = gate.candidate(name, budget, dense)
            if results[name]["verdict"] != "fail":
                if results[name]["runtime"]:
                    shipped = name
                elif unproven is None or (float16_of(unproven) and not float16_of(name)):
                    unproven = name
    if best := shipped or unproven:
        results[best]["shipped"] = True
    return results


def _ship(gate: Gate, results: Results) -> list[Path]:
    """Write manifest.json of what is shipped, with its figures, and the single latencies; returns the files."""
    shipped = [entry for entry in gate.exported.files if results[entry.file]["shipped"]]
    formats = {entry.format for entry in shipped}
    beside = [entry for entry in gate.exported.files if entry.role == "dense" and entry.format in formats]
    samples, path = gate.folder / "latency.json", gate.folder / manifest.FILE_NAME
    files.write_json(samples, gate.samples)
    path.unlink(missing_ok=True)  # what does not pass is not left for an app to find
    if not shipped:
        return [samples, *gate.written]
    keys = ("device", "top1", "parity", "latency_ms", "peak_mb", "runtime", "checks", "verdict")
    measured = [
        replace(entry, measured={key: results[entry.file][key] for key in keys}) for entry in (*shipped, *beside)
    ]
    golden = [
        replace(
            golden,
            artifacts={
                entry.file: tuple(gate.golden_logits[entry.file][number].tolist())
                for entry in shipped
                if entry.file in gate.golden_logits
            },
        )
        for number, golden in enumerate(gate.exported.golden)
    ]
    shares = {entry.file: precision_of(entry).same_share for entry in shipped}
    contents = replace(gate.exported, files=tuple(measured), golden=tuple(golden), golden_share=shares)
    return [samples, *gate.written, manifest.write(contents, path)]
