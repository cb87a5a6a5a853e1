"""The paper's baseline as a MODEL: the nodes that fill gaps take it as they take the interpolation U-Net."""

import pytest
import torch
from support import tiny

from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind

NAME = "masked.safetensors"


@pytest.fixture(scope="module")
def baseline(core):
    folder = core.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**tiny.unet(tiny.MASKED).state_dict(), "null_embedding": tiny.draw(tiny.CONTEXT, seed=7)}
    write_checkpoint(folder / NAME, Kind("masked", "1.0", tiny.MASKED), tensors, None)
    core.folder_paths.filename_list_cache.clear()
    return core.run("FusionFramesLoadModel", model_name=NAME)[0]


@pytest.fixture
def frames():
    return {"samples": tiny.draw(1, 4, 6, 8, 8, seed=2)}


def test_masked_interpolate_fills_what_is_missing_and_keeps_what_is_known(core, baseline, frames):
    missing = torch.tensor([0.0, 1, 1, 0, 1, 0])
    latent = {**frames, "noise_mask": missing[:, None, None].expand(-1, 8, 8)}
    known = missing == 0
    made = core.run("FusionFramesMaskedInterpolate", model=baseline, latent=latent, seed=1, steps=3)[0]["samples"]
    other = core.run("FusionFramesMaskedInterpolate", model=baseline, latent=latent, seed=2, steps=3)[0]["samples"]
    assert torch.equal(made[:, :, known], frames["samples"][:, :, known])
    assert made.isfinite().all()
    assert not torch.allclose(made[:, :, ~known], frames["samples"][:, :, ~known])
    assert not torch.allclose(made[:, :, ~known], other[:, :, ~known])


def test_interpolate_takes_the_baseline_as_well(core, baseline, frames):
    made, fps = core.run("FusionFramesInterpolate", model=baseline, latent=frames, seed=1, steps=2, passes=1, fps=2.0)
    assert made["samples"].shape == (1, 4, 21, 8, 8)
    assert torch.equal(made["samples"][:, :, ::4], frames["samples"])
    assert fps == 8.0


def test_keyframe_sampler_says_where_the_baseline_belongs(core, demo, prompts, latent, baseline):
    with pytest.raises(Exception, match=r"expected the keyframe U-Net, got the masked U-Net.*Masked Interpolate"):
        core.run(
            "FusionFramesKeyframeSampler", model=baseline, positive=prompts[0], negative=prompts[1], latent=latent,
            seed=0, steps=2,
        )  # fmt: skip
