import json

import pytest

from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.loading import build_network
from fusionframes.ff_kernels.models.configs import (
    INTERPOLATION_V10,
    INTERPOLATION_V11,
    KEYFRAME_V10,
    KEYFRAME_V11,
    MOVQ,
    VIDEO_MOVQ,
)

PRESETS = {
    "v10_keyframe": KEYFRAME_V10, "v10_interpolation": INTERPOLATION_V10, "v10_movq": MOVQ,
    "v11_keyframe": KEYFRAME_V11, "v11_interpolation": INTERPOLATION_V11, "v11_movq": MOVQ,
    "v11_video_movq": VIDEO_MOVQ,
}  # fmt: skip


def test_presets_cover_every_manifest(golden):
    assert {path.stem for path in golden.glob("manifest_*.json")} == {f"manifest_{name}" for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_keys_and_shapes_equal_the_released_checkpoint(golden, name):
    manifest = json.loads((golden / f"manifest_{name}.json").read_text())
    network = build_network(Kind("", "", PRESETS[name]), device="meta")
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == manifest["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == manifest["parameters"]
