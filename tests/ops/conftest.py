"""Kernels run on a CUDA device where there is one, else in Triton's interpreter."""

import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.ops import registry


@pytest.fixture
def device() -> str:
    return "cpu" if registry.is_interpreting() else "cuda"


@pytest.fixture
def triton_backend():
    reason = registry.unavailable("triton")
    if reason:
        pytest.skip(f"triton: {reason}")
    # The interpreter is numpy, which warns where exp overflows: SiLU of a large negative number is 0 all the same.
    with registry.use_backend("triton"), np.errstate(over="ignore"):
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
