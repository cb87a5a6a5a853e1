"""What each release runs with, as data: samplers, nodes, help texts and tables read it or are tested against it.

Nothing here needs torch, so that a help text is printed at once.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ..models.configs import KEYFRAME_V10, KEYFRAME_V11


@dataclass(frozen=True)
class Sampling:
    """How a stage of a release is sampled.

    Attributes:
        steps: sampling steps.
        guidance_scale: w of ``(w + 1) * cond - w * uncond``.
        predicted: what the network predicts.
        threshold: how the x0 estimate is brought into range.
        spacing: which of 1000 training steps are taken; None for a native schedule of as many steps as the run has.
    """

    steps: int
    guidance_scale: float
    predicted: Literal["eps", "v"]
    threshold: Literal["quantile", "range"]
    spacing: Literal["leading", "trailing"] | None = None

    def changed(self, steps: int | None = None, guidance_scale: float | None = None) -> "Sampling":
        """Return the same with other values where they are given."""
        given = {"steps": steps, "guidance_scale": guidance_scale}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Release:
    """What a release runs with.

    Attributes:
        family: "1.0" or "1.1".
        keyframe: sampling of keyframes and, release 1.1, of a picture.
        interpolation: sampling of the frames between them, and of the paper's baseline.
        keyframes: how many the network was trained on.
        decoder: kind of the MoVQ that decodes clips.
        shares_map: the decoder's attention of a whole chunk is modulated by its first frame.
        reads_image: keyframes are sampled from text and a first frame, with the next three.
        image_guidance: weight of the first frame.
        motion_score: how much moves, one of ``MOTION_SCORES``.
        noise_level: diffusion steps of noise on the first frame.
    """

    family: str
    keyframe: Sampling
    interpolation: Sampling
    keyframes: int
    decoder: Literal["movq", "video_movq"]
    shares_map: bool = False
    reads_image: bool = False
    image_guidance: float | None = None
    motion_score: int | None = None
    noise_level: int | None = None

    @property
    def shares_steps(self) -> bool:
        """Whether one number of steps is meant for both stages."""
        return self.keyframe.steps == self.interpolation.steps


# Source: the released pipelines' own defaults, golden v10_pipeline and v11_pipeline; w of the interpolation: paper 4.3.
V10 = Release(
    "1.0",
    keyframe=Sampling(50, 5.0, "eps", "quantile"),
    interpolation=Sampling(50, 0.25, "v", "quantile"),
    keyframes=KEYFRAME_V10.num_frames,
    decoder="movq",
)
V11 = Release(
    "1.1",
    keyframe=Sampling(50, 5.0, "eps", "range", "leading"),
    interpolation=Sampling(10, 0.5, "v", "range", "trailing"),
    keyframes=KEYFRAME_V11.num_frames,
    decoder="video_movq",
    shares_map=True,
    reads_image=True,
    image_guidance=2.0,
    motion_score=10,
    noise_level=20,
)
RELEASES = {release.family: release for release in (V10, V11)}
# The authors' words for the motion score of release 1.1.
MOTION_SCORES = {"low": 1, "medium": 10, "high": 50, "extreme": 100}
# At 0.2, 0.5, 1 and 2 all of 64 captions were drawn as they say, as the demo learnt its captions well without guidance.
# From 0.5 on small shapes get holes, at 2 outlines fray.
DEMO_GUIDANCE_SCALE = 0.2
