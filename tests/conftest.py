"""Shared fixtures; tests import the installed package `fusionframes`, never the folder."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

# Workers share the processors, and so does what their tests start; torch reads it when it is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch

# Before anything imports Triton, whose decorators decide then, those of its own library included: the tests of the
# other folders come first and torch imports it here and there. Nothing uses the interpreter unless it is asked for.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what it runs in the background with interrupts ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pytest_terminal_summary(terminalreporter):
    """Say in one line what did not run and why; a skip that nobody reads about looks like a pass."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    if reasons:
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"Skipped: {told}")
