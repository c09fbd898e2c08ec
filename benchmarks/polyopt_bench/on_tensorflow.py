"""TensorFlow: polyopt over packed buffers and over ``tf.Variable``, beside Keras in a ``tf.function``."""

from __future__ import annotations

from typing import Any

from polyopt_bench.algorithms import Algorithm, algorithm
from polyopt_bench.contender import PEER_OF, Contender, Step
from polyopt_bench.sets import Arrays, Shapes, arrays, shapes
from polyopt_bench.workload import NETS, TARGET, Network, cheap, network, task_shapes

PEER = PEER_OF["tensorflow"]
XLA_LEAVES = 20
"""Leaves up to which Keras' part of a training step is given to XLA: on 1000 it compiles for many minutes."""


def load(ours: bool, keras: bool) -> None:
    """Import what a process measures, and warm the framework up."""
    import tensorflow as tf

    tf.constant(0.0)
    if ours:
        from polyopt.backend import registry

        registry.by_name("tensorflow")
    if keras or not ours:
        from polyopt_bench.keras_peer import load as load_keras

        load_keras("tensorflow")


def update(case: Any) -> list[Contender]:
    """Return those that make the update alone."""
    of, way = shapes(case.task), algorithm(case.optimizer)
    found = [
        Contender("polyopt, packed", lambda: _packed(of, way), ours=True),
        Contender("polyopt, own variables", lambda: _own(of, way), ours=True),
    ]
    if way.keras is not None:
        found.insert(1, Contender(PEER, lambda: _keras(of, way)))
    return found


def tensors(host: Arrays) -> dict[str, Any]:
    """Make tensors of host arrays."""
    import tensorflow as tf

    return {name: tf.constant(x) for name, x in host.items()}


def _framework(way: Algorithm) -> Any:
    return "keras" if way.keras else "numpy"


def _own(of: Shapes, way: Algorithm) -> Step:
    import tensorflow as tf

    from polyopt import Optimizer

    optimizer = Optimizer(way.rule(_framework(way)))
    params = {name: tf.Variable(x) for name, x in arrays(of, 0).items()}
    grads = tensors(arrays(of, 1))
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.step(params, grads, state, donate=True)

    return step


def _packed(of: Shapes, way: Algorithm) -> Step:
    from polyopt import Optimizer, Packing

    params = tensors(arrays(of, 0))
    packing = Packing(params, way.rule(_framework(way)))
    optimizer = Optimizer(packing.rule)
    buffers, grads = packing.pack(params), packing.pack(tensors(arrays(of, 1)))
    del params
    state = optimizer.init(buffers)

    def step() -> None:
        nonlocal buffers, state
        buffers, state = optimizer.step(buffers, grads, state, donate=True)

    return step


def _keras(of: Shapes, way: Algorithm) -> Step:
    from polyopt_bench.keras_peer import tensorflow_step

    return tensorflow_step(of, way)


def train(case: Any) -> list[Contender]:
    """Return those that make the whole training step."""
    of, way = task_shapes(case.task), algorithm(case.optimizer)
    net = network(case.task) if case.task in NETS else None
    xla = len(of) <= XLA_LEAVES
    return [
        Contender("polyopt", lambda: _train_ours(of, way, net), ours=True),
        Contender(
            f"one tf.function{' by XLA' if xla else ''} with Keras", lambda: _train_keras(of, way, net, xla)
        ),
    ]


def _data(net: Network | None) -> tuple[Any, ...]:
    import tensorflow as tf

    return (tf.constant(net.x), tf.constant(net.y)) if net else (tf.constant(TARGET),)


def _train_ours(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    from polyopt import Optimizer, TrainStep

    train_step = TrainStep(net.loss if net else cheap, Optimizer(way.rule(_framework(way))))
    data = _data(net)
    carry = train_step.init(tensors(net.params if net else arrays(of, 0)))

    def step() -> None:
        nonlocal carry
        carry, loss = train_step(carry, *data)
        loss.numpy()  # waits

    return step


def _train_keras(of: Shapes, way: Algorithm, net: Network | None, xla: bool) -> Step:
    import tensorflow as tf

    from polyopt_bench.keras_peer import optimizer, variables

    params = variables(net.params if net else arrays(of, 0))
    leaves = list(params.values())
    data = _data(net)
    keras = optimizer(way)
    keras.build(leaves)

    def loss(x: Any, y: Any = None) -> Any:
        if net is None:
            return tf.add_n([0.5 * tf.reduce_sum(tf.square(p - x)) for p in leaves])
        for i in range(net.layers):
            x = tf.matmul(x, params[f"{i}.weight"]) + params[f"{i}.bias"]
            if i + 1 < net.layers:
                x = tf.nn.relu(x)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, x))

    @tf.function(autograph=False, jit_compile=xla)  # type: ignore[untyped-decorator]
    def advance(*data: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(*data)
        keras.apply(tape.gradient(value, [p.value for p in leaves]), leaves)
        return value

    def step() -> None:
        advance(*data).numpy()

    return step
