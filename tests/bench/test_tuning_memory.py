"""Memory of fine-tuning, counted without running it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny

from fusionframes.ff_kernels import training
from fusionframes.ff_kernels.bench.tuning_memory import OVERHEAD_BYTES, count_memory
from fusionframes.ff_kernels.models.configs import KEYFRAME_V10
from fusionframes.ff_kernels.training.tuning import Tuning

SIDE = (32, 32)
PAGE = Path(training.__file__).with_name("README.md")


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


@pytest.fixture(scope="module")
def told():
    """The tables of the page: a row by its first cell, numbers without units."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: [float(cell.split()[0]) for cell in row[1:]] for row in cells if row[0][0].isdigit()}


def test_the_table_of_the_page_is_what_is_counted_of_the_released_network(told):
    memory = count_memory(KEYFRAME_V10, Tuning(), (32, 32), 1, torch.bfloat16, True)
    counted = memory.weights, memory.trained, memory.activations, memory.total
    assert told["256x256"] == pytest.approx([number / 1e9 for number in counted], abs=0.05)
    assert told["256x256"][:3] == pytest.approx([number / 1e9 for number in counted[:3]], abs=0.005)
    # The page rounds; parked weights come while nothing else of the step is there.
    for size in ("256x256", "384x384", "512x512"):
        weights, trained, activations, total = told[size]
        assert total == pytest.approx(weights + trained + max(memory.parked / 1e9, activations) + 1, abs=0.06)
        # Activations grow with the area.
        assert activations / told["256x256"][2] == pytest.approx((int(size[:3]) / 256) ** 2, rel=0.02)


def test_the_batches_of_the_page_leave_a_twentieth_of_the_card_free(told):
    for card in (12, 16, 24, 48):
        for size, batch in zip(("256x256", "384x384", "512x512"), told[f"{card} GB"], strict=True):
            weights, trained, activations, _ = told[size]
            room = 0.95 * card - weights - trained - 1
            assert batch == room // activations, (card, size)
