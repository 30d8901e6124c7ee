"""Arithmetic in GF(2^8) modulo x^8+x^4+x^3+x^2+1 (0x11d), and the generator matrix of every stripe. Pure.

A byte is a polynomial over GF(2): addition is XOR, and every byte but 0 is a power of 2. A matrix is a tuple of rows, a
row is `bytes`, so matrices are immutable, hashable, and can be handed to C as they are.

This is the reference that the engines are checked against at start. It codes about 100 times slower than they do.
"""

from collections.abc import Sequence

from couchestord.errors import InvalidArgument

POLYNOMIAL = 0x11D
SHARDS_MAX = 255
"""Most shards of a codeword, data and parity together: an index fits in a byte and 255 stays free."""

Matrix = tuple[bytes, ...]


def _powers() -> bytes:
    powers = bytearray()
    value = 1
    for _ in range(255):
        powers.append(value)
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    # Twice, so that the sum of two logarithms indexes it without a modulo.
    return bytes(powers + powers)


EXP: bytes = _powers()
"""EXP[i] = 2**i, for i from 0 to 509."""
LOG: bytes = bytes([0, *(EXP.index(value) for value in range(1, 256))])
"""LOG[EXP[i]] = i for i < 255. LOG[0] stands for nothing."""
PRODUCT: tuple[bytes, ...] = (
    bytes(256),
    *(b"\0" + LOG[1:].translate(EXP[LOG[factor] : LOG[factor] + 255] + b"\0") for factor in range(1, 256)),
)
"""PRODUCT[a][b] = a * b; a row is a table for `bytes.translate`."""


def multiply(a: int, b: int) -> int:
    """The product of two bytes.

    >>> multiply(2, 0x80) == 0x1D
    True
    """
    return PRODUCT[a][b]


def inverse(a: int) -> int:
    """The byte whose product with `a` is 1. Raises InvalidArgument for 0.

    >>> multiply(7, inverse(7))
    1
    """
    if a == 0:
        raise InvalidArgument("0 has no inverse")
    return EXP[255 - LOG[a]]


def combine(coefficients: Sequence[int], shards: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """The sum of coefficient times shard. The shards are equally long, as many as coefficients.

    >>> combine([1, 2], [bytes([5, 6]), bytes([1, 0x80])]) == bytes([5 ^ 2, 6 ^ 0x1D])
    True
    """
    total = 0
    for coefficient, shard in zip(coefficients, shards, strict=True):
        if coefficient:
            total ^= int.from_bytes(bytes(shard).translate(PRODUCT[coefficient]), "little")
    return total.to_bytes(len(shards[0]), "little")


def multiply_matrices(a: Matrix, b: Matrix) -> Matrix:
    """a * b. Row i of the product is the sum of the rows of b, weighted with row i of a."""
    return tuple(combine(row, b) for row in a)


def identity(n: int) -> Matrix:
    return tuple(bytes(row) + b"\1" + bytes(n - 1 - row) for row in range(n))


def invert_matrix(matrix: Matrix) -> Matrix:
    """The inverse of a square matrix, by Gauss and Jordan. Raises InvalidArgument when it is singular.

    >>> invert_matrix((b"\\1\\1", b"\\0\\1")) == (b"\\1\\1", b"\\0\\1")
    True
    """
    n = len(matrix)
    rows = [row + unit for row, unit in zip(matrix, identity(n), strict=True)]
    for column in range(n):
        pivot = next((row for row in range(column, n) if rows[row][column]), None)
        if pivot is None:
            raise InvalidArgument("the matrix is singular")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = rows[column].translate(PRODUCT[inverse(rows[column][column])])
        for row in range(n):
            if row != column and rows[row][column]:
                rows[row] = combine((1, rows[row][column]), (rows[row], rows[column]))
    return tuple(row[n:] for row in rows)


def check_geometry(k: int, m: int) -> None:
    """Raises InvalidArgument unless 1 <= k, 0 <= m and k + m <= 255."""
    if k < 1 or m < 0 or k + m > SHARDS_MAX:
        raise InvalidArgument(f"k={k}, m={m}: must be 1 <= k, 0 <= m, k + m <= {SHARDS_MAX}")


def generator(k: int, n: int) -> Matrix:
    """The n x k matrix of zfec: the identity above n - k rows of parity coefficients. Any k rows are invertible.

    It is V * inverse(V[:k]), where V evaluates a polynomial of k coefficients at 0, 1, 2, 4, 8, ... in turn.

    >>> [list(row) for row in generator(4, 6)[4:]]
    [[119, 64, 56, 14], [199, 167, 13, 108]]
    """
    check_geometry(k, n - k)
    points = [bytes([1]) + bytes(k - 1)]
    points += [bytes(EXP[exponent * column % 255] for column in range(k)) for exponent in range(n - 1)]
    return identity(k) + multiply_matrices(tuple(points[k:]), invert_matrix(tuple(points[:k])))
