"""Random numbers that depend on nothing but the request's seed and the place of the token.

No state is carried from token to token, so the numbers are the same whatever the batch, the chunks of the
prompt, preemption and speculation did in between.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

_MASK = (1 << 64) - 1


def uniform(seed: int, index: int, attempt: int = 0) -> float:
    """A number from 0 up to 1, with 53 random bits.

    Args:
        seed: of the request; its low 64 bits count.
        index: of the output token, from 0.
        attempt: how many numbers this token has had before.

    >>> uniform(1, 0) == uniform(1, 0), 0 <= uniform(1, 1) < 1
    (True, True)
    """
    return (_hash(seed, index, attempt, b"optpipe token") >> 11) * 2.0**-53


def child_seed(seed: int, child: int) -> int:
    """The seed of one of ``n`` texts; the first keeps the seed, so that it does not depend on ``n``.

    >>> child_seed(7, 0)
    7
    """
    return seed if child == 0 else _hash(seed, child, 0, b"optpipe child")


def _hash(seed: int, index: int, attempt: int, purpose: bytes) -> int:
    key = struct.pack("<QQQ", seed & _MASK, index, attempt)
    return int.from_bytes(blake2b(key, digest_size=8, person=purpose).digest(), "little")
