"""Randomness that is the same bits on every backend: drawn on the host, keyed by (seed, name, step).

The generator is counter-based (Philox 4x64; Salmon et al., 2011), its key a hash of the three, so a draw
depends on nothing that was drawn before it and needs no state to resume.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def generator(seed: int, name: str = "", step: int = 0) -> np.random.Generator:
    """Make the generator for the draws called ``name`` at ``step``.

    Examples
    --------
    >>> a, b = generator(0, "layer.weight"), generator(0, "layer.weight")
    >>> bool((a.random(3) == b.random(3)).all())
    True
    """
    text = f"{int(seed)}\x00{name}\x00{int(step)}".encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def permutation(n: int, seed: int, name: str = "shuffle", step: int = 0) -> Any:
    """Draw a random order of ``range(n)``: an int64 host array of shape ``(n,)``."""
    return generator(seed, name, step).permutation(n)
