"""Tensor: an array, whether a gradient is wanted for it, and where it came from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from framework.autograd import graph
from framework.autograd.arithmetic import Arithmetic
from framework.autograd.graph import Node, in_dtype
from framework.autograd.reductions import Reductions
from framework.autograd.shaping import Shaping
from framework.backend.device import Device, choose_device, default_device, device_of, to_device
from kernels.arrays import Array, is_array, is_cuda, is_floating, to_numpy


@graph.register_tensor
class Tensor(Arithmetic, Shaping, Reductions):
    """A multi-dimensional array that can be differentiated through.

    ``data`` is the NumPy or CuPy array itself; ``grad`` is a Tensor after `backward` (leaves only,
    or after `retain_grad`). Make one with `framework.tensor`.
    """

    __slots__ = ("__weakref__", "data", "grad", "hooks", "node", "requires_grad", "slot")
    __array_ufunc__ = None  # array + Tensor is Tensor.__radd__
    __hash__ = object.__hash__

    def __init__(self, data: Array, requires_grad: bool = False, node: Node | None = None) -> None:
        self.data: Array = np.asarray(data) if isinstance(data, np.generic) else data
        if not hasattr(data, "dtype"):
            raise TypeError(f"a Tensor wraps an array, got a {type(data).__name__}; use fw.tensor")
        self.requires_grad = requires_grad
        self.node = node
        self.grad: Tensor | None = None
        self.hooks: dict[int, Callable[[Tensor], Any]] | None = None
        #: Where an optimizer wants this leaf's gradient: a view into its flat gradient buffer.
        self.slot: Array | None = None

    # What it is -----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.data.shape  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """Number of elements (as in NumPy; PyTorch's ``numel()`` is there too)."""
        return self.data.size  # type: ignore[no-any-return]

    def numel(self) -> int:
        """Number of elements."""
        return self.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        return self.data.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> Device:
        """Where the array lives."""
        return device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """True unless an operation made it."""
        return self.node is None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-dimensional tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("a 0-dimensional tensor cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __repr__(self) -> str:
        with np.printoptions(precision=4, suppress=False, threshold=100, edgeitems=3):
            text = np.array2string(to_numpy(self.data), separator=", ", prefix="tensor(")
        notes = (
            "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype.name}"
        )
        if is_cuda(self.data):
            notes += f", device='{self.device}'"
        if self.node is not None:
            name = self.node.name
            notes += f", from={name}" if name != "freed" else ""  # after backward
        elif self.requires_grad:
            notes += ", requires_grad=True"
        shape = f", shape={self.shape}" if self.size > 100 or not self.size else ""
        return f"tensor({text}{shape}{notes})"

    # In and out -----------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array: shared memory on the CPU, a copy from CUDA.

        Raises RuntimeError where a gradient would silently be cut off; say ``.detach().numpy()``.
        """
        if self.requires_grad:
            raise RuntimeError(
                "numpy() on a tensor that requires a gradient: use .detach().numpy()"
            )
        return to_numpy(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.detach().numpy()
        return np.array(array, dtype, copy=copy) if copy or dtype is not None else array

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype.kind == "V":
            raise BufferError(
                f"DLPack export of {self.dtype.name}: NumPy and CuPy have no such type to hand on; "
                'convert with .to("float32")'
            )
        if self.requires_grad:
            raise BufferError("DLPack export of a tensor that requires a gradient: use .detach()")
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.data.__dlpack_device__()  # type: ignore[no-any-return]

    def item(self) -> Any:
        """The one element as a Python number. On CUDA this waits for the device."""
        if self.size != 1:
            raise ValueError(
                f"item() needs a tensor of one element, this one has shape {self.shape}"
            )
        return self.data.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.data.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"a tensor of dtype {self.dtype.name} cannot be used as an index")
        return int(self.item())

    def to(self, target: Any = None, *, device: Any = None, dtype: Any = None) -> Tensor:
        """On another device ("cuda", Device) or in another dtype ("float16", np.float32);
        differentiable.

        The same object where nothing changes.
        """
        if target is None:
            if device is None and dtype is None:
                raise TypeError("to() needs a device, a dtype or both")
            moved = self if device is None else self.to(device)
            return moved if dtype is None else moved.to(dtype)
        name = target.split(":")[0] if isinstance(target, str) else ""
        if isinstance(target, Device) or name in ("cpu", "cuda", "auto"):
            here, there = self.device, choose_device(target)
            if here == there:
                return self
            return graph.record(
                to_device(self.data, there), [self], lambda dy: [to_device(dy, here)]
            )
        try:
            before, after = self.dtype, as_dtype(target)
        except TypeError as error:
            if not isinstance(target, str):
                raise
            raise TypeError(
                f"to({target!r}): expected a device ('auto', 'cpu', 'cuda' or 'cuda:N') or a dtype "
                "('bool', 'int32', 'int64', 'float16', 'bfloat16', 'float32', 'float64')"
            ) from error
        if before == after:
            return self
        if not is_floating(after):
            return Tensor(in_dtype(self.data, after))
        return graph.record(in_dtype(self.data, after), [self], lambda dy: [in_dtype(dy, before)])

    def cpu(self) -> Tensor:
        """On the CPU."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """On the first CUDA device."""
        return self.to("cuda")

    def float(self) -> Tensor:
        """As float32."""
        return self.to("float32")

    def long(self) -> Tensor:
        """As int64, the dtype of class indices."""
        return self.to("int64")

    # Gradients ------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of this tensor to ``.grad`` of every leaf it depends on.

        `gradient` (this tensor's shape) weights the elements; it may be left out where there is one
        element only.
        """
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() of a tensor of shape {self.shape} needs gradient=...; only one "
                    "element (a loss) has 1 as its default"
                )
            dy = self.device.module.ones(self.shape, self.dtype)
        else:
            dy = tensor(gradient, dtype=self.dtype, device=self.device).data
            if dy.shape != self.shape:
                raise ValueError(f"gradient has shape {dy.shape}, the tensor {self.shape}")
        graph.backward(self, dy, retain_graph)

    def free_slot(self) -> Array | None:
        """Where a gradient may be computed in place: the optimizer's slot, while nothing is in it.

        A backward closure of a large parameter passes it as ``out=`` and returns the result.
        """
        return self.slot if self.grad is None and not self.hooks and self._slot_fits() else None

    def _slot_fits(self) -> bool:
        """Is the slot one for the array that is here now? (``p.data`` may have been replaced.)"""
        slot, data = self.slot, self.data
        return (
            slot is not None
            and type(slot) is type(data)
            and slot.shape == data.shape
            and slot.dtype == data.dtype
        )

    def accumulate_grad(self, dy: Array) -> None:
        """Add `dy` to ``.grad`` (the tape calls this)."""
        if dy.shape != self.data.shape:
            raise RuntimeError(
                f"a gradient of shape {dy.shape} arrived at a tensor of shape {self.shape}"
            )
        if self.grad is not None:
            self.grad.data += dy
        elif self.slot is not None and self._slot_fits():
            if dy is not self.slot:
                self.slot[...] = dy
            self.grad = Tensor(self.slot)
        else:
            # A copy: `dy` may be shared with other tensors, and people change gradients in place.
            self.grad = Tensor(dy.astype(self.dtype, copy=True))

    def detach(self) -> Tensor:
        """The same values (shared memory), cut off from the graph."""
        return Tensor(self.data)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Want a gradient for this leaf, or not; in place."""
        if self.node is not None:
            raise RuntimeError("requires_grad_() on the result of an operation: detach() it first")
        if requires_grad and not is_floating(self.dtype):
            raise TypeError(
                f"only floating-point tensors have gradients, this one is {self.dtype.name}"
            )
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> None:
        """Keep ``.grad`` here too, although an operation made this tensor."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad() on a tensor that needs no gradient")
        if self.node is not None:
            self.node.retained = weakref.ref(self)

    def zero_grad(self) -> None:
        """Forget ``.grad``."""
        self.grad = None

    def register_hook(self, hook: Callable[[Tensor], Any]) -> Callable[[], None]:
        """Call ``hook(gradient)`` when this tensor's gradient is known; a tensor it returns
        replaces it.

        Returns a function that removes the hook.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook() on a tensor that needs no gradient")
        owner: Any = self.node or self
        if owner.hooks is None:
            owner.hooks = {}
        hooks: dict[int, Callable[[Tensor], Any]] = owner.hooks
        key = max(hooks, default=-1) + 1
        hooks[key] = hook

        def remove() -> None:
            hooks.pop(key, None)

        return remove

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self.node is not None:
            raise RuntimeError("deepcopy of the result of an operation: detach() it first")
        copy = type(self)(self.data.copy())
        copy.requires_grad = self.requires_grad
        memo[id(self)] = copy
        return copy


class Parameter(Tensor):
    """A Tensor that a Module learns: a leaf that wants a gradient."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data.data if isinstance(data, Tensor) else data, requires_grad)
        if requires_grad and not is_floating(self.dtype):
            raise TypeError(f"a parameter is floating-point, got {self.dtype.name}")


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """A NumPy dtype from a name ("float32", "bfloat16"), a type or a dtype.

    TypeError lists what there is.
    """
    given = dtype
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if given is None or not (result.kind in "biuf" or is_floating(result)):
        raise TypeError(
            f"dtype={given!r}: expected bool, int32, int64, float16, bfloat16, float32, float64 "
            "or a NumPy dtype"
        )
    return result


def tensor(
    data: Any, dtype: Any = None, device: str | Device | None = None, requires_grad: bool = False
) -> Tensor:
    """A Tensor of `data`: numbers, nested lists, a NumPy or CuPy array, a Tensor, or anything with
    DLPack.

    Python floats become float32; an array keeps its dtype. Arrays are copied, so that later changes
    to one do not change the other. `device` defaults to where an array is, and for lists to the
    default device.
    """
    if isinstance(data, Tensor):
        array = data.data.copy()
    elif is_array(data):
        array = data.copy()
    elif hasattr(data, "__dlpack__") and hasattr(data, "__dlpack_device__"):
        array = from_dlpack(data).data.copy()
    else:
        array = _from_python(data)
        if device is None:
            device = default_device()
    if dtype is not None:
        array = in_dtype(array, as_dtype(dtype))
    if array.dtype.kind not in "biuf" and not is_floating(array.dtype):
        raise TypeError(f"a tensor holds numbers, got an array of dtype {array.dtype}")
    if device is not None:
        array = to_device(array, choose_device(device))
    out = Tensor(array)
    return out.requires_grad_() if requires_grad else out


def _from_python(data: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.array(data)
    except ValueError as error:
        raise ValueError(f"cannot make a tensor of this {type(data).__name__}: {error}") from None
    if array.dtype == np.float64 and not isinstance(data, np.generic):
        array = in_dtype(array, np.dtype(np.float32))
    return array


def from_dlpack(data: Any) -> Tensor:
    """Share the memory of another library's tensor (PyTorch, JAX, ...) through DLPack.

    TypeError for bfloat16, which NumPy and CuPy cannot take over.
    """
    if str(getattr(data, "dtype", "")).rpartition(".")[2] == "bfloat16":
        raise TypeError(
            f"from_dlpack of a {type(data).__name__} of bfloat16, which NumPy and CuPy cannot take "
            'over: convert it to float32 first, and the result with .to("bfloat16")'
        )
    kind, _ = data.__dlpack_device__()
    if int(kind) == 2:  # kDLCUDA
        return Tensor(Device("cuda").module.from_dlpack(data))
    return Tensor(np.from_dlpack(data))
