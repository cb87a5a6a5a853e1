"""The mark that says how latents are decoded and the room that the copy in 16 bit needs, without core."""

from types import SimpleNamespace

import pytest
import torch
from support.no_core import adapter

latent = adapter("latent")
narrow = adapter("narrow")


def test_mark_is_of_the_last_stage_and_the_latent_given_stays_as_it_is():
    given = {"samples": torch.zeros(1, 4, 2, 1, 1), "batch_index": [3]}
    marked = latent.with_decoder(given, is_narrow=True)
    assert marked == {**given, latent.NARROW_DECODER: True}
    assert latent.NARROW_DECODER not in given
    assert latent.as_latent(torch.zeros(1, 2, 4, 1, 1), marked)[latent.NARROW_DECODER]
    assert latent.with_decoder(marked, is_narrow=False) == given
    assert latent.NARROW_DECODER in marked


@pytest.mark.parametrize(
    ("device", "total", "tries"),
    [("cuda", 29, 2), ("cuda", 28, 0), ("cpu", 28, 1)],
    ids=["room", "one_byte_short", "processor"],
)
def test_a_card_without_room_for_half_the_weights_more_stays_in_float32(monkeypatch, device, total, tries):
    device = torch.device(device)
    quick = {"cpu": (torch.bfloat16,), "cuda": (torch.float16, torch.bfloat16)}
    monkeypatch.setattr(narrow, "quick_dtypes", lambda device: quick[device.type])
    fake = SimpleNamespace(extra_reserved_memory=lambda: 4, get_total_memory=lambda device: total)
    monkeypatch.setattr(narrow, "mm", fake)
    patcher = SimpleNamespace(load_device=device, model_size=lambda: 10)
    assert narrow._tries(patcher, 10) == quick[device.type][:tries]
