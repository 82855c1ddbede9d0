"""Where live pictures come from: a camera, a video file, or a folder of pictures, one after the other."""

import contextlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import IO

import numpy as np

from classifier import pictures
from classifier.frames import MARK
from targets.picture import SUFFIXES

SYSTEM_PYTHON = Path("/usr/bin/python3")
SILENCE_S = 10.0
"""without a picture for so long, a camera has failed; the first one takes a Pi some seconds"""


def frames(source: str) -> Generator[np.ndarray, None, None]:
    """RGB (H, W, 3) uint8, each as new as it can be when it is asked for; endless. Closing it lets go of the camera.

    source: picamera2, usb or usb:NUMBER, a video file, or a folder of pictures, which is repeated
    Raises ValueError if there is nothing to show, or the camera fails.
    """
    if Path(source).is_dir():
        yield from _folder(Path(source))
    else:
        yield from _camera("usb:0" if source == "usb" else source)


def _folder(folder: Path) -> Generator[np.ndarray, None, None]:
    paths = pictures.inside(folder)
    while paths:
        for path in list(paths):
            try:
                yield pictures.read(path)
            except ValueError as error:
                print(f"error: {path}: {error}", file=sys.stderr)
                paths.remove(path)
    raise ValueError(f"{folder} holds no picture that can be read ({', '.join(SUFFIXES)})")


def _camera(source: str) -> Generator[np.ndarray, None, None]:
    if source != "picamera2" and not re.fullmatch("usb:[0-9]{1,3}", source) and not Path(source).is_file():
        raise ValueError(f"{source} is no camera (picamera2, usb, usb:1), no video file and no folder")
    script = Path(__file__).with_name("frames.py")
    python = os.environ.get("CAMERA_PYTHON") or (SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable)
    process = subprocess.Popen(
        [python, script, source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, and what the driver starts ends with it
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    said: deque[str] = deque(maxlen=50)
    listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
    listener.start()
    try:
        while True:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its reason is to be read
                process.stdin.write(b"\n")
                process.stdin.flush()
            deadline = time.monotonic() + SILENCE_S
            height, width = struct.unpack(">II", _read(process.stdout, 8, deadline))
            content = _read(process.stdout, height * width * 3, deadline)
            yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
    except (EOFError, TimeoutError) as error:
        _end(process, listener)
        others = [line for line in said if not line.startswith(MARK)]
        print("".join(f"{line}\n" for line in others), end="", file=sys.stderr)
        reasons = [line.removeprefix(MARK) for line in said if line.startswith(MARK)] or others[-1:]
        if isinstance(error, TimeoutError) or not reasons:
            raise ValueError(f"the camera {source} {error}") from error
        raise ValueError(reasons[-1]) from error
    finally:
        _end(process, listener)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):  # what it was asked last
                pipe.close()


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    """So many bytes. Raises EOFError, or TimeoutError once time.monotonic() is past the deadline."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    content = bytearray()
    while len(content) < size:
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"gives no picture for {SILENCE_S:g} s")
        part = os.read(pipe.fileno(), size - len(content))
        if not part:
            raise EOFError("stopped")
        content += part
    return bytes(content)


def _listen(pipe: IO[bytes], said: deque[str]) -> None:
    """Take what the camera's process says, or it stands still once the pipe is full."""
    for line in iter(lambda: pipe.readline(1000), b""):
        said.append(line.decode(errors="replace").rstrip())


def _end(process: subprocess.Popen[bytes], listener: threading.Thread) -> None:
    """Once it has been waited for, its number may be another's."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        listener.join()
