"""Graphs that an older version of the pack saved: they run, and give what they gave."""

import asyncio
import importlib

import pytest
import torch

# The words that Image to Video wrote into graphs up to 0.2, and what it writes now.
LABELS = {"1: still": "1: low", "10: slow": "10: medium", "50: medium": "50: high", "100: fast": "100: extreme"}


def complaints(core, motion):
    """Return what core's own check of an API graph says about Image to Video and its motion."""
    inputs = {"width": 64, "height": 64, "keyframes": 5, "motion": motion, "noise_augmentation": 20}
    prompt = {"1": {"class_type": "FusionFramesImageToVideo", "inputs": inputs}}
    check = importlib.import_module("execution").validate_inputs
    _, errors, _ = asyncio.run(check("id", prompt, "1", {}))
    return [error for error in errors if error["type"] != "required_input_missing"]


def conditioned(core, demo, prompts, motion, **changes):
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    positive, _, _ = core.run(
        "FusionFramesImageToVideo", positive=prompts[0], negative=prompts[1], vae=demo.vae, image=picture, width=64,
        height=64, keyframes=5, motion=motion, **changes,
    )  # fmt: skip
    return {key: value for key, value in positive[0][1].items() if key.startswith("fusionframes_")}


@pytest.mark.parametrize(("old", "new"), LABELS.items())
def test_older_words_for_the_motion_pass_core_and_mean_the_same_score(core, demo, prompts, old, new):
    assert complaints(core, old) == complaints(core, new) == []
    before, after = (conditioned(core, demo, prompts, motion, noise_augmentation=30) for motion in (old, new))
    assert before["fusionframes_motion_score"] == after["fusionframes_motion_score"] == int(old.split(":")[0])
    assert before["fusionframes_noise_level"] == after["fusionframes_noise_level"] == 30
    assert torch.equal(before["fusionframes_first_frame"], after["fusionframes_first_frame"])


def test_another_motion_is_refused_before_anything_runs(core, demo, prompts):
    (error,) = complaints(core, "30: slow")
    assert error["type"] == "custom_validation_failed"
    assert "motion expected one of 1: low, 10: medium, 50: high, 100: extreme, got '30: slow'" in error["details"]
    with pytest.raises(ValueError, match="motion expected one of"):
        conditioned(core, demo, prompts, "30: slow")
