"""A camera's newest frame on demand: runs in the system's own Python, which has picamera2 and OpenCV from apt.

A virtual environment that sees apt's picamera2 would have to keep apt's old numpy as well; two processes need not.

    /usr/bin/python3 frames.py picamera2|usb:NUMBER|VIDEO

A line on stdin asks for a frame; the answer on stdout is height and width (two big-endian uint32) and RGB bytes.
Problems are a line on stderr and exit code 1. Needs no other file of the app.
"""

import struct
import sys

SIZE = (640, 480)


def pi_camera():
    """RGB frames (H, W, 3) of the camera on the ribbon cable."""
    from picamera2 import Picamera2

    camera = Picamera2()
    # what libcamera calls BGR888 lies in memory as R, G, B
    camera.configure(camera.create_video_configuration(main={"format": "BGR888", "size": SIZE}))
    camera.start()
    while True:
        yield camera.capture_array("main")


def opencv(source):
    """RGB frames (H, W, 3) of a USB camera's number, or of a video file, which begins again at its end."""
    import cv2

    camera = cv2.VideoCapture(source)
    if not camera.isOpened():
        raise OSError(f"{source} cannot be opened as a camera or video")
    if isinstance(source, int):
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, SIZE[0])
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, SIZE[1])
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest one, not the oldest that waits
    while True:
        there, frame = camera.read()
        if not there and not isinstance(source, int):
            camera.set(cv2.CAP_PROP_POS_FRAMES, 0)
            there, frame = camera.read()
        if not there:
            raise OSError(f"{source} gives no picture any more")
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def main(source):
    try:
        if source == "picamera2":
            frames = pi_camera()
        else:
            frames = opencv(int(source.removeprefix("usb:")) if source.startswith("usb:") else source)
        for _ in sys.stdin.buffer:
            frame = next(frames)
            sys.stdout.buffer.write(struct.pack(">II", *frame.shape[:2]))
            sys.stdout.buffer.write(frame.tobytes())
            sys.stdout.buffer.flush()
    except ImportError as error:
        package = "python3-picamera2" if source == "picamera2" else "python3-opencv"
        sys.exit(f"{error}. Install it: sudo apt install {package}")
    except BrokenPipeError:
        pass
    except Exception as error:  # drivers raise anything; the one who asked has to be told
        sys.exit(f"the camera {source} failed: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
