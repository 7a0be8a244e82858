"""Four entries of SGD at a time, as LLVM instructions. Imports Numba.

Entries that share neither row nor column may be visited together: each then finds the same factors
as if they were visited one after the other. A core waits for the one product of an entry most of
its time; four give it enough to do, and what is not vectors in one entry (slopes, step sizes, sums
of squares) is vectors in four. At rank 32 a core made 1.8 times as many updates a second as entry
by entry, at rank 128 1.5 times.

Arrays are as in `kernels.vectors`. What is known of a row is (step size, sum of squares, squared
norm, penalty weight), in an array of four columns.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from metamf_jax.kernels.vectors import (
    FLOAT,
    INT32,
    INT64,
    LANES,
    NUMBER,
    PLACE,
    elementwise,
    literal,
    load,
    multiply_add,
    partial_sums,
    pointer_to,
    shuffle,
    splat,
    store,
    vector_pointer,
)

_FOUR_PLACES, _FOUR = types.UniTuple(PLACE, 4), types.UniTuple(NUMBER, 4)
_EIGHT = types.UniTuple(NUMBER, 8)
_INTEGERS = ir.VectorType(INT32, 4)


def _parts(builder, values, count=4):
    return [builder.extract_value(values, i) for i in range(count)]


def _vector_of(builder, values):
    vector = ir.Constant(ir.VectorType(FLOAT, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        vector = builder.insert_element(vector, value, INT32(i))
    return vector


@intrinsic
def differ(typing_context, rows, columns, place):
    """Whether the four entries from a place on are in different rows and different columns."""
    signature = types.boolean(rows, columns, PLACE)

    def generate(context, builder, signature, arguments):
        found = []
        for i in range(2):
            at = pointer_to(context, builder, signature.args[i], arguments[i], arguments[2])
            found.append(builder.load(builder.bitcast(at, _INTEGERS.as_pointer()), align=4))
        both = shuffle(builder, *found, range(8))
        # Of four, turned by one and by two places, every two meet.
        same = [
            builder.icmp_signed("==", both, shuffle(builder, both, None, places))
            for places in ((1, 2, 3, 0, 5, 6, 7, 4), (2, 3, 0, 1, 6, 7, 4, 5))
        ]
        bits = ir.IntType(8)
        return builder.icmp_unsigned("==", builder.bitcast(builder.or_(*same), bits), bits(0))

    return signature, generate


@intrinsic(prefer_literal=True)
def dot_four(typing_context, x, at_x, y, at_y, vectors):
    """``kernels.vectors.dot`` of four pairs of rows, from four places each."""
    count = literal(vectors)
    signature = _FOUR(x, _FOUR_PLACES, y, _FOUR_PLACES, vectors)

    def generate(context, builder, signature, arguments):
        sums = []
        for places in zip(*(_parts(builder, arguments[i]) for i in (1, 3)), strict=True):
            rows = (
                load(
                    builder,
                    pointer_to(context, builder, signature.args[i], arguments[i], place),
                    count,
                )
                for i, place in zip((0, 2), places, strict=True)
            )
            sums.append(partial_sums(builder, *rows))
        return context.make_tuple(builder, _FOUR, _parts_of_vector(builder, _add_up(builder, sums)))

    return signature, generate


def _parts_of_vector(builder, vector):
    return [builder.extract_element(vector, INT32(i)) for i in range(vector.type.count)]


def _add_up(builder, vectors):
    """The sums of four vectors, as a vector of four."""

    def added(x, y, low, high):
        size = x.type.count
        low, high = (
            [
                quarter + i
                for quarter in range(0, size, 4)
                for i in (*places, *(size + p for p in places))
            ]
            for places in (low, high)
        )
        return builder.fadd(shuffle(builder, x, y, low), shuffle(builder, x, y, high))

    pairs = [added(vectors[i], vectors[i + 1], (0, 1), (2, 3)) for i in (0, 2)]
    # Each quarter of four numbers: (x0 + x2, x1 + x3) of one vector, then of the other.
    total = added(*pairs, (0, 2), (1, 3))
    while total.type.count > 4:
        half = total.type.count // 2
        total = builder.fadd(
            shuffle(builder, total, None, range(half)),
            shuffle(builder, total, None, range(half, 2 * half)),
        )
    return total


def _transposed(builder, quads):
    """Four vectors of eight, seen as two 4 x 4 matrices side by side, each transposed."""

    def mixed(x, y, places):
        return shuffle(builder, x, y, [half + p for half in (0, 4) for p in places])

    low, high = (0, 8, 1, 9), (2, 10, 3, 11)
    pairs = [[mixed(quads[i], quads[i + 1], places) for i in (0, 2)] for places in (low, high)]
    return [mixed(*pair, places) for pair in pairs for places in ((0, 1, 8, 9), (2, 3, 10, 11))]


@intrinsic(prefer_literal=True)
def step_four(
    typing_context,
    x,
    at_x,
    known_x,
    rows,
    y,
    at_y,
    known_y,
    columns,
    products,
    slopes,
    squares,
    rate,
    one_of_width,
    vectors,
    scaled,
):
    """One step of SGD at four entries, which `differ`.

    Args:
      x: rows from the four places `at_x`.
      known_x: of all rows.
      rows: four numbers.
      products: ``x . y``.
      slopes: half the derivatives of the losses.
      squares: eight numbers to be added to the squared gradients, of the rows, then the columns.
      rate: step size that AdaGrad scales.
      one_of_width: what the squared gradients are divided by.
      vectors: literal, in a row.
      scaled: whether AdaGrad scales the steps.
    """
    count = literal(vectors)
    side = x, _FOUR_PLACES, known_x, _FOUR_PLACES
    other_side = y, _FOUR_PLACES, known_y, _FOUR_PLACES
    signature = types.void(
        *side, *other_side, _FOUR, _FOUR, _EIGHT, NUMBER, NUMBER, vectors, scaled
    )

    def generate(context, builder, signature, arguments):
        def pointers(array, places):
            return [
                pointer_to(context, builder, signature.args[array], arguments[array], place)
                for place in places
            ]

        # Vectors of eight: four rows, then four columns.
        known_at = [
            [
                vector_pointer(builder, pointer, lanes=4)
                for pointer in pointers(
                    array, [builder.shl(n, INT64(2)) for n in _parts(builder, arguments[array + 1])]
                )
            ]
            for array in (2, 6)
        ]
        rates, sums, norms, weights = _transposed(
            builder,
            [
                shuffle(builder, *(builder.load(at, align=4) for at in pair), range(8))
                for pair in zip(*known_at, strict=True)
            ],
        )
        product, slope = (
            shuffle(
                builder, _vector_of(builder, _parts(builder, arguments[i])), None, [0, 1, 2, 3] * 2
            )
            for i in (8, 9)
        )
        falling = builder.fneg(rates)
        keep = multiply_add(builder, falling, weights, splat(builder, FLOAT(1), 8))
        add = builder.fmul(falling, slope)
        with builder.if_then(arguments[14]):
            # As in the plain update: squares of gradients and norms follow from the product.
            others = shuffle(builder, norms, None, [4, 5, 6, 7, 0, 1, 2, 3])
            twice = builder.fadd(product, product)
            inner = multiply_add(builder, weights, norms, builder.fmul(slope, twice))
            new = multiply_add(
                builder, builder.fmul(slope, slope), others, builder.fmul(weights, inner)
            )
            zero = splat(builder, FLOAT(0), 8)
            # Written so that NaN stays.
            new = builder.select(builder.fcmp_ordered("<", new, zero), zero, new)
            extra = _vector_of(builder, _parts(builder, arguments[10], 8))
            new = builder.fadd(new, extra, flags=("nsz",))
            sums = multiply_add(builder, new, splat(builder, arguments[12], 8), sums)
            inner = multiply_add(builder, add, others, builder.fmul(twice, keep))
            norms = multiply_add(builder, builder.fmul(keep, keep), norms, builder.fmul(add, inner))
            rates = builder.fdiv(
                splat(builder, arguments[11], 8), elementwise(builder, "sqrt", sums)
            )
            for pair, new in zip(
                zip(*known_at, strict=True),
                _transposed(builder, [rates, sums, norms, weights]),
                strict=True,
            ):
                for at, half in zip(pair, (range(4), range(4, 8)), strict=True):
                    builder.store(shuffle(builder, new, None, half), at, align=4)

        places = (_parts(builder, arguments[i]) for i in (1, 5))
        rows_at = [pointers(array, p) for array, p in zip((0, 4), places, strict=True)]
        for i, pair in enumerate(zip(*rows_at, strict=True)):
            old = [load(builder, at, count) for at in pair]
            for which, (own, partner) in enumerate((old, old[::-1])):
                lane = [4 * which + i] * LANES
                keep_own, add_partner = (shuffle(builder, z, None, lane) for z in (keep, add))
                moved = [
                    multiply_add(builder, add_partner, b, builder.fmul(keep_own, a))
                    for a, b in zip(own, partner, strict=True)
                ]
                store(builder, pair[which], moved)
        return context.get_dummy_value()

    return signature, generate
