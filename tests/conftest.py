"""Shared fixtures; tests import the installed package `fusionframes`, never the folder."""

from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
