import torch

from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.start.contexts import spread_projection
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet, keyframe_positions
from fusionframes.ff_kernels.models.text_encoder import TextProjection
from fusionframes.ff_kernels.training.initial import initialise


def test_spread_projection_makes_a_small_difference_as_large_as_any():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    strength = torch.logspace(0, -1, 15)
    hidden = 5 * directions[0] + torch.randn(4000, 15, generator=generator) * strength @ directions[1:]
    projection = TextProjection(16, 24)
    base, weak = 5 * directions[0], 0.1 * directions[15]

    def difference():
        out = projection(torch.stack([base + directions[1], base + directions[1] + 2 * weak]))
        return (out[0] - out[1]).norm() / out.norm(dim=1).mean()

    before = difference()
    spread_projection(projection, hidden)
    assert difference() > max(0.7, 4 * before)
    out = projection(hidden)
    assert out.mean(dim=0).norm() < 0.2 * out.norm(dim=1).mean()


def test_initial_weights_tell_the_keyframes_their_order():
    torch.manual_seed(0)
    network = initialise(KeyframeUNet(recipe.KEYFRAMES))
    places = network.embed(network.to_temporal_embed, keyframe_positions("1.0", 5), torch.zeros(1))
    norms = [norm for norm in network._norms if norm.rows == "position"]
    assert len(norms) == 2
    for norm in norms:
        rows = norm.context_mlp(places)
        assert (rows - rows.mean(dim=0)).square().mean().sqrt() > 0.15
