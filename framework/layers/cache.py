"""KVCache: the keys and values of what has been read, for generation token by token."""

from __future__ import annotations

from typing import Any

from framework.autograd import Tensor
from framework.layers.checks import positive_integer
from framework.layers.storage import new_buffer


class KVCache:
    """Room for the keys and values (batch, heads, capacity, head_dim) of one attention layer.

    `append` writes new ones behind those that are there, in place, and gives all of them as views.
    No gradient flows through a cache.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = {"batch": batch, "capacity": capacity, "heads": heads, "head_dim": head_dim}
        shape = tuple(positive_integer("KVCache", name, n) for name, n in sizes.items())
        # one position of all heads lies together, as projections make it
        self._keys, self._values = (
            new_buffer(shape, device, dtype).data.swapaxes(1, 2) for _ in range(2)
        )
        #: How many positions are filled.
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many positions there is room for."""
        return int(self._keys.shape[2])

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in key and value (batch, heads, n, head_dim); all of them so far."""
        batch, heads, _, width = self._keys.shape
        expected = (batch, heads, key.shape[2] if key.ndim == 4 else 1, width)
        if key.shape != expected or value.shape != expected:
            raise ValueError(
                f"KVCache: key {key.shape}, value {value.shape}: expected ({batch}, {heads}, n, "
                f"{width}) twice"
            )
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"KVCache: {key.shape[2]} positions more than the {self.length} there are exceed "
                f"the capacity of {self.capacity}"
            )
        for store, new in ((self._keys, key), (self._values, value)):
            store[:, :, self.length : end] = new.data
        self.length = end
        return Tensor(self._keys[:, :, :end]), Tensor(self._values[:, :, :end])

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0
