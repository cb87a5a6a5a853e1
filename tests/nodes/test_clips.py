"""Which clips a batch holds, without core."""

import torch
from support.no_core import adapter

from fusionframes.ff_kernels.sampling.noise import KEYFRAMES, stage_seeds

clips = adapter("clips")
networks = adapter("networks")
SHAPE = (4, 3, 4, 4)


def core_noise(seed, numbers):
    """Noise as core draws it for clips of these numbers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(1, *SHAPE, generator=generator) for _ in range(max(numbers) + 1)]
    return torch.cat([drawn[number] for number in numbers])


def test_numbers_are_found_by_the_noise_that_core_drew():
    for numbers in ([0], [0, 1, 2], [2], [1, 1, 0], [40]):
        assert clips.clip_numbers(core_noise(5, numbers), 5) == numbers
    assert clips.clip_numbers(core_noise(5, [1]), 6) == [0]
    assert clips.clip_numbers(torch.zeros(3, *SHAPE), 5) == [0, 1, 2]


def test_numbers_of_a_latent_are_those_it_carries():
    samples = torch.zeros(2, *SHAPE)
    assert clips.numbers_of({"samples": samples}) == [0, 1]
    assert clips.numbers_of({"samples": samples, "batch_index": [3, 3]}) == [3, 3]
    assert clips.numbers_of({"samples": samples, "batch_index": [3]}) == [0, 1]


def test_a_clip_has_the_seed_of_its_number():
    assert stage_seeds(7, [2, 0], KEYFRAMES) == [stage_seeds(9, 1, KEYFRAMES)[0], stage_seeds(7, 1, KEYFRAMES)[0]]


def test_gaps_are_shown_as_a_video_and_come_back():
    gaps = torch.arange(2 * 4 * 12 * 2 * 2).reshape(8, 12, 2, 2)
    video = networks.video_of(gaps, 2)
    assert video.shape == (2, 4, 12, 2, 2)
    assert torch.equal(networks.gaps_of(video, 12), gaps)
    # Frame 4 of the first row is the middle frame of its second gap.
    assert torch.equal(video[0, :, 4], gaps[1, 4:8])
