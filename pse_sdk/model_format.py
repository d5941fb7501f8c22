"""The model file: one ONNX with `pse.` metadata and, as its last bytes, the SHA-256 of all bytes before.

A flipped bit in an ONNX file usually loads and silently denoises wrong, so nothing reaches the runtime before the
digest fits. The digest is one more `metadata_props` entry: protobuf readers append a repeated field that comes last, so
the file stays valid ONNX, and checking it needs no protobuf library.

    model bytes ... | field 14 (metadata_props), 82 bytes | key "pse.sha256" | value: 64 hexadecimal digits
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import ModelFileError

FORMAT_VERSION = 1
MAX_FILE_BYTES = 64 * 2**20
_KEY = b"pse.sha256"
# tag of field 14, length of the entry; tag of the key, its length, the key; tag of the value, its length
_TRAILER = bytes([0x72, 2 + len(_KEY) + 2 + 64, 0x0A, len(_KEY)]) + _KEY + bytes([0x12, 64])


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself. No paths, no names, no dates finer than a day, no audio."""

    size: str
    n_parameters: int
    sample_rate: int
    hop_length: int
    n_fft: int
    delay: int                      # samples by which the output lags the input
    method: str = "generalist"
    seconds_of_audio: float = 0.0   # that personalization learned from
    seed: int = 0
    created: str = ""               # a day, 2026-01-31
    generalist: str = ""            # SHA-256 of the model file that training started from
    scores: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT_VERSION

    def to_metadata(self) -> dict[str, str]:
        return {f"pse.{key}": json.dumps(value) if isinstance(value, dict) else str(value)
                for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ModelInfo":
        """Raises ModelFileError where an entry is missing, or the format is newer than this package."""
        if "pse.format" not in metadata:
            raise ModelFileError("not a pse_sdk model: the file has no entry pse.format; make one with Enhancer.save")
        if metadata["pse.format"] != str(FORMAT_VERSION):
            raise ModelFileError(f"model format {metadata['pse.format']}, this package reads {FORMAT_VERSION}; "
                                 "update pse_sdk or personalize again")
        kinds: dict[str, Any] = {"int": int, "float": float, "str": str}
        try:
            return cls(**{f.name: json.loads(metadata[f"pse.{f.name}"]) if "dict" in str(f.type)
                          else kinds[getattr(f.type, "__name__", str(f.type))](metadata[f"pse.{f.name}"])
                          for f in fields(cls)})
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"the model's description is incomplete ({error}); personalize or download it again"
                                 ) from error


def seal(model: bytes) -> bytes:
    """The model with its digest appended. Seal last: any later change breaks it."""
    return model + _TRAILER + hashlib.sha256(model).hexdigest().encode()


def digest_of(sealed: bytes) -> str:
    """The digest that `seal` wrote: names a model without a path."""
    return sealed[-64:].decode()


def check_seal(sealed: bytes, name: str = "model") -> bytes:
    """The same bytes, once the digest fits.

    Raises:
        ModelFileError: no digest (another program's ONNX, a truncated file) or a wrong one.
    """
    body, trailer = sealed[:-len(_TRAILER) - 64], sealed[-len(_TRAILER) - 64:]
    if not trailer.startswith(_TRAILER):
        raise ModelFileError(f"{name}: no pse_sdk model, or one that was cut off ({len(sealed)} bytes); "
                             "use a file that Enhancer.save wrote")
    if trailer[len(_TRAILER):] != hashlib.sha256(body).hexdigest().encode():
        raise ModelFileError(f"{name}: damaged, its content does not fit its digest; "
                             "restore a copy or personalize again")
    return sealed


def read_model(path: str | os.PathLike[str]) -> bytes:
    """The checked bytes of a model file.

    Raises:
        ModelFileError: missing, unreadable, too large, damaged.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:      # ValueError: a zero byte in the path
        raise ModelFileError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); "
                             "give the path of a model file") from error
    if len(content) > MAX_FILE_BYTES:
        raise ModelFileError(f"{path}: a model file has at most {MAX_FILE_BYTES} bytes, this one has more; "
                             "give the path of a model file")
    return check_seal(content, str(path))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: what was there stays until the new content is on the disk.

    Raises:
        ModelFileError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    if not path.name:
        raise ModelFileError(f"{str(path)!r} names no file; give a path such as 'me.onnx'")
    with suppress(OSError, ValueError):
        path = path.resolve()       # what a link points to is replaced, not the link
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is no regular file; choose another name")
    # threads of one process, too, may write the same file; and a name may be as long as names can be
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, ValueError) as error:      # ValueError: a zero byte in the path
        raise ModelFileError(f"{path}: cannot be written ({getattr(error, 'strerror', error)}); what was there is "
                             "unchanged, choose a writable folder") from error
    finally:
        with suppress(OSError, ValueError):
            partial.unlink()
