import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import MOVQ, VIDEO_MOVQ, draw

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.sampling.samplers import Stopped
from fusionframes.ff_kernels.stages.decoding import chunk_sizes, decode, frames_at_once
from fusionframes.ff_kernels.verify.cases import fill_weights


@given(st.integers(4, 400))
def test_chunk_sizes_are_those_of_torch_chunk(frames):
    assert chunk_sizes(frames) == [len(part) for part in torch.zeros(frames).chunk(frames // 4)]


@given(st.integers(1, 3))
def test_chunk_sizes_of_short_clips_stay_whole(frames):
    assert chunk_sizes(frames) == [frames]


@given(st.integers(1, 23), st.integers(1, 9), st.integers(0, 3))
def test_decode_covers_every_frame_once_whatever_the_chunks(frames, chunk, overlap):
    class Counting(torch.nn.Module):
        config = MOVQ

        def decode(self, latents, shared_map):
            return latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) * 2 - 1

    latents = torch.arange(frames).reshape(-1, 1, 1, 1).expand(frames, 4, 2, 2) / max(1, frames)
    if overlap >= min(chunk, frames):
        with pytest.raises(InputError, match=f"got {overlap}"):
            decode(Counting(), latents, chunk=chunk, overlap=overlap)
        return
    out = decode(Counting(), latents, chunk=chunk, overlap=overlap)
    assert torch.allclose(out[:, 0, 0, 0], latents[:, 0, 0, 0], atol=1e-6)


def test_decode_stops_between_chunks():
    movq = fill_weights(MoVQ(MOVQ), 0)
    seen = []
    with pytest.raises(Stopped, match="frame 4 of 6"):
        decode(movq, draw(6, 4, 2, 2), chunk=2, should_stop=lambda done, total: seen.append(done) or done == 4)
    assert seen == [2, 4]


def test_decode_overlap_softens_the_seam_of_a_video_decoder():
    movq = fill_weights(MoVQ(VIDEO_MOVQ), 0)
    latents = draw(8, 4, 2, 2)
    whole = decode(movq, latents, chunk=8)
    hard, soft = decode(movq, latents, chunk=4), decode(movq, latents, chunk=4, overlap=2)
    assert (soft[3:5] - whole[3:5]).norm() < (hard[3:5] - whole[3:5]).norm()


@pytest.mark.parametrize(
    ("frames", "side", "looks_around", "expected"),
    [(65, 64, False, 8), (5, 64, False, 5), (65, 128, False, 2), (65, 512, False, 1), (57, 512, True, 5)],
    ids=["small", "short", "larger", "large", "temporal"],
)
def test_small_frames_that_do_not_look_around_are_decoded_together(frames, side, looks_around, expected):
    assert frames_at_once(frames, (side, side), looks_around) == expected
