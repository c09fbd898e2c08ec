"""Doctests of a backend whose framework is neither installed nor required are left out."""

from __future__ import annotations

import os
from importlib.util import find_spec

REQUIRED = os.environ.get("POLYOPT_REQUIRED_BACKENDS", "numpy,torch,tensorflow,jax").split(",")

collect_ignore = [
    f"backends/polyopt_{name}"
    for name in ("torch", "tensorflow", "jax")
    if name not in REQUIRED and find_spec(name) is None
]
