"""Couple an encoder's attention heads and feed-forward neurons, to be pruned as wholes."""

from __future__ import annotations

from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.tree import Tree
from polyopt.models.pretrained.bert import Bert
from polyopt.pruning import Coupling, chain_couplings, head_coupling

_QUERY = "encoder.layer.{}.attention.self.query.weight"


def encoder_couplings(
    model: Bert, params: Tree, *, root: str = ""
) -> tuple[tuple[Coupling, ...], tuple[Coupling, ...]]:
    """Return ``(heads, neurons)``: one coupling a layer each, for structured pruning.

    A head is pruned with its queries, keys, values and their biases, and what reads it in the output
    projection (Michel, Levy & Neubig, "Are sixteen heads really better than one?", 2019); a neuron of the
    feed-forward layer with its bias, and what reads it. The hidden states keep their width, so nothing that
    is normalized is cut, and the encoder that is left after ``shrink`` computes what the
    masked one does. Rank heads and neurons apart: a head has more weights, so a larger norm.

    Parameters
    ----------
    model
        Says how wide a head is.
    params
        The encoder's parameters, whose shapes count: as published, or of a smaller one.
    root
        What their paths begin with: ``"body."`` where the encoder is ``params["body"]``.

    Raises
    ------
    InputError
        Where ``params`` has no such layer.

    Examples
    --------
    >>> import numpy as np
    >>> def dense(n, m):
    ...     return {"weight": np.ones((n, m)), "bias": np.ones(n)}
    >>> layer = {
    ...     "attention": {
    ...         "self": {name: dense(8, 8) for name in ("query", "key", "value")},
    ...         "output": {"dense": dense(8, 8)},
    ...     },
    ...     "intermediate": {"dense": dense(16, 8)},
    ...     "output": {"dense": dense(8, 16)},
    ... }
    >>> heads, neurons = encoder_couplings(Bert(heads=4), {"encoder": {"layer": [layer]}})
    >>> heads[0].name, heads[0].units, neurons[0].name, neurons[0].units
    ('encoder.layer.0.attention', 4, 'encoder.layer.0.intermediate.dense.weight', 16)
    """
    named = tree.named(params)
    heads, neurons = list[Coupling](), list[Coupling]()
    while root + _QUERY.format(len(heads)) in named:
        at = f"{root}encoder.layer.{len(heads)}"
        inputs = [f"{at}.attention.self.{name}" for name in ("query", "key", "value")]
        output = f"{at}.attention.output.dense.weight"
        if output not in named:
            raise InputError(
                f"encoder_couplings: no parameter is called {output!r}; {nearest(output, named)}"
            )
        heads.append(
            head_coupling(
                f"{at}.attention",
                int(named[f"{inputs[0]}.weight"].shape[0]) // model.head_width(int(named[output].shape[0])),
                [f"{path}.weight" for path in inputs],
                output,
                params,
                biases=[f"{path}.bias" for path in inputs],
                layout="out_in",
            )
        )
        inner = (f"{at}.intermediate.dense.weight", f"{at}.intermediate.dense.bias")
        neurons += chain_couplings(params, [inner, f"{at}.output.dense.weight"], layout="out_in")
    if not heads:
        wanted = root + _QUERY.format(0)
        raise InputError(f"encoder_couplings: no parameter is called {wanted!r}; {nearest(wanted, named)}")
    return tuple(heads), tuple(neurons)
