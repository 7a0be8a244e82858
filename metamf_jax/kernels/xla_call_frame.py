"""XLA's FFI call frame, read from inside Numba code. Imports Numba; see `kernels.ffi` for the use.

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
from numba.extending import intrinsic
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

# Our own description of a kernel, see `describe`.
_COUNT, _COUNT_ARGUMENTS, _COUNT_MESSAGES, _FIRST = 0, 1, 2, 3

_METADATA_EXTENSION = 1
_EXECUTE = 3
_LOW_HALF = 0xFFFFFFFF
_INT64 = ir.IntType(64)
_INVALID_ARGUMENT, _INTERNAL = 3, 13

# XLA_FFI_DataType of each dtype that a kernel may use, by NumPy's name.
_DTYPE_CODES = {
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

# What `_open` answers besides a number of repetitions, which is at least 0.
_ANSWERED, _REFUSED = -1, -2

MAX_BUFFERS = 64
_WORD = types.CPointer(types.int64)


@intrinsic
def _words(typing_context, address):
    """The memory at an address, as a pointer to int64 words."""

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], context.get_value_type(_WORD))

    return _WORD(types.int64), generate


@intrinsic
def _stack_words(typing_context, count):
    """A pointer to ``count`` (a literal) int64 words on the stack of the calling function."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def generate(context, builder, signature, values):
        return cgutils.alloca_once(builder, _INT64, size=count.literal_value)

    return _WORD(count), generate


@intrinsic
def _call(typing_context, function, first, second, third):
    """Calls the C function at an address: three words in, one out. A callee may take fewer."""

    def generate(context, builder, signature, values):
        function_type = ir.FunctionType(_INT64, [_INT64] * 3)
        return builder.call(builder.inttoptr(values[0], function_type.as_pointer()), values[1:])

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def _address(typing_context, pointer):
    """The address that a pointer to words holds."""

    def generate(context, builder, signature, values):
        return builder.ptrtoint(values[0], _INT64)

    return types.int64(_WORD), generate


@numba.njit(cache=True)
def _open(frame, description, buffers):
    """Answers XLA's question for the version, or checks the buffers and writes their addresses.

    Returns:
      ``_ANSWERED`` where there is nothing to compute, ``_REFUSED`` where the buffers are not those
      described, otherwise the number of repetitions: the product of the leading dimensions that
      the results have beyond their described rank. Every buffer has as many of these; an
      argument's are those of the results, or 1.
    """
    if frame[_EXTENSION] != 0:
        extension = _words(frame[_EXTENSION])
        if extension[_EXTENSION_TYPE] & _LOW_HALF == _METADATA_EXTENSION:
            # Ours is major version 0, in the low half; any minor version keeps this layout.
            version = _words(frame[_API])[_API_VERSION]
            _words(extension[_METADATA])[_METADATA_VERSION] = version & ~_LOW_HALF
            return _ANSWERED
    if frame[_STAGE] & _LOW_HALF != _EXECUTE:
        return _ANSWERED

    count, num_arguments = description[_COUNT], description[_COUNT_ARGUMENTS]
    if frame[_NUM_ARGUMENTS] != num_arguments or frame[_NUM_RESULTS] != count - num_arguments:
        return _REFUSED
    for i in range(num_arguments):
        buffers[i] = _words(frame[_ARGUMENTS])[i]
    for i in range(num_arguments, count):
        buffers[i] = _words(frame[_RESULTS])[i - num_arguments]

    last = _words(buffers[count - 1])
    batch_rank = last[_BUFFER_RANK] - description[_FIRST + 3 * count - 2]
    if batch_rank < 0:
        return _REFUSED
    repetitions = 1
    for d in range(batch_rank):
        repetitions *= _words(last[_BUFFER_DIMS])[d]
    for i in range(count):
        buffer = _words(buffers[i])
        if (
            buffer[_BUFFER_DTYPE] & _LOW_HALF != description[_FIRST + 3 * i]
            or buffer[_BUFFER_RANK] != description[_FIRST + 3 * i + 1] + batch_rank
        ):
            return _REFUSED
        for d in range(batch_rank):
            size = _words(buffer[_BUFFER_DIMS])[d]
            if size != _words(last[_BUFFER_DIMS])[d] and (size != 1 or i >= num_arguments):
                return _REFUSED
    return repetitions


@numba.njit(cache=True)
def _locate(description, buffers, batch_rank, repetition, addresses):
    """Writes the address at which each buffer's part for one repetition begins."""
    count = description[_COUNT]
    sizes = _words(_words(buffers[count - 1])[_BUFFER_DIMS])
    for i in range(count):
        buffer = _words(buffers[i])
        dims = _words(buffer[_BUFFER_DIMS])
        stride = description[_FIRST + 3 * i + 2]
        for d in range(batch_rank, buffer[_BUFFER_RANK]):
            stride *= dims[d]
        offset, left = np.int64(0), np.int64(repetition)
        for d in range(batch_rank - 1, -1, -1):
            if dims[d] != 1:
                offset += (left % sizes[d]) * stride
            stride *= dims[d]
            left //= sizes[d]
        addresses[i] = buffer[_BUFFER_DATA] + offset


@numba.njit(cache=True)
def _error(frame, message, code):
    """The XLA_FFI_Error (its address) with the C string at address ``message``."""
    arguments = _stack_words(4)
    arguments[0] = _ERROR_ARGUMENTS_BYTES
    arguments[1] = 0
    arguments[2] = message
    arguments[3] = code
    return _call(_words(frame[_API])[_API_ERROR_CREATE], _address(arguments), 0, 0)


@numba.cfunc(types.int64(types.int64, types.int64, types.int64), nopython=True, cache=True)
def _serve(frame_address, description_address, kernel):
    """What XLA asks in a call frame, done with the kernel of this address and description."""
    frame, description = _words(frame_address), _words(description_address)
    buffers, addresses = _stack_words(MAX_BUFFERS), _stack_words(MAX_BUFFERS)
    repetitions = _open(frame, description, buffers)
    if repetitions == _ANSWERED:
        return 0
    count = description[_COUNT]
    messages = _FIRST + 3 * count
    if repetitions == _REFUSED:
        return _error(frame, description[messages], _INVALID_ARGUMENT)
    batch_rank = _words(buffers[0])[_BUFFER_RANK] - description[_FIRST + 1]
    for repetition in range(repetitions):
        _locate(description, buffers, batch_rank, repetition, addresses)
        number = _call(kernel, _address(buffers), _address(addresses), batch_rank)
        if 0 < number <= description[_COUNT_MESSAGES] - 2:
            return _error(frame, description[messages + 1 + number], _INVALID_ARGUMENT)
        if number != 0:
            return _error(frame, description[messages + 1], _INTERNAL)
    return 0


def describe(buffers, num_arguments, messages):
    """The description of a kernel, as int64 words.

    Args:
      buffers: the (NumPy dtype, rank) of each argument, then each result.
      num_arguments: how many of them are arguments.
      messages: addresses of C strings: for buffers not as described, for an exception inside the
        kernel, and then those that the kernel numbers from 1.
    """
    words = [len(buffers), num_arguments, len(messages)]
    for dtype, rank in buffers:
        words += [_DTYPE_CODES[dtype.name], rank, dtype.itemsize]
    return np.array(words + messages, np.int64)


def make_handler(kernel, array_types, description):
    """Compiles the function that XLA calls.

    Args:
      kernel: Numba function of the arrays, compiled for their types; returns None, or the number
        of a message (0: none).
      array_types: the Numba type of each argument, then each result.
      description: from `describe`; must outlive the handler.

    Returns:
      A Numba ``cfunc`` with the signature of ``XLA_FFI_Handler``.
    """
    compiled = kernel.overloads[tuple(array_types)]
    return_type = compiled.signature.return_type

    def define_call(context, module):
        """Defines ``call(buffers, addresses, batch_rank)``: the kernel on arrays made of these."""
        function = ir.Function(module, ir.FunctionType(_INT64, [_INT64] * 3), name="kernel_call")
        function.linkage = "internal"
        builder = ir.IRBuilder(function.append_basic_block())
        batch_rank = function.args[2]

        def word(address, index):
            pointer = builder.inttoptr(address, _INT64.as_pointer())
            return builder.load(builder.gep(pointer, [index]))

        arrays = []
        for i, array_type in enumerate(array_types):
            dims = word(word(function.args[0], _INT64(i)), _INT64(_BUFFER_DIMS))
            shape = [word(dims, builder.add(batch_rank, _INT64(d))) for d in range(array_type.ndim)]
            item_type = context.get_data_type(array_type.dtype)
            itemsize = context.get_abi_sizeof(item_type)
            strides, stride = [], _INT64(itemsize)
            for size in reversed(shape):
                strides.insert(0, stride)
                stride = builder.mul(stride, size)
            data = builder.inttoptr(word(function.args[1], _INT64(i)), item_type.as_pointer())
            array = make_array(array_type)(context, builder)
            populate_array(array, data, shape, strides, itemsize, meminfo=None)
            arrays.append(array._getvalue())
        # Called by address: linked in, the kernel would be optimised again in every process, which
        # took 0.3 to 2.4 s each.
        function_type = context.call_conv.get_function_type(return_type, array_types)
        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        # An exception that left the handler would only be printed, and the results be used.
        status, number = context.call_conv.call_function(
            builder,
            builder.inttoptr(_INT64(address), function_type.as_pointer()),
            return_type,
            array_types,
            arrays,
        )
        if return_type == types.none:
            number = _INT64(0)
        else:
            number = context.cast(builder, number, return_type, types.int64)
        builder.ret(builder.select(status.is_error, _INT64(-1), number))
        return function

    @intrinsic
    def kernel_address(typing_context):
        def generate(context, builder, signature, values):
            return builder.ptrtoint(define_call(context, builder.module), _INT64)

        return types.int64(), generate

    description_address, serve_address = description.ctypes.data, _serve.address

    @numba.cfunc(types.int64(_WORD), nopython=True)
    def handler(frame):
        return _call(serve_address, _address(frame), description_address, kernel_address())

    return handler
