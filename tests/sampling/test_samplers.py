import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import draw

from fusionframes.ff_kernels.ops import clip_to_quantile, mix_branches
from fusionframes.ff_kernels.ops.step import THRESHOLD_V10
from fusionframes.ff_kernels.sampling.guidance import in_turn, text_image_weights, text_weights
from fusionframes.ff_kernels.sampling.noise import SeededNoise
from fusionframes.ff_kernels.sampling.samplers import Stopped, add_noise, sample_latents
from fusionframes.ff_kernels.sampling.schedule import alphas_cumprod_v11, make_schedule_v10, make_schedule_v11

TARGET = draw(3, 4, 2, 2, seed=9).clamp(-1, 1)


def oracle(schedule, is_v):
    """A network that knows the clean sample."""

    def predict(x, step):
        signal, noise = schedule.coefficients.signal[step], schedule.coefficients.noise[step]
        eps = (x - signal * TARGET) / noise
        return signal * eps - noise * TARGET if is_v else eps

    return predict


@pytest.mark.parametrize(
    ("schedule", "is_v"),
    [
        (make_schedule_v10(20), False),
        (make_schedule_v10(20), True),
        (make_schedule_v11(20, "leading"), False),
        (make_schedule_v11(10, "trailing"), True),
    ],
    ids=["v10_eps", "v10_v", "v11_eps", "v11_v"],
)
def test_sample_latents_with_a_perfect_network_ends_at_the_sample(schedule, is_v):
    out = sample_latents(
        oracle(schedule, is_v),
        draw(*TARGET.shape),
        schedule,
        SeededNoise([0]),
        predicted="v" if is_v else "eps",
    )
    assert torch.allclose(out, TARGET, atol=2e-3)


def test_sample_latents_callback_sees_every_step_and_stops():
    schedule, seen = make_schedule_v10(6), []

    def run(stop_at):
        seen.clear()
        return sample_latents(
            oracle(schedule, False),
            draw(*TARGET.shape),
            schedule,
            SeededNoise([0]),
            callback=lambda i, n, x0: seen.append((i, n, tuple(x0.shape))) or i == stop_at,
        )

    run(None)
    assert seen == [(i, 6, (3, 4, 2, 2)) for i in range(1, 7)]
    with pytest.raises(Stopped, match="step 2 of 6"):
        run(2)
    assert len(seen) == 2


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 8), st.integers(0, 10))
def test_clip_to_quantile_is_per_sample_and_bounded(scale, seed):
    x = draw(2, 4, 3, 3, seed=seed) * torch.tensor([1.0, scale])[:, None, None, None]
    out = clip_to_quantile(x, THRESHOLD_V10)
    limits = torch.quantile(x.flatten(1).abs(), 0.98, dim=1).clamp(min=1)
    expected = torch.stack([part.clamp(-limit, limit) / limit for part, limit in zip(x, limits, strict=True)])
    assert torch.equal(out, expected)
    assert out.abs().max() <= 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4), st.integers(1, 3))
def test_seeded_noise_gives_a_clip_the_same_stream_in_any_batch(seeds, frames):
    together = SeededNoise(seeds)
    batches = [together.normal((len(seeds) * frames, 2)), together.uniform((len(seeds), 3))]
    for i, seed in enumerate(seeds):
        alone = SeededNoise([seed])
        assert torch.equal(alone.normal((frames, 2)), batches[0][i * frames : (i + 1) * frames])
        assert torch.equal(alone.uniform((1, 3)), batches[1][i : i + 1])


def test_seeded_noise_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    SeededNoise([1]).normal((4, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeded_noise_uneven_share_is_refused():
    with pytest.raises(ValueError, match=r"2 clips divide, got \[3, 1\]"):
        SeededNoise([0, 1]).normal((3, 1))


def test_add_noise_is_the_forward_process():
    noised = add_noise(torch.ones(1000), draw(1000), alphas_cumprod_v11(), 20)
    assert noised.mean().item() == pytest.approx(0.9981142282**0.5, abs=0.01)


def mix(weights, *parts):
    return mix_branches(parts, weights, parts[0].dtype)


@given(st.floats(0, 10))
def test_text_weights_sum_to_one_and_favour_the_text(scale):
    x = draw(2, 3)
    assert torch.allclose(mix(text_weights(scale), x, x), x, atol=1e-4)
    assert torch.equal(mix(text_weights(0.0), x, -x), x)


@given(st.floats(0, 5), st.floats(0, 5))
def test_text_image_weights_sum_to_one(scale, image):
    x = draw(2, 3)
    assert torch.allclose(mix(text_image_weights(scale, image), x, x, x), x, atol=1e-4)
    assert torch.equal(mix(text_image_weights(1.0, 1.0), x, -x, 5 * x), x)


def test_sample_latents_stacked_branches_and_branches_in_turn_agree():
    schedule = make_schedule_v10(4)
    parts = [lambda x, step: 0.1 * x + step, lambda x, step: 0.2 * x]
    stacked = lambda x, step: torch.cat([part(x, step) for part in parts])  # noqa: E731
    runs = [
        sample_latents(predict, draw(4, 2), schedule, SeededNoise([0]), weights=text_weights(3.0))
        for predict in (stacked, in_turn(parts))
    ]
    assert torch.equal(*runs)


def test_sample_latents_takes_other_weights_and_branches_at_every_step():
    schedule = make_schedule_v10(3)
    each = [(1.0,), text_weights(3.0), (1.0,)]
    parts = [lambda x: 0.1 * x, lambda x: 0.3 * x]

    def predict(x, step):
        return torch.cat([part(x) for part in parts[: len(each[step])]])

    def mixed(x, step):
        predictions = predict(x, step).chunk(len(each[step]))
        return sum(weight * part for weight, part in zip(each[step], predictions, strict=True))

    start = draw(4, 2)
    out = sample_latents(predict, start, schedule, SeededNoise([0]), weights=each)
    assert torch.allclose(out, sample_latents(mixed, start, schedule, SeededNoise([0])), atol=1e-6)
