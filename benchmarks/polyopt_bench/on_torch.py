"""PyTorch: polyopt in place on a model's parameters, beside ``torch.optim`` in each of its forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyopt_bench.algorithms import ANNEALED, MAX_NORM, Algorithm, algorithm
from polyopt_bench.contender import PEER_OF, Contender, Step
from polyopt_bench.sets import Shapes, arrays, shapes
from polyopt_bench.workload import NETS, TARGET, Network, cheap, network, task_shapes

FUSED = frozenset(("Adam", "AdamW", "SGD", "Adagrad"))
"""What ``torch.optim`` has a fused CPU kernel for."""
PEER = PEER_OF["torch"]


def load(ours: bool, keras: bool) -> None:
    """Import what a process measures, and set the number of threads."""
    import torch

    from polyopt_bench.machine import threads

    torch.set_num_threads(threads())
    if ours:
        from polyopt.backend import registry

        registry.by_name("torch")
    if keras:
        from polyopt_bench.keras_peer import load as load_keras

        load_keras("torch")


def update(case: Any) -> list[Contender]:
    """Return those that make the update alone."""
    of, way = shapes(case.task), algorithm(case.optimizer)
    forms = ["fused"] if way.torch and way.torch[0] in FUSED else []
    found = [
        Contender("polyopt", lambda: _ours(of, way), ours=True),
        *(Contender(f"torch.optim {form}", lambda form=form: _torch(of, way, form)) for form in forms),  # type: ignore[misc]
        Contender("torch.optim foreach", lambda: _torch(of, way, "foreach")),
        Contender("torch.optim single", lambda: _torch(of, way, "single")),
        Contender("polyopt, list", lambda: _ours(of, way, as_list=True), ours=True),
        Contender("polyopt, .grad read anew", lambda: _ours(of, way, anew=True), ours=True),
        Contender("torch.optim compiled", lambda: _torch(of, way, "compiled"), extra=True),
    ]
    if way.keras is not None:
        found.append(Contender("Keras on PyTorch", lambda: _keras(of, way), extra=not case.keras))
    return found


def parameters(of: Shapes) -> dict[str, Any]:
    """Parameters that require gradients, and have them."""
    import torch

    made = {}
    for (name, x), g in zip(arrays(of, 0).items(), arrays(of, 1).values(), strict=True):
        made[name] = torch.nn.Parameter(torch.from_numpy(x))
        made[name].grad = torch.from_numpy(g)
    return made


def _ours(of: Shapes, way: Algorithm, *, as_list: bool = False, anew: bool = False) -> Step:
    from polyopt import Optimizer

    optimizer = Optimizer(way.rule("torch"))
    named = parameters(of)
    params: Any = list(named.values()) if as_list else named
    grads: Any = [p.grad for p in params] if as_list else {name: p.grad for name, p in named.items()}
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        given = {name: p.grad for name, p in params.items()} if anew else grads
        params, state = optimizer.step(params, given, state, donate=True)

    return step


def _torch(of: Shapes, way: Algorithm, form: str) -> Step:
    import torch

    params = list(parameters(of).values())
    move = _optimizer(params, way, form)
    if form != "compiled":
        return move
    compiled: Step = torch.compile(move)
    return compiled


def _optimizer(params: list[Any], way: Algorithm, form: str) -> Step:
    import torch

    assert way.torch is not None
    name, settings = way.torch
    flags = {"foreach": form != "single"} if form != "fused" else {"fused": True}
    optimizer = getattr(torch.optim, name)(params, lr=1e-3, **settings, **flags)
    step: Callable[[], Any] = optimizer.step
    if not way.clips:
        return step
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ANNEALED) if way.anneals else None

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        step()
        if cosine is not None:
            cosine.step()

    return clip_and_step


def _keras(of: Shapes, way: Algorithm) -> Step:
    from polyopt_bench.keras_peer import torch_step

    return torch_step(of, way)


def train(case: Any) -> list[Contender]:
    """Return those that make the whole training step."""
    of, way = task_shapes(case.task), algorithm(case.optimizer)
    net = network(case.task) if case.task in NETS else None
    return [
        Contender("polyopt", lambda: _train_ours(of, way, net), ours=True),
        Contender("eager loop, torch.optim fused", lambda: _train_torch(of, way, net)),
    ]


def _train_ours(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    import torch

    from polyopt import Optimizer, TrainStep

    made = net.params if net else arrays(of, 0)
    params = {name: torch.from_numpy(x).requires_grad_() for name, x in made.items()}
    data = (torch.from_numpy(net.x), torch.from_numpy(net.y)) if net else (torch.tensor(TARGET),)
    train_step = TrainStep(net.loss if net else cheap, Optimizer(way.rule("torch")))
    carry = train_step.init(params)

    def step() -> None:
        nonlocal carry
        carry, _ = train_step(carry, *data)

    return step


def _train_torch(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    import torch
    import torch.nn.functional as nn

    made = net.params if net else arrays(of, 0)
    params = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in made.items()}
    leaves = list(params.values())
    fused = way.torch is not None and way.torch[0] in FUSED
    move = _optimizer(leaves, way, "fused" if fused else "foreach")
    x, y = (torch.from_numpy(net.x), torch.from_numpy(net.y)) if net else (torch.tensor(TARGET), None)

    def forward() -> Any:
        if net is None:
            return torch.stack([0.5 * (p - x).square().sum() for p in leaves]).sum()
        h = x
        for i in range(net.layers):
            h = h @ params[f"{i}.weight"] + params[f"{i}.bias"]
            if i + 1 < net.layers:
                h = nn.relu(h)
        assert y is not None
        return nn.cross_entropy(h, y)

    def step() -> Any:
        for p in leaves:  # what optimizer.zero_grad() does
            p.grad = None
        loss = forward()
        loss.backward()
        move()
        return loss

    return step
