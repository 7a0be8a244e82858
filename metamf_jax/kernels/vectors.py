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

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INT32, INT64 = ir.IntType(32), ir.IntType(64)
PLACE, NUMBER = types.uint64, types.float32


def padded(width: int) -> int:
    """The least multiple of `LANES` that is at least ``width``."""
    return -(-width // LANES) * LANES


def literal(value) -> int:
    """The number of a literal integer's type."""
    if not isinstance(value, types.IntegerLiteral):
        raise RequireLiteralValue(f"expected a number known when compiling, got {value}")
    return value.literal_value


# What follows takes and gives LLVM values; `builder` is llvmlite's.


def pointer_to(context, builder, array_type, array, place):
    """Where a flat array has this place."""
    return builder.gep(make_array(array_type)(context, builder, array).data, [place])


def vector_pointer(builder, pointer, offset=0, lanes=LANES):
    """Where a vector begins so many numbers after a pointer."""
    moved = builder.gep(pointer, [ir.Constant(INT64, offset)])
    return builder.bitcast(moved, ir.VectorType(FLOAT, lanes).as_pointer())


def load(builder, pointer, vectors):
    """So many vectors from a pointer on."""
    return [
        builder.load(vector_pointer(builder, pointer, LANES * c), align=4) for c in range(vectors)
    ]


def store(builder, pointer, values):
    """Writes vectors from a pointer on."""
    for c, value in enumerate(values):
        builder.store(value, vector_pointer(builder, pointer, LANES * c), align=4)


def shuffle(builder, x, y, places):
    """A vector of these places in x and, counted on, in y; y may be None."""
    y = ir.Constant(x.type, ir.Undefined) if y is None else y
    mask = ir.Constant(ir.VectorType(INT32, len(places)), list(places))
    return builder.shuffle_vector(x, y, mask)


def splat(builder, number, lanes=LANES):
    """A vector of one number."""
    empty = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
    return shuffle(builder, builder.insert_element(empty, number, INT32(0)), None, [0] * lanes)


def elementwise(builder, name, *vectors):
    """LLVM's intrinsic function of this name, such as ``fma``, on vectors of one length."""
    kind = vectors[0].type
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind] * len(vectors)),
        f"llvm.{name}.v{kind.count}f32",
    )
    return builder.call(function, vectors)


def multiply_add(builder, x, y, z):
    """``x y + z`` in one rounding."""
    return elementwise(builder, "fma", x, y, z)


def partial_sums(builder, xs, ys):
    """A vector whose numbers add up to the dot product of two rows of vectors."""
    sums = []
    for c, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if c < 2:
            sums.append(builder.fmul(x, y))
        else:
            sums[c % 2] = multiply_add(builder, x, y, sums[c % 2])
    return sums[0] if len(sums) == 1 else builder.fadd(*sums)


def _sum(builder, x):
    kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [FLOAT(-0.0), x], fastmath=("reassoc", "nsz"))


@intrinsic(prefer_literal=True)
def dot(typing_context, x, at_x, y, at_y, vectors):
    """``x . y`` over as many vectors, a literal, from these places."""
    count = literal(vectors)
    signature = NUMBER(x, PLACE, y, PLACE, vectors)

    def generate(context, builder, signature, arguments):
        pointers = (
            pointer_to(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2)
        )
        rows = (load(builder, pointer, count) for pointer in pointers)
        return _sum(builder, partial_sums(builder, *rows))

    return signature, generate


@intrinsic(prefer_literal=True)
def move_both(typing_context, x, at_x, y, at_y, vectors, keep_x, add_y, keep_y, add_x):
    """``x, y = keep_x x + add_y y, keep_y y + add_x x``, both from the old values."""
    count = literal(vectors)
    signature = types.void(x, PLACE, y, PLACE, vectors, *[NUMBER] * 4)

    def generate(context, builder, signature, arguments):
        pointers = [
            pointer_to(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2)
        ]
        xs, ys = (load(builder, pointer, count) for pointer in pointers)
        keep_x, add_y, keep_y, add_x = (splat(builder, number) for number in arguments[5:])

        def moved(keep, olds, add, others):
            return [
                multiply_add(builder, add, other, builder.fmul(keep, old))
                for old, other in zip(olds, others, strict=True)
            ]

        new = moved(keep_x, xs, add_y, ys), moved(keep_y, ys, add_x, xs)
        for pointer, values in zip(pointers, new, strict=True):
            store(builder, pointer, values)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_multiple(typing_context, x, at_x, y, at_y, length, factor):
    """``x += factor y`` over ``length`` numbers, rounded up to whole vectors."""
    signature = types.void(x, PLACE, y, PLACE, PLACE, NUMBER)

    def generate(context, builder, signature, arguments):
        factor = splat(builder, arguments[5])
        with cgutils.for_range_slice(builder, INT64(0), arguments[4], INT64(LANES), intp=INT64) as (
            offset,
            _,
        ):
            x_at, y_at = (
                pointer_to(
                    context,
                    builder,
                    signature.args[i],
                    arguments[i],
                    builder.add(arguments[i + 1], offset),
                )
                for i in (0, 2)
            )
            (x_old,), (y_old,) = load(builder, x_at, 1), load(builder, y_at, 1)
            store(builder, x_at, [multiply_add(builder, factor, y_old, x_old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def multiply(typing_context, x, at_x, y, at_y):
    """``x *= y``, number by number, one vector from these places."""
    signature = types.void(x, PLACE, y, PLACE)

    def generate(context, builder, signature, arguments):
        x_at, y_at = (
            pointer_to(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2)
        )
        (x_old,), (y_old,) = load(builder, x_at, 1), load(builder, y_at, 1)
        store(builder, x_at, [builder.fmul(x_old, y_old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_product(typing_context, sums, at_sums, x, at_x, y, at_y, sign):
    """``sums += sign x y``, number by number, one vector from these places."""
    signature = types.void(sums, PLACE, x, PLACE, y, PLACE, NUMBER)

    def generate(context, builder, signature, arguments):
        sums_at, x_at, y_at = (
            pointer_to(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2, 4)
        )
        (old,), (x,), (y,) = (load(builder, at, 1) for at in (sums_at, x_at, y_at))
        signed = builder.fmul(splat(builder, arguments[6]), x)
        store(builder, sums_at, [multiply_add(builder, signed, y, old)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def add_products(
    typing_context, sums, at_sums, pairs, at_rows, at_columns, stride, count, sign, vectors
):
    """Adds ``sign * sum_e a_e b_e^T`` to a tile of `TILE`'s rows, or one of fewer columns.

    Args:
      sums: holds the tile from ``at_sums``, its rows ``stride`` apart.
      pairs: ``a_e`` begins at ``at_rows + e stride``, ``b_e`` at ``at_columns + e stride``.
      count: how many.
      vectors: of columns, a literal.
    """
    signature = types.void(sums, PLACE, pairs, PLACE, PLACE, PLACE, PLACE, NUMBER, vectors)
    num_rows, vectors = TILE[0], literal(vectors)

    def generate(context, builder, signature, arguments):
        _, at_sums, _, at_rows, at_columns, stride, count, sign, _ = arguments
        first_sum = pointer_to(context, builder, signature.args[0], arguments[0], at_sums)
        row_at, column_at = (
            pointer_to(context, builder, signature.args[2], arguments[2], place)
            for place in (at_rows, at_columns)
        )
        before = builder.block
        body, after = (builder.append_basic_block(name) for name in ("products", "summed"))
        builder.cbranch(builder.icmp_unsigned(">", count, INT64(0)), body, after)
        builder.position_at_end(body)
        place, number = builder.phi(INT64), builder.phi(INT64)
        totals = [builder.phi(VECTOR) for _ in range(num_rows * vectors)]
        columns = load(builder, builder.gep(column_at, [place]), vectors)
        row = builder.gep(row_at, [place])
        added = []
        for i in range(num_rows):
            one = splat(builder, builder.load(builder.gep(row, [INT64(i)])))
            for c in range(vectors):
                added.append(multiply_add(builder, one, columns[c], totals[i * vectors + c]))
        next_place = builder.add(place, stride)
        next_number = builder.add(number, INT64(1))
        for phi, new in ((place, next_place), (number, next_number)):
            phi.add_incoming(INT64(0), before)
            phi.add_incoming(new, body)
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        for phi, new in zip(totals, added, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(new, body)
        builder.cbranch(builder.icmp_unsigned("<", next_number, count), body, after)
        builder.position_at_end(after)
        finals = []
        for new in added:
            phi = builder.phi(VECTOR)
            phi.add_incoming(zero, before)
            phi.add_incoming(new, body)
            finals.append(phi)
        factor = splat(builder, sign)
        for i in range(num_rows):
            at = builder.gep(first_sum, [builder.mul(stride, INT64(i))])
            old = load(builder, at, vectors)
            new = finals[i * vectors : (i + 1) * vectors]
            store(
                builder,
                at,
                [multiply_add(builder, factor, x, y) for x, y in zip(new, old, strict=True)],
            )
        return context.get_dummy_value()

    return signature, generate


def in_vectors(width: int) -> int:
    """How many vectors a row of ``width`` numbers takes."""
    return padded(width) // LANES
