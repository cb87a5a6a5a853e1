"""Contact sheets show every frame once, in order, with its time."""

import pytest
import torch

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.media.sheet import contact_sheet, sheet_size


def smooth_clip(frames: int, height: int, width: int) -> torch.Tensor:
    """``[F, H, W, 3]`` in 0..1: two gradients and a slow pulse, each channel another."""
    t = torch.arange(frames).float()[:, None, None] / max(frames - 1, 1)
    y = torch.linspace(0, 1, height)[None, :, None]
    x = torch.linspace(0, 1, width)[None, None, :]
    channels = [(x + t) / 2, (y + 1 - t) / 2, 0.25 + 0.5 * t]
    return torch.stack([c.expand(frames, height, width) for c in channels], dim=-1)


@pytest.mark.parametrize(
    ("shape", "columns", "labels", "size"),
    [
        ((7, 32, 32), 3, True, (4 + 3 * 132, 4 + 3 * (128 + 20 + 4))),
        ((7, 32, 32), None, False, (4 + 3 * 132, 4 + 3 * 132)),
        ((2, 10, 200), 5, True, (4 + 2 * 204, 4 + 10 + 20 + 4)),
        ((1, 3, 1), 1, False, (4 + 132, 4 + 3 * 128 + 4)),
        ((1, 100, 100), 1, False, (4 + 204, 4 + 204)),
    ],
    ids=["last_row_short", "square", "fewer_frames_than_columns", "one_pixel_wide", "whole_factor"],
)
def test_contact_sheet_size(shape, columns, labels, size):
    times = [i / 8 for i in range(shape[0])] if labels else None
    sheet = contact_sheet(smooth_clip(*shape), columns, times)
    assert sheet.mode == "RGB"
    assert sheet.size == size


def test_contact_sheet_wrong_arguments_raise():
    clip = smooth_clip(3, 8, 8)
    with pytest.raises(InputError, match="1 or more columns on the sheet, got 0"):
        contact_sheet(clip, 0)
    with pytest.raises(InputError, match="expected 3 times for 3 frames, got 2"):
        contact_sheet(clip, None, [0.0, 1.0])
    with pytest.raises(InputError, match=r"12\.\.40 pixels, got 8"):
        contact_sheet(clip, label_px=8)


def test_sheet_over_the_limit_is_refused_before_it_is_made():
    assert sheet_size(5, 64, 64) == contact_sheet(torch.zeros(5, 64, 64, 3), times=[0.0] * 5).size
    with pytest.raises(InputError, match=r"up to 134,217,728 pixels .* for 400 frames of 1024 x 1024"):
        contact_sheet(torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(400, 1024, 1024, 3))
    with pytest.raises(InputError, match=r"sides up to 16,383"):
        sheet_size(2, 100, 10_000, suffix=".webp")
    assert sheet_size(2, 100, 10_000)[0] == 20_012
