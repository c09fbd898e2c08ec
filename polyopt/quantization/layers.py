"""GPTQ of a whole model in one pass: each layer by what the quantized ones before it make of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.models.linear_inputs import LinearInput, Products
from polyopt.quantization.gptq import gptq
from polyopt.quantization.record import Quantized, restored
from polyopt.quantization.scheme import Integer
from polyopt.quantization.weights import quantize, selected


def gptq_layers(
    apply: Callable[..., Any],
    params: Tree,
    x: Array,
    scheme: Integer,
    *,
    select: Pattern | None = None,
    masks: Mapping[str, Array] | None = None,
    damping: float = 0.01,
    block: int = 128,
    order: str = "natural",
) -> Tree:
    """Make a ``Quantized`` of each selected leaf, those of linear layers by ``gptq``.

    The samples go through the model once. As soon as a layer's inputs are known its weights are quantized,
    and it is the quantized ones that compute what the next layer is given: Frantar et al., 2023, section 4.

    Parameters
    ----------
    apply
        ``apply(xp, params, x)``, written against ``xp``: a linear layer is a ``matmul`` by a leaf of
        ``params`` or by its transpose, which says how the leaf lies, whatever the scheme's ``layout``.
    params
        Weights of any framework. They are not changed.
    x
        The samples, as ``apply`` takes them.
    select
        The leaves, as of ``quantize``. A selected one that no linear layer has, an embedding say, is
        rounded to nearest.
    masks
        ``{path: bool array}``: what is kept of a leaf; the rest is stored as 0.
    damping, block, order
        As of ``gptq``.
    scheme
        As of ``gptq``, for every selected leaf.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        As ``gptq`` and ``quantize`` do, by the path of the leaf; where no linear layer is selected.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import dequantize, quantize
    >>> generator = np.random.default_rng(0)
    >>> x = generator.standard_normal((64, 16)) @ generator.standard_normal((16, 16))
    >>> params = [generator.standard_normal((16, 16)), generator.standard_normal((16, 4))]
    >>> apply = lambda xp, params, x: xp.matmul(xp.tanh(xp.matmul(x, params[0])), params[1])
    >>> better, rounded = gptq_layers(apply, params, x, Integer(bits=4)), quantize(params, Integer(bits=4))
    >>> out = [apply(np, dequantize(tree), x) for tree in (params, better, rounded)]
    >>> bool(np.linalg.norm(out[1] - out[0]) < 0.8 * np.linalg.norm(out[2] - out[0]))
    True
    """
    flat = tree.flatten(params)
    leaves = tree.named(params)
    chosen = selected(flat, select)
    xp: Ops = registry.of(*leaves.values()).ops
    done: dict[str, Quantized] = {}

    def product(factor: LinearInput, inputs: Array, w: Array) -> Array:
        path = factor.path
        if path not in chosen:
            return xp.matmul(inputs, w)
        if path not in done:
            own = replace(scheme, layout=factor.layout)
            mask = None if masks is None else masks.get(path)
            options: dict[str, Any] = {"damping": damping, "block": block, "order": order, "mask": mask}
            done[path] = gptq(leaves[path], inputs, own, path=path, **options)
        stored = restored(done[path])
        return xp.matmul(inputs, stored if factor.layout == "in_out" else xp.matrix_transpose(stored))

    apply(Products(xp, params, product), params, x)
    if not done:
        raise InputError(f"gptq: no product with any of the selected leaves, {', '.join(sorted(chosen)[:4])}")
    some = flat.unflatten(done.get(path, x) for path, x in zip(flat.paths, flat.leaves, strict=True))
    rest = chosen - done.keys()
    return quantize(some, scheme, rest.__contains__) if rest else some
