"""The released folders as a plan sees them: sizes without weights."""

from pathlib import Path

from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.folder import ModelFiles
from fusionframes.ff_kernels.checkpoints.reading import Contents
from fusionframes.ff_kernels.models import configs


def files(family: str) -> ModelFiles:
    """Return the files of a release; nothing in them can be read."""
    number = family.replace(".", "")
    kinds = {stage: getattr(configs, f"{stage.upper()}_V{number}") for stage in ("keyframe", "interpolation")}
    kinds |= {"movq": configs.MOVQ, "text_encoder": configs.TextConfig()}
    kinds |= {"video_movq": configs.VIDEO_MOVQ} if family == "1.1" else {}
    opened = {stage: (Contents(Path(stage), {}, {}), Kind(stage, family, config)) for stage, config in kinds.items()}
    return ModelFiles(Path("released"), family, opened, Path("spiece.model"))
