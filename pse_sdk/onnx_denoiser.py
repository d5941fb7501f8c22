"""A model file in the runtime: a hop of each stream in, their enhanced hops out, memory passed by the caller."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from .batch import ANY_NUMBER, with_any_batch
from .errors import ModelFileError
from .model_format import ModelInfo, check_seal, digest_of, read_model

State = dict[str, np.ndarray]
"""The memory of B streams: arrays [B, ...]."""


def session_options() -> onnxruntime.SessionOptions:
    """One thread that sleeps between hops: no spinning cores. No arena: plain allocation is faster for so little.

    `session.set_denormal_as_zero` is left alone: it changes the arithmetic of the thread that makes the session, for
    good and for the whole application, and the network is as fast without.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])


class OnnxDenoiser:
    """One session of a model file. It keeps no memory between calls, so threads and streams may share it.

    Args:
        model: path of a model file, or its bytes.

    Raises:
        ModelFileError: damaged, foreign, or of a newer format.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes) -> None:
        name = "model" if isinstance(model, bytes) else str(Path(model))
        self.model = check_seal(model) if isinstance(model, bytes) else read_model(model)
        try:
            self._session = open_session(with_any_batch(self.model))
        except Exception as error:      # the runtime has a dozen classes for this and no common one
            raise ModelFileError(f"{name}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error
        self.info = ModelInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map)
        inputs = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self._shapes = {name: shape for name, shape in inputs.items() if name.startswith("state_")}
        self._outputs = ["enhanced"] + [f"next_{name}" for name in self._shapes]
        batch = ANY_NUMBER if inputs.get("samples", ("",))[0] == ANY_NUMBER else 1
        self._takes_many = batch == ANY_NUMBER
        if (inputs != {"samples": (batch, self.info.hop_length), **self._shapes}
                or any(shape[:1] != (batch,) for shape in self._shapes.values())
                or not {o.name for o in self._session.get_outputs()}.issuperset(self._outputs)):
            raise ModelFileError(f"{name}: its description does not fit its graph; use a file that Enhancer.save wrote")

    @property
    def digest(self) -> str:
        return digest_of(self.model)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros for every state of the model file: {name: [batch, ...]}."""
        return {name: np.zeros((batch, *shape[1:]), np.float32) for name, shape in self._shapes.items()}

    def step(self, samples: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """Enhance one hop of each of B streams. `state` is left as it is; give the returned one to the next call.

        Shape: `samples` and the result are [B, hop_length].
        """
        if self._takes_many or len(samples) == 1:
            enhanced, *states = self._session.run(self._outputs, {"samples": samples, **state})
            return enhanced, dict(zip(self._shapes, states, strict=True))
        # a file of before, for one stream
        one_by_one = [self.step(samples[i:i + 1], slice_state(state, i, i + 1)) for i in range(len(samples))]
        return np.concatenate([hop for hop, _ in one_by_one]), join_states(state for _, state in one_by_one)

    def bindings(self, samples: np.ndarray, enhanced: np.ndarray,
                 states: Sequence[State]) -> list[onnxruntime.IOBinding]:
        """For `run`, from either of two states to the other; none where the file takes fewer streams at once."""
        if not self._takes_many and len(samples) > 1:
            return []
        bindings = []
        for before, after in (states, reversed(states)):
            binding = self._session.io_binding()
            for name, value in {"samples": samples, **before}.items():
                binding.bind_input(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
            for name, value in zip(self._outputs, [enhanced, *after.values()], strict=True):
                binding.bind_output(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
            bindings.append(binding)
        return bindings

    def run(self, binding: onnxruntime.IOBinding) -> None:
        """One step from and to the arrays of the binding."""
        self._session.run_with_iobinding(binding)


class BoundSteps:
    """`OnnxDenoiser.step` for one stream at a time, in memory that stays where it is: 3 us less for each step.

    A state that it returns is good until the second step after that. It belongs to one thread at a time.

    Args:
        batch: of all steps.
    """

    def __init__(self, denoiser: OnnxDenoiser, batch: int) -> None:
        self._denoiser = denoiser
        hop = np.zeros((batch, denoiser.info.hop_length), np.float32)
        self._samples, self._enhanced = hop, hop.copy()
        self._states = [denoiser.initial_state(batch), denoiser.initial_state(batch)]
        self._next = 0      # which of the two holds what the last step left
        self._bindings = denoiser.bindings(self._samples, self._enhanced, self._states)

    def step(self, samples: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """See `OnnxDenoiser.step`."""
        if not self._bindings:
            return self._denoiser.step(samples, state)
        own = self._states[self._next]
        if state is not own:
            for name, value in own.items():
                value[:] = state[name]
        self._samples[:] = samples
        self._denoiser.run(self._bindings[self._next])
        self._next = 1 - self._next
        return self._enhanced.copy(), self._states[self._next]


def join_states(states: Iterable[State]) -> State:
    """The memory of all the streams that each of `states` is of, in this order."""
    states = list(states)
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


def slice_state(state: State, start: int, stop: int) -> State:
    """The memory of the streams from `start` on and before `stop`: a copy, that keeps no other stream's alive."""
    return {name: value[start:stop].copy() for name, value in state.items()}
