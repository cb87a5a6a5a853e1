"""What a fine-tuning trains, and on what."""

from dataclasses import dataclass

from ..errors import InputError

STAGES = ("keyframe", "interpolation")
WHATS = ("lora", "temporal")
# Keyframes are 0.5 s apart; the passes of the interpolation see frames a quarter and a sixteenth of that apart.
KEYFRAME_FPS = 2.0


@dataclass(frozen=True)
class Tuning:
    """What to train and how.

    Attributes:
        stage: "keyframe" or "interpolation".
        what: "lora", or "temporal" for all parameters over time as a whole checkpoint.
        layers: of a LoRA, see ``lora_layers``.
        rank: of a LoRA.
        size: side of a square bucket in pixels; other aspects have its area.
        keyframe_fps: rate of keyframes in the clips.
        source_fps: rate of PNG sequences.
        noise_weight: errors of noise weigh as 1 / alpha_bar up to this, 1 is the paper's loss.
        checkpoints: run every block again in the backward pass instead of keeping what is inside.
        parks: keep what only the conditions need in memory; None: where the device is no CPU.
        seed: of factors, data and noise.
        prompts: what to draw while it trains.
        sample_every: steps between two sheets.
        sample_steps: sampling steps of a sheet.
        sample_guidance: text guidance of a sheet; default the release's.
    """

    stage: str = "keyframe"
    what: str = "lora"
    layers: str = "temporal"
    rank: int = 16
    size: int = 512
    keyframe_fps: float = KEYFRAME_FPS
    source_fps: float = 24.0
    noise_weight: float = 1.0
    checkpoints: bool = True
    parks: bool | None = None
    seed: int = 0
    prompts: tuple[str, ...] = ()
    sample_every: int = 0
    sample_steps: int = 20
    sample_guidance: float | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("stage", self.stage, STAGES), ("what", self.what, WHATS)):
            if value not in allowed:
                raise InputError(f"expected {name} as one of {', '.join(allowed)}, got '{value}': choose one of them")
