"""Tensors on the wire: round trips as TensorFlow writes and reads them, and protos that lie about their size."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.internal.encoder import _VarintBytes
from tensorflow.core.framework import tensor_pb2, types_pb2

from keras_committee.tfserving.messages import TensorProto
from keras_committee.tfserving.tf_protocol import StatusError, proto_to_array, typed_proto, write_packed

ARRAYS = [
    np.array([[0.2, -0.7, np.inf]], np.float32),
    np.array([0.2, 0.7], np.float64),
    np.array([0.2, 0.7], np.float16),
    np.array([0.25, 0.75], tf.bfloat16.as_numpy_dtype),
    np.array([[-128], [127]], np.int8),
    np.array([255, 3], np.uint8),
    np.array([-7, 2**31 - 1], np.int32),
    np.array([-7, 2**63 - 1], np.int64),
    np.array([7, 2**64 - 1], np.uint64),
    np.array([True, False]),
    np.array([0.2 + 0.7j, -3j], np.complex64),
    np.array([[0.2 + 0.7j], [3]], np.complex128),
    np.array([b"a\0", b"", b"\xff\xfe"], object),
    np.array([[b"q" * 300], [b"r" * 20_000]], object),
    np.full([1] * 40 + [2], 7, np.int16),
    np.zeros((0, 3), np.float32),
    np.array(0.7, np.float32),
]


def packed_proto(array):
    """Return the TensorProto of a client, which has the bytes of TensorFlow's."""
    proto = TensorProto()
    write_packed(proto, array)
    return proto


def as_tensor_content(array):
    """Return a TensorProto with tensor_content, also for strings, which TensorFlow's runtime reads as `array`."""
    proto = packed_proto(array)
    if strings := list(proto.string_val):
        proto.ClearField("string_val")
        proto.tensor_content = b"".join(_VarintBytes(len(value)) for value in strings) + b"".join(strings)
    read_by_tensorflow = tf.io.parse_tensor(proto.SerializeToString(), proto.dtype)
    np.testing.assert_array_equal(read_by_tensorflow.numpy().astype(array.dtype), array)
    return proto


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape[-3:]}")
@pytest.mark.parametrize("encode", [typed_proto, packed_proto, tf.make_tensor_proto, as_tensor_content])
def test_an_array_comes_back_as_it_was(encode, array):
    proto = tensor_pb2.TensorProto.FromString(encode(array).SerializeToString())
    back = proto_to_array(proto)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(tf.make_ndarray(typed_proto(back)), array)  # as the other side reads it


def test_responses_have_typed_fields():
    assert list(typed_proto(np.array([2.5, 3.5], np.float32)).float_val) == [2.5, 3.5]
    assert list(typed_proto(np.array([b"cat"], object)).string_val) == [b"cat"]
    assert not typed_proto(np.array([1], np.int32)).tensor_content


def test_missing_values_repeat_the_last_one_and_surplus_ones_are_dropped():
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.5, 2.0])
    proto.tensor_shape.dim.add(size=4)
    np.testing.assert_array_equal(proto_to_array(proto), np.array([0.5, 2, 2, 2], np.float32))
    proto.tensor_shape.dim[0].size = 1
    np.testing.assert_array_equal(proto_to_array(proto), np.array([0.5], np.float32))
    del proto.float_val[:]
    np.testing.assert_array_equal(proto_to_array(proto), np.array([0], np.float32))
    proto = tensor(types_pb2.DT_COMPLEX64, [3], scomplex_val=[0.2, 0.7, 3, -1, 5])  # the last has no imaginary part
    np.testing.assert_array_equal(proto_to_array(proto), np.complex64([0.2 + 0.7j, 3 - 1j, 3 - 1j]))
    proto = tensor(types_pb2.DT_STRING, [0], tensor_content=b"surplus")
    assert proto_to_array(proto).shape == tf.io.parse_tensor(proto.SerializeToString(), tf.string).shape == (0,)


def tensor(dtype, dims, **fields):
    proto = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in dims:
        proto.tensor_shape.dim.add(size=size)
    return proto


LIES = [
    (tensor(types_pb2.DT_FLOAT, [2**40], float_val=[1.0]), r"at most 67108864 elements. .* about 2\*\*40"),
    (tensor(types_pb2.DT_FLOAT, [2**62, 2**62]), r"about 2\*\*124"),
    (tensor(types_pb2.DT_FLOAT, [2**26], float_val=[1.0]), "1 values for 67108864 elements"),
    (tensor(types_pb2.DT_STRING, [2**21], string_val=[b"a"]), "at most 1048576 elements may repeat a value"),
    (tensor(types_pb2.DT_FLOAT, [-1]), "no known shape"),
    (tensor(types_pb2.DT_FLOAT, [1] * 65), "a tensor of 65 dimensions; at most 64 are supported"),
    (tensor(types_pb2.DT_FLOAT, [2**62, 0, 2**62]), r"about 2\*\*124"),
    (tensor(types_pb2.DT_FLOAT, [3], tensor_content=b"12345678"), r"has 8 bytes; float32\[3\] has 12"),
    (tensor(types_pb2.DT_STRING, [2], tensor_content=b"\x01\x01a"), "does not hold exactly 2 strings"),
    (tensor(types_pb2.DT_STRING, [2], tensor_content=b"\x02"), "does not hold exactly 2 strings"),
    (tensor(types_pb2.DT_STRING, [1], tensor_content=b"\x01ab"), "does not hold exactly 1 strings"),
    (tensor(types_pb2.DT_STRING, [1], tensor_content=b"\x80\x80"), "the incomplete length of a string"),
    (tensor(types_pb2.DT_STRING, [1], tensor_content=b"\x80\x80\x80\x80\x80\x01"), "the incomplete length of a string"),
    (tensor(types_pb2.DT_RESOURCE, [1]), "tensors of DataType 20 are not supported"),
    (tensor(types_pb2.DT_INVALID, [1]), "tensors of DataType 0 are not supported"),
    (tensor(9999, [1]), "tensors of DataType 9999 are not supported"),
]


@pytest.mark.parametrize(("proto", "message"), LIES, ids=range(len(LIES)))
def test_D11_a_lying_tensor_is_rejected_before_anything_is_allocated(proto, message):
    with pytest.raises(StatusError, match=message) as caught:
        proto_to_array(proto)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("proto", [proto for proto, _ in LIES if proto.dtype == types_pb2.DT_STRING][1:])
def test_tensorflow_rejects_the_same_contents_of_strings(proto):
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.parse_tensor(proto.SerializeToString(), tf.string)
