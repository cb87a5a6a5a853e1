"""What core is told of memory before a run is within a factor of two of what the engine's recorder counts."""

import pytest
import torch

ROWS, SIDE, TOKENS = 3, 32, 33


def within(told, counted):
    return counted / 2 < told < counted * 2


def recorded(core, network, call):
    return core.module("ff_kernels.bench.recorder").record(call, network).peak_bytes


def unet_on_meta(core, config):
    network = core.module("ff_kernels.models.unets").UNETS[config.stage](config, device="meta")
    context = torch.empty(ROWS, TOKENS, config.context_dim, device="meta")
    return network, context, torch.ones(ROWS, TOKENS, dtype=torch.long)


@pytest.mark.parametrize("name", ["KEYFRAME_V10", "KEYFRAME_V11"])
def test_a_step_of_keyframes(core, demo, monkeypatch, name):
    config = getattr(core.module("ff_kernels.models.configs"), name)
    positions = core.module("ff_kernels.models.keyframe_unet").keyframe_positions(config.family, config.num_frames)
    network, context, mask = unet_on_meta(core, config)
    told = {} if config.family == "1.0" else {"noise_level": 20, "motion_score": 100}
    T = config.num_frames
    conditions = network.prepare(context, mask, torch.tensor([980]), positions=positions, keyframes=T, **told)
    x = torch.empty(ROWS * T, config.num_channels, SIDE, SIDE, device="meta")
    counted = recorded(core, network, lambda: network(x, conditions, 0))
    assert within(demo.model.model.memory_required([ROWS, 4, T, SIDE, SIDE]), counted)


@pytest.mark.parametrize("name", ["INTERPOLATION_V10", "INTERPOLATION_V11"])
def test_a_step_of_interpolation(core, demo, name):
    config = getattr(core.module("ff_kernels.models.configs"), name)
    network, context, mask = unet_on_meta(core, config)
    samples = ROWS * 14
    conditions = network.prepare(context, mask, torch.tensor([980]), num_gaps=14, skip_frames=3)
    x = torch.empty(samples, config.num_channels, SIDE, SIDE, device="meta")
    counted = recorded(core, network, lambda: network(x, conditions, 0))
    assert within(demo.interpolation.model.memory_required([samples, 4, SIDE, SIDE]), counted)


@pytest.mark.parametrize("name", ["MOVQ", "VIDEO_MOVQ"])
@pytest.mark.parametrize("frames", [1, 15])
def test_decoding_and_encoding(core, demo, monkeypatch, name, frames):
    config = getattr(core.module("ff_kernels.models.configs"), name)
    movq = core.module("ff_kernels.models.movq").MoVQ(config, device="meta")
    video = core.module("nodes.adapters.vae").VideoMoVQ(movq, {})
    monkeypatch.setattr(demo.vae.movq, "config", config)
    latents = torch.empty(1, 4, frames, SIDE, SIDE, device="meta")
    told = demo.vae.memory_used_decode(latents.shape, torch.float32)
    assert within(told, recorded(core, video, lambda: video.decode(latents)))
    pixels = torch.empty(1, 3, frames, 8 * SIDE, 8 * SIDE, device="meta")
    told = demo.vae.memory_used_encode(pixels.shape, torch.float32)
    assert within(told, recorded(core, video, lambda: video.encode(pixels)))
