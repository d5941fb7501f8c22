"""Other people's denoisers, to be measured beside ours: a Python file whose `make(name)` returns objects like this one.

    peer.sample_rate        in Hz
    peer.hop                samples from one `step` to the next at that rate; 0 where only whole recordings are enhanced
    peer.delay              samples by which the output of `step` lags its input
    peer.params             number of parameters; None or missing where nobody knows
    peer.step(frame)        one hop [hop] of float32 to the next enhanced hop; the peer keeps its own memory
    peer.enhance(noisy)     [T] at 16 kHz to [T], aligned with it
    peer.enhance_batch(noisy)   [B, T] to [B, T]; only where a network is pre-trained with it, and may be missing
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PseError

N_COUNTED_STEPS = 20


def make_peer(file: str | os.PathLike[str], name: str) -> Any:
    """What `make(name)` of the Python file returns. Its folder stays on `sys.path`, for files that lie beside it.

    Raises:
        PseError: the file cannot be imported, or makes no such peer.
    """
    file = Path(file).resolve()
    if not file.is_file():
        raise PseError(f"{file}: there is no such file of peers; give a Python file, then names of peers in it")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        return _module(file).make(name)
    except Exception as error:      # whatever a stranger's file raises
        raise PseError(f"{file.name}: no peer {name!r} can be made here ({type(error).__name__}: {error}); "
                       "install what it needs, or leave it out (all words after --peers are names of peers)") from error


def _module(file: Path) -> Any:
    """Known by its whole path: two files may have one name, or that of a library."""
    known_as = f"peers in {file}"
    if known_as not in sys.modules:
        loader = importlib.machinery.SourceFileLoader(known_as, str(file))
        spec = importlib.util.spec_from_loader(known_as, loader)
        assert spec is not None
        sys.modules[known_as] = module = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[known_as]
            raise
    return sys.modules[known_as]


def make_streaming_peer(file: str | os.PathLike[str], name: str) -> Any:
    """A peer that was seen to take one hop.

    Raises:
        PseError: it cannot be made, works on whole recordings only, or its `step` fails.
    """
    peer = make_peer(file, name)
    if not getattr(peer, "hop", 0):
        raise PseError(f"peer {name!r} enhances whole recordings only; step times need one with `hop` and `step`")
    try:
        peer.step(np.zeros(peer.hop, np.float32))
    except Exception as error:
        raise PseError(f"peer {name!r} cannot take a step ({type(error).__name__}: {error}); leave it out") from error
    return peer


def count_graphs(file: str | os.PathLike[str], name: str) -> dict[str, float | None]:
    """What a peer runs in ONNX Runtime: `macs_per_second` of audio and `file_bytes`; None where it runs something else.

    For a process of its own: the sessions made meanwhile are slow ones that count.

    Raises:
        PseError: the peer cannot be made, or cannot take a step.
    """
    from .macs import counted_sessions
    with counted_sessions() as sessions:
        peer = make_streaming_peer(file, name)
        n_runs = [session.n_runs for session in sessions]       # of making it, and of the hop that was tried
        noise = np.random.default_rng(0).standard_normal((N_COUNTED_STEPS, peer.hop)).astype(np.float32) / 20
        for hop in noise:
            peer.step(hop)
        macs = sum(session.macs_per_run() * (session.n_runs - before)
                   for session, before in zip(sessions, n_runs, strict=True))
    if not sessions:
        return {"macs_per_second": None, "file_bytes": None}
    return {"macs_per_second": macs / N_COUNTED_STEPS * peer.sample_rate / peer.hop,
            "file_bytes": sum(session.n_bytes for session in sessions)}


if __name__ == "__main__":
    print(json.dumps(count_graphs(*sys.argv[1:])))
