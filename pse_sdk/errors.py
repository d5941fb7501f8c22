"""Every error that a user of the package can cause. All of them are `PseError`; `pse` turns them into exit code 2."""


class PseError(Exception):
    """Base of the family. The message says what came, what was wanted and what to do, in one line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class AudioError(PseError, ValueError):
    """Samples or a recording that cannot be used (unreadable, empty, wrong shape), or audio that cannot be written."""


class ModelFileError(PseError, ValueError):
    """A model file that is damaged, foreign, or could not be written."""


class MissingDependencyError(PseError, ImportError):
    """An optional part of the package is needed and not installed."""


class DeviceError(PseError, RuntimeError):
    """A sound device that is missing or refused to open."""


class SettingsError(PseError, ValueError):
    """An argument of the wrong type or outside its range, a name that does not exist, a call on a closed stream."""


class PersonalizationError(PseError, RuntimeError):
    """The training process could not start, or ended without a result; the model in use stays as it was."""


class PersonalizationCancelled(PersonalizationError):
    """The caller's `on_progress` asked to stop; the model in use stays as it was."""


def printable(text: str) -> str:
    """The text on one line, whatever the paths in it are made of."""
    return "".join(character if character.isprintable() else "?" for character in text)
