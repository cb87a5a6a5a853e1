from dataclasses import replace

import pytest
import torch

from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.start.noise_path import (
    LATENT_POWER,
    carry_noise,
    gate_estimate,
    hold_noise,
    path_gains,
)
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet, keyframe_positions
from fusionframes.ff_kernels.training.initial import initialise
from fusionframes.ff_kernels.training.noise_levels import noise_levels

FRAMES = recipe.KEYFRAMES.num_frames


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return initialise(KeyframeUNet(recipe.KEYFRAMES))


def predict(unet, x, timestep=960):
    context = torch.randn(1, 9, recipe.CONTEXT_DIM, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    conditions = unet.prepare(
        context, torch.ones(1, 9), torch.tensor([timestep]), positions=keyframe_positions("1.0", FRAMES),
        keyframes=FRAMES,
    )  # fmt: skip
    return unet(x, conditions)


def noise(seed=2, side=16):
    return torch.randn(FRAMES, 4, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
# The last norm is taken over the whole frame, so that a small one tells more of the noise in it.
@pytest.mark.parametrize(("side", "limit"), [(8, 0.01), (16, 0.004), (32, 0.002)])
@pytest.mark.parametrize("timestep", [0, 500, 980])
def test_carry_noise_returns_the_input_at_every_step_and_size(unet, timestep, side, limit):
    x = noise(side=side)
    before = (predict(unet, x, timestep) - x).square().mean().sqrt()
    carry_noise(unet)
    after = (predict(unet, x, timestep) - x).square().mean().sqrt()
    assert before > 0.5
    assert after < limit


def test_hold_noise_keeps_the_path_while_the_rest_learns(unet):
    carry_noise(unet)
    hold_noise(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2, weight_decay=0)
    x = noise()
    start = predict(unet, x).detach()
    for _ in range(3):
        optimizer.zero_grad()
        (predict(unet, x) - x - 0.1).square().mean().backward()
        optimizer.step()
    learnt = predict(unet, x).detach() - start
    assert learnt.abs().mean() > 0.01
    # What was added does not depend on how the branch was trained; without it the input comes out as before.
    branch = unet.up_samples[-1].resnet_attn_blocks[-1][2].resnet_blocks[3].projection
    with torch.no_grad():
        branch.weight.zero_()
        branch.bias.zero_()
        assert torch.allclose(predict(unet, x), start, atol=1e-6)


class Prediction(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x):
        return predict(self.unet, x)


def test_hold_noise_holds_where_a_forward_runs_on_cast_weights(unet):
    carry_noise(unet)
    hold_noise(unet)
    prediction = Prediction(unet)
    cast = {key: value.to(torch.bfloat16) for key, value in prediction.named_parameters()}
    out = torch.func.functional_call(prediction, cast, (noise().to(torch.bfloat16),))
    out.float().square().mean().backward()
    assert unet.out_layer[0].weight.grad.abs().max() == 0
    assert unet.in_layer.weight.grad[:4].abs().max() == 0
    assert unet.up_samples[-1].resnet_attn_blocks[-1][2].resnet_blocks[3].projection.weight.grad.abs().max() > 0


def test_hold_noise_changes_no_weight(unet):
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    hold_noise(unet)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


@pytest.mark.parametrize("sizes", [{"num_blocks": (1, 2)}, {"groups": 4}])
def test_carry_noise_refuses_sizes_that_the_path_does_not_fit(sizes):
    with pytest.raises(ValueError, match="expected two levels"):
        carry_noise(KeyframeUNet(replace(recipe.KEYFRAMES, **sizes)))


@pytest.fixture
def gated(unet):
    """A network whose path and branch are gated, with what each of 50 steps tells it."""
    steps, bars = noise_levels(50)
    with torch.no_grad():
        # Times spread as start values spread them (keyframe_start.py).
        unet.to_time_embed[3].weight.mul_(8)
        vectors = torch.nn.functional.silu(unet.embed(unet.to_time_embed, steps, torch.zeros(1)))
        unet.feature_pooling.forward = lambda *_: torch.zeros(1, recipe.KEYFRAMES.time_embed_dim)
        carry_noise(unet)
        gate_estimate(unet, vectors, bars.sqrt().float())
    return unet, steps, bars


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 1, 5, 10, 20, 30, 38])
def test_gated_path_returns_the_noisy_clip_over_the_noises_share(gated, place):
    unet, steps, bars = gated
    clip = torch.randn(FRAMES, 4, 1, 1) * LATENT_POWER**0.5
    clip = clip.expand(FRAMES, 4, 16, 16)
    x = bars[place].sqrt() * clip + (1 - bars[place]).sqrt() * noise()
    wanted = x / (1 - bars[place]).sqrt()
    error = (predict(unet, x.float(), int(steps[place])) - wanted).square().mean().sqrt()
    # What a picture has more or less of than the mean picture moves the gain by a few per cent where it is large.
    assert error < (0.01 if place < 2 else 0.12) * wanted.square().mean().sqrt()


@torch.no_grad()
def test_gated_branch_is_multiplied_by_the_signals_share_of_the_prediction(gated):
    unet, steps, bars = gated
    vectors = torch.nn.functional.silu(unet.embed(unet.to_time_embed, steps, torch.zeros(1)))
    scale, shift = (
        unet.up_samples[-1]
        .resnet_attn_blocks[-1][2]
        .resnet_blocks[3]
        .group_norm.context_mlp[1](vectors)
        .chunk(2, dim=1)
    )
    wanted = bars.sqrt().float() * path_gains(bars.sqrt().float())
    assert ((1 + scale[:, :-1]) - wanted[:, None]).abs().max() < 0.1
    assert ((1 + scale[:5, :-1]) - wanted[:5, None]).abs().max() < 0.02
    assert not shift[:, :-1].any()
    assert torch.equal(scale[:, -1], -torch.ones(50))


def test_path_gains_are_those_of_the_formula_until_they_end():
    bars = noise_levels(50)[1]
    gains = path_gains(bars.sqrt())
    assert torch.allclose(gains[:38], (1 - bars[:38]).rsqrt(), rtol=1e-5)
    assert (gains.diff() >= -1e-6).all()
    assert gains.max() < 4
