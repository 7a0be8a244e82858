"""Vector operations for Numba kernels, as LLVM instructions. Imports Numba.

Numba leaves vectors to LLVM's loops, which test before each short loop over a row whether arrays
overlap and how many steps remain, and reload what they have just read. For rows of a few dozen
numbers these tests cost as much as the arithmetic. Here a row is `LANES` numbers at a time, its
length known when the kernel is compiled; LLVM turns the vectors into those of the machine at hand.

Arrays are flat float32, places in them uint64. Nothing is checked.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

from typing import Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

LANES: Final = 16

# Rows and columns of a tile of `add_products`: with two vectors a row it takes 16 of the 32 vector
# registers of AVX-512 for its sums.
TILE: Final = (8, 32)

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_SPLAT = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
_PLACE, _NUMBER = types.uint64, types.float32


def padded(width: int) -> int:
    """The least multiple of `LANES` that is at least ``width``."""
    return -(-width // LANES) * LANES


def _literal(value) -> int:
    if not isinstance(value, types.IntegerLiteral):
        raise RequireLiteralValue(f"expected a number known when compiling, got {value}")
    return value.literal_value


def _at(context, builder, array_type, array, place):
    return builder.gep(make_array(array_type)(context, builder, array).data, [place])


def _vector_at(builder, pointer, offset=0):
    moved = builder.gep(pointer, [ir.Constant(_INT64, offset)])
    return builder.bitcast(moved, _VECTOR.as_pointer())


def _load(builder, pointer, vectors):
    return [builder.load(_vector_at(builder, pointer, LANES * c), align=4) for c in range(vectors)]


def _store(builder, pointer, values):
    for c, value in enumerate(values):
        builder.store(value, _vector_at(builder, pointer, LANES * c), align=4)


def _splat(builder, number):
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _INT32(0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), _SPLAT)


def _multiply_add(builder, x, y, z):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [x, y, z])


def _sum(builder, x):
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [_FLOAT(-0.0), x], fastmath=("reassoc", "nsz"))


def _dot(builder, xs, ys):
    sums = []
    for c, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if c < 2:
            sums.append(builder.fmul(x, y))
        else:
            sums[c % 2] = _multiply_add(builder, x, y, sums[c % 2])
    return _sum(builder, sums[0] if len(sums) == 1 else builder.fadd(*sums))


@intrinsic(prefer_literal=True)
def dot(typing_context, x, at_x, y, at_y, vectors):
    """``x . y`` over as many vectors, a literal, from these places."""
    count = _literal(vectors)
    signature = _NUMBER(x, _PLACE, y, _PLACE, vectors)

    def generate(context, builder, signature, arguments):
        pointers = (
            _at(context, builder, signature.args[i], arguments[i], arguments[i + 1]) for i in (0, 2)
        )
        return _dot(builder, *(_load(builder, pointer, count) for pointer in pointers))

    return signature, generate


@intrinsic(prefer_literal=True)
def move_both(typing_context, x, at_x, y, at_y, vectors, keep_x, add_y, keep_y, add_x):
    """``x, y = keep_x x + add_y y, keep_y y + add_x x``, both from the old values."""
    count = _literal(vectors)
    signature = types.void(x, _PLACE, y, _PLACE, vectors, *[_NUMBER] * 4)

    def generate(context, builder, signature, arguments):
        pointers = [
            _at(context, builder, signature.args[i], arguments[i], arguments[i + 1]) for i in (0, 2)
        ]
        xs, ys = (_load(builder, pointer, count) for pointer in pointers)
        keep_x, add_y, keep_y, add_x = (_splat(builder, number) for number in arguments[5:])

        def moved(keep, olds, add, others):
            return [
                _multiply_add(builder, add, other, builder.fmul(keep, old))
                for old, other in zip(olds, others, strict=True)
            ]

        new = moved(keep_x, xs, add_y, ys), moved(keep_y, ys, add_x, xs)
        for pointer, values in zip(pointers, new, strict=True):
            _store(builder, pointer, values)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_multiple(typing_context, x, at_x, y, at_y, length, factor):
    """``x += factor y`` over ``length`` numbers, rounded up to whole vectors."""
    signature = types.void(x, _PLACE, y, _PLACE, _PLACE, _NUMBER)

    def generate(context, builder, signature, arguments):
        factor = _splat(builder, arguments[5])
        with cgutils.for_range_slice(
            builder, _INT64(0), arguments[4], _INT64(LANES), intp=_INT64
        ) as (offset, _):
            x_at, y_at = (
                _at(
                    context,
                    builder,
                    signature.args[i],
                    arguments[i],
                    builder.add(arguments[i + 1], offset),
                )
                for i in (0, 2)
            )
            (x_old,), (y_old,) = _load(builder, x_at, 1), _load(builder, y_at, 1)
            _store(builder, x_at, [_multiply_add(builder, factor, y_old, x_old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def multiply(typing_context, x, at_x, y, at_y):
    """``x *= y``, number by number, one vector from these places."""
    signature = types.void(x, _PLACE, y, _PLACE)

    def generate(context, builder, signature, arguments):
        x_at, y_at = (
            _at(context, builder, signature.args[i], arguments[i], arguments[i + 1]) for i in (0, 2)
        )
        (x_old,), (y_old,) = _load(builder, x_at, 1), _load(builder, y_at, 1)
        _store(builder, x_at, [builder.fmul(x_old, y_old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_product(typing_context, sums, at_sums, x, at_x, y, at_y, sign):
    """``sums += sign x y``, number by number, one vector from these places."""
    signature = types.void(sums, _PLACE, x, _PLACE, y, _PLACE, _NUMBER)

    def generate(context, builder, signature, arguments):
        sums_at, x_at, y_at = (
            _at(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2, 4)
        )
        (old,), (x,), (y,) = (_load(builder, at, 1) for at in (sums_at, x_at, y_at))
        signed = builder.fmul(_splat(builder, arguments[6]), x)
        _store(builder, sums_at, [_multiply_add(builder, signed, y, old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_products(typing_context, sums, at_sums, points, at_rows, at_columns, stride, count, sign):
    """Adds ``sign * sum_e a_e b_e^T`` to a tile of `TILE` rows and columns.

    Args:
      sums: holds the tile from ``at_sums``, its rows ``stride`` apart.
      points: ``a_e`` begins at ``at_rows + e stride``, ``b_e`` at ``at_columns + e stride``.
      count: how many.
    """
    signature = types.void(sums, _PLACE, points, _PLACE, _PLACE, _PLACE, _PLACE, _NUMBER)
    num_rows, vectors = TILE[0], TILE[1] // LANES

    def generate(context, builder, signature, arguments):
        _, at_sums, _, at_rows, at_columns, stride, count, sign = arguments
        first_sum = _at(context, builder, signature.args[0], arguments[0], at_sums)
        row_at, column_at = (
            _at(context, builder, signature.args[2], arguments[2], place)
            for place in (at_rows, at_columns)
        )
        before = builder.block
        body, after = (builder.append_basic_block(name) for name in ("products", "summed"))
        builder.cbranch(builder.icmp_unsigned(">", count, _INT64(0)), body, after)
        builder.position_at_end(body)
        place, number = builder.phi(_INT64), builder.phi(_INT64)
        totals = [builder.phi(_VECTOR) for _ in range(num_rows * vectors)]
        columns = _load(builder, builder.gep(column_at, [place]), vectors)
        row = builder.gep(row_at, [place])
        added = []
        for i in range(num_rows):
            one = _splat(builder, builder.load(builder.gep(row, [_INT64(i)])))
            for c in range(vectors):
                added.append(_multiply_add(builder, one, columns[c], totals[i * vectors + c]))
        next_place = builder.add(place, stride)
        next_number = builder.add(number, _INT64(1))
        for phi, new in ((place, next_place), (number, next_number)):
            phi.add_incoming(_INT64(0), before)
            phi.add_incoming(new, body)
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        for phi, new in zip(totals, added, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(new, body)
        builder.cbranch(builder.icmp_unsigned("<", next_number, count), body, after)
        builder.position_at_end(after)
        finals = []
        for new in added:
            phi = builder.phi(_VECTOR)
            phi.add_incoming(zero, before)
            phi.add_incoming(new, body)
            finals.append(phi)
        factor = _splat(builder, sign)
        for i in range(num_rows):
            at = builder.gep(first_sum, [builder.mul(stride, _INT64(i))])
            old = _load(builder, at, vectors)
            new = finals[i * vectors : (i + 1) * vectors]
            _store(
                builder,
                at,
                [_multiply_add(builder, factor, x, y) for x, y in zip(new, old, strict=True)],
            )
        return context.get_dummy_value()

    return signature, generate


def in_vectors(width: int) -> int:
    """How many vectors a row of ``width`` numbers takes."""
    return padded(width) // LANES
