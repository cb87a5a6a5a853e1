"""Printing that never fails a finished job, and ends that leave nothing behind."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Ended(KeyboardInterrupt):
    """The process was told to end, by a signal other than that of Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def spell_anything() -> None:
    """Let the console print names that its encoding cannot spell, escaped."""
    for stream in (sys.stdout, sys.stderr):
        # Whoever calls from Python may have put other objects there, and a program without a console has None.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print what a finished job did; a reader that left or a full disk behind the console does not fail it."""
    try:
        print(text, flush=True)
    except OSError:
        drop_output()


def drop_output() -> None:
    """Send what is still to be printed nowhere, else Python would fail over it at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Turn the signals that end a process into ``Ended`` inside of the block, so that files are cleaned up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # One that is ignored, as under nohup, stays so; outside of the main thread nothing can be set.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            with suppress(ValueError):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
