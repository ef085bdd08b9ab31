"""What the output of a stage says beside its text: that it ran, how far it is, on which device, and why it failed.

DVC and the stages tell a flow nothing else, since they run in processes of their own. tests/flows/test_output.py holds
the patterns against the lines that DVC and the stages print.
"""

import re
import signal
from typing import Protocol

EPOCH = re.compile(r"^\S+: epoch (\d+)/(\d+) ")  # of a training, done
DEVICE = re.compile(r"^\S+: on (.+) \(asked for: ")
RAN = "Running stage "  # DVC's, before the stage's command
EXIT_STATUS = re.compile(r"exited with (-?\d+)$")  # DVC's
DVC_ERROR = "ERROR: "
STAGE_ERROR = ": error: "


class Listener(Protocol):
    """Hears of a stage while it runs."""

    def advance(self, fraction: float) -> None:
        """The stage is done to this fraction, in [0, 1]."""

    def see_device(self, device: str) -> None:
        """The stage has chosen the device that it runs on."""


class StageOutput:
    """Collects what the lines of one command say, and passes progress and device on as they come."""

    def __init__(self, listener: Listener) -> None:
        self.ran = False
        self._listener = listener
        self._reasons: list[str] = []
        self._status: int | None = None

    def see(self, line: str) -> None:
        """Take note of a line."""
        if line.startswith(RAN):
            self.ran = True
        if epoch := EPOCH.match(line):
            self._listener.advance(int(epoch[1]) / int(epoch[2]))
        if STAGE_ERROR in line or line.startswith(DVC_ERROR):
            self._reasons.append(line)
        if status := EXIT_STATUS.search(line):
            self._status = int(status[1])
        if device := DEVICE.match(line):
            self._listener.see_device(device[1])

    def failure(self, status: int) -> str:
        """Why the command failed, in one line: what the stage itself said, else what DVC says.

        Args:
            status: the exit status of DVC.
        """
        if self.killed(status):
            return f"{self._reasons[-1] if self._reasons else 'dvc'}: killed, perhaps out of memory; a retry resumes"
        own = [reason for reason in self._reasons if not reason.startswith(DVC_ERROR)]
        return (own or self._reasons or [f"dvc ended with exit status {status}"])[-1]

    def killed(self, status: int) -> bool:
        """Whether a signal ended the stage, or DVC itself.

        Args:
            status: the exit status of DVC, which is 251 to 255 for errors of its own.
        """
        number = status if self._status is None else self._status
        return number < 0 or 0 < number - 128 <= max(signal.valid_signals())
