"""On paper: what a cluster makes of the released networks, counted; ``python -m fusionframes.ff_kernels.batch.paper``.

Nothing here was timed. A clip costs what the recorder counts at the peak rates of a card, which no run reaches; text,
loading and the driver cost what is stated below. The shares between cards, and where growth ends, hold all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..bench.counting import PEAKS
from ..checkpoints.detection import Kind
from ..checkpoints.folder import ModelFiles
from ..checkpoints.loading import build_network
from ..checkpoints.reading import Contents
from ..models.configs import INTERPOLATION_V10, KEYFRAME_V10, MOVQ
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from .counts import count_clip
from .run import encoders

CARDS = (1, 8, 64)
CLIPS_ASKED = 2048
# Steps of keyframes and interpolation as released, and as few as the networks may turn out to need.
STEPS = (50, 10)
# Processor time of the driver per clip under Ray, README.md beside this file: it encodes, hands out and hears.
DRIVER_SECONDS = 0.003
# Weights that the workers of a machine read when they start, from then on in its memory, and what the one that encodes
# reads before: 16 bit, MoVQ in 32.
MACHINE_CARDS = 8
WORKER_BYTES = 8.29e9 + 7.75e9 + 1.08e9
ENCODER_BYTES = 17.4e9
# One encoder's time per prompt at the roofline of an H200, and what the first reader of a shared disk gets.
PROMPT_SECONDS = 0.004
STORAGE_BYTES_PER_SECOND = 2e9
# A clip of 57 frames of 512 x 512 at the quality that is written; content moves it by a factor of three either way.
VIDEO_BYTES = 2e6
RECORD_BYTES = 6e3


@dataclass(frozen=True)
class Forecast:
    """A batch on so many cards.

    Attributes:
        card: name.
        cards: how many.
        clips: how many.
        clip_seconds: of one clip on one card at its peak.
        hours: for all clips, start and text included.
    """

    card: str
    cards: int
    clips: int
    clip_seconds: float
    hours: float

    @property
    def clips_per_hour(self) -> float:
        """Once all workers run; the driver hands out one job at a time."""
        return 3600 / max(self.clip_seconds / self.cards, DRIVER_SECONDS)

    @property
    def share(self) -> float:
        """How much of the batch's time its cards spend on clips."""
        return self.clips * self.clip_seconds / self.cards / (self.hours * 3600)

    @property
    def most_cards(self) -> int:
        """Cards from which on one driver cannot keep more of them busy."""
        return int(self.clip_seconds / DRIVER_SECONDS)


def released_pipeline() -> Pipeline:
    """Return the networks of release 1.0 at their sizes and without their weights, for counting."""
    files = {}
    for stage, family, config in (
        ("keyframe", "1.0", KEYFRAME_V10),
        ("interpolation", "1.0", INTERPOLATION_V10),
        ("movq", "", MOVQ),
    ):
        kind = Kind(stage, family, config)
        tensors = dict(build_network(kind, device="meta").state_dict())
        if family:
            tensors["null_embedding"] = torch.empty(config.context_dim, device="meta")
        files[stage] = (Contents(Path(stage), tensors, {}), kind)
    models = ModelFiles(Path("released"), "1.0", files, Path("spiece.model"))
    return Pipeline(models, device="meta", dtype=torch.float16)


def forecasts(clip_seconds: dict[str, float], clips: int = CLIPS_ASKED) -> Iterator[Forecast]:
    """Yield a forecast per card and number of cards, from the seconds of a clip on one of each."""
    for card, seconds in clip_seconds.items():
        for cards in CARDS:
            encoding = encoders(clips, cards)
            read = -(-encoding // MACHINE_CARDS) * ENCODER_BYTES + -(-cards // MACHINE_CARDS) * WORKER_BYTES
            start = read / STORAGE_BYTES_PER_SECOND + clips * PROMPT_SECONDS / encoding
            # The last clips leave cards idle: whole rounds of clips.
            rounds = -(-clips // cards)
            work = max(rounds * seconds, clips * DRIVER_SECONDS)
            yield Forecast(card, cards, clips, seconds, (start + work) / 3600)


def lines() -> Iterator[str]:
    """Yield the tables of README.md."""
    pipeline = released_pipeline()
    for steps in STEPS:
        settings = pipeline.resolve(Settings(fps="medium", width=512, height=512, steps=steps))
        counts = count_clip(pipeline, replace(settings, is_stacked=True))
        seconds = {card: sum(count.seconds[card] for count in counts) for card in PEAKS}
        yield f"57 frames of 512 x 512, {steps} + {steps} steps: " + ", ".join(
            f"{count.stage} {count.flops / 1e12:.0f} TFLOP {count.bytes / 1e12:.2f} TB" for count in counts
        )
        yield from table(seconds)


def table(clip_seconds: dict[str, float]) -> Iterator[str]:
    """Yield the lines of a table of forecasts."""
    yield f"| card | cards | s per clip | clips/h | h for {CLIPS_ASKED} | busy | MB/s written | one driver feeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in forecasts(clip_seconds):
        written = one.clips_per_hour / 3600 * (VIDEO_BYTES + RECORD_BYTES) / 1e6
        yield (
            f"| {one.card} | {one.cards} | {one.clip_seconds:.2f} | {one.clips_per_hour:,.0f} | {one.hours:.2f} | "
            f"{one.share:.0%} | {written:.2f} | {one.most_cards:,} |"
        )


if __name__ == "__main__":
    print("\n".join(lines()))
