"""Report a model's sparsity, leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.pruning.leaves import aligned_masks


@dataclass(frozen=True)
class Sparsity:
    """Hold kept and all elements of each leaf; printed as a table.

    Parameters
    ----------
    leaves
        ``{path: (kept, total)}``.

    Examples
    --------
    >>> print(Sparsity({"w": (1, 4), "b": (2, 2)}))
    leaf   kept  total  sparsity
    b         2      2    0.0000
    w         1      4    0.7500
    total     3      6    0.5000
    """

    leaves: Mapping[str, tuple[int, int]]

    @property
    def kept(self) -> int:
        """Elements that are kept, of all leaves."""
        return sum(kept for kept, _ in self.leaves.values())

    @property
    def total(self) -> int:
        """Elements of all leaves."""
        return sum(total for _, total in self.leaves.values())

    @property
    def sparsity(self) -> float:
        """Return the share that is pruned, 0 where there is nothing."""
        return 1 - self.kept / self.total if self.total else 0.0

    def __str__(self) -> str:
        rows = [(path, *self.leaves[path]) for path in sorted(self.leaves)]
        rows.append(("total", self.kept, self.total))
        lines = [("leaf", "kept", "total", "sparsity")]
        lines += [(p, str(k), str(n), f"{1 - k / n if n else 0.0:.4f}") for p, k, n in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        )


def sparsity_report(params: Tree, masks: Mapping[str, Array] | None = None) -> Sparsity:
    """Count what ``masks`` keep of each leaf, or without masks, the elements that are not 0.

    Parameters
    ----------
    params
        A tree of arrays of any framework.
    masks
        ``{path: bool array}``, ``True`` to keep.

    Returns
    -------
    Sparsity
        Counts by path, and the sparsity of all.

    Raises
    ------
    InputError
        For a mask that has no parameter, or not its shape.

    Examples
    --------
    >>> sparsity_report({"w": np.array([[0.0, 1.0]]), "b": np.array([2.0])}).leaves
    {'b': (1, 1), 'w': (1, 2)}
    >>> sparsity_report({"w": np.array([0.0, 1.0])}, {"w": np.array([False, False])}).sparsity
    1.0
    """
    flat = tree.flatten(params)
    known = {} if masks is None else aligned_masks("sparsity_report", flat, masks)
    found = {}
    for path, x in zip(flat.paths, flat.leaves, strict=True):
        if x is None:
            continue
        counted = known.get(path, x)
        values = np.asarray(registry.of(counted).to_numpy(counted))
        whole = masks is not None and path not in known
        found[path] = (values.size if whole else int(np.count_nonzero(values)), values.size)
    return Sparsity(found)
