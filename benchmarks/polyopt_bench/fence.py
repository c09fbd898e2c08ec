"""Time the fence against contraction: XLA's Adam with it and without it, in turns.

    python -m polyopt_bench.fence

The fence keeps XLA from contracting ``a * b + c`` and from approximating divisions, so that its bits are
NumPy's (see ``polyopt_jax/fence.py``). polyopt's own kernels, which are not XLA's, are off here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

from polyopt_bench.sets import arrays, shapes
from polyopt_bench.timing import Effort, Spread, interleaved, ratio

SETS = ("scale-100000-1", "small", "scale-10000000-1", "resnet50")


def main() -> int:
    """Measure and print."""
    for name in SETS:
        steps = {"fenced": _step(name, fenced=True), "bare": _step(name, fenced=False)}
        samples = interleaved(steps, Effort(rounds=31, least=15, seconds=6.0))
        spread = ratio(samples["fenced"], samples["bare"])
        times = ", ".join(f"{side} {1e3 * Spread.of(x).median:.3f} ms" for side, x in samples.items())
        print(f"{name:20s} {times}, ratio {spread.median:.3f} ({spread.low:.3f}–{spread.high:.3f})")
        sys.stdout.flush()
    return 0


def _step(name: str, *, fenced: bool) -> Callable[[], None]:
    """Adam over packed buffers; what is compiled here stays as it is when the patches are gone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from polyopt import Adam, Packing
    from polyopt.engine.plan import plan, program
    from polyopt_jax import backend, lift, ops

    on_device = {key: jnp.array(x) for key, x in arrays(shapes(name), 0).items()}
    packing = Packing(on_device, Adam())
    params: list[Any] = list(packing.pack(on_device).values())
    (segment,) = plan(Adam(), ("w",)).pipelines[0] or ()
    code = program(segment.parts, "p")
    grads = [jnp.cos(x) for x in params]
    given = {"p": params} | {n: [jnp.zeros_like(x) for x in params] for n in ("exp_avg", "exp_avg_sq")}
    numbers = {
        "b1": 0.9,
        "one_minus_beta1": 0.1,
        "b2": 0.999,
        "one_minus_beta2": 0.001,
        "scale": -1e-3,
        "eps": 1e-8,
    }
    vector = jnp.asarray(np.array([numbers[n] for n in code.scalars] + [0.0], np.float32))
    advance = jax.jit(lift._over_leaves(backend, code, "float32"), donate_argnums=(0,))

    def step() -> None:
        nonlocal given
        given = advance(given, {"g": grads}, {}, vector)
        jax.block_until_ready(given)  # type: ignore[no-untyped-call]

    bare = mock.patch.object(lift, "Fenced", return_value=ops)
    with nullcontext() if fenced else bare:
        step()
    return step


if __name__ == "__main__":
    sys.exit(main())
