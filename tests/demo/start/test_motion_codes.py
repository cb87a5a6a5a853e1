import pytest
import torch

from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.start.motion_codes import DIRECTIONS, directions, keyframe_codes, write_motion
from fusionframes.ff_kernels.demo.world.scenes import MOTIONS, Scene
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet, keyframe_positions
from fusionframes.ff_kernels.training.initial import initialise

FRAMES = recipe.KEYFRAMES.num_frames


def scene(motion):
    return Scene("small", "red", "circle", motion, "black")


def test_directions_are_opposite_for_opposite_motions_and_zero_for_none():
    for i, (ahead, back) in enumerate(DIRECTIONS):
        assert directions(scene(ahead))[i] == 1
        if back:
            assert directions(scene(back)) == tuple(-x for x in directions(scene(ahead)))
    assert directions(scene("stays")) == directions(None) == (0, 0, 0, 0)
    assert len({directions(scene(motion)) for motion in MOTIONS}) == len(MOTIONS)


def test_keyframe_codes_tell_all_frames_apart():
    codes = keyframe_codes(FRAMES)
    assert codes.shape == (FRAMES, 2 + len(DIRECTIONS))
    assert (torch.cdist(codes, codes) + 9 * torch.eye(FRAMES)).min() > 0.5


@pytest.fixture(scope="module")
def written():
    """What the block adds to its coded channels when a caption's vector says each motion."""
    torch.manual_seed(0)
    unet = initialise(KeyframeUNet(recipe.KEYFRAMES))
    said = {motion: torch.randn(recipe.KEYFRAMES.time_embed_dim) for motion in MOTIONS}
    steps = torch.arange(0, 1000, 20)
    time = unet.embed(unet.to_time_embed, steps, torch.zeros(1))
    with torch.no_grad():
        vectors = torch.cat([torch.nn.functional.silu(time + said[motion]) for motion in MOTIONS])
        told = torch.tensor([directions(scene(motion)) for motion in MOTIONS]).repeat_interleave(len(steps), 0)
        write_motion(unet, vectors, told)
        block, added = unet.down_samples[1].temporal_attention_block, {}
        x = torch.randn(FRAMES, 4, 16, 16)
        for motion in MOTIONS:
            unet.feature_pooling.forward = lambda *_, motion=motion: said[motion][None]
            hook = block.register_forward_hook(
                lambda _, i, out, motion=motion: added.__setitem__(motion, (out - i[0])[:, -6:].mean(dim=(2, 3)))
            )
            conditions = unet.prepare(
                torch.zeros(1, 2, recipe.CONTEXT_DIM), torch.ones(1, 2), torch.tensor([960]),
                positions=keyframe_positions("1.0", FRAMES), keyframes=FRAMES,
            )  # fmt: skip
            unet(x, conditions)
            hook.remove()
    return added


@pytest.mark.parametrize("place", range(3))
def test_write_motion_puts_direction_times_time_into_a_channel_of_its_own(written, place):
    ahead, back = DIRECTIONS[place]
    difference = written[ahead] - written[back]
    channel = 2 + place
    time = torch.linspace(-1, 1, FRAMES)
    # The second direction is written with the other sign.
    assert torch.corrcoef(torch.stack([time, difference[:, channel]]))[0, 1] * (-1) ** place > 0.8
    others = [2 + i for i in range(4) if i != place]
    assert difference[:, others].abs().max() < 0.3 * difference[:, channel].abs().max()


def test_write_motion_puts_the_beat_of_a_bounce_into_a_channel_of_its_own(written):
    difference = written["bounces"] - written["stays"]
    beat = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert torch.corrcoef(torch.stack([beat, difference[:, 5]]))[0, 1] > 0.8
    assert difference[:, 2:5].abs().max() < 0.3 * difference[:, 5].abs().max()


def test_write_motion_tells_every_frame_which_it_is(written):
    circle = written["stays"][:, :2]
    assert torch.allclose(circle.norm(dim=1), torch.ones(FRAMES), atol=0.2)
    assert (torch.cdist(circle, circle) + 9 * torch.eye(FRAMES)).min() > 0.5
