"""The only comparisons that tests use. Both assert; neither returns anything to be forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.backend import registry


def host(x: Any) -> Any:
    """Return ``x`` as a host array, from any framework, or from a number or list."""
    if isinstance(x, int | float | list | tuple):
        return np.asarray(x)
    return registry.of(x).to_numpy(x)


def assert_close(actual: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0, because: str) -> None:
    """Assert ``|actual - expected| <= atol + rtol * |expected|``, with NaN and inf in the same places.

    Parameters
    ----------
    actual
        An array of any framework, or nested numbers.
    expected
        The same, of the same shape.
    rtol
        The relative tolerance.
    atol
        The absolute tolerance.
    because
        Why the tolerance is what it is; printed when the comparison fails.

    Raises
    ------
    AssertionError
        Where they differ by more, or in shape.

    Examples
    --------
    >>> assert_close([1.0 + 1e-16], [1.0], rtol=2e-16, because="one rounding")
    """
    a, e = (np.asarray(host(x)).astype(np.float64) for x in (actual, expected))
    assert a.shape == e.shape, f"shape {a.shape}; expected {e.shape}"
    assert because, "a tolerance needs its reason"
    np.testing.assert_allclose(a, e, rtol=rtol, atol=atol, equal_nan=True, err_msg=f"tolerance: {because}")


def assert_same_bits(actual: Any, expected: Any, *, what: str = "value") -> None:
    """Assert the same dtype, shape and bits; every NaN counts as the same NaN.

    Parameters
    ----------
    actual
        An array of any framework, or a number.
    expected
        The same.
    what
        What it is called when the comparison fails.

    Raises
    ------
    AssertionError
        Where they differ.

    Examples
    --------
    >>> import numpy as np
    >>> assert_same_bits(np.float32([1.0]), np.float32([1.0]))
    """
    a, e = np.asarray(host(actual)), np.asarray(host(expected))
    assert a.dtype == e.dtype, f"{what}: dtype {a.dtype}; expected {e.dtype}"
    assert a.shape == e.shape, f"{what}: shape {a.shape}; expected {e.shape}"
    differs = np.ascontiguousarray(a).reshape(-1).view(np.uint8) != np.ascontiguousarray(e).reshape(-1).view(
        np.uint8
    )
    differs = differs.reshape(a.size, -1).any(axis=1) if a.size else differs
    if a.dtype.kind not in "biu" and a.size:
        differs &= ~(np.isnan(a).reshape(-1) & np.isnan(e).reshape(-1))
    if differs.any():
        i = int(np.flatnonzero(differs)[0])
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {a.size} elements differ in their bits; first at {i}: "
            f"{a.reshape(-1)[i]!r}, expected {e.reshape(-1)[i]!r}"
        )
