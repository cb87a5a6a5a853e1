import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import KEYFRAME_V10, draw

from fusionframes.ff_kernels.cli import main
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.verify import TapeNoise, case_weight, find_cases, verify, verify_case

CASES = ["text", "v10_interpolation_unet", "v10_keyframe_unet", "v10_movq", "v10_pipeline", "v10_schedule",
         "v11_interpolation_unet", "v11_keyframe_unet", "v11_movq", "v11_pipeline", "v11_video_movq"]  # fmt: skip


def test_find_cases_golden_folder_lists_every_case(golden):
    assert [path.stem for path in find_cases(golden)] == CASES


@pytest.mark.parametrize("parity", ["strict", "fast"])
@pytest.mark.parametrize("name", CASES)
def test_verify_case_reference_is_within_limits(golden, name, parity):
    checks = verify_case(golden / f"{name}.json", parity)
    # Text and schedule have no layers to fold.
    assert bool(checks) == (parity == "strict" or name not in ("text", "v10_schedule"))
    assert {c.parity for c in checks} <= {parity}
    assert [c for c in checks if not c.passed] == []


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(("unet", "movq"))])
def test_verify_case_fast_path_is_another_computation(golden, name):
    strict, fast = ([c.error for c in verify_case(golden / f"{name}.json", parity)] for parity in ("strict", "fast"))
    assert len(strict) == len(fast)
    assert strict != fast


def test_verify_yields_both_paths_of_a_case(golden, tmp_path):
    for suffix in ("json", "safetensors"):
        shutil.copy(golden / f"v10_movq.{suffix}", tmp_path)
    found = [(check.tensor, check.parity) for check in verify(tmp_path)]
    assert found == [(tensor, parity) for parity in ("strict", "fast") for tensor in ("decoded", "latent")]


def test_verify_case_changed_reference_fails(golden, tmp_path):
    tensors = load_file(golden / "v10_movq.safetensors")
    tensors["decoded"][0, 0, 0, 0] += 0.1
    save_file(tensors, tmp_path / "v10_movq.safetensors")
    shutil.copy(golden / "v10_movq.json", tmp_path)
    verdicts = {check.tensor: check.passed for check in verify_case(tmp_path / "v10_movq.json")}
    assert verdicts == {"decoded": False, "latent": True}


def test_verify_case_other_sizes_than_the_shipped_cases_run(tmp_path):
    # Three levels, uneven depth, other heads and frame count: the format must not be tied to the shipped sizes.
    config = {
        "model_channels": 24,
        "init_channels": 16,
        "time_embed_dim": 40,
        "context_dim": 12,
        "groups": 4,
        "head_dim": 8,
        "dim_mult": [1, 2, 3],
        "num_blocks": [2, 3, 2],
        "num_channels": 4,
        "out_channels": 4,
        "add_cross_attention": [False, True, True],
        "add_self_attention": [True, False, True],
        "num_frames": 3,
    }
    from fusionframes.ff_kernels.models.configs import UNetConfig
    from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet

    network = KeyframeUNet(UNetConfig.from_dict({**config, "family": "1.0", "stage": "keyframe"}), device="meta")
    listed = {key: list(value.shape) for key, value in network.state_dict().items()}
    case = {"config": config, "seed": 7, "state_dict": listed}
    (tmp_path / "other.json").write_text(json.dumps(case))
    mask = torch.ones(6, 5, dtype=torch.long)
    tensors = {
        "x": draw(6, 4, 8, 4),
        "time": torch.full((6,), 20.0),
        "context": draw(6, 5, 12),
        "context_mask": mask,
        "temporal_positions": torch.tensor([0, 60, 120] * 2),
        "out": torch.ones(6, 4, 8, 4),
    }
    save_file(tensors, tmp_path / "other.safetensors")
    (check,) = verify_case(tmp_path / "other.json")
    assert 0 < check.error < 100


def test_verify_command_prints_table_and_status(golden, tmp_path, capsys):
    for suffix in ("json", "safetensors"):
        shutil.copy(golden / f"v10_schedule.{suffix}", tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    assert "6 passed, 0 failed" in capsys.readouterr().out
    tensors = load_file(tmp_path / "v10_schedule.safetensors")
    tensors["betas"] += 0.001
    save_file(tensors, tmp_path / "v10_schedule.safetensors")
    assert main(["verify", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_verify_case_non_finite_output_fails():
    from fusionframes.ff_kernels.verify import Check, relative_error

    error = relative_error(torch.tensor([float("nan"), 1.0]), torch.ones(2))
    assert not Check("case", "out", error, 1e-5).passed
    assert relative_error(torch.ones(3), torch.ones(2)) == float("inf")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_verify_case_damaged_description_is_one_sentence(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    save_file({"x": torch.ones(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="bad"):
        verify_case(tmp_path / "bad.json")


def test_find_cases_empty_folder_names_it(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        find_cases(tmp_path)


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
