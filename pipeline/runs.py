"""The run folder: its config, and what every finished stage left."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, differences, from_dict, to_dict
from pipeline.files import Log, digest, write_json
from targets import strict


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a stage left in stages.json."""

    inputs: str
    """digest of what it began with"""
    files: dict[str, str]
    """the files that it wrote -> their digests"""
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """that it took, of all processes that worked on it; None: it has begun and not finished"""
    spent: float = 0.0
    """seconds of processes that were stopped in it; 0 once it has finished"""


class Run:
    """One run folder: its config, and the record of every stage."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self.log = Log(folder / "log.jsonl")

    @staticmethod
    def create(folder: Path, config: RunConfig) -> "Run":
        """The run in `folder`, made if it is new or nothing in it has finished yet.

        Raises ValueError if the folder belongs to another configuration, or is no run folder.
        """
        path = folder / "config.json"
        if path.exists() and any(record.seconds is not None for record in Run(folder, config).records().values()):
            if different := differences(Run.open(folder).config, config):
                raise ValueError(
                    f"{folder} belongs to another configuration ({'; '.join(different[:3])}; there, here). "
                    f"Choose another RUN=name, or delete the folder"
                )
        else:
            left = {".lock", *(one.name for one in folder.glob(f".{path.name}.*.tmp"))}  # the last: by a killed process
            if not path.exists() and folder.is_dir() and any(p.name not in left for p in folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run. Choose another RUN=name")
            write_json(path, to_dict(config))
        return Run(folder, config)

    @staticmethod
    def open(folder: Path) -> "Run":
        """The run in an existing folder. Raises ValueError if there is none or its config is damaged."""
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no run (there is no config.json). `make prune` makes one")
        try:
            return Run(folder, from_dict(strict.read_json(folder / "config.json", dict[str, Any])))
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error

    def records(self) -> dict[str, Record]:
        """What the stages left, by stage."""
        path = self.folder / "stages.json"
        return _records(path) if path.exists() else {}

    def results(self, stage: str) -> dict[str, Any]:
        """Results of a finished stage; empty if it has not finished."""
        record = self.records().get(stage)
        return record.results if record else {}

    def finished(self, stage: str, inputs: Any) -> bool:
        """Whether `stage` has finished with these inputs and its files are still there.

        Raises ValueError if one of the files is not what the stage wrote.
        """
        record = self.records().get(stage)
        if record is None or record.inputs != _fingerprint(inputs) or record.seconds is None:
            return False
        for name, expected in record.files.items():
            path = self.folder / name
            if not path.exists():
                return False
            if digest(path) != expected:
                raise ValueError(f"{path} is not what stage {stage} wrote (damaged?). Delete it to have it made anew")
        return True

    def changed(self, stage: str, inputs: Any) -> bool:
        """Whether `stage` had begun with other inputs."""
        record = self.records().get(stage)
        return record is not None and record.inputs != _fingerprint(inputs)

    def begin(self, stage: str, inputs: Any) -> None:
        """Note that `stage` has begun, or goes on."""
        self._write(stage, Record(inputs=_fingerprint(inputs), files={}, spent=self._spent(stage, inputs)))

    def stopped(self, stage: str, seconds: float) -> None:
        """Note that `stage`, which has begun, has been worked on for so long and not finished."""
        if record := self.records().get(stage):  # none: somebody has deleted the run meanwhile
            self._write(stage, replace(record, spent=record.spent + seconds))

    def finish(self, stage: str, inputs: Any, files: list[Path], results: dict[str, Any], seconds: float) -> None:
        """Record that `stage` has finished. seconds: since this process began with it"""
        written = {str(path.relative_to(self.folder)): digest(path) for path in files}
        seconds += self._spent(stage, inputs)
        self._write(stage, Record(inputs=_fingerprint(inputs), files=written, results=results, seconds=seconds))

    def _spent(self, stage: str, inputs: Any) -> float:
        """Seconds of processes that were stopped in this stage and with these inputs."""
        record = self.records().get(stage)
        return record.spent if record and record.inputs == _fingerprint(inputs) else 0.0

    def _write(self, stage: str, record: Record) -> None:
        known = {name: asdict(other) for name, other in {**self.records(), stage: record}.items()}
        for entry in known.values():
            if entry["seconds"] is None:
                del entry["results"], entry["seconds"]
            if not entry["spent"]:
                del entry["spent"]
        write_json(self.folder / "stages.json", known)
        _date_last(self.folder / "stages.json")

    def files(self, stage: str) -> dict[str, str]:
        """Digests of the files that a finished stage wrote."""
        record = self.records().get(stage)
        return record.files if record else {}


def _records(path: Path) -> dict[str, Record]:
    return strict.read_json(path, dict[str, Record])


def _fingerprint(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _date_last(path: Path) -> None:
    """See that no other run's file has a later time than this one, which has just been written.

    Else, after a clock was set back, `latest` would take another run for the one that was worked on last.
    """
    with contextlib.suppress(OSError):  # another run that is just being deleted
        times = [other.stat().st_mtime_ns for other in path.parents[1].glob(f"*/{path.name}") if other != path]
        if path.stat().st_mtime_ns <= (newest := max(times, default=0)):
            os.utime(path, ns=(newest + 1000, newest + 1000))


def latest(root: Path) -> Path:
    """The run folder below `root` with a finished stage that was worked on last. Raises ValueError if there is none."""
    by_time = sorted(root.glob("*/stages.json"), key=lambda path: path.stat().st_mtime)
    finished = [path for path in by_time if any(record.seconds is not None for record in _records(path).values())]
    if not finished:
        raise ValueError(f"there is no run in {root}. `make prune` makes one")
    return finished[-1].parent
