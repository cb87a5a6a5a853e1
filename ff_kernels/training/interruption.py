"""Ctrl-C and SIGTERM as a wish to stop after the step that runs, so that its work is kept."""

import signal
import threading
from types import FrameType
from typing import Any


class SignalStop:
    """Context manager that notes the first signal; a second one interrupts at once.

    Attributes:
        asked: whether a signal came.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalStop":
        """Take the signals over, where this is the thread that may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
