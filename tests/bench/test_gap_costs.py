import json

import pytest
import torch
from support import tiny

from fusionframes.ff_kernels.bench import gap_costs
from fusionframes.ff_kernels.bench.recorder import record
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.models.configs import INTERPOLATION_V10, MASKED
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.masked_unet import MaskedUNet
from fusionframes.ff_kernels.models.unets import UNETS


@pytest.fixture(scope="module")
def costs():
    return gap_costs.count_gaps()


def test_ours_needs_less_than_a_third_of_the_baseline_at_the_released_sizes(costs):
    # Paper, appendix 10: "less than a third" of the running time; here the work is counted.
    assert 0 < costs["ours"].flops < costs["masked"].flops / 3
    assert 0 < costs["ours"].bytes < costs["masked"].bytes / 3


def test_parameters_are_those_of_the_released_sizes(costs):
    assert costs["ours"].parameters == sum(
        p.numel() for p in InterpolationUNet(INTERPOLATION_V10, device="meta").parameters()
    )
    assert costs["masked"].parameters == sum(p.numel() for p in MaskedUNet(MASKED, device="meta").parameters())


def test_count_is_that_of_70_gaps_in_both_branches():
    # Without folding and prepared tables a network's flops grow with its samples alone.
    small = {"ours": tiny.INTERPOLATION_V10, "masked": tiny.MASKED}
    counted = gap_costs.count_gaps((4, 4), small)
    for name, samples in (("ours", 70 * 2), ("masked", 70 * 2 * 5)):
        config = small[name]
        network = gap_costs.make_ready(UNETS[config.stage](config).eval())
        with torch.no_grad():
            told = {"num_gaps": 1, "skip_frames": 3}
            context, mask = torch.zeros(2, 2, config.context_dim), torch.tensor([[1, 0], [1, 0]])
            conditions = network.prepare(context, mask, torch.tensor([40]), **told)
            x = torch.zeros(conditions.samples, config.num_channels, 4, 4).contiguous(memory_format=torch.channels_last)
            once = record(lambda network=network, x=x, c=conditions: network(x, c, 0), network)
        # A row of the mixing over one gap has no neighbours; only the order of the sums differs.
        assert counted[name].flops == pytest.approx(once.flops * samples / conditions.samples, rel=0.02)


def test_record_prints_the_share_and_json_rows(capsys, monkeypatch, costs):
    monkeypatch.setattr(gap_costs, "count_gaps", lambda: costs)
    for other in ("counting.full_size", "clip_costs.clip_costs", "estimates.acceptance_estimates"):
        monkeypatch.setattr(f"fusionframes.ff_kernels.bench.{other}", lambda *names: [])
    assert main(["bench", "--record"]) == 0
    shown = capsys.readouterr().out
    assert f"{costs['ours'].flops / costs['masked'].flops:.3f}" in shown
    assert main(["bench", "--record", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line]
    assert {row["figure"] for row in rows} == {"flops", "bytes", "parameters"}
    assert rows[0]["share"] == rows[0]["ours"] / rows[0]["masked"]
