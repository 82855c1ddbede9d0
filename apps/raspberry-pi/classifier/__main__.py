"""The command line: classify pictures, show what the camera sees, check the board."""

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from classifier import camera, check, model, pictures, web

DESCRIPTION = "Classify pictures with the model in model/. Nothing leaves this device."
EXIT_CODES = """Exit codes: 0 done (serve: ended by SIGTERM), 1 some pictures could not be read or the check failed,
2 wrong use or damaged files, 130 interrupted, 141 nobody reads the output, 143 ended by SIGTERM."""


def main() -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="classify", description=DESCRIPTION, epilog=EXIT_CODES)
    parser.add_argument(
        "what", nargs="+", metavar="PICTURE",
        help="pictures and folders of pictures; or one of: serve (a page with the camera's picture), check, about",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    parser.add_argument("--top", type=int, default=5, help="how many labels (5)")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parents[1] / "model", help="folder with the manifest"
    )
    parser.add_argument(
        "--runtime",
        choices=sorted(model.RUNTIMES),
        help="instead of the first that is installed; tflite-runtime is not of install.sh's making",
    )
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="check: 10 seconds of latency instead of 60")
    parser.add_argument(
        "--camera", default="picamera2", help="serve: picamera2, usb, usb:1, a video file, a folder of pictures"
    )
    parser.add_argument("--host", default="127.0.0.1", help="serve: 0.0.0.0 lets your network in, with a token")
    parser.add_argument("--port", type=int, default=8000, help="serve: 8000")
    given = parser.parse_args()
    if given.top < 1 or given.threads < 1:
        parser.error("--top and --threads must be at least 1")
    if not 0 <= given.port < 2**16:
        parser.error("--port must be from 0 (any that is free) to 65535")
    ended = 0 if given.what == ["serve"] else 128 + signal.SIGTERM  # systemd stops a service with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ended))
    try:
        code = _run(given)
        sys.stdout.flush()
        return code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + signal.SIGPIPE


def _run(given: argparse.Namespace) -> int:
    classifier = model.load(given.model, given.runtime, given.threads)
    if classifier.warning:
        print(f"warning: {classifier.warning}", file=sys.stderr)
    if given.what == ["serve"]:
        web.serve(classifier, partial(camera.frames, given.camera), given.host, given.port)
        return 0
    if given.what == ["check"]:
        found = check.check(classifier, quick=given.quick)
        print(json.dumps(found, indent=2, allow_nan=False))
        return 1 if classifier.warning else 0
    if given.what == ["about"]:
        print(json.dumps(web.about(classifier), indent=2, allow_nan=False))
        return 0
    failed = False
    for path in _pictures(given.what):
        try:
            answer = classifier(pictures.read(path), given.top)
        except ValueError as error:
            failed = True
            print(f"error: {path}: {error}", file=sys.stderr)
            continue
        if given.json:
            top = [{"label": label, "probability": share} for label, share in answer.top]
            line = {"file": str(path), "top": top, "milliseconds": answer.milliseconds}
            print(json.dumps(line, allow_nan=False), flush=True)
        else:
            print(path)
            for label, share in answer.top:
                print(f"  {100 * share:5.1f} %  {label}", flush=True)
    return 1 if failed else 0


def _pictures(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = Path(name)
        found += pictures.inside(path) if path.is_dir() else [path]
    return found


if __name__ == "__main__":
    sys.exit(main())
