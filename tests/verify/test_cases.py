import re
import tomllib
from pathlib import Path

import pytest
import torch
from support.tiny import KEYFRAME_V10

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.verify.cases import FORMAT, TapeNoise, case_weight
from fusionframes.ff_kernels.verify.run import find_cases


def test_tape_noise_draws_depend_on_kind_and_number():
    noise, again = TapeNoise(3), TapeNoise(3)
    first = noise.normal((2, 2))
    assert torch.equal(first, again.normal((2, 2)))
    assert not torch.equal(first, noise.normal((2, 2)))
    assert (noise.uniform((50,)) >= 0).all()


def test_case_weight_rules_follow_the_key():
    assert case_weight("a.temporal_merge1", (1,), 0).item() == pytest.approx(0.5, abs=1)
    assert case_weight("a.weight", (4000,), 0).mean().item() == pytest.approx(1, abs=0.02)
    assert case_weight("a.bias", (4000,), 0).std().item() == pytest.approx(0.1, abs=0.01)
    assert case_weight("a.weight", (400, 100), 0).std().item() == pytest.approx(0.1, abs=0.01)
    assert KEYFRAME_V10.side_multiple == 2


def test_errors_send_the_reader_to_a_page_that_is_installed(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(FORMAT))):
        find_cases(tmp_path)
    setup = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert FORMAT.name in setup["tool"]["setuptools"]["package-data"]["fusionframes.ff_kernels.verify"]
    page = FORMAT.read_text(encoding="utf-8")
    assert all(word in page for word in ("zlib.crc32(key.encode())", "tape_seed", "skip_frames", "state_dict"))
