from dataclasses import replace

import pytest
import torch
from support.tiny import INTERPOLATION_V10, MASKED, context, draw, relative, unet

from fusionframes.ff_kernels.checkpoints.folding import fold
from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.models import configs
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet
from fusionframes.ff_kernels.models.masked_unet import GROUP_FRAMES, MaskedUNet
from fusionframes.ff_kernels.sampling.gaps import inner_frames, join_gaps, masked_groups


def prepared(network, rows=1, gaps=2, **told):
    return network.prepare(*context(rows), torch.tensor([40]), num_gaps=gaps, **({"skip_frames": 3} | told))


def test_masked_network_is_the_keyframe_network_with_the_conditions_of_the_interpolation():
    masked = dict(MaskedUNet(configs.MASKED, device="meta").named_parameters())
    keyframe = dict(KeyframeUNet(configs.KEYFRAME_V10, device="meta").named_parameters())
    extra = masked.keys() - keyframe.keys()
    assert keyframe.keys() <= masked.keys()
    assert {name.split(".")[0] for name in extra} == {
        "perturbation_to_time_embed", "time_embed_merge", "skip_merge", "skip_embeddings",
    }  # fmt: skip
    other = [name for name in keyframe if masked[name].shape != keyframe[name].shape]
    assert other == ["in_layer.weight"]
    assert masked["in_layer.weight"].shape[1] == 9


def test_frames_of_a_group_see_each_other_and_no_other_group():
    network = unet(MASKED)
    x, conditions = draw(2 * GROUP_FRAMES, 9, 4, 4), prepared(network)
    changed = x.clone()
    changed[-1] += 1
    moved = (network(changed, conditions) - network(x, conditions)).flatten(1).norm(dim=1)
    assert (moved[:GROUP_FRAMES] == 0).all()
    assert (moved[GROUP_FRAMES:] > 0).all()


@pytest.mark.parametrize("told", [{"skip_frames": 1}, {"noise_level": 200}], ids=["skip", "level"])
def test_conditions_reach_the_output(told):
    network, x = unet(MASKED), draw(2 * GROUP_FRAMES, 9, 4, 4)
    assert relative(network(x, prepared(network, **told)), network(x, prepared(network))) > 1e-4


def test_folding_keeps_the_function():
    network, x = unet(MASKED), draw(2 * GROUP_FRAMES, 9, 4, 4)
    expected = network(x, prepared(network))
    assert relative(fold(network)(x, prepared(network)), expected) < 1e-5


def test_masked_groups_show_both_ends_and_zeros_between():
    keyframes = draw(2, 3, 4, 2, 2)
    shown = masked_groups(keyframes).unflatten(0, (2, 2, 5))
    assert torch.equal(shown[1, 0, 0, :4], keyframes[1, 0])
    assert torch.equal(shown[1, 0, 4, :4], shown[1, 1, 0, :4])
    assert not shown[:, :, 1:4].any()
    assert (shown[:, :, (0, 4), 4] == 1).all()
    with pytest.raises(ShapeError, match="two or more keyframes"):
        masked_groups(keyframes[:, :1])


def test_inner_frames_join_to_the_clip_that_the_groups_were_cut_from():
    clip = draw(2, 9, 4, 2, 2)
    groups = torch.stack([clip[:, i : i + 5] for i in (0, 4)], dim=1).flatten(0, 2)
    assert torch.equal(join_gaps(clip[:, ::4], inner_frames(groups)), clip)


def test_masked_network_exists_in_one_family_only():
    with pytest.raises(InputError, match=r"family 1\.0, got '1\.1'"):
        replace(MASKED, family="1.1")


def test_latent_channels_follow_the_stage():
    assert (MASKED.latent_channels, INTERPOLATION_V10.latent_channels) == (4, 4)
