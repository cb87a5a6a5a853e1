import json
import math

import pytest
import torch

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.metrics.tables import (
    Measure,
    finite_mean,
    frame_table,
    measure_clips,
    measure_frames,
    text_table,
    to_json,
)

INF = math.inf


def test_finite_mean_counts_what_it_leaves_out():
    assert finite_mean(torch.tensor([1.0, INF, 3.0])) == (2, 1)
    assert finite_mean(torch.tensor([INF, INF])) == (INF, 2)
    with pytest.raises(InputError, match="NaN"):
        finite_mean(torch.tensor([math.nan]))
    with pytest.raises(InputError, match="none"):
        finite_mean(torch.zeros(0))


def test_measure_of_frames_has_no_interval_and_says_what_is_left_out():
    measure = measure_frames("PSNR", "dB", torch.tensor([30.0, INF, 40.0]))
    assert (measure.mean, measure.low, measure.items) == (35, None, 3)
    assert measure.per_frame == (30, INF, 40)
    assert "without 1 of 3 frames" in measure.note


def test_measure_of_clips_averages_clips_and_frames_of_unequal_lengths():
    measure = measure_clips("MSE", "", [torch.tensor([0.0, 2.0]), torch.tensor([4.0, 6.0, 8.0])])
    assert measure.mean == 3.5
    assert measure.low == 1
    assert measure.high == 6
    assert measure.per_frame == (2, 4, 8)
    assert measure.note == ""


def test_measure_of_clips_notes_equal_frames_equal_clips_and_single_clips():
    measure = measure_clips("PSNR", "dB", [torch.tensor([INF, 20.0]), torch.tensor([INF, INF])])
    assert (measure.mean, measure.low) == (20, None)
    assert measure.note == (
        "no interval from fewer than two clips; without 3 of 4 frames that equal the reference; "
        "without 1 of 2 clips that equal the reference throughout"
    )
    assert measure.per_frame == (INF, 20)
    with pytest.raises(InputError, match="clips for PSNR, got none"):
        measure_clips("PSNR", "dB", [])


def test_table_and_json_show_every_field():
    measures = [Measure("PSNR", "dB", INF, per_frame=(INF, 3.0)), Measure("MSE", "", 0.00012, 0.0001, 0.5, items=7)]
    lines = text_table(measures).splitlines()
    assert lines[1].split() == ["PSNR", "inf", "dB", "-", "-", "1"]
    assert lines[2].split() == ["MSE", "0.00012", "0.0001", "0.5000", "7"]
    read = json.loads(to_json(measures, clips=2))
    assert read["clips"] == 2
    assert read["measures"][0]["per_frame"] == ["inf", 3.0]
    assert read["measures"][1]["high"] == 0.5


def test_frame_table_has_a_line_per_frame_and_gaps_where_a_measure_starts_later():
    psnr = measure_frames("PSNR", "dB", torch.tensor([30.0, INF, 40.0]))
    error = measure_frames("warping error", "", torch.tensor([0.25, 0.5]), first=1)
    lines = [line.split() for line in frame_table([psnr, error]).splitlines()]
    assert lines[0] == ["frame", "PSNR,", "dB", "warping", "error"]
    assert lines[1] == ["mean", "35.0000", "0.3750"]
    assert lines[2:5] == [["0", "30.0000", "-"], ["1", "inf", "0.2500"], ["2", "40.0000", "0.5000"]]
    assert " ".join(lines[5]) == "PSNR: without 1 of 3 frames that equal the reference"
    assert len(lines) == 6
