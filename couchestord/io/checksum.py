"""The one door to xxhash. XXH3 finds rot and misplaced bytes; it is no defence against somebody who forges them."""

import xxhash

xxh3_64 = xxhash.xxh3_64_intdigest
"""xxh3_64(data, seed=0) -> int: 64 bits of XXH3 over a bytes-like object, the seed carrying identity where there is
one.
"""
