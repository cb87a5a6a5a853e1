from dataclasses import replace

import pytest
import torch
from support.tiny import (
    INTERPOLATION_V10,
    INTERPOLATION_V11,
    KEYFRAME_V10,
    KEYFRAME_V11,
    MASKED,
    context,
    draw,
    relative,
    unet,
)

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.runtime.graph import Graphs
from fusionframes.ff_kernels.runtime.streaming import Visiting, places_of
from fusionframes.ff_kernels.sampling.noise import FIRST_PASS, SECOND_PASS, SeededNoise, stage_seeds
from fusionframes.ff_kernels.sampling.samplers import Stopped, add_noise
from fusionframes.ff_kernels.sampling.schedule import alphas_cumprod_v11, make_schedule_v10
from fusionframes.ff_kernels.stages.interpolation import GAP_STAGES, interpolate, interpolate_masked, interpolate_passes
from fusionframes.ff_kernels.stages.keyframes import FirstFrame, draw_start, sample_keyframes, sample_picture
from fusionframes.ff_kernels.stages.presets import Plan
from fusionframes.ff_kernels.stages.releases import RELEASES
from fusionframes.ff_kernels.stages.run import Run, Text, sampling_schedule

NULL = draw(24, seed=5)
SIZE = (4, 6)


def texts(clips: int) -> Text:
    return Text.of(*context(clips))


def keyframes(config):
    def stage(clips, seeds, network=None, **run):
        text = Text(*(t[clips] for t in vars(texts(2)).values()))
        first = FirstFrame(draw(2, 4, *SIZE, seed=3)[clips]) if config.family == "1.1" else None
        return sample_keyframes(
            network or unet(config), text, text.unconditional(NULL), Run(SeededNoise(seeds), **run), keyframes=3,
            size=SIZE, first_frame=first, steps=4,
        )  # fmt: skip

    return stage


def pictures_v11(clips, seeds, network=None, **run):
    text = Text(*(t[clips] for t in vars(texts(2)).values()))
    return sample_picture(
        network or unet(KEYFRAME_V11),
        text,
        text.unconditional(NULL),
        Run(SeededNoise(seeds), **run),
        size=SIZE,
        steps=4,
    )


def video(config):
    def stage(clips, seeds, network=None, **run):
        text = Text(*(t[clips] for t in vars(texts(2)).values()))
        fill, _ = GAP_STAGES[config.stage]
        return fill(
            network or unet(config), draw(2, 3, 4, *SIZE, seed=4)[clips], text, NULL, Run(SeededNoise(seeds), **run),
            skip_frames=3, steps=4,
        )  # fmt: skip

    return stage


STAGES = {"keyframes_v10": keyframes(KEYFRAME_V10), "keyframes_v11": keyframes(KEYFRAME_V11),
          "pictures_v11": pictures_v11, "video_v10": video(INTERPOLATION_V10), "video_v11": video(INTERPOLATION_V11),
          "video_masked": video(MASKED)}  # fmt: skip
CONFIGS = {"keyframes_v10": KEYFRAME_V10, "keyframes_v11": KEYFRAME_V11, "pictures_v11": KEYFRAME_V11,
           "video_v10": INTERPOLATION_V10, "video_v11": INTERPOLATION_V11, "video_masked": MASKED}  # fmt: skip
# In turn, the branches differ in what they prepare only where there are three, or where one mixes over time.
RUNS = [*((name, True) for name in STAGES), ("keyframes_v11", False), ("video_v11", False)]
BOTH = slice(0, 2)


@pytest.mark.parametrize("name", STAGES)
def test_stacked_and_sequential_branches_agree(name):
    stage = STAGES[name]
    assert relative(stage(BOTH, [7, 8], stacked=False), stage(BOTH, [7, 8], stacked=True)) < 1e-3


@pytest.mark.parametrize(("name", "stacked"), RUNS)
def test_recorded_steps_give_the_same_clip_bit_for_bit(name, stacked):
    stage, records = STAGES[name], []

    def capture(function):
        # As a CUDA graph does: the same memory for inputs and results at every replay.
        out = function().clone()
        records.append(out)
        return lambda: out.copy_(function())

    replayed = stage(BOTH, [7, 8], stacked=stacked, graphs=Graphs(capture))
    assert torch.equal(replayed, stage(BOTH, [7, 8], stacked=stacked))
    branches = 3 if name == "keyframes_v11" else 2
    assert len(records) == (1 if stacked else branches)


PLANS = {"second_order": Plan("dpmpp_2m", "karras", 0.98), "with_noise": Plan("ddpm"),
         "guided_in_between": Plan("dpmpp_2m", "karras", 0.98, guided=(0.3, 5.0))}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", STAGES)
def test_a_plan_gives_every_clip_the_same_alone_and_in_a_batch(name, plan):
    stage = STAGES[name]
    together = stage(BOTH, [7, 8], plan=plan)
    assert together.isfinite().all()
    assert relative(stage(slice(1, 2), [8], plan=plan, stacked=False)[0], together[1]) < 1e-3
    # The interpolation of release 1.1 is DDPM with true times already.
    is_released = name == "video_v11" and plan.solver == "ddpm"
    assert (relative(together, stage(BOTH, [7, 8])) < 1e-5) == is_released


def test_guidance_everywhere_is_no_interval_and_guidance_nowhere_is_a_scale_of_zero():
    stage, plan = STAGES["keyframes_v10"], Plan("dpmpp_2m", "karras", 0.98)
    assert torch.equal(stage(BOTH, [7, 8], plan=replace(plan, guided=(0.0, 1e9))), stage(BOTH, [7, 8], plan=plan))
    text = texts(2)
    unguided = sample_keyframes(
        unet(KEYFRAME_V10), text, text.unconditional(NULL), Run(SeededNoise([7, 8]), plan=plan), keyframes=3, size=SIZE,
        steps=4, guidance_scale=0.0,
    )  # fmt: skip
    assert relative(stage(BOTH, [7, 8], plan=replace(plan, guided=(1e6, 1e9))), unguided) < 1e-3


@pytest.mark.parametrize(("offset", "told"), [(1, [999, 749, 499, 249]), (20, [980, 730, 480, 230])])
def test_a_network_is_told_the_times_it_learnt_its_levels_under(offset, told):
    config = replace(KEYFRAME_V10, timestep_offset=offset)
    sampling = RELEASES["1.0"].keyframe.changed(4)
    assert sampling_schedule(sampling, config, Plan("ddpm")).timesteps.tolist() == told
    # The release's own formula does not read it.
    released = sampling_schedule(sampling, config)
    assert released.timesteps.tolist() == make_schedule_v10(4).timesteps.tolist() == [750, 500, 250, 0]


class OnlyWhilePreparing:
    """Weights of the conditioner are at hand inside the block; outside they are on the meta device, without values."""

    def __init__(self, network):
        modules, self.entered = network.conditioner_modules(), 0
        self.visiting = Visiting([(module, places_of(module)) for module in modules], torch.device("cpu"))
        for module in modules:
            module.to("meta")

    def __enter__(self):
        self.visiting.__enter__()
        self.entered += 1

    def __exit__(self, *error):
        self.visiting.__exit__(*error)


@pytest.mark.parametrize(("name", "stacked"), RUNS)
def test_steps_do_without_the_weights_that_prepare_reads(name, stacked):
    stage, network = STAGES[name], unet(CONFIGS[name])
    expected = stage(BOTH, [7, 8], stacked=stacked)
    preparing = OnlyWhilePreparing(network)
    assert torch.equal(stage(BOTH, [7, 8], network, stacked=stacked, preparing=preparing), expected)
    assert preparing.entered == 1


@pytest.mark.parametrize("name", STAGES)
def test_a_clip_is_the_same_alone_and_in_a_batch(name):
    stage = STAGES[name]
    together = stage(BOTH, [7, 8])
    for i, seed in enumerate((7, 8)):
        assert relative(stage(slice(i, i + 1), [seed])[0], together[i]) < 1e-3
    assert relative(together[0], together[1]) > 0.1


@pytest.mark.parametrize("name", STAGES)
def test_same_seed_repeats_bit_for_bit_and_a_stop_leaves_no_result(name):
    stage = STAGES[name]
    assert torch.equal(stage(BOTH, [1, 2]), stage(BOTH, [1, 2]))
    with pytest.raises(Stopped):
        stage(BOTH, [1, 2], callback=lambda step, total, x0: step == 2)
    assert torch.equal(stage(BOTH, [1, 2]), stage(BOTH, [1, 2]))


def test_prompts_of_other_lengths_in_a_batch_change_nothing():
    # The pooling mean divides by each prompt's own length, so padding to a longer neighbour is invisible.
    long, short = context(1, 8), context(1, 4, seed=6)
    stacked = Text.stack([Text.of(*long), Text.of(*short)])
    run = {"size": SIZE, "keyframes": 3, "steps": 3}
    network = unet(KEYFRAME_V10)
    both = sample_keyframes(network, stacked, stacked.unconditional(NULL), Run(SeededNoise([1, 2])), **run)
    text = Text.of(*short)
    alone = sample_keyframes(network, text, text.unconditional(NULL), Run(SeededNoise([2])), **run)
    assert relative(both[1], alone[0]) < 1e-3


@pytest.mark.parametrize("config", [INTERPOLATION_V10, INTERPOLATION_V11, MASKED], ids=["v10", "v11", "masked"])
def test_interpolate_keeps_keyframes_bit_for_bit_over_two_passes(config):
    keyframes, text, fill = draw(1, 3, 4, *SIZE), texts(1), GAP_STAGES[config.stage][0]
    once = fill(unet(config), keyframes, text, NULL, Run(SeededNoise([1])), skip_frames=3, steps=3)
    twice = fill(unet(config), once, text, NULL, Run(SeededNoise([2])), skip_frames=1, steps=3)
    assert torch.equal(once[:, ::4], keyframes)
    assert torch.equal(twice[:, ::16], keyframes)
    assert twice.shape[1] == 33


def test_interpolate_v11_without_text_is_refused():
    with pytest.raises(InputError, match="expected a prompt"):
        interpolate(unet(INTERPOLATION_V11), draw(1, 3, 4, *SIZE), None, NULL, Run(SeededNoise([1])), skip_frames=3)


def test_interpolate_masked_with_a_network_that_knows_v_gives_the_frames_it_knows():
    truth, seen = draw(1, 9, 4, *SIZE).clamp(-1, 1), []
    groups = torch.stack([truth[0, i : i + 5] for i in (0, 4)]).flatten(0, 1)
    schedule = make_schedule_v10(6)

    class Knowing:
        config = MASKED

        def prepare(self, context, mask, timesteps, **told):
            seen.append(told)
            return None

        def __call__(self, x, conditions, step):
            noisy, known, mask = x.split((4, 4, 1), dim=1)
            # The branch that is shown nothing comes second and holds neither frames nor mask.
            assert torch.equal(known[0], truth[0, 0])
            assert torch.equal(known[4], truth[0, 4])
            assert not known[1:4].any()
            assert mask[:10, 0].mean(dim=(1, 2)).tolist() == [1, 0, 0, 0, 1] * 2
            assert not x[10:, 4:].any()
            clean = groups.repeat(2, 1, 1, 1)
            signal, noise = schedule.coefficients.signal[step], schedule.coefficients.noise[step]
            return signal * (noisy - signal * clean) / noise - noise * clean

    out = interpolate_masked(Knowing(), truth[:, ::4], None, NULL, Run(SeededNoise([1])), skip_frames=1, steps=6)
    assert torch.allclose(out, truth, atol=1e-4)
    assert (seen[0]["num_gaps"], seen[0]["skip_frames"]) == (2, 1)


def test_noise_of_the_first_frame_is_uniform_as_released_or_normal():
    class Recording(SeededNoise):
        kinds = ()

        def normal(self, shape):
            self.kinds += ("normal",)
            return super().normal(shape)

        def uniform(self, shape):
            self.kinds += ("uniform",)
            return super().uniform(shape)

    for uniform, kind in ((True, "uniform"), (False, "normal")):
        noise = Recording([0])
        first_frame = FirstFrame(draw(1, 4, *SIZE), noise_level=500, uniform_noise=uniform)
        start, shown = draw_start(noise, (1, 3, 4, *SIZE), torch.empty(0), first_frame)
        assert noise.kinds == ("normal", kind)
        again = SeededNoise([0])
        assert torch.equal(start, again.normal((3, 4, *SIZE)))
        fresh = getattr(again, kind)((1, 4, *SIZE))
        known = add_noise(first_frame.latents, fresh, alphas_cumprod_v11(), 500)
        assert torch.equal(shown[:, 0], torch.cat([known, torch.ones(1, 1, *SIZE)], dim=1))
        assert not shown[:, 1:].any()


@pytest.mark.parametrize("config", [KEYFRAME_V10, KEYFRAME_V11], ids=["v10", "v11"])
def test_keyframes_with_another_start_than_the_release_reads_are_refused(config):
    first = None if config.family == "1.1" else FirstFrame(draw(1, 4, *SIZE))
    text, run = texts(1), Run(SeededNoise([1]))
    with pytest.raises(InputError, match=r"expected (a|no) first frame for keyframes of release 1\.[01], got"):
        sample_keyframes(unet(config), text, text, run, keyframes=3, size=SIZE, first_frame=first)


def test_more_keyframes_than_release_1_0_tells_apart_are_refused_before_anything_runs():
    text, called = texts(1), []
    run = Run(SeededNoise([1]), callback=lambda *step: called.append(step))
    with pytest.raises(InputError, match=r"at most 180 keyframes for release 1\.0, got 181: ask for fewer"):
        sample_keyframes(unet(KEYFRAME_V10), text, text, run, keyframes=181, size=SIZE, steps=1)
    assert not called


def test_sides_that_the_network_cannot_halve_are_refused_with_the_nearest_that_fit():
    text = texts(1)
    with pytest.raises(InputError, match="height expected a multiple of 2 latent positions, got 5: take 4"):
        sample_keyframes(unet(KEYFRAME_V10), text, text, Run(SeededNoise([1])), keyframes=3, size=(5, 6))


@pytest.mark.parametrize("config", [INTERPOLATION_V11, MASKED], ids=["v11", "masked"])
def test_passes_are_single_passes_with_a_stream_and_frames_to_skip_of_their_own(config):
    frames, text, network, asked = draw(2, 2, 4, *SIZE), texts(2), unet(config), []

    def make_run(noise, samples):
        asked.append(samples)
        return Run(noise)

    passes = interpolate_passes(network, frames, text, NULL, make_run, seed=5, passes=2, steps=2)
    fill, per_gap = GAP_STAGES[config.stage]
    expected = frames
    for stream, skip_frames in ((FIRST_PASS, 3), (SECOND_PASS, 1)):
        run = Run(SeededNoise(stage_seeds(5, 2, stream)))
        expected = fill(network, expected, text, NULL, run, skip_frames=skip_frames, steps=2)
    assert torch.equal(passes, expected)
    assert asked == [2 * 2 * 1 * per_gap, 2 * 2 * 4 * per_gap]
    second = interpolate_passes(network, expected[:, ::4], text, NULL, make_run, seed=5, passes=1, first=1, steps=2)
    assert torch.equal(second, expected)
