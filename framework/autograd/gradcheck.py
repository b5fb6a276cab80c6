"""Check a gradient against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from framework.autograd.graph import no_grad
from framework.autograd.tensor import Tensor
from kernels.arrays import to_numpy


def gradcheck(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    epsilon: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> bool:
    """Compare the gradients of ``function(*inputs)`` with (f(x + e) - f(x - e)) / 2e, in float64.

    Every output element is weighted by a fixed random number, so that one backward pass checks the
    whole Jacobian's transpose. Returns True; AssertionError names input and element where they
    differ. `inputs` that require a gradient must be float64: central differences in float32 are
    mostly rounding.
    """
    wanted = [i for i, x in enumerate(inputs) if x.requires_grad]
    if not wanted:
        raise ValueError("gradcheck: none of the inputs requires a gradient")
    for i in wanted:
        if inputs[i].dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {inputs[i].dtype.name}, expected float64")
    # Leaves of our own: the caller's values and gradients stay as they are, whatever happens.
    inputs = [Tensor(x.data.copy(), True) if x.requires_grad else x for x in inputs]
    weights = np.random.default_rng(0)
    outputs = _outputs(function(*inputs))
    dys = [weights.uniform(0.5, 1.5, y.shape) for y in outputs]
    for y, dy in zip(outputs, dys, strict=True):
        if y.requires_grad:
            y.backward(dy, retain_graph=True)

    def loss() -> float:
        with no_grad():
            ys = _outputs(function(*inputs))
        return sum(
            float((to_numpy(y.data) * dy).sum())
            for y, dy in zip(ys, dys, strict=True)
            if y.dtype.kind == "f"
        )

    for i in wanted:
        x, grad = inputs[i], inputs[i].grad
        got = np.zeros(x.shape) if grad is None else to_numpy(grad.data)
        for at in np.ndindex(*x.shape):
            kept = x.data[at].item()
            x.data[at] = kept + epsilon
            above = loss()
            x.data[at] = kept - epsilon
            below = loss()
            x.data[at] = kept
            expected = (above - below) / (2 * epsilon)
            # |f| * 1e-16 / epsilon is the rounding of the difference itself
            slack = atol + rtol * abs(expected) + 4e-16 * (abs(above) + abs(below)) / epsilon
            if not abs(got[at] - expected) <= slack:
                raise AssertionError(
                    f"gradcheck: input {i}, element {at}: backward gives {got[at]:.9g}, "
                    f"central differences {expected:.9g}"
                )
    return True


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
