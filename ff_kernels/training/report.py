"""What a training leaves for its user: a line of CSV per step, a picture of the loss, TensorBoard where it is there."""

import csv
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..media.pictures import write_image
from .loop import Training

COLUMNS = ("step", "loss", "mean_loss", "learning_rate", "grad_norm", "seconds")
_SIZE_PX, _MARGIN_PX = (770, 240), 40


class Report:
    """The log of one training; rows behind the step that is resumed are dropped.

    Args:
        folder: where it is written.
        steps: of the whole training.
        writes: whether it is; of several processes only one writes.
    """

    def __init__(self, folder: Path, steps: int, *, writes: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.steps, self.step, self.writes = folder / "log.csv", steps, 0, writes
        self._rows: list[list[str]] | None = None
        self._board: Any = None

    def add(self, training: Training) -> None:
        """Note the step that was just done."""
        self.step = training.step
        if not self.writes:
            return
        if self._rows is None:
            self._resume(training.step)
        numbers = (training.last["loss"], training.loss, training.last["learning_rate"], training.last["grad_norm"])
        row = [str(training.step), *(f"{number:.8g}" for number in numbers), f"{training.seconds:.1f}"]
        self._rows.append(row)
        with self.path.open("a", newline="", encoding="ascii") as file:
            csv.writer(file).writerow(row)
        if self._board is not None:
            for name, number in zip(COLUMNS[1:5], numbers, strict=True):
                self._board.add_scalar(name, number, training.step)

    def _resume(self, step: int) -> None:
        kept = []
        if self.path.exists():
            with self.path.open(newline="", encoding="ascii") as file:
                # A run that was killed may have left half a line.
                kept = [r for r in csv.reader(file) if len(r) == len(COLUMNS) and r[0].isdigit() and int(r[0]) < step]
        with self.path.open("w", newline="", encoding="ascii") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        self._rows, self._board = kept, _tensorboard(self.path.parent, step)

    def plot(self) -> None:
        """Write ``loss.png`` beside the log: the loss of each step, and its running mean."""
        points = [(int(row[0]), float(row[1]), float(row[2])) for row in self._rows or ()]
        if points:
            write_image(draw_loss(points), self.path.with_name("loss.png"))


def draw_loss(points: list[tuple[int, float, float]]) -> Image.Image:
    """Return a picture of ``(step, loss, mean loss)``, the loss on a logarithmic axis."""
    width, height = _SIZE_PX
    picture = Image.new("RGB", _SIZE_PX, "white")
    draw = ImageDraw.Draw(picture)
    logs = [(step, math.log10(max(loss, 1e-12)), math.log10(max(mean, 1e-12))) for step, loss, mean in points]
    low = min(min(row[1:]) for row in logs)
    high = max(max(row[1:]) for row in logs)
    last = max(2, logs[-1][0])

    def place(step: int, value: float) -> tuple[float, float]:
        share = (value - low) / (high - low) if high > low else 0.5
        return (
            _MARGIN_PX + (step - 1) / (last - 1) * (width - 2 * _MARGIN_PX),
            height - _MARGIN_PX - share * (height - 2 * _MARGIN_PX),
        )

    for value in (low, high):
        draw.line([place(1, value), place(last, value)], fill="#dddddd")
        draw.text((2, place(1, value)[1] - 6), f"{10**value:.2g}", fill="#303030")
    for step, loss, _ in logs:
        x, y = place(step, loss)
        draw.point((x, y), fill="#8fb8d8")
    draw.line([place(step, mean) for step, _, mean in logs], fill="#1f77b4", width=2)
    draw.text((width / 2, height - 20), f"step 1 .. {last}", fill="#303030", anchor="mm")
    return picture


def _tensorboard(folder: Path, first: int) -> Any:
    """Return a writer that takes the place of what an earlier run wrote from a step on; None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)
