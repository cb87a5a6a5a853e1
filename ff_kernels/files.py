"""Write or nothing: files appear under their name when they are complete, or not at all.

A file is written under a hidden name in its own folder and renamed when complete, so a run that fails or is
interrupted leaves nothing half-written.
"""

import errno
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import FusionFramesError, OutputError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"\.ff-{_HOST}-(\d+)-[0-9a-f]+-\d+(\.\w+)?$")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Temporary path beside ``path``, renamed to ``path`` when the block ends without an exception.

    The temporary name is hidden and keeps the suffix. On any exception, ``KeyboardInterrupt`` included, the
    file is removed. The block must write it and should read nothing else: each ``OSError`` in the block
    counts as a failure to write ``path``.

    Raises:
        OutputError: instead of an ``OSError`` from the block or from renaming.
    """
    with atomic_paths([Path(path)]) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary paths beside ``paths``, renamed together: all of them at the end of the block, or none.

    Errors as of ``atomic_path``; the first path is named.
    """
    # A link stays one: what it leads to is replaced.
    paths = [Path(os.path.realpath(path)) if path.is_symlink() else path for path in paths]
    for folder in {path.parent for path in paths}:
        clear_leftovers(folder)
    token = f"{_HOST}-{os.getpid()}-{secrets.token_hex(6)}"
    temporaries = [path.with_name(f".ff-{token}-{i}{path.suffix}") for i, path in enumerate(paths)]
    renaming = False
    try:
        yield temporaries
        for temporary in temporaries:
            temporary.stat()  # a block that wrote nothing fails here, before a target is replaced
        renaming = True
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except BaseException as error:
        for temporary, path in zip(temporaries, paths, strict=True):
            with suppress(OSError):
                # All existed before the first rename, so one that has gone is now `path`. A list kept by the
                # loop would miss a rename that an interrupt follows at once.
                if renaming and not temporary.exists():
                    path.unlink()
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FusionFramesError):
            raise OutputError(f"could not write '{paths[0]}': {reason_of(error)}") from error
        raise


@cache
def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of processes of this machine that were killed while they wrote into a folder.

    Once per folder and process, as a folder may hold very many files. Windows keeps them: a process cannot be asked
    there whether it lives without ending it.
    """
    if os.name == "nt":
        return
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.match(path.name)
            if match and not _lives(int(match[1])):
                with suppress(OSError):
                    path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def reason_of(error: OSError) -> str:
    """Say in words what a file operation failed of and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission denied; change its permissions or choose another folder"
    # An OSError without a number is Pillow's: "cannot write mode RGBA as JPEG".
    text = error.strerror or str(error)
    return f"{text[:1].lower()}{text[1:]}; check the name and the device"
