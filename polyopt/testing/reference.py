"""Every algorithm in plain float64, the naive textbook form, by each convention.

Written from the papers and from the frameworks' documented formulas, not from ``polyopt.optim``: nothing
is imported from there, bias corrections are ``1 - b**t``, and every convention is spelt out. A function takes
the state (a dict that it changes), parameter, gradient, step (from 1), rate and hyperparameters ``h``, and
gives the new parameter. Where a paper has no formula for a switch (momentum in Adagrad's descendants,
decay before 2017), the "paper" convention is the paper's step with the switch put in as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import numpy as np

State: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[..., Any]


def sgd_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Robbins & Monro (1951); heavy ball of Polyak (1964) from b=0; Nesterov as Sutskever et al. (2013)."""
    if h.momentum == 0:
        return p - lr * g
    if h.form == "averaged":
        s["v"] = h.momentum * s.get("v", 0.0) + (1 - h.momentum) * g
        return p - lr * s["v"]
    s["b"] = h.momentum * s.get("b", 0.0) + (1 - h.dampening) * g
    return p - lr * (g + h.momentum * s["b"] if h.nesterov else s["b"])


def sgd_torch(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """torch.optim.SGD: the first buffer is the gradient itself, undamped."""
    if h.momentum == 0:
        return p - lr * g
    s["b"] = g if t == 1 else h.momentum * s["b"] + (1 - h.dampening) * g
    return p - lr * (g + h.momentum * s["b"] if h.nesterov else s["b"])


def sgd_keras(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Keras: the rate is in the buffer."""
    if h.momentum == 0:
        return p - lr * g
    s["b"] = h.momentum * s.get("b", 0.0) - lr * g
    return p + (h.momentum * s["b"] - lr * g if h.nesterov else s["b"])


def adagrad_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Duchi et al. (2011), diagonal: p -= lr g / (eps + sqrt(sum g^2)); torch adds the rate's decay."""
    s["s"] = s.get("s", h.initial_accumulator) + g**2
    return p - lr / (1 + (t - 1) * h.lr_decay) * g / (np.sqrt(s["s"]) + h.eps)


def adagrad_inside(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """optax, Keras: eps under the root, the accumulator starts at 0.1."""
    s["s"] = s.get("s", h.initial_accumulator) + g**2
    return p - lr * g / np.sqrt(s["s"] + h.eps)


def adadelta(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Zeiler (2012), Algorithm 1, times a rate."""
    s["g2"] = h.rho * s.get("g2", 0.0) + (1 - h.rho) * g**2
    dx = np.sqrt(s.get("x2", 0.0) + h.eps) / np.sqrt(s["g2"] + h.eps) * g
    s["x2"] = h.rho * s.get("x2", 0.0) + (1 - h.rho) * dx**2
    return p - lr * dx


def _rmsprop(s: State, g: Any, h: Any, inside: bool) -> Any:
    s["v"] = h.alpha * s.get("v", 0.0) + (1 - h.alpha) * g**2
    v = s["v"]
    if h.centered:
        s["a"] = h.alpha * s.get("a", 0.0) + (1 - h.alpha) * g
        v = v - s["a"] ** 2
    return g / np.sqrt(v + h.eps) if inside else g / (np.sqrt(v) + h.eps)


def rmsprop_torch(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Step with eps outside of the root; the momentum buffer is free of the rate."""
    d = _rmsprop(s, g, h, inside=False)
    if h.momentum == 0:
        return p - lr * d
    s["b"] = h.momentum * s.get("b", 0.0) + d
    return p - lr * s["b"]


def _rmsprop_with_rate(s: State, p: Any, g: Any, lr: float, h: Any, inside: bool) -> Any:
    d = lr * _rmsprop(s, g, h, inside)
    if h.momentum == 0:
        return p - d
    s["b"] = h.momentum * s.get("b", 0.0) + d
    return p - s["b"]


def rmsprop_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Hinton's lecture 6e (2012); the momentum of Graves (2013), eq. 41, has the rate in its buffer."""
    return _rmsprop_with_rate(s, p, g, lr, h, inside=False)


def rmsprop_inside(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """optax, Keras: eps under the root, the rate in the buffer."""
    return _rmsprop_with_rate(s, p, g, lr, h, inside=True)


def _moments(s: State, g: Any, h: Any) -> tuple[Any, Any]:
    s["m"] = h.b1 * s.get("m", 0.0) + (1 - h.b1) * g
    s["v"] = h.b2 * s.get("v", 0.0) + (1 - h.b2) * g**2
    return s["m"], s["v"]


def adam_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Kingma & Ba (2015), Algorithm 1; AMSGrad of Reddi et al. (2018), with the corrections kept (torch)."""
    m, v = _moments(s, g, h)
    if h.amsgrad:
        v = s["x"] = np.maximum(s.get("x", 0.0), v)
    return p - lr * (m / (1 - h.b1**t)) / (np.sqrt(v / (1 - h.b2**t) + h.eps_root) + h.eps)


def adam_optax(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """optax: AMSGrad's maximum is over the corrected second moment."""
    m, v = _moments(s, g, h)
    v = v / (1 - h.b2**t)
    if h.amsgrad:
        v = s["x"] = np.maximum(s.get("x", 0.0), v)
    return p - lr * (m / (1 - h.b1**t)) / (np.sqrt(v + h.eps_root) + h.eps)


def adam_keras(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Keras: the paper's section 2.1 form with epsilon hat, lr sqrt(bc2)/bc1 m / (sqrt(v) + eps)."""
    m, v = _moments(s, g, h)
    if h.amsgrad:
        v = s["x"] = np.maximum(s.get("x", 0.0), v)
    return p - lr * np.sqrt(1 - h.b2**t) / (1 - h.b1**t) * m / (np.sqrt(v) + h.eps)


def _adamax_first(s: State, g: Any, t: int, lr: float, h: Any) -> Any:
    s["m"] = h.b1 * s.get("m", 0.0) + (1 - h.b1) * g
    return lr / (1 - h.b1**t) * s["m"]


def adamax_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Kingma & Ba (2015), Algorithm 2; Keras' eps is added to the norm."""
    s["u"] = np.maximum(h.b2 * s.get("u", 0.0), np.abs(g))
    return p - _adamax_first(s, g, t, lr, h) / (s["u"] + h.eps)


def adamax_torch(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """torch, optax: eps is added to the gradient's size before the maximum."""
    s["u"] = np.maximum(h.b2 * s.get("u", 0.0), np.abs(g) + h.eps)
    return p - _adamax_first(s, g, t, lr, h) / s["u"]


def _mus(s: State, t: int, h: Any) -> tuple[float, float, float]:
    mu = h.b1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))
    after = h.b1 * (1 - 0.5 * 0.96 ** ((t + 1) * h.momentum_decay))
    s["product"] = s.get("product", 1.0) * mu
    return mu, after, s["product"]


def nadam_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Dozat (2016), Algorithm 2: the average itself uses mu_t, and n-hat = nu n / (1 - nu^t)."""
    mu, after, product = _mus(s, t, h)
    s["m"] = mu * s.get("m", 0.0) + (1 - mu) * g
    s["v"] = h.b2 * s.get("v", 0.0) + (1 - h.b2) * g**2
    m_hat = after * s["m"] / (1 - product * after) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (np.sqrt(h.b2 * s["v"] / (1 - h.b2**t)) + h.eps)


def nadam_torch(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Step as torch and (with momentum_decay = 1) Keras do: averages with b1."""
    mu, after, product = _mus(s, t, h)
    m, v = _moments(s, g, h)
    m_hat = after * m / (1 - product * after) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (np.sqrt(v / (1 - h.b2**t)) + h.eps)


def nadam_optax(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """optax: no schedule of the momentum."""
    m, v = _moments(s, g, h)
    m_hat = h.b1 * m / (1 - h.b1 ** (t + 1)) + (1 - h.b1) * g / (1 - h.b1**t)
    return p - lr * m_hat / (np.sqrt(v / (1 - h.b2**t) + h.eps_root) + h.eps)


def _radam(t: int, h: Any) -> tuple[float, float]:
    """rho_t and r_t of Liu et al. (2020)."""
    infinity = 2 / (1 - h.b2) - 1
    rho = infinity - 2 * t * h.b2**t / (1 - h.b2**t)
    top, bottom = (rho - 4) * (rho - 2) * infinity, (infinity - 4) * (infinity - 2) * rho
    return rho, float(np.sqrt(max(top / bottom, 0.0)))


def radam_paper(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """Liu et al. (2020), Algorithm 2: adaptive where rho > 4; eps, which it lacks, is added to sqrt(v)."""
    return _radam_hat(s, p, g, t, lr, h, 4.0)


def radam_torch(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """torch: adaptive where rho > 5."""
    return _radam_hat(s, p, g, t, lr, h, 5.0)


def _radam_hat(s: State, p: Any, g: Any, t: int, lr: float, h: Any, threshold: float) -> Any:
    m, v = _moments(s, g, h)
    rho, r = _radam(t, h)
    m_hat = m / (1 - h.b1**t)
    if rho > threshold:
        return p - lr * m_hat * r * np.sqrt(1 - h.b2**t) / (np.sqrt(v) + h.eps)
    return p - lr * m_hat


def radam_optax(s: State, p: Any, g: Any, t: int, lr: float, h: Any) -> Any:
    """optax: adaptive where rho >= 5, eps outside the corrected root."""
    m, v = _moments(s, g, h)
    rho, r = _radam(t, h)
    m_hat = m / (1 - h.b1**t)
    if rho >= 5.0:
        return p - lr * r * m_hat / (np.sqrt(v / (1 - h.b2**t) + h.eps_root) + h.eps)
    return p - lr * m_hat


_SGD: Final = {"paper": sgd_paper, "torch": sgd_torch, "optax": sgd_paper, "keras": sgd_keras}
_ADAM: Final = {"paper": adam_paper, "torch": adam_paper, "optax": adam_optax, "keras": adam_keras}
REFERENCES: Final[dict[str, dict[str, Step]]] = {
    "adadelta": dict.fromkeys(("paper", "torch", "optax", "keras"), adadelta),
    "adagrad": {
        "paper": adagrad_paper,
        "torch": adagrad_paper,
        "optax": adagrad_inside,
        "keras": adagrad_inside,
    },
    "adam": _ADAM,
    "adamax": {"paper": adamax_paper, "torch": adamax_torch, "optax": adamax_torch, "keras": adamax_paper},
    "adamw": _ADAM,
    "gradient_descent": _SGD,
    "nadam": {"paper": nadam_paper, "torch": nadam_torch, "optax": nadam_optax, "keras": nadam_torch},
    "radam": {"paper": radam_paper, "torch": radam_torch, "optax": radam_optax},
    "rmsprop": {
        "paper": rmsprop_paper,
        "torch": rmsprop_torch,
        "optax": rmsprop_inside,
        "keras": rmsprop_inside,
    },
    "sgd": _SGD,
}
"""Algorithm -> convention -> one step."""


def reference(algorithm: str, convention: str, hyperparameters: Mapping[str, Any]) -> Step:
    """Return one step of ``algorithm``, with weight decay as ``hyperparameters["decay"]`` says.

    ``"l2"`` adds ``weight_decay * p`` to the gradient; ``"decoupled"`` takes ``lr * weight_decay * p`` off
    the parameter beside the step (Loshchilov & Hutter, 2019, Algorithm 2, the rate being both its factors);
    ``"independent"`` takes ``weight_decay * p`` off.

    Raises KeyError where there is no reference.

    Examples
    --------
    >>> step = reference("sgd", "paper", {"momentum": 0.0})
    >>> float(step({}, 1.0, 0.5, 1, 0.1))
    0.95
    """
    function = REFERENCES[algorithm][convention]
    h = SimpleNamespace(**(DEFAULTS | dict(hyperparameters)))

    def step(s: State, p: Any, g: Any, t: int, lr: float) -> Any:
        if h.decay == "l2" and h.weight_decay:
            g = g + h.weight_decay * p
        new = function(s, p, g, t, lr, h)
        if not h.weight_decay:  # 0 * inf would be NaN
            return new
        taken = {"decoupled": lr * h.weight_decay, "independent": h.weight_decay}.get(h.decay, 0.0)
        return new - taken * p

    return step


DEFAULTS: Final[dict[str, Any]] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "form": "",
    "centered": False,
    "amsgrad": False,
    "eps_root": 0.0,
    "lr_decay": 0.0,
    "decay": "none",
    "weight_decay": 0.0,
}
"""Switches that are off unless a case turns them on."""
