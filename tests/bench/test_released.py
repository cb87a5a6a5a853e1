import json

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import INTERPOLATION_V10, KEYFRAME_V10, draw, unet

from fusionframes.ff_kernels.bench.precision import PLAIN, Precision
from fusionframes.ff_kernels.bench.released_movq import decode_chunk, decode_frames
from fusionframes.ff_kernels.bench.released_unet import (
    Texts,
    interpolation_forward,
    interpolation_step,
    keyframe_forward,
    keyframe_step,
)
from fusionframes.ff_kernels.models.configs import MoVQConfig, UNetConfig
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet
from fusionframes.ff_kernels.models.movq import MoVQ
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


def test_movq_reference_is_within_the_golden_limit(golden):
    case, t = read(golden, "v10_movq")
    movq = network(case, MoVQ, MoVQConfig.from_dict(case["config"]))
    assert relative_error(decode_chunk(movq, t["z"]), t["decoded"]) <= FORWARD_LIMIT


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


@pytest.mark.parametrize(("frames", "chunks"), [(5, [5]), (8, [4, 4]), (3, [3])])
def test_decode_frames_splits_as_the_release(golden, frames, chunks):
    case, _ = read(golden, "v10_movq")
    movq = network(case, MoVQ, MoVQConfig.from_dict(case["config"]))
    z = draw(frames, 4, 4, 4)
    expected = torch.cat([decode_chunk(movq, part) for part in z.split(chunks)])
    torch.testing.assert_close(decode_frames(movq, z), ((expected + 1) / 2).clamp(0, 1))
