"""Texts that core's conditioning nodes mix, the null text among them."""

import pytest
import torch
from support.graphs import ksampler


@pytest.fixture(scope="module")
def clips(core, demo, prompts):
    latent = core.run("FusionFramesEmptyLatent", preset="64 x 64, demo", keyframes=5)[0]

    def run(positive):
        return ksampler(core, demo.model, (positive, prompts[1]), latent)

    return run


def encode(core, clip, text):
    return core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, text)[0]


def average(core, to, source, strength):
    return core.nodes.NODE_CLASS_MAPPINGS["ConditioningAverage"]().addWeighted(to, source, strength)[0]


def concat(core, to, source):
    return core.nodes.NODE_CLASS_MAPPINGS["ConditioningConcat"]().concat(to, source)[0]


def test_average_with_the_null_text_goes_from_one_clip_to_the_other(core, prompts, clips):
    prompt, null = clips(prompts[0]), clips(prompts[1])
    assert torch.equal(clips(average(core, prompts[1], prompts[0], 0.0)), prompt)
    assert torch.equal(clips(average(core, prompts[1], prompts[0], 1.0)), null)
    assert torch.equal(clips(average(core, prompts[0], prompts[1], 1.0)), prompt)
    between = clips(average(core, prompts[1], prompts[0], 0.5))
    assert min((between - end).abs().max() for end in (prompt, null)) > 1e-2


def test_concat_of_two_prompts_runs_and_reads_both(core, demo, clips):
    first, second, third = (encode(core, demo.clip, text) for text in ("a large red circle", "moves up", "moves down"))
    up, down = clips(concat(core, first, second)), clips(concat(core, first, third))
    assert torch.isfinite(up).all()
    assert (up - down).abs().max() > 1e-3


def test_concat_of_an_empty_and_a_real_prompt_keeps_the_prompt(core, demo, prompts, clips):
    joined = clips(concat(core, encode(core, demo.clip, ""), prompts[0]))
    assert (joined - clips(prompts[1])).abs().max() > 1e-2


def test_zeroed_null_text_is_no_null_text(core, prompts, clips):
    zero = core.nodes.NODE_CLASS_MAPPINGS["ConditioningZeroOut"]().zero_out(prompts[1])[0]
    assert (clips(zero) - clips(prompts[1])).abs().max() > 1e-2


def test_the_last_layer_may_be_asked_for(core, demo):
    (clip,) = core.nodes.NODE_CLASS_MAPPINGS["CLIPSetLastLayer"]().set_last_layer(demo.clip, -1)
    assert torch.equal(encode(core, clip, "a circle")[0][0], encode(core, demo.clip, "a circle")[0][0])


def note(core, demo, **texts):
    cls = core.nodes.NODE_CLASS_MAPPINGS["FusionFramesTextEncode"].PREPARE_CLASS_CLONE({})
    output = cls.execute(clip=demo.clip, **texts)
    return output.args[1][0][0], str(output.ui.as_dict())


def test_a_negative_prompt_that_is_cut_is_counted(core, demo):
    long = "blue square on a brown background, bounces"
    cut, said = note(core, demo, prompt="a circle", negative_prompt=long)
    one, quiet = note(core, demo, prompt="a circle", negative_prompt="blue")
    assert "negative prompt" not in quiet
    assert "tokens dropped as the prompt is shorter" in said
    assert cut.shape[1] == one.shape[1]
    whole, said = note(core, demo, prompt="a circle", negative_prompt=long, negative_length="whole")
    assert whole.shape[1] > cut.shape[1]
    assert "negative prompt" not in said
