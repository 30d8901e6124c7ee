"""The arithmetic against its definition, and the generator against zfec's own matrix."""

import random

import pytest
import zfec

from couchestord.ec import galois
from couchestord.errors import InvalidArgument


def multiply_bitwise(a: int, b: int) -> int:
    """The product by the definition: shift, add, reduce."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11D
        b >>= 1
    return product


def test_products_follow_the_definition() -> None:
    for a in range(256):
        assert galois.PRODUCT[a] == bytes(multiply_bitwise(a, b) for b in range(256))


def test_inverse_times_value_is_one() -> None:
    assert all(galois.multiply(a, galois.inverse(a)) == 1 for a in range(1, 256))
    with pytest.raises(InvalidArgument):
        galois.inverse(0)


def test_combine_is_the_sum_of_products() -> None:
    rng = random.Random(1)
    shards = [rng.randbytes(50) for _ in range(5)]
    coefficients = [0, 1, 2, 133, 255]
    expected = bytearray(50)
    for coefficient, shard in zip(coefficients, shards, strict=True):
        for i, value in enumerate(shard):
            expected[i] ^= multiply_bitwise(coefficient, value)
    assert galois.combine(coefficients, shards) == expected
    assert galois.combine(coefficients, [memoryview(bytearray(shard)) for shard in shards]) == expected
    assert galois.combine([1], [b""]) == b""


@pytest.mark.parametrize("n", [1, 2, 5, 16, 40])
def test_inverse_of_a_random_matrix(n: int) -> None:
    rng = random.Random(n)
    inverted = 0
    for _ in range(10):
        matrix = tuple(rng.randbytes(n) for _ in range(n))
        try:
            inverse = galois.invert_matrix(matrix)
        except InvalidArgument:
            continue  # About one random matrix in 250 is singular.
        inverted += 1
        assert galois.multiply_matrices(matrix, inverse) == galois.identity(n)
        assert galois.multiply_matrices(inverse, matrix) == galois.identity(n)
    assert inverted >= 8


def test_inverse_needs_rows_in_another_order() -> None:
    swap = (b"\0\1", b"\1\0")
    assert galois.invert_matrix(swap) == swap


@pytest.mark.parametrize("matrix", [(b"\0",), (b"\1\2", b"\1\2"), (b"\1\2\3", b"\0\0\0", b"\3\2\1")])
def test_singular_matrix_is_refused(matrix: galois.Matrix) -> None:
    with pytest.raises(InvalidArgument, match="singular"):
        galois.invert_matrix(matrix)


@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 1), (1, 254), (2, 1), (4, 2), (6, 3), (10, 4), (20, 30), (100, 155)])
def test_generator_is_that_of_zfec(k: int, m: int) -> None:
    # Coding the unit vectors reads zfec's parity rows out of it, one column each.
    unit_shards = [bytes(row) for row in galois.identity(k)]
    parity = zfec.Encoder(k, k + m).encode(unit_shards, tuple(range(k, k + m)))
    assert galois.generator(k, k + m) == (*galois.identity(k), *(bytes(row) for row in parity))


@pytest.mark.parametrize(("k", "m"), [(0, 2), (-1, 2), (4, -1), (200, 56), (256, 0)])
def test_geometry_out_of_range(k: int, m: int) -> None:
    with pytest.raises(InvalidArgument):
        galois.check_geometry(k, m)
    with pytest.raises(InvalidArgument):
        galois.generator(k, k + m)
