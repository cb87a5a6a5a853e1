"""Memory of fine-tuning, counted without running it."""

from dataclasses import replace

import pytest
import torch
from support import tiny

from fusionframes.ff_kernels.bench.tuning_memory import OVERHEAD_BYTES, count_memory
from fusionframes.ff_kernels.training.tuning import Tuning

SIDE = (32, 32)


def count(config=tiny.KEYFRAME_V10, batch=1, parks=False, **choices):
    return count_memory(config, Tuning(rank=4, **choices), SIDE, batch, torch.float32, parks)


@pytest.mark.parametrize(
    "config", [tiny.KEYFRAME_V10, tiny.KEYFRAME_V11, tiny.INTERPOLATION_V10, tiny.INTERPOLATION_V11]
)
def test_blocks_that_run_again_keep_less_and_batches_keep_more(config):
    again, kept, twice = count(config), count(config, checkpoints=False), count(config, batch=2)
    assert again.activations < 0.7 * kept.activations
    assert 1.8 <= twice.activations / again.activations <= 2.2
    assert again.weights == kept.weights == sum(p.nbytes for p in tiny.unet(config).parameters())


def test_parked_weights_do_not_stand_beside_activations():
    resident, parked = count(), count(parks=True)
    assert parked.weights + parked.parked == resident.weights
    assert parked.activations == resident.activations
    assert parked.total - OVERHEAD_BYTES == parked.weights + parked.trained + max(parked.parked, parked.activations)


def test_what_trains_costs_weights_gradients_moments_and_averages_in_float32():
    network = tiny.unet(tiny.KEYFRAME_V10)
    temporal = sum(p.numel() for name, p in network.named_parameters() if "temporal" in name)
    assert count(what="temporal").trained == 20 * temporal
    assert count().trained < count(what="temporal").trained
    assert (
        count_memory(tiny.KEYFRAME_V10, replace(Tuning(), rank=8), SIDE, 1, torch.float32, False).trained
        == 2 * count().trained
    )
