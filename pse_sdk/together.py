"""Many streams at once: what servers do. A step of a model costs little more for eight streams than for one."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from .errors import SettingsError
from .onnx_denoiser import OnnxDenoiser, join_states, slice_state
from .stream import EnhancementStream, Hops

MOST_AT_ONCE = 32       # streams in one step: beyond, what a step works on no longer fits into the nearest caches


def process_together(streams: Sequence[EnhancementStream], chunks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The next chunk of each stream, enhanced: `[s.process(c) for s, c in zip(streams, chunks)]` for less.

    Streams of one `Enhancer` go through its model together; others are welcome, but gain nothing from each other.
    Each stream leads its own life: it may be new or old, have its own rate, channels and settings, be alone the next
    time, be in other company, or be closed. What comes out does not depend on the company, but for rounding (1e-6).

        rooms = {caller: enhancer.stream(48_000) for caller in callers}
        ...
        spoke = list(waiting)                                       # {caller: chunk}, of those who sent something
        enhanced = process_together([rooms[caller] for caller in spoke], [waiting[caller] for caller in spoke])

    Args:
        streams: made by `Enhancer.stream`, each of them once. They belong to the calling thread meanwhile.
        chunks: one for each stream, as `process` takes them.

    Raises:
        AudioError, SettingsError: what `process` raises for one of them; then no stream has heard anything.
        SettingsError: a stream stands there twice, or there are more or fewer chunks than streams.
    """
    if not isinstance(streams, Sequence) or not all(isinstance(stream, EnhancementStream) for stream in streams):
        raise SettingsError("expected a list of streams that Enhancer.stream made, and a list of as many chunks")
    if len(streams) != len(chunks):
        raise SettingsError(f"got {len(streams)} streams and {len(chunks)} chunks; give one chunk for each stream")
    if len({id(stream) for stream in streams}) != len(streams):
        raise SettingsError("a stream stands in the list twice; join its chunks")
    began = time.perf_counter()
    samples = [stream._checked(chunk) for stream, chunk in zip(streams, chunks, strict=True)]
    try:
        results = _finished_together(streams, samples)
    except BaseException:       # see `EnhancementStream`: what is interrupted is reset
        for stream in streams:
            stream.reset()
        raise
    for stream, its_samples in zip(streams, samples, strict=True):
        stream._count_if_late(len(its_samples), began)
    return results


def _finished_together(streams: Sequence[EnhancementStream], samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What each stream makes of its samples: all hops that wait for one model go through it together."""
    works = [stream._enhancing(its_samples) for stream, its_samples in zip(streams, samples, strict=True)]
    results: dict[int, np.ndarray] = {}
    replies: dict[int, Hops | None] = dict.fromkeys(range(len(works)))     # nothing to tell those who have not begun
    while replies:
        waiting: dict[OnnxDenoiser, dict[int, Hops]] = {}
        for i, reply in replies.items():
            try:
                hops = works[i].send(reply)
                waiting.setdefault(streams[i]._denoiser, {})[i] = hops
            except StopIteration as end:
                results[i] = end.value
        replies = {}
        for denoiser, hops_of in waiting.items():
            replies.update(zip(hops_of, _enhanced(denoiser, list(hops_of.values())), strict=True))
    return [results[i] for i in range(len(works))]


def _enhanced(denoiser: OnnxDenoiser, hops: Sequence[Hops]) -> Iterator[Hops]:
    """The hops of every stream enhanced, and the memory that goes with the next ones."""
    for start in range(0, len(hops), MOST_AT_ONCE):
        some = hops[start:start + MOST_AT_ONCE]
        samples, state = denoiser.step(np.concatenate([hop for hop, _ in some]),
                                       join_states(state for _, state in some))
        end = 0
        for hop, _ in some:
            begin, end = end, end + len(hop)
            yield samples[begin:end].copy(), slice_state(state, begin, end)
