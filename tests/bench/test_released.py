import json

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import INTERPOLATION_V10, INTERPOLATION_V11, KEYFRAME_V10, KEYFRAME_V11, draw, unet

from fusionframes.ff_kernels.bench.precision import PLAIN, Precision
from fusionframes.ff_kernels.bench.released_movq import decode_chunk, decode_frames
from fusionframes.ff_kernels.bench.released_text import encode_text
from fusionframes.ff_kernels.bench.released_unet import (
    Shown,
    Texts,
    interpolation_forward,
    interpolation_step,
    keyframe_forward,
    keyframe_step,
)
from fusionframes.ff_kernels.models.configs import MoVQConfig, TextConfig, UNetConfig
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.models.text_encoder import TextEncoder
from fusionframes.ff_kernels.verify.cases import fill_weights
from fusionframes.ff_kernels.verify.checks import FORWARD_LIMIT
from fusionframes.ff_kernels.verify.run import relative_error


def read(golden, name):
    case = json.loads((golden / f"{name}.json").read_text())
    return case, load_file(golden / f"{name}.safetensors")


def network(case, cls, config):
    return fill_weights(cls(config), case["seed"], case["state_dict"])


def keyframe_case(golden):
    case, t = read(golden, "v10_keyframe_unet")
    net = network(case, KeyframeUNet, UNetConfig.from_dict({**case["config"], "family": "1.0", "stage": "keyframe"}))
    frames = case["config"].get("num_frames") or case["num_frames"]
    return net, t, (t["context"], t["context_mask"].bool(), t["temporal_positions"], frames)


def test_keyframe_reference_is_within_the_golden_limit(golden):
    net, t, told = keyframe_case(golden)
    assert relative_error(keyframe_forward(net, t["x"], t["time"], *told), t["out"]) <= FORWARD_LIMIT


def test_interpolation_reference_is_within_the_golden_limit(golden):
    case, t = read(golden, "v10_interpolation_unet")
    config = UNetConfig.from_dict({**case["config"], "family": "1.0", "stage": "interpolation"})
    net, gaps = network(case, InterpolationUNet, config), case["num_temporal_groups"]
    told = (t["context"], t["context_mask"].bool(), t["skip_frames"], gaps)
    assert relative_error(interpolation_forward(net, t["x"], t["time"], *told), t["out"]) <= FORWARD_LIMIT


def test_keyframe_reference_of_1_1_is_within_the_golden_limit(golden):
    case, t = read(golden, "v11_keyframe_unet")
    flags = {"noise_augmentation": True, "motion_score": True}
    config = UNetConfig.from_dict({**case["config"], **flags, "family": "1.1", "stage": "keyframe"})
    told = (t["context"], t["context_mask"].bool(), t["temporal"], case["num_frames"])
    more = {"noise_level": t["noise_aug_time"], "motion_score": t["motion_score"]}
    out = keyframe_forward(network(case, KeyframeUNet, config), t["x"], t["time"], *told, **more)
    assert relative_error(out, t["out"]) <= FORWARD_LIMIT


def test_interpolation_reference_of_1_1_is_within_the_golden_limit(golden):
    case, t = read(golden, "v11_interpolation_unet")
    config = UNetConfig.from_dict({**case["config"], "family": "1.1", "stage": "interpolation"})
    told = (t["context"], t["context_mask"].bool(), t["skip_frames"], case["num_predicted_groups"])
    more = {"noise_level": t["perturbation_time"], "merge": t["temporal_mask"]}
    out = interpolation_forward(network(case, InterpolationUNet, config), t["x"], t["time"], *told, **more)
    assert relative_error(out, t["out"]) <= FORWARD_LIMIT


@pytest.mark.parametrize("name", ["v10_movq", "v11_video_movq"])
def test_movq_reference_is_within_the_golden_limit(golden, name):
    case, t = read(golden, name)
    movq = network(case, MoVQ, MoVQConfig.from_dict(case["config"]))
    assert relative_error(decode_chunk(movq, t["z"]), t["decoded"]) <= FORWARD_LIMIT


def test_text_reference_is_within_the_golden_limit(golden):
    case, t = read(golden, "text")
    encoder = network(case, TextEncoder, TextConfig.from_dict(case["config"]))
    brought = []
    out = encode_text(encoder, t["input_ids"], t["attention_mask"], lambda block: brought.append(block) or block)
    assert relative_error(out, t["last_hidden_state"]) <= FORWARD_LIMIT
    assert brought == [*encoder.encoder.block, encoder.encoder.final_layer_norm]


def test_reference_does_not_change_the_latents_or_weights(golden):
    net, t, told = keyframe_case(golden)
    before = [t["x"].clone(), *(p.clone() for p in net.parameters())]
    keyframe_forward(net, t["x"], t["time"], *told)
    assert all(torch.equal(a, b) for a, b in zip(before, [t["x"], *net.parameters()], strict=True))


def test_precision_of_float64_refines_the_float32_result(golden):
    net, t, told = keyframe_case(golden)
    wide = keyframe_forward(net, t["x"], t["time"], *told, precision=Precision(torch.float64, torch.float64))
    assert wide.dtype == torch.float64
    assert relative_error(wide, t["out"]) <= FORWARD_LIMIT


def test_keyframe_step_is_the_forward_of_both_branches():
    net, x, context = unet(KEYFRAME_V10), draw(3, 4, 8, 4), draw(1, 5, KEYFRAME_V10.context_dim).expand(3, -1, -1)
    mask = torch.tensor([[1, 1, 1, 1, 0]] * 3)
    texts = Texts(context, mask, draw(KEYFRAME_V10.context_dim, seed=2))
    time, positions = torch.full((3,), 20), torch.tensor([0, 60, 120])
    out = keyframe_step(net, x, time, texts, positions)
    assert out.shape == (6, 4, 8, 4)
    both, told = texts.stacked()
    expected = keyframe_forward(
        net, torch.cat([x, x]), torch.cat([time, time]), both, told, positions.repeat(2), 3, PLAIN
    )
    assert torch.equal(out, expected)
    assert not torch.equal(out[:3], out[3:])


def test_interpolation_step_hides_the_keyframes_from_the_second_branch():
    net, x, config = unet(INTERPOLATION_V10), draw(2, 12, 8, 4), INTERPOLATION_V10
    null = draw(config.context_dim)
    context, mask = torch.zeros(2, 2, config.context_dim), torch.tensor([[1, 0]] * 2)
    context[:, 0] = null
    told = (torch.full((2,), 20), Texts(context, mask, null), torch.full((2,), 3))
    one = interpolation_step(net, x, (draw(2, 4, 8, 4), draw(2, 4, 8, 4, seed=1)), *told)
    other = interpolation_step(net, x, (draw(2, 4, 8, 4, seed=2), draw(2, 4, 8, 4, seed=3)), *told)
    assert not torch.allclose(one[:2], other[:2])
    torch.testing.assert_close(one[2:], other[2:])


def test_keyframe_step_of_1_1_shows_the_first_frame_to_two_of_three_branches():
    net, x, config = unet(KEYFRAME_V11), draw(3, 4, 8, 4), KEYFRAME_V11
    context, mask = draw(1, 5, config.context_dim).expand(3, -1, -1), torch.tensor([[1, 1, 1, 1, 0]] * 3)
    told = (torch.full((3,), 20), Texts(context, mask, draw(config.context_dim, seed=2)), torch.arange(3))
    one, other = (keyframe_step(net, x, *told, shown=Shown(draw(3, 5, 8, 4, seed=seed), 20, 10)) for seed in (3, 4))
    assert one.shape == (9, 4, 8, 4)
    assert not torch.allclose(one[:3], other[:3])
    assert not torch.allclose(one[3:6], other[3:6])
    torch.testing.assert_close(one[6:], other[6:])
    assert not torch.allclose(one[:3], one[3:6])


def test_interpolation_step_of_1_1_mixes_nothing_over_time_in_the_second_branch():
    net, config = unet(INTERPOLATION_V11), INTERPOLATION_V11
    context, mask = draw(1, 5, config.context_dim).expand(3, -1, -1), torch.tensor([[1, 1, 1, 1, 0]] * 3)
    told = (torch.full((3,), 20), Texts(context, mask, draw(config.context_dim, seed=2)), torch.full((3,), 3))
    ends, x = (draw(3, 4, 8, 4, seed=1), draw(3, 4, 8, 4, seed=2)), draw(3, 12, 8, 4)
    changed = torch.cat([x[:2], draw(1, 12, 8, 4, seed=5)])
    one, other = (interpolation_step(net, start, ends, *told) for start in (x, changed))
    # The first gap learns of the third in the first branch alone.
    assert not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[3], other[3])


@pytest.mark.parametrize(("frames", "chunks"), [(5, [5]), (8, [4, 4]), (3, [3])])
def test_decode_frames_splits_as_the_release(golden, frames, chunks):
    case, _ = read(golden, "v10_movq")
    movq = network(case, MoVQ, MoVQConfig.from_dict(case["config"]))
    z = draw(frames, 4, 4, 4)
    expected = torch.cat([decode_chunk(movq, part) for part in z.split(chunks)])
    torch.testing.assert_close(decode_frames(movq, z), ((expected + 1) / 2).clamp(0, 1))
