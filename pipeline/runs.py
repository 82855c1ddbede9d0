"""The run folder: its config, and what every finished stage left."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, differences, from_dict, to_dict
from pipeline.files import Log, digest, read_json, write_json


class Run:
    """One run folder: its config, and the record of every finished stage.

    A record holds a digest of the stage's inputs, the digests of the files it wrote, its results and its seconds.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self.log = Log(folder / "log.jsonl")

    @staticmethod
    def create(folder: Path, config: RunConfig) -> "Run":
        """The run in `folder`, made if it is new or nothing in it has finished yet.

        Raises ValueError if the folder belongs to another configuration, or is no run folder.
        """
        path = folder / "config.json"
        if path.exists() and any("seconds" in record for record in Run(folder, config).records().values()):
            if different := differences(Run.open(folder).config, config):
                raise ValueError(
                    f"{folder} belongs to another configuration ({'; '.join(different[:3])}; there, here). "
                    f"Choose another RUN=name, or delete the folder"
                )
        else:
            if not path.exists() and folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run. Choose another RUN=name")
            write_json(path, to_dict(config))
        return Run(folder, config)

    @staticmethod
    def open(folder: Path) -> "Run":
        """The run in an existing folder. Raises ValueError if there is none or its config is damaged."""
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no run (there is no config.json). `make prune` makes one")
        try:
            return Run(folder, from_dict(read_json(folder / "config.json")))
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error

    def records(self) -> dict[str, dict[str, Any]]:
        """What the finished stages left, by stage."""
        path = self.folder / "stages.json"
        return read_json(path) if path.exists() else {}

    def results(self, stage: str) -> dict[str, Any]:
        """Results of a finished stage; empty if it has not finished."""
        return self.records().get(stage, {}).get("results", {})

    def finished(self, stage: str, inputs: Any) -> bool:
        """Whether `stage` has finished with these inputs and its files are still there.

        Raises ValueError if one of the files is not what the stage wrote.
        """
        record = self.records().get(stage)
        if record is None or record["inputs"] != _fingerprint(inputs) or "seconds" not in record:
            return False
        for name, expected in record["files"].items():
            path = self.folder / name
            if not path.exists():
                return False
            if digest(path) != expected:
                raise ValueError(f"{path} is not what stage {stage} wrote (damaged?). Delete it to have it made anew")
        return True

    def begin(self, stage: str, inputs: Any) -> bool:
        """Note that `stage` has begun. Returns whether it had begun with other inputs before."""
        record = self.records().get(stage)
        changed = record is not None and record["inputs"] != _fingerprint(inputs)
        write_json(
            self.folder / "stages.json", {**self.records(), stage: {"inputs": _fingerprint(inputs), "files": {}}}
        )
        return changed

    def finish(self, stage: str, inputs: Any, files: list[Path], results: dict[str, Any], seconds: float) -> None:
        """Record that `stage` has finished."""
        written = {str(path.relative_to(self.folder)): digest(path) for path in files}
        record = {"inputs": _fingerprint(inputs), "files": written, "results": results, "seconds": seconds}
        write_json(self.folder / "stages.json", {**self.records(), stage: record})

    def files(self, stage: str) -> dict[str, str]:
        """Digests of the files that a finished stage wrote."""
        return self.records().get(stage, {}).get("files", {})


def _fingerprint(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def latest(root: Path) -> Path:
    """The run folder below `root` with a finished stage that was worked on last. Raises ValueError if there is none."""
    by_time = sorted(root.glob("*/stages.json"), key=lambda path: path.stat().st_mtime)
    finished = [path for path in by_time if any("seconds" in record for record in read_json(path).values())]
    if not finished:
        raise ValueError(f"there is no run in {root}. `make prune` makes one")
    return finished[-1].parent
