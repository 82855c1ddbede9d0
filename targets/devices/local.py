"""This machine as a device."""

from pathlib import Path

from targets.artifact import RuntimeUnavailable
from targets.devices.job import DeviceError, DeviceResult, Job, Progress
from targets.devices.measure import describe, run
from targets.formats import FORMATS


class Local:
    """This machine."""

    name = "this machine"

    def __init__(self) -> None:
        self.description = describe()

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job here. Raises DeviceError if the artifact's runtime is not installed."""
        try:
            return run(job, folder, FORMATS[job.format].load, progress)
        except RuntimeUnavailable as error:
            raise DeviceError(str(error)) from error
