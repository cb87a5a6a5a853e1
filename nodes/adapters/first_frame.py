"""The first frame of a conditioning, release 1.1, checked against the latents it belongs to."""

from collections.abc import Mapping
from typing import Any

from ...ff_kernels.errors import InputError
from ...ff_kernels.stages.keyframes import FirstFrame
from ...ff_kernels.stages.releases import V11
from .latent import FIRST_FRAME, IMAGE_KEYS, MOTION_SCORE, NO_FIRST_FRAME, NOISE_LEVEL


def numbers_of(options: Mapping[str, Any]) -> dict[str, int]:
    """Return what release 1.1 is told of a first frame besides its latents."""
    return {
        "motion_score": int(options.get(MOTION_SCORE, V11.motion_score)),
        "noise_level": int(options.get(NOISE_LEVEL, V11.noise_level)),
    }


def first_frame_of(
    where: str,
    options: Mapping[str, Any],
    family: str,
    shape: tuple[int, ...],
    image_guidance: float = V11.image_guidance,
) -> FirstFrame | None:
    """Return the first frame that a conditioning's options hold, None without one.

    Args:
        where: the input, for messages.
        options: dictionary of a conditioning.
        family: release of the network.
        shape: B, T, C, h and w of the latents.
        image_guidance: weight of the first frame.

    Raises:
        InputError: if release 1.0 is given one, release 1.1 needs one, or it is not of the latents' size.
    """
    frame, (clips, frames, _, *size) = options.get(FIRST_FRAME), shape
    if frame is None:
        if family == "1.1" and frames > 1 and not options.get(NO_FIRST_FRAME):
            raise InputError(
                f"{where} expected a first frame for {frames} keyframes of release 1.1, got text only: use "
                "FusionFrames Image to Video, or ask for 1 keyframe to draw a first frame from text"
            )
        return None
    if family == "1.0":
        raise InputError(
            f"{where} expected text only, got a first frame with a release 1.0 model, which reads none: load the "
            f"keyframe U-Net of release 1.1, or leave FusionFrames Image to Video out ({', '.join(IMAGE_KEYS)})"
        )
    if list(frame.shape[-2:]) != size:
        raise InputError(
            f"{where} expected a first frame of the latent's size {size}, got {list(frame.shape[-2:])}: use the latent "
            "that FusionFrames Image to Video returns"
        )
    if frame.shape[0] not in (1, clips):
        raise InputError(
            f"{where} expected one first frame or one for each of {clips} clips, got {frame.shape[0]}: use the latent "
            "that FusionFrames Image to Video returns"
        )
    return FirstFrame(frame.float(), image_guidance, **numbers_of(options))
