from dataclasses import replace

import pytest
import torch

from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.training.initial import initialise


def test_initialise_leaves_the_video_decoder_equal_to_the_image_decoder():
    with torch.no_grad():
        image = MoVQ(recipe.MOVQ)
        flags = {"temporal": True, "temporal_kernel_size": (3, 1, 1)}
        video = initialise(MoVQ(replace(recipe.MOVQ, **flags)))
        video.load_state_dict(image.state_dict(), strict=False)
        latents = torch.randn(3, 4, 4, 4)
        assert torch.allclose(video.decode(latents), image.decode(latents), atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {"temporal": True, "temporal_kernel_size": (3, 1, 1), "temporal_attention_block": True},
        {"temporal_blocks": True, "temporal_attention_block": True},
    ],
)
def test_initialise_leaves_every_video_decoder_equal_to_the_image_decoder(flags):
    with torch.no_grad():
        image = MoVQ(recipe.MOVQ)
        video = initialise(MoVQ(replace(recipe.MOVQ, **flags)))
        video.load_state_dict(image.state_dict(), strict=False)
        latents = torch.randn(3, 4, 4, 4)
        assert torch.allclose(video.decode(latents), image.decode(latents), atol=1e-5)
