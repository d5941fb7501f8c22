"""A model file that does nothing: `enhanced` is `samples`. What it costs is what any model costs at least.

It is written byte by byte, since onnx is only there where models are trained. A protobuf message is a row of fields,
each a number that says which field and of which kind, then its content:

    ModelProto   1 ir_version   7 graph   8 opset_import   14 metadata_props
    GraphProto   1 node   2 name   11 input   12 output
"""

from .batch import DATA_BATCH
from .config import STFT
from .model_format import ModelInfo, seal

_IR_VERSION, _OPSET, _FLOAT = 8, 17, 1


def empty_model(hop_length: int = STFT.hop_length, sample_rate: int = STFT.sample_rate) -> bytes:
    """The sealed bytes of a model file without parameters, state and delay.

    >>> from pse_sdk.onnx_denoiser import OnnxDenoiser
    >>> OnnxDenoiser(empty_model()).info.size
    'empty'
    """
    info = ModelInfo("empty", n_parameters=0, sample_rate=sample_rate, hop_length=hop_length, n_fft=hop_length, delay=0)
    node = _text(1, "samples") + _text(2, "enhanced") + _text(4, "Identity")
    graph = (_message(1, node) + _text(2, "empty")
             + _message(11, _value_info("samples", hop_length)) + _message(12, _value_info("enhanced", hop_length)))
    metadata = b"".join(_message(14, _text(1, key) + _text(2, value)) for key, value in info.to_metadata().items())
    operators = _text(1, "") + _integer(2, _OPSET)
    return seal(_integer(1, _IR_VERSION) + _message(7, graph) + _message(8, operators) + metadata)


def _value_info(name: str, length: int) -> bytes:
    """An input or output [1, length] of float32 (see `batch`): TensorShapeProto in TypeProto.Tensor in TypeProto."""
    shape = _message(1, _integer(1, 1) + _text(3, DATA_BATCH)) + _message(1, _integer(1, length))
    return _text(1, name) + _message(2, _message(1, _integer(1, _FLOAT) + _message(2, shape)))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _message(field, content.encode())


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
