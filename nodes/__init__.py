"""ComfyUI nodes of FusionFrames, a thin layer: check, call one function of ``ff_kernels``, wrap."""

from ..ff_kernels.demo import WEIGHTS
from ._api import ComfyExtension, io
from ._compat import register_folder
from .conditioning import EmptyLatent, ImageToVideo, TextEncode
from .decode import MoVQDecode, Storyboard
from .interpolation import Interpolate, MaskedInterpolate
from .loaders import LoadModel, LoadMoVQ, LoadTextEncoder
from .metrics import ClipSim, Compare, TemporalConsistency
from .sampling import DDPM, DualGuider, KeyframeSampler, Schedule

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadTextEncoder,
    LoadMoVQ,
    TextEncode,
    EmptyLatent,
    ImageToVideo,
    KeyframeSampler,
    Schedule,
    DDPM,
    DualGuider,
    Interpolate,
    MaskedInterpolate,
    MoVQDecode,
    Storyboard,
    Compare,
    TemporalConsistency,
    ClipSim,
]


class FusionFramesExtension(ComfyExtension):
    """What core asks the pack for."""

    async def on_load(self) -> None:
        """Put the demo weights into the dropdowns; they stay where they are."""
        for folder in sorted(WEIGHTS.iterdir()):
            register_folder(folder.name, folder)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes."""
        return NODES


async def comfy_entrypoint() -> FusionFramesExtension:
    """Return the extension."""
    return FusionFramesExtension()
