"""Putting what a target ships into the folder of the app that runs it."""

import shutil
from pathlib import Path

from targets import manifest
from targets.artifact import replacing

APPS = Path("apps")
MODEL = {"web": Path("web/public/model"), "raspberry-pi": Path("raspberry-pi/model")}
"""app -> the folder below APPS that it reads its manifest from"""


def install(artifacts: Path, app: str, apps: Path = APPS) -> Path | None:
    """Copy the manifest of a target and the files that it names into the app's folder, in one step.

    artifacts: runs/<name>/artifacts/<target>
    Returns the folder; None if nothing is shipped or this checkout has no such app: what the app had stays there.
    """
    described, folder = artifacts / manifest.FILE_NAME, apps / MODEL[app]
    if not described.exists() or not (apps / app).is_dir():
        return None
    names = [name for name, _ in manifest.read(described).checksums()]
    with replacing(folder) as partial:
        for name in [manifest.FILE_NAME, *names]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifacts / name, partial / name)
    return folder
