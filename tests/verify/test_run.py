import json
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import draw

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.models.configs import MoVQConfig
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.runtime.placing import blocks_of, place
from fusionframes.ff_kernels.runtime.plan import Budget, plan_network
from fusionframes.ff_kernels.verify.cases import How, fill_weights
from fusionframes.ff_kernels.verify.run import find_cases, verify, verify_case

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


@pytest.fixture
def streamed(monkeypatch):
    """Networks of cases whose large blocks all pass through two buffers; how many did."""
    counts, ready = [], How.ready
    with ExitStack() as stack:

        def placed(how, network, *args):
            network = ready(how, network, *args)
            if hasattr(network, "step_blocks"):
                blocks = blocks_of(network, torch.float32)
                plan = plan_network(blocks, Budget(is_smallest=True), stacked=0, single=0)
                stack.enter_context(place(network, plan, torch.device("cpu"), torch.float32))
                counts.append(len(plan.streamed))
            return network

        monkeypatch.setattr(How, "ready", placed)
        yield counts


@pytest.mark.parametrize("parity", ["strict", "fast"])
@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(("_unet", "_pipeline"))])
def test_references_are_met_with_weights_that_pass_through(golden, streamed, name, parity):
    checks = verify_case(golden / f"{name}.json", parity)
    assert [c for c in checks if not c.passed] == []
    assert streamed
    assert min(streamed) >= 2


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
    from fusionframes.ff_kernels.verify.run import Check, relative_error

    error = relative_error(torch.tensor([float("nan"), 1.0]), torch.ones(2))
    assert not Check("case", "out", error, 1e-5).passed
    assert relative_error(torch.ones(3), torch.ones(2)) == float("inf")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_verify_case_damaged_description_is_one_sentence(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    save_file({"x": torch.ones(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="bad"):
        verify_case(tmp_path / "bad.json")


def _copy(golden, folder, name, other=None, **changes):
    """Copy a case under another name; ``changes`` replace tensors, or remove those that are None."""
    other = other or name
    shutil.copy(golden / f"{name}.json", folder / f"{other}.json")
    tensors = {**load_file(golden / f"{name}.safetensors"), **changes}
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / f"{other}.safetensors")
    return folder / f"{other}.json"


def _change(path, **changes):
    case = json.loads(path.read_text())
    for key, value in changes.items():
        place = case if key in case else case["config"]
        if value is None:
            del place[key]
        else:
            place[key] = value
    path.write_text(json.dumps(case))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("v10_keyframe_unet", {"head_dim": 7}),
        ("v10_keyframe_unet", {"head_dim": 0}),
        ("v10_keyframe_unet", {"groups": 0}),
        ("v10_keyframe_unet", {"num_frames": 3}),
        ("v11_interpolation_unet", {"num_predicted_groups": 3}),
        ("text", {"feed_forward_proj": "gated-gelu"}),
        ("v10_schedule", {"steps": 0}),
        ("v10_pipeline", {"percentile": 0.9}),
    ],
)
def test_verify_case_that_cannot_run_is_one_sentence(golden, tmp_path, name, changes):
    path = _copy(golden, tmp_path, name)
    _change(path, **changes)
    with pytest.raises(InputError, match=name) as error:
        verify_case(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("v10_keyframe_unet", {"x": torch.zeros(1, 4, 8, 8)}),
        ("v11_interpolation_unet", {"skip_frames": torch.full((8,), 10**6)}),
        ("text", {"input_ids": torch.full((2, 12), 10**6)}),
        ("v10_movq", {"z": torch.zeros(1, 4, 8, 8, dtype=torch.float16)}),
        ("v10_movq", {"decoded": None, "latent": None}),
    ],
)
def test_verify_case_with_other_tensors_is_one_sentence(golden, tmp_path, name, changes):
    with pytest.raises(InputError, match=name) as error:
        verify_case(_copy(golden, tmp_path, name, **changes))
    assert "\n" not in str(error.value)


def test_verify_goes_on_after_a_case_that_cannot_run(golden, tmp_path, capsys):
    _copy(golden, tmp_path, "v10_schedule", "a_broken")
    (tmp_path / "a_broken.safetensors").write_bytes(b"no tensors")
    shutil.copy(golden / "v10_movq.json", tmp_path / "b_lonely.json")
    shutil.copy(golden / "manifest_v10_movq.json", tmp_path)
    _copy(golden, tmp_path, "v10_schedule")
    assert main(["verify", str(tmp_path)]) == 2
    out, errors = capsys.readouterr()
    assert "6 passed, 0 failed, 2 cases not run" in out
    first, second = errors.splitlines()
    assert "a_broken" in first
    assert "b_lonely" in second
    _copy(golden, tmp_path, "v10_schedule", betas=torch.zeros(10))
    assert main(["verify", str(tmp_path)]) == 1


def test_verify_case_takes_what_the_authors_take_where_a_case_is_silent(golden, tmp_path):
    # init_channels is the model's width, and a decoder with parts over time is one of 1.1 by any of them.
    keyframes = _copy(golden, tmp_path, "v10_keyframe_unet", "narrow")
    _change(keyframes, init_channels=None)
    decoder = _copy(golden, tmp_path, "v11_video_movq", "decoder")
    case = json.loads(decoder.read_text())
    assert case["config"].pop("temporal")
    case["config"]["temporal_blocks"] = True
    network = MoVQ(MoVQConfig.from_dict(case["config"]))
    case["state_dict"] = {key: list(value.shape) for key, value in network.state_dict().items()}
    image = _copy(golden, tmp_path, "v11_movq", "v11_plain")
    for key in ("temporal", "temporal_attention_block", "temporal_kernel_size", "temporal_conv_padding"):
        _change(image, **{key: None})
    assert all(check.passed for check in [*verify_case(keyframes), *verify_case(image)])
    with torch.inference_mode():
        z = load_file(golden / "v11_video_movq.safetensors")["z"]
        expected = fill_weights(network, case["seed"]).decode(z, shared_map=True)
    _copy(golden, tmp_path, "v11_video_movq", "decoder", decoded=expected)
    decoder.write_text(json.dumps(case))
    (check,) = verify_case(decoder)
    assert check.passed


def test_verify_case_without_perturbation_is_that_of_the_authors_default(golden, tmp_path):
    given = load_file(golden / "v11_interpolation_unet.safetensors")["perturbation_time"]
    errors = [
        verify_case(_copy(golden, tmp_path, "v11_interpolation_unet", perturbation_time=value))[0].error
        for value in (None, torch.full_like(given, 25), torch.zeros_like(given))
    ]
    assert errors[0] == errors[1] != errors[2]


def test_verify_case_pipelines_without_interpolation_compare_what_they_hold(golden, tmp_path):
    for name, held in (("v10_pipeline", {"keyframes_negative"}), ("v11_pipeline", {"keyframes"})):
        tensors = load_file(golden / f"{name}.safetensors")
        results = {"keyframes_plain", "image_latent", "video_medium", "video_high", "frames"}
        gone = {key: None for key in tensors if key in results or key.startswith("interpolation_")}
        checks = verify_case(_copy(golden, tmp_path, name, **gone))
        assert held <= {check.tensor for check in checks}
        assert all(check.passed for check in checks)


def test_find_cases_empty_folder_names_it(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        find_cases(tmp_path)
