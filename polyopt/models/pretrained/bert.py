"""The encoder of BERT, written once against ``Ops``.

Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019; Vaswani et al., "Attention is
all you need", 2017, section 3, with the normalization after each residual sum. No dropout: this is the
model that is evaluated, and that a small set of samples fine-tunes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.models.pretrained.gelu import gelu


@dataclass(frozen=True)
class Bert:
    """Run a BERT encoder; its widths and its depth are those of the parameters that it is given.

    Parameters
    ----------
    heads
        Number of attention heads of a whole layer; they share the width equally. A layer of which some were
        pruned (``encoder_couplings``) has fewer of the same width.
    eps
        Added to the variance in each layer normalization.

    Notes
    -----
    The parameters are nested dicts and a list of layers whose paths are the published names, and whose
    matrices have the published shape (outputs, inputs): ``embeddings.word_embeddings.weight``,
    ``encoder.layer.0.attention.self.query.weight``, …
    """

    heads: int = 12
    eps: float = 1e-12

    def apply(self, xp: Ops, params: Tree, ids: Array, mask: Array) -> Array:
        """Return the last layer's hidden states, of shape (n, length, width).

        Parameters
        ----------
        xp
            The backend's operations.
        params
            See ``Bert``; one floating dtype.
        ids
            Token numbers, int32 of shape (n, length); ``length`` at most the number of positions.
        mask
            1 for tokens, 0 for padding; shape (n, length), dtype of the parameters.

        Returns
        -------
        Array
            Of shape (n, length, width), dtype of the parameters.
        """
        for states in self.hidden(xp, params, ids, mask):
            last = states
        return last

    def hidden(self, xp: Ops, params: Tree, ids: Array, mask: Array) -> Iterator[Array]:
        """Yield each layer's hidden states, the lowest first, of shape (n, length, width).

        What stands at the places of padding means nothing.

        Parameters
        ----------
        xp
            The backend's operations.
        params
            See ``Bert``; one floating dtype.
        ids
            Token numbers, int32 of shape (n, length).
        mask
            1 for tokens, 0 for padding; shape (n, length), dtype of the parameters.

        Yields
        ------
        Array
            Of shape (n, length, width), dtype of the parameters.
        """
        n, length = (int(size) for size in ids.shape)
        x = self._embed(xp, params["embeddings"], ids)
        # Padding is given the lowest score there is, so that it has no weight among any tokens.
        barred = xp.equal(xp.reshape(mask, (n, 1, 1, length)), xp.zeros((), dtype=mask.dtype))
        for layer in params["encoder"]["layer"]:
            x = self._layer(xp, layer, x, barred, (n, length))
            yield xp.reshape(x, (n, length, int(x.shape[-1])))

    def head_width(self, width: int) -> int:
        """Return the width of one head, where the hidden states have ``width``.

        Parameters
        ----------
        width
            Of the hidden states.

        Returns
        -------
        int
            ``width / heads``.

        Raises
        ------
        InputError
            Where ``heads`` doesn't divide ``width``.
        """
        if width % self.heads:
            raise InputError(f"Bert: heads = {self.heads}; expected a divisor of the width {width}")
        return width // self.heads

    # Activations are matrices (n·length, width): one product a layer on every framework, none batched.

    def _embed(self, xp: Ops, params: Mapping[str, Any], ids: Array) -> Array:
        n, length = (int(size) for size in ids.shape)
        words = xp.take(params["word_embeddings"]["weight"], xp.reshape(ids, (n * length,)), axis=0)
        first = xp.arange(length, dtype=xp.int32)
        places = xp.take(params["position_embeddings"]["weight"], first, axis=0)
        # One text a sample: all its tokens are of type 0.
        kind = xp.take(params["token_type_embeddings"]["weight"], xp.zeros((1,), dtype=xp.int32), axis=0)
        width = int(words.shape[-1])
        x = xp.reshape(words, (n, length, width)) + (places + kind)
        return self._normalize(xp, params["LayerNorm"], xp.reshape(x, (n * length, width)))

    def _layer(
        self, xp: Ops, params: Mapping[str, Any], x: Array, barred: Array, size: tuple[int, int]
    ) -> Array:
        attention = params["attention"]
        mixed = self._attend(xp, attention["self"], x, barred, size)
        x = self._residual(xp, attention["output"], mixed, x)
        inner = gelu(xp, _dense(xp, params["intermediate"]["dense"], x))
        return self._residual(xp, params["output"], inner, x)

    def _attend(
        self, xp: Ops, params: Mapping[str, Any], x: Array, barred: Array, size: tuple[int, int]
    ) -> Array:
        (n, length), width = size, self.head_width(int(x.shape[-1]))
        inner = int(params["query"]["weight"].shape[0])
        shape = (n, length, inner // width, width)
        q, k, v = (
            xp.permute_dims(xp.reshape(_dense(xp, params[name], x), shape), (0, 2, 1, 3))
            for name in ("query", "key", "value")
        )
        scores = xp.matmul(q, xp.matrix_transpose(k)) * (1.0 / math.sqrt(shape[-1]))
        lowest = xp.full((), float(xp.finfo(scores.dtype).min), dtype=scores.dtype)
        mixed = xp.matmul(_softmax(xp, xp.where(barred, lowest, scores)), v)
        return xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (n * length, inner))

    def _residual(self, xp: Ops, params: Mapping[str, Any], x: Array, before: Array) -> Array:
        return self._normalize(xp, params["LayerNorm"], _dense(xp, params["dense"], x) + before)

    def _normalize(self, xp: Ops, params: Mapping[str, Any], x: Array) -> Array:
        """Ba, Kiros & Hinton, "Layer normalization", 2016, eq. 4, over the last axis."""
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(centred * centred, axis=-1, keepdims=True)
        return centred / xp.sqrt(variance + self.eps) * params["weight"] + params["bias"]


def mean_pool(xp: Ops, hidden: Array, mask: Array) -> Array:
    """Return the mean of the hidden states over each text's tokens; 0 for no tokens.

    Reimers & Gurevych, "Sentence-BERT", 2019, section 3.

    Parameters
    ----------
    xp
        The backend's operations.
    hidden
        Hidden states, of shape (n, length, width).
    mask
        1 for tokens, 0 for padding; shape (n, length), dtype of ``hidden``.

    Returns
    -------
    Array
        Of shape (n, width), dtype of ``hidden``.

    Examples
    --------
    >>> import numpy as np
    >>> hidden = np.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> mean_pool(np, hidden, np.array([[1.0, 1.0, 0.0]])).tolist()
    [[2.0, 3.0]]
    """
    total = xp.sum(hidden * xp.expand_dims(mask, axis=-1), axis=1)
    count = xp.sum(mask, axis=1, keepdims=True)
    return total / xp.maximum(count, xp.ones_like(count))


def unit(xp: Ops, x: Array) -> Array:
    """Scale each row to length 1; a row of zeros stays.

    Parameters
    ----------
    xp
        The backend's operations.
    x
        Rows along the last axis, of any floating dtype.

    Returns
    -------
    Array
        The shape and dtype of ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> unit(np, np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    squares = xp.sum(x * x, axis=-1, keepdims=True)
    # Inside the root, which has no derivative at 0.
    return x / xp.sqrt(xp.maximum(squares, xp.full_like(squares, 1e-24)))


def _dense(xp: Ops, params: Mapping[str, Any], x: Array) -> Array:
    return xp.matmul(x, xp.matrix_transpose(params["weight"])) + params["bias"]


def _softmax(xp: Ops, x: Array) -> Array:
    raised = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return raised / xp.sum(raised, axis=-1, keepdims=True)
