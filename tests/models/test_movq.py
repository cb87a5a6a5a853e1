from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from support.tiny import MOVQ, VIDEO_MOVQ, draw, relative
from torch import nn

from fusionframes.ff_kernels.errors import ShapeError
from fusionframes.ff_kernels.models import configs
from fusionframes.ff_kernels.models.movq import MoVQ, SpatialNorm
from fusionframes.ff_kernels.verify.cases import fill_weights

# Paper table 3 and the flags that give each row; parameters counted on the authors' class.
TABLE = {
    "image": ({}, 161_118_211),
    "conv_3x1x1": ({"temporal": True, "temporal_kernel_size": (3, 1, 1)}, 203_210_271),
    "conv_3x3x3": ({"temporal": True}, 539_803_167),
    "conv_3x1x1_attention": (
        {"temporal": True, "temporal_kernel_size": (3, 1, 1), "temporal_attention_block": True}, 220_053_023
    ),
    "conv_3x3x3_attention": ({"temporal": True, "temporal_attention_block": True}, 556_645_919),
    "resnet_attention": ({"temporal_blocks": True, "temporal_attention_block": True}, 220_268_035),
    "inflated_3d": ({"build_3D_decoder": True}, 419_461_123),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_decoder_of_every_table_row_has_the_counted_parameters(name):
    flags, parameters = TABLE[name]
    decoder = MoVQ(replace(configs.MOVQ, **flags), device="meta").decoder
    assert sum(p.numel() for p in decoder.parameters()) == parameters


@pytest.mark.parametrize("name", TABLE)
def test_decoder_of_every_table_row_runs_and_sees_time_only_inside_a_clip(name):
    flags, _ = TABLE[name]
    movq = fill_weights(MoVQ(replace(MOVQ, **flags)), 0)
    latents = draw(6, 4, 4, 6)
    pixels = movq.decode(latents, frames=3)
    assert pixels.shape == (6, 3, 8, 12)
    assert relative(movq.decode(latents[:3], frames=3), pixels[:3]) < 1e-5
    changed = latents.clone()
    changed[5] += 1
    moved = (movq.decode(changed, frames=3) - pixels).flatten(1).norm(dim=1)
    assert (moved[:3] == 0).all()
    assert moved[5] > 0
    assert (moved[3:5] > 0).all() == (name != "image")


def test_shared_map_follows_frame_zero_of_each_clip():
    movq = fill_weights(MoVQ(MOVQ), 0)
    latents = draw(4, 4, 4, 4)
    exact, shared = movq.decode(latents, frames=2), movq.decode(latents, frames=2, shared_map=True)
    assert torch.allclose(exact[0::2], shared[0::2], atol=1e-5)
    assert relative(shared[1::2], exact[1::2]) > 1e-3


def test_image_decoder_does_not_depend_on_the_split():
    movq = fill_weights(MoVQ(MOVQ), 0)
    latents = draw(5, 4, 4, 4)
    parts = torch.cat([movq.decode(part) for part in latents.split(2)])
    assert relative(parts, movq.decode(latents)) < 1e-5


def test_channels_last_and_float64_agree_with_float32():
    movq = fill_weights(MoVQ(VIDEO_MOVQ), 0)
    latents = draw(3, 4, 4, 4)
    expected = movq.double().decode(latents.double())
    movq.float()
    assert relative(movq.decode(latents), expected) < 1e-5
    assert relative(movq.decode(latents.contiguous(memory_format=torch.channels_last)), expected) < 1e-5


def test_encode_odd_side_names_the_multiple():
    with pytest.raises(ShapeError, match="multiples of 2"):
        MoVQ(MOVQ).encode(draw(1, 3, 8, 7))


def test_decode_wrong_channels_names_the_shape():
    with pytest.raises(ShapeError, match=r"\[2, 16, 4, 4\]"):
        MoVQ(MOVQ).decode(draw(2, 16, 4, 4))


def test_layers_of_a_host_are_called_for_the_maps():
    # A host may keep the weights elsewhere until the layer runs, so the norm must not read them by itself.
    class HostConv(nn.Conv2d):
        called: ClassVar[set] = set()

        def forward(self, x):
            self.called.add(self)
            return super().forward(x)

    layers = {name: getattr(nn, name) for name in ("Linear", "Conv3d", "GroupNorm")}
    movq, hosted = MoVQ(MOVQ), MoVQ(MOVQ, operations=SimpleNamespace(**layers, Conv2d=HostConv))
    latents = draw(2, 4, 4, 6)
    pixels = [fill_weights(network, 0).decode(latents) for network in (movq, hosted)]
    assert relative(*pixels) < 1e-5
    norms = [module for module in hosted.decoder.modules() if isinstance(module, SpatialNorm)]
    assert norms
    assert all(norm.conv_y in HostConv.called and norm.conv_b in HostConv.called for norm in norms)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (1, 1), (8, 5)])
def test_encode_refuses_a_picture_without_a_whole_latent_position(size):
    with pytest.raises(ShapeError, match="positive multiples of"):
        MoVQ(MOVQ).encode(torch.zeros(1, 3, *size))
