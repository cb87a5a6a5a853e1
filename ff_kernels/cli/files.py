"""Files that a command reads and writes: what cannot be written is refused before any work, and nothing is lost."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is missing, or that is a folder itself."""
    if path.is_dir():
        raise InputError(f"expected a file to write, got the folder '{path}': choose another name")
    if not path.parent.is_dir():
        raise InputError(f"expected a folder to write '{path.name}' into, found none at '{path.parent}': create it")


def check_picture(path: Path, what: str) -> None:
    """Refuse a picture that cannot be written."""
    check_folder(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"expected a {what} that ends in .png, .jpg or .webp, got '{path}': change its suffix")


def check_kept(written: Path, what: str, others: Iterable[Path]) -> None:
    """Refuse to write over a file that the command reads or writes besides.

    Args:
        written: file to be written.
        what: what to call it.
        others: files of the same command; a folder stands for every file in it.
    """
    for other in others:
        inside = other.is_dir() and written.exists() and place_of(written).is_relative_to(place_of(other))
        if inside or place_of(written) == place_of(other):
            raise InputError(f"the {what} would overwrite '{written}', a file of this command: choose another name")


def place_of(path: Path) -> Path:
    """Return where a path leads, links followed, to be compared with others."""
    return Path(os.path.normcase(os.path.realpath(path)))


def frame_names(output: Path) -> re.Pattern[str] | None:
    """Return what the places of the frames of a PNG sequence match; None where the output is one file."""
    place = place_of(output.parent) / os.path.normcase(output.name)
    if place.suffix.lower() != ".png":
        return None
    return re.compile(re.escape(str(place.with_suffix(""))) + r"_\d{4,}" + re.escape(place.suffix))
