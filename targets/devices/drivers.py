"""Which driver reaches a target's devices."""

from collections.abc import Callable

from targets import Target
from targets.devices.adb import Adb, AdbBrowser
from targets.devices.browser import Browser
from targets.devices.job import Device
from targets.devices.local import Local
from targets.devices.mac import Mac
from targets.devices.ssh import Ssh
from targets.devices.xcode import Xcode

ADB = "adb:"
MAC = "mac"


def connect(target: Target, device: str | None, say: Callable[[str], None], format: str | None = None) -> Device | None:
    """The device that `device` names, ready for jobs; None if there is none to name, and nothing can be measured.

    device: for the Raspberry Pis [user@]host[:port] or a name from ssh's own configuration; for web "chromium", a
    headless one on this machine (the default), "lan", any browser in the network that opens the page which is served,
    or "adb:" and a phone, whose own browser opens it; for android a phone's serial number, "usb" or host:port
    say: told what the user has to know or do
    format: that the device is to run first, and that a board is given a runtime for; None: the target's first one
    Raises ValueError for a device that the target cannot have, DeviceError if it cannot be reached.
    """
    if target.driver == "local":
        if device:
            raise ValueError(f"TARGET={target.name} is this machine: leave DEVICE out")
        return Local()
    if target.driver == "browser" and device and device.startswith(ADB):
        return AdbBrowser.connect(device.removeprefix(ADB), say)
    if target.driver == "browser":
        return Browser.connect(device, say)
    if target.driver == "ssh":
        return Ssh.connect(device, target, say, format) if device else None
    if target.driver == "adb":
        return Adb.connect(device, target, say, format) if device else None
    if MAC in (target.driver, device):
        if device not in (None, MAC):
            raise ValueError(f"TARGET={target.name} is this Mac: leave DEVICE out, or DEVICE={MAC}")
        return Mac() if device else None
    assert target.driver == "xcode", "these are all drivers"
    return Xcode.connect(device, say) if device else None
