"""The JAX backend: everything is a ``jax.Array``, and a whole step is one XLA computation."""

from __future__ import annotations

from polyopt_jax.backend import JaxBackend as JaxBackend

backend = JaxBackend()
