"""How a model file that takes one stream takes many at once.

A model file declares its inputs and outputs as [1, ...], so that a program in any language can ask it how large its
arrays have to be. Its graph takes any number in place of that 1, and says so in ONNX's own word: the dimension has the
denotation DATA_BATCH. The runtime holds a graph to its declaration, so that is changed on the way there, in place and
without a protobuf library: in

    TensorShapeProto.Dimension    1 dim_value   2 dim_param   3 denotation

the two fields that say "1, DATA_BATCH" become one of the same length with a name, which stands for any number.
"""

DATA_BATCH = "DATA_BATCH"
ANY_NUMBER = "stream_batch"

# tag and value; or tag, length and text
_ONE_STREAM = bytes([0x08, 1, 0x1A, len(DATA_BATCH)]) + DATA_BATCH.encode()
_ANY_NUMBER = bytes([0x12, len(ANY_NUMBER)]) + ANY_NUMBER.encode()
assert len(_ONE_STREAM) == len(_ANY_NUMBER)


def with_any_batch(model: bytes) -> bytes:
    """The model for any number of streams at once, if it can take more than one; else as it is."""
    return model.replace(_ONE_STREAM, _ANY_NUMBER)
