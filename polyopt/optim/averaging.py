"""Averages of the weights over the steps, kept beside them: the last stage of a chain.

``chain(Adam(), EMA(0.999))`` trains exactly as ``Adam()`` does; ``averaged`` gives the average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.backend import registry
from polyopt.backend.evaluate import cast
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Slot, Slots, hyper, static


@dataclass(frozen=True)
class EMA(Elementwise):
    """Keep an exponential moving average of the parameters.

    ``ema = d·ema + (1 - d)·(p + update)``.

    It passes the update on unchanged, and must be the last stage, so that what it gets is what the parameters
    will move by. The average is kept in the compute dtype: for float16 and bfloat16 parameters it follows
    them before they are rounded.

    Parameters
    ----------
    decay
        d, in [0, 1); a number or a schedule.
    debias
        ``False`` starts at the initial parameters, as torch's ``get_ema_multi_avg_fn`` and Keras do.
        ``True`` starts at 0 and divides by 1 - d_1·d_2·…·d_t when asked (Kingma & Ba, 2015, section 3), as
        optax' ``ema`` does, so that the initial parameters have no weight.
    warmup
        Use min(d, (1 + t)/(10 + t)) after t updates, so that it forgets fast at first (TensorFlow's
        ``ExponentialMovingAverage`` with ``num_updates``).

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import EMA, SGD, Optimizer, averaged, chain
    >>> opt = Optimizer(chain(SGD(lr=1.0), EMA(0.5)))
    >>> params = {"w": np.array([0.0])}
    >>> state = opt.init(params)
    >>> params, state = opt.step(params, {"w": np.array([-1.0])}, state)
    >>> params["w"].tolist(), averaged(state, params)["w"].tolist()
    ([1.0], [0.5])
    """

    LAST: ClassVar[bool] = True

    decay: Any = hyper(0.999, low=0.0, high=1.0, open_high=True)
    debias: bool = static(False, False, True)
    warmup: bool = static(False, False, True)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the average and, if it is debiased, the product of all decays."""
        if not self.debias:
            return (Slot("ema", init="param"),)
        # A product, not a power: the decay may change from step to step.
        return (Slot("ema"), Slot("ema_bias", init=1.0, shape="scalar"))

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return ``decay``, d at this step, ``one_minus_decay`` and the product of all decays so far."""
        decay = h.decay
        if self.warmup:
            decay = xp.minimum(decay, (1.0 + t) / (10.0 + t))
        values = {"decay": decay, "one_minus_decay": 1.0 - decay}
        return values | {"ema_bias": h.ema_bias * decay} if self.debias else values

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient unchanged, and the average after the update."""
        return g, {"ema": c.decay * slots["ema"] + c.one_minus_decay * (p + g)}


@dataclass(frozen=True)
class PolyakAverage(Elementwise):
    """Keep the mean of the parameters after each update (Polyak & Juditsky, 1992); torch's ``AveragedModel``.

    ``mean += (p + update - mean)/n`` with n updates averaged so far; the last stage, as ``EMA``.

    Parameters
    ----------
    start
        Number of updates before the first one that is averaged; until then the average is the parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, PolyakAverage, averaged, chain
    >>> opt = Optimizer(chain(SGD(lr=1.0), PolyakAverage()))
    >>> params = {"w": np.array([0.0])}
    >>> state = opt.init(params)
    >>> for _ in range(2):
    ...     params, state = opt.step(params, {"w": np.array([-1.0])}, state)
    >>> params["w"].tolist(), averaged(state, params)["w"].tolist()
    ([2.0], [1.5])
    """

    LAST: ClassVar[bool] = True

    start: int = static(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise InputError(f"PolyakAverage: start = {self.start!r}; expected an integer >= 0")

    def slots(self) -> tuple[Slot, ...]:
        """Keep the mean, which starts at the parameter."""
        return (Slot("polyak", init="param"),)

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return ``n``, the number of parameters in the mean after this step."""
        return {"n": xp.maximum(t - self.start, 1)}

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient unchanged, and the mean after the update."""
        mean = slots["polyak"]
        return g, {"polyak": mean + ((p + g) - mean) / c.n}


AVERAGING = {"ema": EMA, "polyak_average": PolyakAverage}
"""The names that recipes use."""


def averaged(state: Mapping[str, Any], params: Any) -> Any:
    """Return the averaged parameters; a leaf that has no average stays.

    Before the first update a debiased average is the parameters themselves.

    Parameters
    ----------
    state
        The optimizer's state, of a rule that ends in an ``EMA`` or a ``PolyakAverage``.
    params
        The parameters that the state belongs to: a tree of arrays of any framework.

    Returns
    -------
    tree
        The structure and dtypes of ``params``.

    Raises
    ------
    InputError
        Where ``state`` holds no average, or more than one.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import EMA, SGD, Optimizer, averaged, chain
    >>> opt = Optimizer(chain(SGD(lr=1.0), EMA(0.5)))
    >>> params = {"w": np.array([0.0])}
    >>> params, state = opt.step(params, {"w": np.array([-1.0])}, opt.init(params))
    >>> averaged(state, params)["w"].tolist()
    [0.5]
    """
    slots = state["slots"]
    found = [name for name in slots if name.rpartition(".")[2] in ("ema", "polyak")]
    if len(found) != 1:
        raise InputError(
            f"averaged: {len(found)} averages in the state; expected one, kept by an EMA or a "
            f"PolyakAverage as the last stage; its slots: {nearest('ema', slots)}"
        )
    values, bias = slots[found[0]], slots.get(found[0] + "_bias", {})
    flat = tree.flatten(params)
    leaves = list(flat.leaves)
    for i, path in enumerate(flat.paths):
        if leaves[i] is None or path not in values:
            continue
        backend = registry.of(leaves[i])
        xp, dtype = backend.ops, backend.dtype_name(leaves[i])
        average = values[path]
        if path in bias:
            weight = 1.0 - bias[path]
            if isinstance(weight, float) and weight == 0.0:
                continue
            weight = xp.full_like(average, weight)
            start = cast(backend, leaves[i], backend.dtype_name(average))
            average = xp.where(xp.equal(weight, 0.0), start, xp.divide(average, weight))
        leaves[i] = cast(backend, average, dtype)
    return flat.unflatten(leaves)
