"""The benchmark suite: polyopt beside each framework's own optimizers, interleaved in one process.

``polyopt bench`` runs it. polyopt itself imports nothing of it; each framework is imported by the module that
is named after it, and only where it is measured.
"""

from __future__ import annotations
