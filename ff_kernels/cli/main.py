"""The command line ``fusionframes``: generate, batch, verify, convert, info, evaluate, train, bench."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

from .. import __version__
from ..errors import FusionFramesError, InputError
from .batch import add_batch
from .console import Ended, drop_output, ending_by_signals, spell_anything
from .generate import add_generate
from .measuring import add_bench, add_evaluate, add_verify
from .options import FLAGS
from .train import add_train
from .weights import add_convert, add_info

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, as every other error."""

    def error(self, message: str) -> None:
        raise InputError(f"{message}: see '{self.prog} --help'")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="fusionframes", description="FusionFrames: two-stage text-to-video.")
    parser.add_argument("--version", action="version", version=f"fusionframes {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (add_generate, add_batch, add_verify, add_convert, add_info, add_evaluate, add_train, add_bench):
        add(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *place: object) -> None:
    print(f"fusionframes: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    warnings.showwarning = _show_warning
    spell_anything()
    try:
        with ending_by_signals():
            options = build_parser().parse_args(arguments)
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
    except FusionFramesError as error:
        flag = FLAGS.get(getattr(error, "setting", None))
        print(f"fusionframes: {error}{f' ({flag})' if flag else ''}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as error:
        print("fusionframes: interrupted; nothing was written", file=sys.stderr)
        return error.status if isinstance(error, Ended) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) left: not an error, but Python would report it at exit.
        drop_output()
        return EXIT_ERROR
    except (MemoryError, RuntimeError) as error:
        # torch reports an exhausted device as a RuntimeError of its own; any other one is a defect to be seen.
        if isinstance(error, RuntimeError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        print("fusionframes: out of memory: try --low-memory, --fps low or a smaller size", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
