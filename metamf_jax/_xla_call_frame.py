"""XLA's FFI call frame, read from inside Numba code. Imports Numba; see `numba_ffi` for the use.

The typed FFI (``xla/ffi/api/c_api.h``, major version 0) hands a handler one struct. Its layout is
stable by XLA's promise: fields are only ever added at the end of a struct. On a 64-bit machine
every field that we read fills one 64-bit word, so the offsets below count words.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array, populate_array

# XLA_FFI_CallFrame, with its members XLA_FFI_Args and XLA_FFI_Rets laid out in place.
_EXTENSION, _API, _STAGE = 1, 2, 4  # the stage is an enum: the low half of its word
_NUM_ARGUMENTS, _ARGUMENTS = 7, 9
_NUM_RESULTS, _RESULTS = 12, 14
# XLA_FFI_Buffer. The data type is an enum.
_BUFFER_DTYPE, _BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMS = 2, 3, 4, 5
# XLA_FFI_Metadata_Extension, and the XLA_FFI_Api_Version inside XLA_FFI_Metadata and XLA_FFI_Api.
_EXTENSION_TYPE, _METADATA = 1, 3
_METADATA_VERSION, _API_VERSION = 3, 4  # two int32, major and minor
_API_ERROR_CREATE = 6
# XLA_FFI_Error_Create_Args: struct size, extension, message, code.
_ERROR_ARGUMENTS_BYTES = 28

_METADATA_EXTENSION = 1
_EXECUTE = 3
_LOW_HALF = 0xFFFFFFFF
INVALID_ARGUMENT, INTERNAL = 3, 13

# XLA_FFI_DataType of each dtype that a kernel may use, by NumPy's name.
DTYPE_CODES = {
    "bool": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "uint8": 6,
    "uint16": 7,
    "uint32": 8,
    "uint64": 9,
    "float32": 11,
    "float64": 12,
}

# What `open_frame` answers besides a number of repetitions, which is at least 0.
ANSWERED, REFUSED = -1, -2

frame_type = types.CPointer(types.int64)


@intrinsic
def words(typing_context, address):
    """The memory at an address, as a pointer to int64 words."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(frame_type))

    return frame_type(types.int64), generate


@intrinsic
def _call_error_create(typing_context, function, arguments):
    """Calls XLA_FFI_Error_Create, of address ``function``, with its struct."""

    def generate(context, builder, signature, values):
        pointer = context.get_value_type(frame_type)
        function_type = ir.FunctionType(ir.IntType(64), [pointer])
        create = builder.inttoptr(values[0], function_type.as_pointer())
        return builder.call(create, [values[1]])

    return types.int64(types.int64, frame_type), generate


@intrinsic
def _stack_words(typing_context, count):
    """A pointer to ``count`` (a literal) int64 words on the stack of the calling function."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def generate(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, ir.IntType(64), size=count.literal_value)

    return frame_type(count), generate


def make_arrays(array_types):
    """Makes the intrinsic ``arrays(frame, addresses, batch_rank)``.

    It gives the tuple of Numba arrays of these types, at these addresses; the shapes are those in
    the frame after ``batch_rank`` leading dimensions.
    """
    tuple_type = types.Tuple(array_types)

    @intrinsic
    def arrays(typing_context, buffers, addresses, batch_rank):
        def generate(context, builder, signature, arguments):
            buffers, addresses, batch_rank = arguments
            pointer = context.get_value_type(frame_type)

            def word(base, index):
                return builder.load(builder.gep(base, [index]))

            made = []
            for i, array_type in enumerate(array_types):
                index = cgutils.intp_t(i)
                buffer = builder.inttoptr(word(buffers, index), pointer)
                dims = builder.inttoptr(word(buffer, cgutils.intp_t(_BUFFER_DIMS)), pointer)
                shape = [
                    word(dims, builder.add(batch_rank, cgutils.intp_t(d)))
                    for d in range(array_type.ndim)
                ]
                itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
                strides, stride = [], cgutils.intp_t(itemsize)
                for size in reversed(shape):
                    strides.insert(0, stride)
                    stride = builder.mul(stride, size)
                array = make_array(array_type)(context, builder)
                data = builder.inttoptr(
                    word(addresses, index), context.get_data_type(array_type.dtype).as_pointer()
                )
                populate_array(array, data, shape, strides, itemsize, meminfo=None)
                made.append(array._getvalue())
            return context.make_tuple(builder, tuple_type, made)

        return tuple_type(frame_type, frame_type, types.int64), generate

    return arrays


@numba.njit(cache=True)
def make_error(frame, message, code):
    """The XLA_FFI_Error (its address) with the C string at address ``message``."""
    arguments = _stack_words(4)
    arguments[0] = _ERROR_ARGUMENTS_BYTES
    arguments[1] = 0
    arguments[2] = message
    arguments[3] = code
    return _call_error_create(words(frame[_API])[_API_ERROR_CREATE], arguments)


@numba.njit(cache=True)
def open_frame(frame, expected, num_arguments, buffers):
    """Answers XLA's question for the version, or checks the buffers.

    Args:
      frame: the call frame.
      expected: [buffers, 2] int64, the data type and the rank of each argument, then each result.
      num_arguments: how many of them are arguments.
      buffers: words that receive the address of each XLA_FFI_Buffer.

    Returns:
      ``ANSWERED`` where there is nothing to compute, ``REFUSED`` where the buffers are not those
      expected, otherwise the number of repetitions: the product of the leading dimensions that the
      results have beyond their expected rank. Every buffer has as many of these, each of the size
      that the results have, or of size 1.
    """
    if frame[_EXTENSION] != 0:
        extension = words(frame[_EXTENSION])
        if extension[_EXTENSION_TYPE] & _LOW_HALF == _METADATA_EXTENSION:
            # Ours is major version 0, in the low half; any minor version keeps this layout.
            version = words(frame[_API])[_API_VERSION]
            words(extension[_METADATA])[_METADATA_VERSION] = version & ~_LOW_HALF
            return ANSWERED
    if frame[_STAGE] & _LOW_HALF != _EXECUTE:
        return ANSWERED

    num_results = len(expected) - num_arguments
    if frame[_NUM_ARGUMENTS] != num_arguments or frame[_NUM_RESULTS] != num_results:
        return REFUSED
    for i in range(num_arguments):
        buffers[i] = words(frame[_ARGUMENTS])[i]
    for i in range(num_results):
        buffers[num_arguments + i] = words(frame[_RESULTS])[i]

    last = words(buffers[len(expected) - 1])
    batch_rank = last[_BUFFER_RANK] - expected[-1, 1]
    if batch_rank < 0:
        return REFUSED
    repetitions = 1
    for d in range(batch_rank):
        repetitions *= words(last[_BUFFER_DIMS])[d]
    for i in range(len(expected)):
        buffer = words(buffers[i])
        if (
            buffer[_BUFFER_DTYPE] & _LOW_HALF != expected[i, 0]
            or buffer[_BUFFER_RANK] != expected[i, 1] + batch_rank
        ):
            return REFUSED
        for d in range(batch_rank):
            size = words(buffer[_BUFFER_DIMS])[d]
            if size != words(last[_BUFFER_DIMS])[d] and (size != 1 or i >= num_arguments):
                return REFUSED
    return repetitions


@numba.njit(cache=True)
def locate(buffers, itemsizes, batch_rank, repetition, addresses):
    """Writes the address at which each buffer's part for one repetition begins.

    A leading dimension of size 1 is repeated.
    """
    count = len(itemsizes)
    last = words(buffers[count - 1])
    for i in range(count):
        buffer = words(buffers[i])
        dims = words(buffer[_BUFFER_DIMS])
        stride = itemsizes[i]
        for d in range(batch_rank, buffer[_BUFFER_RANK]):
            stride *= dims[d]
        offset, left = np.int64(0), np.int64(repetition)
        for d in range(batch_rank - 1, -1, -1):
            size = words(last[_BUFFER_DIMS])[d]
            if dims[d] != 1:
                offset += (left % size) * stride
            stride *= dims[d]
            left //= size
        addresses[i] = buffer[_BUFFER_DATA] + offset


@numba.njit(cache=True)
def batch_rank_of(buffers, expected):
    """How many leading dimensions the buffers have beyond their expected rank."""
    return words(buffers[0])[_BUFFER_RANK] - expected[0, 1]


def _number(returned):
    """The number of the message that a kernel returned; a kernel that returns nothing gives 0."""


@overload(_number)
def _(returned):
    if returned == types.none:
        return lambda returned: 0
    return lambda returned: returned


def make_handler(kernel, array_types, expected, itemsizes, num_arguments, messages):
    """Compiles the function that XLA calls.

    Args:
      kernel: Numba function of the arrays; returns None, or the number of a message (0: none).
      array_types: the Numba type of each argument, then each result.
      expected: see `open_frame`.
      itemsizes: int64, bytes an item of each buffer.
      num_arguments: how many of the arrays are arguments.
      messages: int64, addresses of C strings: for buffers not as expected, for an exception in the
        kernel, and then those that the kernel numbers from 1.

    Returns:
      A Numba ``cfunc`` with the signature of ``XLA_FFI_Handler``.
    """
    arrays = make_arrays(array_types)
    num_buffers = len(array_types)
    num_messages = len(messages)

    @numba.cfunc(types.int64(frame_type), nopython=True)
    def handler(frame):
        buffers, addresses = _stack_words(num_buffers), _stack_words(num_buffers)
        repetitions = open_frame(frame, expected, num_arguments, buffers)
        if repetitions == ANSWERED:
            return 0
        if repetitions == REFUSED:
            return make_error(frame, messages[0], INVALID_ARGUMENT)
        batch_rank = batch_rank_of(buffers, expected)
        number = 0
        # An exception that left a cfunc would only be printed, and the result taken for good.
        try:
            for repetition in range(repetitions):
                locate(buffers, itemsizes, batch_rank, repetition, addresses)
                number = _number(kernel(*arrays(buffers, addresses, batch_rank)))
                if number != 0:
                    break
        except Exception:
            number = -1
        if number == 0:
            return 0
        if 0 < number < num_messages - 1:
            return make_error(frame, messages[number + 1], INVALID_ARGUMENT)
        return make_error(frame, messages[1], INTERNAL)

    return handler
