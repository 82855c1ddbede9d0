"""Where live pictures come from: a camera, a video file, or a folder of pictures, one after the other."""

import contextlib
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier import pictures

SYSTEM_PYTHON = Path("/usr/bin/python3")


def frames(source: str) -> Iterator[np.ndarray]:
    """RGB (H, W, 3) uint8, each as new as it can be when it is asked for; endless.

    source: picamera2, usb or usb:NUMBER, a video file, or a folder of pictures, which is repeated
    Raises ValueError if there is nothing to show, or the camera fails.
    """
    if Path(source).is_dir():
        paths = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in pictures.SUFFIXES)
        if not paths:
            raise ValueError(f"{source} holds no picture ({', '.join(pictures.SUFFIXES)})")
        for path in itertools.cycle(paths):
            yield pictures.read(path, str(path))
    yield from _camera("usb:0" if source == "usb" else source)


def _camera(source: str) -> Iterator[np.ndarray]:
    if not source.startswith(("picamera2", "usb:")) and not Path(source).is_file():
        raise ValueError(f"{source} is no camera (picamera2, usb, usb:1), no video file and no folder")
    script = Path(__file__).with_name("frames.py")
    python = os.environ.get("CAMERA_PYTHON") or (SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable)
    process = subprocess.Popen(
        [python, script, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        while True:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            header = process.stdout.read(8)
            height, width = struct.unpack(">II", header) if len(header) == 8 else (0, 0)
            content = process.stdout.read(height * width * 3)
            if not content or len(content) != height * width * 3:
                process.kill()
                said = process.stderr.read().decode(errors="replace").strip().splitlines()
                raise ValueError(said[-1] if said else f"the camera {source} stopped")
            yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
    finally:
        process.kill()
        process.communicate()
