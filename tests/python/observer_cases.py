"""Sequences of activations for observers: CASES, each (name, axis, batches), made when asked for."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

DISTRIBUTIONS = {
    "normal": lambda r, n: r.standard_normal(n),
    "relu": lambda r, n: np.maximum(r.standard_normal(n), 0),
    "gelu": lambda r, n: (lambda x: x / (1 + np.exp(-1.702 * x)))(2 * r.standard_normal(n)),
    "softmax": lambda r, n: (lambda e: e / e.sum())(np.exp(3 * r.standard_normal(n))),
    "uniform": lambda r, n: r.uniform(-1, 1, n),
    "positive": lambda r, n: r.uniform(0.5, 1, n),
    "negative": lambda r, n: -r.lognormal(size=n),
    "heavy": lambda r, n: r.standard_t(2, n),
    "outliers": lambda r, n: np.where(r.random(n) < 0.001, 60 * r.standard_normal(n), r.standard_normal(n)),
    "sparse": lambda r, n: np.where(r.random(n) < 0.95, 0, r.standard_normal(n)),
    "integers": lambda r, n: r.integers(-127, 128, n),
    "offset": lambda r, n: 100 + 0.01 * r.standard_normal(n),
    "two": lambda r, n: r.choice([-1.0, 3.0], n),
    "constant": lambda r, n: np.full(n, r.choice([0.0, 1.0, -2.5])),
    "bimodal": lambda r, n: r.standard_normal(n) * 0.1 + r.choice([-5.0, 5.0], n),
}
FACTORS = {  # how the scale of the batches goes on
    "same": lambda r, n: np.ones(n),
    "widening": lambda r, n: np.cumprod(r.uniform(1, 3, n)),
    "shrinking": lambda r, n: np.cumprod(r.uniform(0.2, 1, n)),
    "doubling": lambda r, n: 2.0 ** np.arange(n),
    "jumps": lambda r, n: 10.0 ** r.uniform(-4, 4, n),
}

INF = float("inf")
NORMAL = np.random.default_rng(7).standard_normal(5000)
LINE, RAMP = np.linspace(-1, 1, 4097), np.linspace(0, 1, 4097)
EDGES = {
    "nothing": [[]],
    "one element": [[3.5]],
    "one negative element": [[-3.5]],
    "scalars": [2.0, -1.0],
    "zeros, then data": [np.zeros(100), NORMAL],
    "zeros twice": [np.zeros(100), np.zeros(50)],
    "constant first": [np.full(100, 2.5), NORMAL],
    "constant outside": [np.full(100, 250.0), NORMAL],
    "constant later": [NORMAL, np.full(100, 0.25)],
    "constant later, at the end": [NORMAL, np.full(100, NORMAL.max())],
    "constants": [np.full(10, 1.0), np.full(10, 2.0), np.full(10, -7.0)],
    "large constant, then data": [np.full(10, 1e10), NORMAL],
    "tiny constant": [np.full(10, 1e-40)],
    "tiny": [NORMAL * 1e-30],
    "smallest": [[0, 1e-45], NORMAL * 1e-44],
    "huge": [NORMAL * 1e34],
    "neighbours, widened": [[1.0, 1.0000001], [0.9999999, 1.0000002], [0.5, 2.0]],
    "minus zero": [[-0.0, 0.0], [0.0, -0.0]],
    "widening by a power of two": [LINE, 2 * LINE, 32 * LINE],
    "widening above only": [RAMP, 3 * RAMP[::40], 3.5 * RAMP],
    "widening below only": [-RAMP, -3 * RAMP[::40], -3.5 * RAMP],
    "narrow around 1000": [1000 + NORMAL * 1e-3, 1000 + NORMAL * 2e-3, 1000 + NORMAL * 1e-2],
    "alternating": [NORMAL * s for s in (1, 1e-3, 10, 1e-4, 11, 1e3)],
    "infinity": [np.append(NORMAL, INF), NORMAL],
    "both infinities later": [NORMAL, np.append(NORMAL * 2, [INF, -INF])],
    "empty between": [NORMAL, [], NORMAL * 2],
    "large counts": [np.random.default_rng(8).standard_normal(200_000) * s for s in (1, 1.3, 1.7)],
}


@dataclass(frozen=True)
class Case:
    name: str
    axis: int | None
    make: Callable[[], list]

    def __str__(self) -> str:
        return self.name.replace(" ", "_")

    def batches(self) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(batch, dtype=np.float32)) for batch in self.make()]


def _shape(r, axis, n):
    """About n elements; with an axis, 3 or 16 channels along it."""
    if axis is None:
        return [(n,), (n // 4, 4), (2, max(1, n // 8), 4)][r.integers(3)]
    return (*(int(r.integers(1, 6)) for _ in range(axis)), 3 if n % 2 else 16, max(1, n // 64))


def _random(axis, seed):
    r = np.random.default_rng(seed)
    n = int(r.integers(1, 7))
    scale = FACTORS[r.choice(list(FACTORS))](r, n) * 10.0 ** r.uniform(-5, 5)
    names = r.choice(list(DISTRIBUTIONS), n if r.random() < 0.25 else 1)
    channels = int(r.integers(2))
    batches = []
    for k in range(n):
        count = 2 * int(r.choice([4, 50, 500, 10_000])) + channels
        shape = _shape(r, axis, count)
        x = np.asarray(DISTRIBUTIONS[names[k % len(names)]](r, int(np.prod(shape))), dtype=np.float64) * scale[k]
        batches.append(x.astype(np.float32).reshape(shape))
    return batches


CASES = [Case(name, None, functools.partial(EDGES.get, name)) for name in EDGES]
CASES += [Case(f"random {seed}", None, functools.partial(_random, None, seed)) for seed in range(20)]
CASES += [Case(f"axis {s % 3}, {s}", s % 3, functools.partial(_random, s % 3, s)) for s in range(100, 118)]
