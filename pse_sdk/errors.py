"""Every error that a user of the package can cause. All of them are `PseError`; `pse` turns them into exit code 2."""


class PseError(Exception):
    """Base of the family. The message says what came, what was wanted and what to do."""


class AudioError(PseError, ValueError):
    """Samples or a recording that cannot be used: unreadable, empty, wrong shape, no speech."""


class ModelFileError(PseError, ValueError):
    """A model file that is damaged, foreign, or could not be written."""


class MissingDependencyError(PseError, ImportError):
    """An optional part of the package is needed and not installed."""


class DeviceError(PseError, RuntimeError):
    """A sound device that is missing or refused to open."""


class SettingsError(PseError, ValueError):
    """An argument outside its range, or a name that does not exist."""


class PersonalizationError(PseError, RuntimeError):
    """The training process ended without a result; the model in use stays as it was."""


class PersonalizationCancelled(PersonalizationError):
    """The caller's `on_progress` asked to stop; the model in use stays as it was."""
