"""The sound devices of this machine, each to be found by its number, its name, or a part of its name.

PortAudio lists them. It is loaded when it is first needed, for most of the package works without it.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from .errors import DeviceError, MissingDependencyError
from .quiet import quiet_libraries

Kind = str      # "input" or "output"

WORDS: dict[Kind, str] = {"input": "microphone", "output": "loudspeaker"}


@dataclass(frozen=True)
class DeviceInfo:
    """A sound device as the system lists it."""

    index: int
    name: str
    host_api: str
    n_inputs: int
    n_outputs: int
    default_sample_rate: float
    is_default_input: bool
    is_default_output: bool

    def channels(self, kind: Kind) -> int:
        return self.n_inputs if kind == "input" else self.n_outputs

    def is_default(self, kind: Kind) -> bool:
        return self.is_default_input if kind == "input" else self.is_default_output


def devices() -> list[DeviceInfo]:
    """All sound devices of this machine, as they were when the sound library was first used; it may be none.

    Raises:
        MissingDependencyError: sounddevice or the PortAudio library is not installed.
    """
    sd = sound_library()
    apis = sd.query_hostapis()
    default_input, default_output = sd.default.device
    return [DeviceInfo(index=index, name=device["name"], host_api=apis[device["hostapi"]]["name"],
                       n_inputs=device["max_input_channels"], n_outputs=device["max_output_channels"],
                       default_sample_rate=device["default_samplerate"],
                       is_default_input=index == default_input, is_default_output=index == default_output)
            for index, device in enumerate(sd.query_devices())]


def find_device(text: str | int | None, kind: Kind) -> DeviceInfo:
    """The one device that is meant.

    Args:
        text: its number, its name, or a part of its name (case does not matter); None for the system's default. Where
            several sound systems list the same device, the one of the default device's system is taken.
        kind: "input" or "output".

    Raises:
        DeviceError: none or several are meant; the message lists the candidates.
    """
    usable = [device for device in devices() if device.channels(kind) > 0]
    word = WORDS[kind]
    if not usable:
        raise DeviceError(f"this machine has no {word}: the sound system lists {_listed(devices())}")
    standard = next((device for device in usable if device.is_default(kind)), None)
    if text is None:
        if standard is None:
            raise DeviceError(f"the sound system has no default {word}; choose one of {_listed(usable)}")
        return standard
    wanted = str(text).strip().casefold()
    numbered = [device for device in usable if wanted == str(device.index)]
    named = [device for device in usable if device.name.casefold() == wanted]
    found = numbered or named or [device for device in usable if wanted and wanted in device.name.casefold()]
    if len(found) > 1 and standard is not None:
        found = [device for device in found if device.host_api == standard.host_api] or found
    if not found:
        raise DeviceError(f"no {word} is called {text!r}; there is {_listed(usable)}")
    if len(found) > 1:
        raise DeviceError(f"{text!r} may be {_listed(found)}; give the number or more of the name")
    return found[0]


def sound_library() -> Any:
    """The module sounddevice.

    Raises:
        MissingDependencyError: it or the PortAudio library is not installed.
    """
    try:
        with quiet_libraries():
            return importlib.import_module("sounddevice")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("live audio needs the package sounddevice: pip install 'pse_sdk[live]'") from error
    except OSError as error:
        raise MissingDependencyError("live audio needs the PortAudio library: apt install libportaudio2 (or your "
                                     "system's package of that library)") from error


def _listed(candidates: list[DeviceInfo]) -> str:
    return ", ".join(f"{device.index}: {device.name} ({device.host_api})" for device in candidates) or "no device"
