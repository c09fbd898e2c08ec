"""The NumPy backend: the reference that the others are compared with, and the one that needs no framework."""

from __future__ import annotations

from polyopt_numpy.backend import NumpyBackend as NumpyBackend

backend = NumpyBackend()
