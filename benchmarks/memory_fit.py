"""Fitting the coefficients of ``espalier.activations`` to measured peaks.

What is exact (weights, trained weights, optimizer state) is taken off a peak; the rest is a sum of
terms with coefficients of at least nothing, by least squares on relative errors. A small pull
towards what was seen before keeps a term that few peaks tell of from running away.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espalier import activations, geometry
from espalier.activations import COEFFICIENTS, rows, tokens
from espalier.memory import STATE
from espalier.specs import SPECS, EvalSpec, TrainSpec, parse
from espalier.states import Kind

#: How strongly a coefficient is held to the one before, relative to a peak's error.
PULL = 0.01
ROUNDS = 8

#: A peak: its terms, what is known exactly, and itself, in bytes.
_Row = tuple[dict[str, float], float, float]


def fit(measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the coefficients that fit ``{config, kind, spec, weights, peak}`` best.

    A step's peak is in its backward pass or in the optimizer's: which one is what the coefficients
    say, so that both are fitted in turns.
    """
    found = dict(COEFFICIENTS)
    for _ in range(ROUNDS):
        moments: dict[str, list[_Row]] = {"eval": [], "backward": [], "update": []}
        for row in measured:
            held, exact = _moments(row)
            worst = max(held, key=lambda moment: _sum(held[moment], found))
            moments[worst].append((held[worst], exact, row["peak"]))
        for split in moments.values():
            found |= _fit(split, found) if split else {}
    return {name: round(value, 2) for name, value in found.items()}


def _sum(terms: Mapping[str, float], coefficients: Mapping[str, float]) -> float:
    return sum(size * coefficients[name] for name, size in terms.items())


def _fit(split: Sequence[_Row], last: Mapping[str, float]) -> dict[str, float]:
    names = sorted({name for terms, _, _ in split for name in terms})
    before = np.array([last[name] for name in names])
    pull = np.diag(PULL / np.maximum(before, 0.3))
    shares = [[terms.get(name, 0.0) / peak for name in names] for terms, _, peak in split]
    rest = [(peak - exact) / peak for _, exact, peak in split]
    a = np.vstack([np.array(shares), pull])
    b = np.concatenate([np.array(rest), pull @ before])
    return dict(zip(names, (float(x) for x in nonnegative(a, b)), strict=True))


def _moments(row: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], float]:
    """Return a case's terms by moment, and the bytes that are known exactly."""
    model = geometry.read(row["config"])
    spec = parse(SPECS[Kind(row["kind"])], {"model": "a/b", "data": "a/c", **row["spec"]})
    if isinstance(spec, TrainSpec):
        trained = activations.trained_bytes(model, spec)
        adapter = 0 if spec.fine_tune_type == "full" else trained
        exact = row["weights"] + adapter + trained * STATE[spec.optimizer]
        backward = activations.train_terms(model, spec, None)
        return {"backward": backward, "update": activations.update_terms(model, spec)}, exact
    assert isinstance(spec, EvalSpec)
    terms = activations.eval_terms(model, rows(spec), tokens(spec, None))
    return {"eval": terms}, row["weights"]


def nonnegative(a: Any, b: Any) -> Any:
    """Least squares with x ≥ 0, by Lawson and Hanson's active set; a [m, n], b [m], x [n]."""
    n = a.shape[1]
    free, x = np.zeros(n, bool), np.zeros(n)
    gradient = a.T @ b
    while not free.all() and gradient[~free].max() > 1e-9:
        free[int(np.argmax(np.where(free, -np.inf, gradient)))] = True
        while True:
            trial = np.zeros(n)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            low = free & (trial <= 0)
            if not low.any():
                break
            step = float(np.min(x[low] / (x[low] - trial[low] + 1e-30)))
            x = x + step * (trial - x)
            free &= x > 1e-12
        x = trial
        gradient = a.T @ (b - a @ x)
    return x
