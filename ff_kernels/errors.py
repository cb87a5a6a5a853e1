"""Errors of the engine: one sentence that names the thing, what was expected, what was found and what to do."""


class FusionFramesError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line and exits with status 2."""


class InputError(FusionFramesError, ValueError):
    """A value that a user gave is outside what the model or the file format allows.

    ``setting`` names what would change it, for a host that has another word for it, such as a flag.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class ShapeError(FusionFramesError, ValueError):
    """A tensor does not have the shape that a public function documents."""


class CheckpointError(FusionFramesError, ValueError):
    """A weights file is damaged, of another kind than asked for, or does not fit its configuration."""


class OutputError(FusionFramesError, OSError):
    """A result could not be written; nothing half-written is left behind."""


class NoBackendError(FusionFramesError, RuntimeError):
    """No implementation of an operation may run, or the one asked for refuses."""


class DeviceError(FusionFramesError):
    """A device cannot do what it was asked for."""


class TrainingError(FusionFramesError):
    """A training that cannot go on."""
