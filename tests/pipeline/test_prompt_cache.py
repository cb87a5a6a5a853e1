"""Prompts that were encoded before: found under the right key only, made anew where an entry is no good."""

import os
import sys

import pytest
import torch
from support import release

from fusionframes.ff_kernels.pipeline import prompt_cache
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline

PROMPTS = ["a large red circle", "a small blue square moves up"]


def opened(folder, cache, **options) -> Pipeline:
    return Pipeline.from_folder(folder, prompt_cache=cache, **options)


def encoded(pipeline: Pipeline, prompts=PROMPTS):
    """The text of prompts, and whether the encoder ran for it."""
    text = pipeline.encode_text(prompts)
    return [value.cpu() for value in vars(text).values()], "text_encoder" in pipeline.networks.loaded


def assert_same(texts, others):
    assert all(torch.equal(a, b) for a, b in zip(texts, others, strict=True))


def test_a_prompt_is_encoded_once(folder, tmp_path):
    expected, _ = encoded(Pipeline.from_folder(folder))
    for runs in (True, False):
        text, ran = encoded(opened(folder, tmp_path / "deep" / "cache"))
        assert_same(text, expected)
        assert ran == runs
    (entry,) = (tmp_path / "deep" / "cache").iterdir()
    assert entry.stat().st_size < 1e6


def test_other_tokens_dtypes_and_weights_do_not_find_the_entry(folder, tmp_path):
    encoded(opened(folder, tmp_path))
    others = {
        "prompt": (folder, {}, PROMPTS[:1]), "order": (folder, {}, PROMPTS[::-1]),
        "dtype": (folder, {"dtype": torch.bfloat16}, PROMPTS),
    }  # fmt: skip
    for other, options, prompts in others.values():
        assert encoded(opened(other, tmp_path, **options), prompts)[1]
    assert len(list(tmp_path.iterdir())) == 1 + len(others)


def test_a_projection_or_encoder_with_one_other_number_is_another_key(tmp_path):
    (tmp_path / "model").mkdir()
    release.write(tmp_path / "model", "1.1")
    keys = set()
    for name in (None, "t5", "text_encoder"):
        if name is not None:
            path = tmp_path / "model" / f"{name}.safetensors"
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)
        encoded(opened(tmp_path / "model", tmp_path / "cache"))
        keys |= {entry.name for entry in (tmp_path / "cache").iterdir()}
    assert len(keys) == 3


@pytest.mark.parametrize("harm", [lambda data: data[:-7], lambda data: b"", lambda data: b"x" * len(data)],
                         ids=["cut", "empty", "noise"])  # fmt: skip
def test_a_damaged_entry_is_made_anew(folder, tmp_path, harm):
    expected, _ = encoded(opened(folder, tmp_path))
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(harm(whole))
    text, ran = encoded(opened(folder, tmp_path))
    assert_same(text, expected)
    assert ran
    assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    pipeline = opened(folder, tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="prompts are not kept in .*file.*cache.*name another folder") as said:
        texts = [encoded(pipeline, prompts)[0] for prompts in (PROMPTS, PROMPTS[:1])]
    assert len(texts) == 2
    assert len(said) == 1


def test_the_oldest_entries_make_room(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "MAX_ENTRIES", 1)
    encoded(opened(folder, tmp_path))
    (first,) = tmp_path.iterdir()
    os.utime(first, (1, 1))
    encoded(opened(folder, tmp_path), PROMPTS[:1])
    assert first not in list(tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the place is that of Linux")
def test_the_default_is_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prompt_cache.default_folder() == tmp_path / "fusionframes" / "prompts"
