"""What a batch costs, counted on the meta device with the networks and stages that will run, before anything runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..bench.counting import PEAKS
from ..bench.known_values import KnownValues
from ..bench.recorder import Recording, record
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import LEVELS, Settings
from ..sampling.samplers import Stopped
from ..stages.decoding import decode_chunks
from ..stages.run import Text
from .engine import ModelOptions, clip_bytes, open_pipeline
from .events import duration
from .jobs import Plan
from .ledger import Ledger

# Tokens of a prompt of about twenty words; text is a thousandth of a clip, whatever their number.
TOKENS = 32


@dataclass(frozen=True)
class StageCount:
    """What one stage of a clip costs.

    Attributes:
        stage: name, as in ``LatentClip.seconds``.
        flops: floating point operations.
        bytes: read and written.
        seconds: card to the time that it cannot go below, operation by operation.
        peak_bytes: most bytes alive at one time beside the weights.
    """

    stage: str
    flops: float
    bytes: float
    seconds: dict[str, float]
    peak_bytes: int


def count_clip(pipeline: Pipeline, settings: Settings) -> list[StageCount]:
    """Count the sampling and decoding stages of one clip.

    Of every stage two steps are run, the rest are like the second one. Encoding of text is left out.

    Args:
        pipeline: opened on the device "meta" in the dtype to count in.
        settings: resolved settings.
    """
    # Nobody can say here what a device has left, so branches count as stacked.
    settings = replace(settings, is_stacked=True if settings.is_stacked is None else settings.is_stacked)
    movq = pipeline.models.require(pipeline.release.decoder)[1].config
    size = settings.height // movq.factor, settings.width // movq.factor
    latents = movq.z_channels
    passes, _ = LEVELS[settings.fps]
    counts = []
    first_frame = None
    if pipeline.release.reads_image:
        first_frame = torch.zeros(1, latents, *size, device="meta")
        counts.append(_count(pipeline, "first frame", lambda text, step: pipeline.sample_picture(text, settings, step)))
    counts.append(
        _count(
            pipeline, "keyframes",
            lambda text, step: pipeline.sample_keyframes(text, settings, first_frame=first_frame, callback=step),
        )
    )  # fmt: skip
    frames = settings.keyframes
    for i in range(passes):
        given = torch.zeros(1, frames, latents, *size, device="meta")

        def run(text: Text, step: Callable, given: torch.Tensor = given, i: int = i) -> None:
            pipeline.interpolate(given, settings, first=i, text=text, callback=step)

        counts.append(_count(pipeline, f"interpolation {i + 1}", run))
        frames = 4 * frames - 3
    network = pipeline.network(pipeline.release.decoder).network
    given = torch.zeros(frames, latents, *size, device="meta")

    def decode() -> None:
        with torch.inference_mode():
            for _ in decode_chunks(network, given, shared_map=pipeline.release.shares_map):
                pass

    counts.append(_stage("decoding", record(decode, network), None, 1))
    return counts


def _count(pipeline: Pipeline, stage: str, run: Callable[[Text, Callable], object]) -> StageCount:
    config = pipeline.models.require("keyframe")[1].config
    totals: list[int] = []

    def until(last: int) -> Callable[[], None]:
        def step(done: int, total: int, denoised: object) -> bool:
            totals.append(total)
            return done == last

        def function() -> None:
            with KnownValues(), suppress(Stopped):
                context = torch.zeros(1, TOKENS, config.context_dim, dtype=pipeline.dtype, device="meta")
                run(Text.of(context, torch.ones(1, TOKENS, dtype=torch.long, device="meta")), step)

        return function

    # The first run puts the weights where they stay, which is no work of a step.
    until(1)()
    network = pipeline.network("keyframe" if stage in ("keyframes", "first frame") else pipeline.gap_stage).network
    totals.clear()
    one = record(until(1), network)
    two = record(until(2), network) if totals[0] > 1 else None
    return _stage(stage, one, two, totals[0])


def _stage(stage: str, one: Recording, two: Recording | None, steps: int) -> StageCount:
    """Return the cost of ``steps`` steps from the recordings of one and of two."""

    def whole(of: Callable[[Recording], float]) -> float:
        return of(one) + (0 if two is None else (steps - 1) * (of(two) - of(one)))

    seconds = {card: whole(lambda r, peaks=peaks: r.seconds(*peaks)) for card, peaks in PEAKS.items()}
    peak = max(one.peak_bytes, 0 if two is None else two.peak_bytes)
    return StageCount(stage, whole(lambda r: r.flops), whole(lambda r: r.bytes), seconds, peak)


def plan_lines(plan: Plan, output: Path, model: ModelOptions) -> Iterator[str]:
    """Yield the lines of ``--dry-run``: rows, what a worker holds, and hours that it takes at least.

    Args:
        plan: the checked rows.
        output: folder of the batch, which need not exist.
        model: what will run.
    """
    ledger = Ledger(output) if output.is_dir() else None
    todo = [job for job in plan.jobs if ledger is None or not (ledger.is_done(job.key) or ledger.failure(job.key))]
    asked = sum(len(job.labels) for job in plan.jobs) + len(plan.refusals)
    yield (
        f"{asked} rows: {len(plan.jobs)} different clips, {len(todo)} of them to make, {len(plan.refusals)} rows wrong"
    )
    for refusal in plan.refusals:
        yield f"row {refusal.row.number}: {refusal.problem}"
    carried = sorted({name for job in plan.jobs for label in job.labels for name in label} - {"id"})
    if carried:
        yield f"columns that are no setting and go into the records: {', '.join(carried)}"
    if not todo:
        return
    pipeline = open_pipeline(replace(model, dtype=model.dtype or "float16"), device="meta")
    shapes = Counter(replace(job.settings, seed=0) for job in todo)
    counted = {settings: count_clip(pipeline, settings) for settings in shapes}
    yield from _holdings(pipeline, len({job.text_key for job in todo}), max(
        count.peak_bytes for counts in counted.values() for count in counts
    ))  # fmt: skip
    sums: dict[str, float] = dict.fromkeys(PEAKS, 0.0)
    for settings, counts in counted.items():
        frames = _frames(settings)
        yield (
            f"{shapes[settings]} clips of {frames} frames of {settings.width} x {settings.height}: "
            f"{sum(count.flops for count in counts) / 1e12:.3g} TFLOP and "
            f"{sum(count.bytes for count in counts) / 1e9:.3g} GB moved each ("
            + ", ".join(f"{count.stage} {count.flops / 1e12:.3g}" for count in counts)
            + " TFLOP)"
        )
        for card in sums:
            sums[card] += shapes[settings] * sum(count.seconds[card] for count in counts)
    yield "at the peak of a card, which no run reaches, one worker needs at least: " + ", ".join(
        f"{card} {duration(seconds)}" for card, seconds in sums.items()
    )


def _frames(settings: Settings) -> int:
    frames = settings.keyframes
    for _ in range(LEVELS[settings.fps][0]):
        frames = 4 * frames - 3
    return frames


def _holdings(pipeline: Pipeline, prompts: int, peak: int) -> Iterator[str]:
    text = sum(
        pipeline.dtype.itemsize * sum(tensor.numel() for tensor in contents.tensors.values())
        for stage, (contents, _) in pipeline.models.files.items()
        if stage in ("text_encoder", "projection")
    )
    yield f"one worker encodes {prompts} prompts first, holding {_gb(text)} of weights, and lets them go"
    together = clip_bytes(pipeline)
    yield (
        f"then a worker holds {_gb(together)} of weights and at most {_gb(peak)} beside them; with less room networks "
        f"leave in turn, the largest of {_gb(_largest(pipeline))}, and pass through in blocks"
    )


def _largest(pipeline: Pipeline) -> int:
    sizes: Sequence[int] = [
        (4 if "movq" in stage else pipeline.dtype.itemsize) * sum(t.numel() for t in contents.tensors.values())
        for stage, (contents, _) in pipeline.models.files.items()
        if stage not in ("text_encoder", "projection")
    ]
    return max(sizes)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
