"""What fine-tuning minimises, against the paper's losses written out here and run on the release's own formulation."""

import copy

import pytest
import torch
from support import tiny

from fusionframes.ff_kernels.bench.precision import Precision
from fusionframes.ff_kernels.bench.released_unet import interpolation_forward, keyframe_forward
from fusionframes.ff_kernels.models.text_encoder import NULL_TOKENS_V10, null_context
from fusionframes.ff_kernels.training.objectives import GapTuning, KeyframeTuning, checkpoint_blocks

T, SIDE, TOKENS = 3, 8, 5
TIMESTEP, BAR = torch.tensor([340]), torch.tensor([0.37])
NULL = tiny.draw(tiny.CONTEXT, seed=9)
WIDE = Precision(torch.float64, torch.float64)


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def wide(tensors):
    return [t.double() if t.is_floating_point() else t for t in tensors]


def text():
    """One caption of four tokens and the zero behind it."""
    context, mask = tiny.draw(1, TOKENS, tiny.CONTEXT, seed=3), torch.ones(1, TOKENS)
    context[:, -1], mask[:, -1] = 0, 0
    return context, mask


def keyframe_batch(keep=1.0, *first):
    latents, noise = tiny.draw(2, 1, T, 4, SIDE, SIDE)
    context, mask = text()
    rest = torch.tensor([TOKENS]), torch.tensor([keep]), TIMESTEP, BAR
    return latents, noise, context, mask, *rest, *first


def gap_batch(keep=1.0):
    keyframes, (inner, noise) = tiny.draw(1, T + 1, 4, SIDE, SIDE, seed=4), tiny.draw(2, 1, T, 12, SIDE, SIDE, seed=5)
    context, mask = text()
    rest = torch.tensor([TOKENS]), torch.tensor([keep]), torch.tensor([3]), torch.tensor([0]), TIMESTEP, BAR
    return keyframes, inner, noise, context, mask, *rest


def papers_keyframe_loss(unet, keep):
    """E |eps - eps_theta(sqrt(a) x0 + sqrt(1 - a) eps, t, text)|^2, the null text in the caption's place at times."""
    latents, noise, context, mask, *_ = wide(keyframe_batch())
    if not keep:
        context, mask = null_context(NULL, 1, TOKENS)
    x = BAR.sqrt() * latents[0] + (1 - BAR).sqrt() * noise[0]
    positions = torch.arange(T) * (180 // T)
    told = TIMESTEP.repeat(T), context.repeat(T, 1, 1), mask.repeat(T, 1).bool(), positions, T
    return (keyframe_forward(unet, x, *told, WIDE) - noise[0]).square().mean()


def papers_gap_loss(unet, keep):
    """E |v - v_theta|^2 with v = sqrt(a) eps - sqrt(1 - a) x0, both keyframes beside the three noisy frames."""
    keyframes, inner, noise, *_ = wide(gap_batch())
    x = torch.cat(
        [keep * keyframes[0, :-1], BAR.sqrt() * inner[0] + (1 - BAR).sqrt() * noise[0], keep * keyframes[0, 1:]], 1
    )
    context, mask = null_context(NULL, 1, NULL_TOKENS_V10)
    told = TIMESTEP.repeat(T), context.repeat(T, 1, 1), mask.repeat(T, 1).bool(), torch.full((T,), 3), T
    velocity = BAR.sqrt() * noise[0] - (1 - BAR).sqrt() * inner[0]
    return (interpolation_forward(unet, x, *told, WIDE) - velocity).square().mean()


CASES = {
    "keyframes": (tiny.KEYFRAME_V10, KeyframeTuning, keyframe_batch, papers_keyframe_loss),
    "gaps": (tiny.INTERPOLATION_V10, GapTuning, gap_batch, papers_gap_loss),
}


@pytest.mark.parametrize("keep", [1.0, 0.0], ids=["caption", "null"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loss_gradients_and_one_step_are_those_of_the_release_and_the_paper(case, keep):
    config, kind, batch, papers = case
    # Float64 parts a wrong term from a rounding error.
    theirs = tiny.unet(config).double().requires_grad_(True)
    ours = copy.deepcopy(theirs)
    objective = kind(ours, NULL)
    objective.null_embedding = NULL.double()
    # The network's answer is cut to float32 in training, which would hide small terms here.
    objective.predict = lambda x, conditions: ours(x, conditions)
    loss, expected = objective(*wide(batch(keep))), papers(theirs, keep)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        # What neither reads has no gradient, or none but zeros.
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        got = torch.zeros_like(parameter) if found[name] is None else found[name]
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * max(1e-3, wanted.abs().max().item())), name
    for network in (ours, theirs):
        torch.optim.AdamW(network.parameters(), lr=1e-3).step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def first_frame():
    condition = torch.zeros(1, T, 5, SIDE, SIDE)
    condition[:, 0, :4], condition[:, 0, 4] = tiny.draw(1, 4, SIDE, SIDE, seed=7), 1
    return condition, torch.tensor([20]), torch.tensor([10])


@pytest.mark.parametrize(
    ("objective", "batch"),
    [
        (lambda: KeyframeTuning(tiny.unet(tiny.KEYFRAME_V11), NULL), lambda: keyframe_batch(1.0, *first_frame())),
        (lambda: GapTuning(tiny.unet(tiny.INTERPOLATION_V11), NULL), lambda: gap_batch()),
        (lambda: GapTuning(tiny.unet(tiny.INTERPOLATION_V11), NULL), lambda: gap_batch(0.0)),
    ],
    ids=["keyframes", "gaps", "gaps without text"],
)
def test_gradients_of_release_11_are_the_slope_of_its_loss(objective, batch):
    objective = objective().requires_grad_(True)
    objective(*batch()).backward()
    slope, step = 0.0, 1e-4
    moves = {}
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            moves[name] = step * torch.nn.functional.normalize(parameter.grad.flatten(), dim=0).view_as(parameter)
            slope += (parameter.grad * moves[name]).sum().item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                parameter += sign * moves.get(name, 0)
            ends.append(objective(*batch()).item())
            for name, parameter in objective.named_parameters():
                parameter -= sign * moves.get(name, 0)
    assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_blocks_that_run_again_give_the_same_gradients_and_keep_less(case):
    config, kind, batch, _ = case
    gradients, kept = [], []
    for again in (False, True):
        objective = kind(tiny.unet(config), NULL).requires_grad_(True)
        if again:
            assert checkpoint_blocks(objective.unet) > 10
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            loss = objective(*batch())
        kept.append(sum(saved))
        loss.backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 2


def test_frozen_conditions_are_prepared_without_a_gradient():
    objective = KeyframeTuning(tiny.unet(tiny.KEYFRAME_V10), NULL)
    frozen = objective.requires_grad_(False).prepared(*text(), TIMESTEP[None], positions=torch.arange(T), keyframes=T)
    assert not any(table.requires_grad for table in frozen.modulations if table is not None)
    trained = objective.requires_grad_(True).prepared(*text(), TIMESTEP[None], positions=torch.arange(T), keyframes=T)
    assert any(table.requires_grad for table in trained.modulations if table is not None)


def test_a_weight_of_one_is_the_plain_loss_and_a_larger_one_counts_noisy_steps_more():
    plain, heavy = (KeyframeTuning(tiny.unet(tiny.KEYFRAME_V10), NULL, weight) for weight in (1.0, 2.0))
    with torch.no_grad():
        assert heavy(*keyframe_batch()).item() == pytest.approx(2.0 * plain(*keyframe_batch()).item(), rel=1e-5)
