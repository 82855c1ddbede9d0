"""A small run, killed again and again: `python tests/soak.py --kills 20 --seed 0 [--processes 2]`.

`make prune` and `make deploy` are run once undisturbed. Then they are run again: at a random moment of every stage in
turn, all that they have started is ended at once by SIGKILL, and the same command is repeated, until the kills are
spent. What is left must be what the undisturbed run has left, byte for byte, but for what was measured in seconds.
Prints the counts as JSON; exit code 1 if anything differs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from conftest import make_image_folder, tiny_config

from pipeline.config import to_dict
from pipeline.runs import Run
from pipeline.train import checkpoints

ROOT = Path(__file__).parent.parent
STAGES = {
    "prune": ("prepare", "dense", "prune", "compact", "finetune"),
    "deploy": ("export host", "validate host"),
}
"""what the commands go through; before it comes `loading`, after it `report`"""
MEASURED = ("created", "seconds", "seconds_per_stage", "export_seconds", "export_peak_mb", "peak_mb", "load_ms",
            "end_to_end_ms", "latency_ms", "latency_dense_ms", "conditions", "device", "checks", "reason", "unsettled",
            "unmeasured", "verdict")  # fmt: skip
"""keys in JSON files for what no two runs have in common: seconds, and what is judged by them"""
UNLIKE = ("latency.json", "artifacts/host/device/*", "report.html", "stages.json")
"""files likewise, which must be there; stages.json holds the digests of all"""
PASSING = ("*.before", ".lock", "latency*.svg")
"""files of a moment: the checkpoint before the last, what holds the folder, the figure of latencies that were valid"""

# Python runs this before the command, in each of its processes: the run is small, and so is what is measured.
SMALL = """
import dataclasses, json, sys
if "pipeline" in sys.orig_argv:
    from pipeline import config, presets, sessions
    presets.of = lambda *_: config.from_dict(json.load(open({config!r})))
    sessions.QUICK = dataclasses.replace(sessions.QUICK, seconds=0.3, min_samples=20, warmup=2, cooldown_s=0.0)
"""
BUDGET = """
top1_share_min = 0.5
parity_psnr_db_min = 80
latency_p50_ms_max = 1000
[tflite]
precisions = ['fp32']
"""


@dataclass
class Attempt:
    """One start of a command."""

    began: dict[str, float] = field(default_factory=dict)
    """phase -> when it began, by time.monotonic"""
    ended: float = 0.0
    """when all of it was over"""
    code: int | None = None
    """exit code; None: killed"""
    said: list[str] = field(default_factory=list)
    """lines of standard error"""

    @property
    def phase(self) -> str:
        """The last that has begun."""
        return list(self.began)[-1]

    def seconds(self) -> dict[str, float]:
        """How long every phase took."""
        times = [*self.began.values(), self.ended]
        return {phase: after - since for phase, since, after in zip(self.began, times, times[1:], strict=False)}


class Soak:
    """A folder with the images, the settings, and a place for every run."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        images = make_image_folder(folder / "images", train=32)
        small = tiny_config(images)
        trained = {name: replace(stage, checkpoint_seconds=0.5) for name, stage in small.stages.items()}
        (folder / "config.json").write_text(json.dumps(to_dict(replace(small, **trained))))
        (folder / "sitecustomize.py").write_text(SMALL.format(config=str(folder / "config.json")))
        (folder / "budget.toml").write_text(BUDGET)
        shared = ["RUN=soak"]
        several = [f"NPROC={processes}"] if processes > 1 else []
        self.options = {
            "prune": [f"DATASET=folder:{images}", *shared, *several],
            "deploy": ["TARGET=host", f"BUDGET={folder / 'budget.toml'}", "QUICK=1", *shared],
        }

    def start(self, verb: str, place: Path, phase: str | None = None, after: float = 0.0) -> Attempt:
        """Run the command in its place; it is killed so many seconds after the phase has begun."""
        attempt, mark = Attempt(began={"loading": time.monotonic()}), f"SOAK={os.urandom(8).hex()}"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "XDG_CACHE_HOME": str(place / "cache"),
            **dict([mark.split("=")]),
        }
        command = [sys.executable, "-m", "pipeline", verb, *self.options[verb]]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=place, env=environment, start_new_session=True, **streams)
        reader = threading.Thread(target=_listen, args=(process.stderr, verb, attempt))
        reader.start()
        try:
            while process.poll() is None:
                if STAGES[verb][-1] in attempt.began and "report" not in attempt.began and self._over(verb, place):
                    attempt.began["report"] = time.monotonic()
                if phase in attempt.began and time.monotonic() - attempt.began[phase] >= after:
                    _kill(process.pid, mark)
                time.sleep(0.005)
        finally:
            _kill(process.pid, mark)
        attempt.ended = time.monotonic()
        attempt.code = None if process.wait() == -signal.SIGKILL else process.returncode
        reader.join()
        return attempt

    @staticmethod
    def _over(verb: str, place: Path) -> bool:
        record = Run.open(place / "runs" / "soak").records().get(STAGES[verb][-1])
        return record is not None and record.seconds is not None


def _listen(stream: Any, verb: str, attempt: Attempt) -> None:
    for line in stream:
        attempt.said.append(line.rstrip())
        if (phase := attempt.said[-1].removesuffix(": finished before")) in STAGES[verb]:
            attempt.began.setdefault(phase, time.monotonic())


def _kill(group: int, mark: str) -> None:
    """End a process group, then whatever else was started with this mark in its environment, until nothing is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while left := list(_marked(mark)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _marked(mark: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def left_by(run: Path) -> dict[str, Any]:
    """What must be the same of a run folder: file -> digest, or what it says without what was measured."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.is_dir() or any(path.match(pattern) for pattern in PASSING):
            continue
        content, name = path.read_bytes(), str(path.relative_to(run))
        if any(path.match(pattern) for pattern in UNLIKE):
            found[name] = "there"
        elif path.suffix == ".json":
            found[name] = _lasting(json.loads(content))
        elif path.suffix == ".pt":  # the same values can be pickled in more than one way
            found[name] = _lasting(checkpoints.load(path))
        else:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in MEASURED}
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
    return [_lasting(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where two trees of dicts, lists and values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = dict.fromkeys([*expected, *found])
        return [line for key in keys for line in differences(expected.get(key), found.get(key), f"{where}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{where}/{number}")]
    return [] if expected == found else [f"{where}: {str(expected)[:80]} became {str(found)[:80]}"]


def soak(
    folder: Path, kills: int, seed: int, processes: int = 1, verbs: Sequence[str] = tuple(STAGES)
) -> dict[str, Any]:
    """The counts, in an empty folder; raises RuntimeError if a command ends in an error."""
    began, draw, test = time.monotonic(), random.Random(seed), Soak(folder, processes)
    phases = [(verb, phase) for verb in verbs for phase in ("loading", *STAGES[verb], "report")]
    usual: dict[tuple[str, str], float] = {}
    killed: Counter[tuple[str, str]] = Counter()
    told: list[str] = []
    runs, differing = 0, []

    def to_the_end(verb: str, place: Path, hand: list[tuple[str, str]]) -> Attempt:
        """Start a command until it ends by itself; in each phase of the hand it is killed."""
        for phase in [phase for owner, phase in hand if owner == verb] + [None]:
            after = draw.uniform(0, usual[verb, phase]) if phase else 0.0
            attempt = test.start(verb, place, phase, after)
            told.extend(line for line in attempt.said if "checkpoint" in line or "inputs have changed" in line)
            if attempt.code is None:
                killed[verb, attempt.phase] += 1
                print(f"killed in {attempt.phase}", file=sys.stderr)
                continue
            if attempt.code not in ((0,) if verb == "prune" else (0, 3)):
                raise RuntimeError("\n".join([f"{verb} ended with exit code {attempt.code}", *attempt.said[-20:]]))
            break
        return attempt

    whole = folder / "whole"
    whole.mkdir()
    for verb in verbs:
        usual |= {(verb, phase): seconds for phase, seconds in to_the_end(verb, whole, []).seconds().items()}
    expected = left_by(whole / "runs" / "soak")
    print(" ".join(f"{phase}: {seconds:.1f} s" for (_, phase), seconds in usual.items()), file=sys.stderr)
    while killed.total() < kills:
        # those first in which it has been killed least often: a stage may be over before its moment comes
        rarest = sorted(draw.sample(phases, len(phases)), key=lambda phase: killed[phase])
        hand = sorted(rarest[: kills - killed.total()], key=phases.index)
        place = folder / str(runs)
        place.mkdir()
        runs += 1
        for verb in verbs:
            to_the_end(verb, place, hand)
        differing += differences(expected, left_by(place / "runs" / "soak"), str(runs))
    return {
        "kills": killed.total(),
        "processes": processes,
        "seed": seed,
        "runs": runs,
        "killed_in": {f"{verb}: {phase}": killed[verb, phase] for verb, phase in phases},
        "files_compared": len(expected),
        "told": told,
        "differences": differing,
        "seconds": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dap-soak-") as temporary:
        counts = soak(Path(temporary), given.kills, given.seed, given.processes)
    print(json.dumps(counts, indent=2))
    sys.exit(bool(counts["differences"]))
