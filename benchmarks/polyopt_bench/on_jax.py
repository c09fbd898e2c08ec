"""JAX: polyopt over packed buffers and over people's own trees, beside optax jitted and donated."""

from __future__ import annotations

from functools import partial
from typing import Any

from polyopt_bench.algorithms import ANNEALED, LR, MAX_NORM, Algorithm, algorithm
from polyopt_bench.contender import PEER_OF, Contender, Step
from polyopt_bench.sets import Arrays, Shapes, arrays, shapes
from polyopt_bench.workload import NETS, TARGET, Network, cheap, network, task_shapes

PEER = PEER_OF["jax"]


def load(ours: bool, keras: bool) -> None:
    """Import what a process measures, and warm the framework up."""
    import jax

    if ours:
        from polyopt.backend import registry

        registry.by_name("jax")
    else:
        import optax

        del optax
    jax.block_until_ready(jax.numpy.zeros(()))  # type: ignore[no-untyped-call]
    if keras:
        from polyopt_bench.keras_peer import load as load_keras

        load_keras("jax")


def update(case: Any) -> list[Contender]:
    """Return those that make the update alone."""
    of, way = shapes(case.task), algorithm(case.optimizer)
    found = [
        Contender("polyopt, packed", lambda: _packed(of, way), ours=True),
        Contender(PEER, lambda: _optax(of, way)),
        Contender("polyopt, own tree", lambda: _own(of, way), ours=True),
    ]
    if way.keras is not None:
        found.append(Contender("Keras on JAX", lambda: _keras(of, way), extra=not case.keras))
    return found


def on_device(host: Arrays) -> dict[str, Any]:
    """Put the arrays on JAX' device; never sharing the host's memory."""
    import jax.numpy as jnp

    return {name: jnp.array(x) for name, x in host.items()}


def _own(of: Shapes, way: Algorithm) -> Step:
    import jax

    from polyopt import Optimizer

    optimizer = Optimizer(way.rule("optax"))
    params, grads = on_device(arrays(of, 0)), on_device(arrays(of, 1))
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.step(params, grads, state, donate=True)
        jax.block_until_ready(params)  # type: ignore[no-untyped-call]

    return step


def _packed(of: Shapes, way: Algorithm) -> Step:
    import jax

    from polyopt import Optimizer, Packing

    params = on_device(arrays(of, 0))
    packing = Packing(params, way.rule("optax"))
    optimizer = Optimizer(packing.rule)
    buffers, grads = packing.pack(params), packing.pack(on_device(arrays(of, 1)))
    del params
    state = optimizer.init(buffers)

    def step() -> None:
        nonlocal buffers, state
        buffers, state = optimizer.step(buffers, grads, state, donate=True)
        jax.block_until_ready(buffers)  # type: ignore[no-untyped-call]

    return step


def transformation(way: Algorithm) -> Any:
    """Make optax' own, as a user would write it."""
    import optax

    assert way.optax is not None
    name, settings = way.optax
    rate = optax.cosine_decay_schedule(LR, ANNEALED) if way.anneals else LR
    made = getattr(optax, name)(rate, **settings)
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), made) if way.clips else made


def _optax(of: Shapes, way: Algorithm) -> Step:
    import jax
    import optax

    tx = transformation(way)
    params, grads = on_device(arrays(of, 0)), on_device(arrays(of, 1))
    state = tx.init(params)

    @partial(jax.jit, donate_argnums=(0, 2))
    def advance(params: Any, grads: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step() -> None:
        nonlocal params, state
        params, state = advance(params, grads, state)
        jax.block_until_ready(params)  # type: ignore[no-untyped-call]

    return step


def _keras(of: Shapes, way: Algorithm) -> Step:
    from polyopt_bench.keras_peer import jax_step

    return jax_step(of, way)


def train(case: Any) -> list[Contender]:
    """Return those that make the whole training step."""
    of, way = task_shapes(case.task), algorithm(case.optimizer)
    net = network(case.task) if case.task in NETS else None
    return [
        Contender("polyopt", lambda: _train_ours(of, way, net), ours=True),
        Contender("one jitted function with optax", lambda: _train_optax(of, way, net)),
    ]


def _data(net: Network | None) -> tuple[Any, ...]:
    import jax.numpy as jnp

    return (jnp.array(net.x), jnp.array(net.y)) if net else (jnp.float32(TARGET),)


def _train_ours(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    import jax

    from polyopt import Optimizer, TrainStep

    train_step = TrainStep(net.loss if net else cheap, Optimizer(way.rule("optax")))
    data = _data(net)
    carry = train_step.init(on_device(net.params if net else arrays(of, 0)))

    def step() -> None:
        nonlocal carry
        carry, loss = train_step(carry, *data)
        jax.block_until_ready((carry, loss))  # type: ignore[no-untyped-call]

    return step


def _train_optax(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    import jax
    import jax.numpy as jnp
    import optax

    tx = transformation(way)
    data = _data(net)
    params = on_device(net.params if net else arrays(of, 0))
    state = tx.init(params)

    def loss(params: Any, x: Any, y: Any = None) -> Any:
        if net is None:
            return sum(0.5 * jnp.sum(jnp.square(p - x)) for p in params.values())
        for i in range(net.layers):
            x = x @ params[f"{i}.weight"] + params[f"{i}.bias"]
            if i + 1 < net.layers:
                x = jax.nn.relu(x)
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def advance(params: Any, state: Any, *data: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *data)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def step() -> None:
        nonlocal params, state
        params, state, value = advance(params, state, *data)
        jax.block_until_ready((params, value))  # type: ignore[no-untyped-call]

    return step
