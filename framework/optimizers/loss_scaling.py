"""LossScaler: dynamic loss scaling for float16, PyTorch's GradScaler by our name.

    scaler = LossScaler()
    for images, labels in loader:
        optimizer.zero_grad()
        with fw.autocast("float16"):
            loss = cross_entropy(net(images), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # only to look at the gradients, or to clip them
        scaler.step(optimizer)  # leaves the step out where they overflowed
        scaler.update()

Scale, good steps and what was found are one small array on the device; `scale`, `unscale_` and
`update` start kernels and wait for nothing, so that a captured graph can contain them. Only whether
to step is the host's decision, because it owns the optimizer's step counters: `overflowed` copies
the 12 bytes, once a step, and that is the only wait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.autograd import Tensor
from framework.backend.device import device_of, to_device
from framework.optimizers.optimizer import Optimizer
from kernels.arrays import Array, to_numpy
from kernels.loss_scaling import FOUND, GOOD_STEPS, SCALE, unscale_, update_scale_


class LossScaler:
    """Multiplies the loss, divides the gradients, and leaves out steps whose gradients overflowed.

    The first scale, its growth and its backoff are PyTorch's defaults (torch.amp.GradScaler). It
    falls to `min_scale` at most, where fairseq (--min-loss-scale 1e-4) gives up too: gradients that
    overflow even there are no matter of scale. `exhausted` tells.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        min_scale: float = 2.0**-13,
    ) -> None:
        for name, value, fits, expected in (
            ("init_scale", init_scale, 0 < init_scale < math.inf, "a positive number"),
            ("growth_factor", growth_factor, 1 < growth_factor < math.inf, "a number above 1"),
            ("backoff_factor", backoff_factor, 0 < backoff_factor < 1, "a number from 0 to 1"),
            ("min_scale", min_scale, 0 < min_scale <= init_scale, f"0 to {init_scale:g}"),
        ):
            if not fits:
                raise ValueError(f"{name} is {value!r}, expected {expected}")
        if not isinstance(growth_interval, int) or not 1 <= growth_interval <= 2**24:
            raise ValueError(  # float32 counts that far
                f"growth_interval is {growth_interval!r}, expected an integer from 1 to 2**24"
            )
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval, self.min_scale = growth_interval, float(min_scale)
        #: (3,) on the device of the last loss, see kernels/loss_scaling.py
        self.state: Array = np.array([init_scale, 0, 0], np.float32)
        self._unscaled: list[Optimizer] = []  # since the last update
        self._known: np.ndarray[Any, Any] | None = None  # the state, as the host last saw it

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` times the scale, in float32: call its `backward`."""
        self.state = to_device(self.state, loss.device)
        return loss * Tensor(self.state[SCALE])

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of `optimizer` by the scale, in place, and look for an overflow: one
        kernel for each flat buffer.

        Once a step; RuntimeError the second time. An overflow in one optimizer's gradients counts
        for all those that are unscaled before the first `step`.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"a loss scaler got a {type(optimizer).__name__}, expected an optimizer of "
                "framework.optimizers: it looks for overflows in their flat gradient buffers"
            )
        if any(known is optimizer for known in self._unscaled):
            raise RuntimeError("unscale_() a second time for this optimizer, without an update()")
        self._unscaled.append(optimizer)
        self._known = None
        for g in optimizer.flat_gradients():
            device = device_of(g)
            self.state = to_device(self.state, device)
            with device.context():
                state = self.state.astype(g.dtype, copy=False)  # a copy for float64 parameters
                unscale_(g, state)
                if state is not self.state:
                    self.state[FOUND] = state[FOUND]

    def overflowed(self) -> bool:
        """Did gradients that were unscaled since the last `update` overflow? Waits for the device,
        once a step.
        """
        return bool(self._seen()[FOUND])

    def _seen(self) -> np.ndarray[Any, Any]:
        if self._known is None:
            self._known = to_numpy(self.state).copy()
        return self._known

    @property
    def exhausted(self) -> bool:
        """Did they overflow at the smallest scale? A smaller one would not help."""
        return self.overflowed() and bool(self._seen()[SCALE] <= np.float32(self.min_scale))

    def step(self, optimizer: Optimizer) -> bool:
        """``optimizer.step()``, with gradients unscaled first if they are not yet; nothing at all,
        and False, where they overflowed.
        """
        if not any(known is optimizer for known in self._unscaled):
            self.unscale_(optimizer)
        if self.overflowed():
            return False
        optimizer.step()
        return True

    def update(self) -> None:
        """The scale for the next step; call it at the end of each."""
        if not self._unscaled:
            raise RuntimeError("update() without a step() or unscale_() before it")
        factors = self.growth_factor, self.backoff_factor, self.growth_interval, self.min_scale
        with device_of(self.state).context():
            update_scale_(self.state, *factors)
        self._unscaled, self._known = [], None

    def reset(self) -> None:
        """Forget gradients that were unscaled since the last `update`, and what was found in them:
        for a step that an error ended in between. The scale stays.
        """
        if not self._unscaled:
            return
        with device_of(self.state).context():
            self.state[FOUND] = 0
        self._unscaled, self._known = [], None

    def get_scale(self) -> float:
        """The scale. On CUDA this waits for the device."""
        return float(self.state[SCALE])

    def state_dict(self) -> dict[str, Any]:
        """Plain values; taken between steps."""
        state = to_numpy(self.state)
        return {
            "scale": float(state[SCALE]),
            "good_steps": int(state[GOOD_STEPS]),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "min_scale": self.min_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, factors included; ValueError where it does not fit."""
        names = set(self.state_dict())
        if set(state) != names:
            raise ValueError(
                f"the state of a loss scaler has {', '.join(sorted(names))}; "
                f"got {', '.join(sorted(state))}"
            )
        options = {name: state[name] for name in names - {"scale", "good_steps"}}
        self.__dict__.update(LossScaler(state["scale"], **options).__dict__)
        self.state[GOOD_STEPS] = state["good_steps"]
