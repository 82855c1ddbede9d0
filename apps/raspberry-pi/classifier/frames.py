"""A camera's newest frame on demand: runs in the system's own Python, which has picamera2 and OpenCV from apt.

A virtual environment that sees apt's picamera2 would have to keep apt's old numpy as well; two processes need not.

    /usr/bin/python3 frames.py picamera2|usb:NUMBER|VIDEO

A byte on stdin asks for a frame; the answer on stdout is height and width (two big-endian uint32) and RGB bytes.
A problem is a line on stderr that begins with MARK, and exit code 1; whatever else stands there is the drivers'.
Needs no other file of the app.
"""

import os
import struct
import sys
import threading

MARK = "camera: "
SIZE = (640, 480)


def pi_camera():
    """RGB frames (H, W, 3) of the camera on the ribbon cable."""
    from picamera2 import Picamera2

    if not Picamera2.global_camera_info():
        raise OSError("no camera was found; check the ribbon cable, and rpicam-hello --list-cameras")
    camera = Picamera2()
    # what libcamera calls BGR888 lies in memory as R, G, B
    camera.configure(camera.create_video_configuration(main={"format": "BGR888", "size": SIZE}))
    camera.start()
    while True:
        yield camera.capture_array("main")


def opencv(source):
    """RGB frames (H, W, 3) of a USB camera's number, or of a video file, which begins again at its end."""
    import cv2

    live = isinstance(source, int)
    # OpenCV would try GStreamer first, where the three settings below do nothing
    camera = cv2.VideoCapture(source, cv2.CAP_V4L2) if live else cv2.VideoCapture(source)
    if not camera.isOpened():
        raise OSError("it cannot be opened as a camera or video")
    if live:
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, SIZE[0])
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, SIZE[1])
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest one, not the oldest that waits
    while True:
        there, frame = camera.read()
        if not there and not live:
            camera.set(cv2.CAP_PROP_POS_FRAMES, 0)
            there, frame = camera.read()
        if not there:
            raise OSError("it gives no picture any more")
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def listen(asked):
    """Take requests. Once nobody is there to ask, end: a camera that hangs would hold this process for ever."""
    while os.read(0, 1):
        asked.release()
    os._exit(0)


def main(source):
    asked = threading.Semaphore(0)
    threading.Thread(target=listen, args=(asked,), daemon=True).start()
    try:
        if source == "picamera2":
            frames = pi_camera()
        else:
            frames = opencv(int(source.removeprefix("usb:")) if source.startswith("usb:") else source)
        while asked.acquire():
            frame = next(frames)
            sys.stdout.buffer.write(struct.pack(">II", *frame.shape[:2]))
            sys.stdout.buffer.write(frame.tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        pass
    except ImportError as error:
        package = "python3-picamera2" if source == "picamera2" else "python3-opencv"
        problem(f"{error}. Install it: sudo apt install {package}")
    except Exception as error:  # drivers raise anything; the one who asked has to be told
        problem(f"the camera {source} failed: {error}")


def problem(text):
    """Say it in one line and end, without the drivers' own farewell, which may hang."""
    print(MARK + " ".join(text.split()), file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
