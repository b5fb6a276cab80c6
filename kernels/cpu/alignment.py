"""Arrays begin at a multiple of 64 bytes, a cache line and a vector of 16 float32, and large ones
not all at the same place of a page.

malloc aligns to 16 bytes, and then each 64-byte load of a loop touches two cache lines: 0.75 of the
speed where the data is in L1 or L2 (the dot products of a Linear). And blocks of whole pages, which
most batches are, come one after the other: x[i] and out[i] then have the same lowest 12 bits, by
which a core decides whether a load must wait for an earlier store (0.75 of the speed of the
gradient of a layer norm). So each array of 32 KiB or more begins 1,088 bytes further into its page
than the one before.

NumPy lets one replace its allocator (NEP 49, https://numpy.org/neps/nep-0049.html) by C functions;
these are written in LLVM's intermediate language. The address that malloc gave is kept in the 8
bytes before the array. A new thread begins with NumPy's own allocator (the choice belongs to the
context; DataLoader's workers run in a copy of their caller's), and each array is freed by the
allocator that made it: the two mix freely.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from functools import cache
from typing import Any

import llvmlite.binding as llvm

ALIGNMENT = 64

#: Linux is asked for huge pages from 4 MiB on, as NumPy's own allocator does (MADV_HUGEPAGE is 14).
#: `room` is what to ask of malloc, `place` where in it the array begins. realloc is for arrays
#: that grow (np.resize in place, fromiter): malloc's own, and a move to where the array begins now.
_CODE = """
@arrays = internal global i64 0
declare ptr @malloc(i64)
declare ptr @calloc(i64, i64)
declare ptr @realloc(ptr, i64)
declare void @free(ptr)
declare i32 @madvise(ptr, i64, i32)
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)

define private i64 @room(i64 %size) {
  %room = add i64 %size, 4168
  %small = icmp ult i64 %size, 32768
  %tight = add i64 %size, 72
  %result = select i1 %small, i64 %tight, i64 %room
  ret i64 %result
}
define private ptr @place(ptr %block, i64 %size) {
  %failed = icmp eq ptr %block, null
  br i1 %failed, label %none, label %some
none:
  ret ptr null
some:
  %number = atomicrmw add ptr @arrays, i64 1088 monotonic
  %colour = and i64 %number, 4032
  %small = icmp ult i64 %size, 32768
  %shift = select i1 %small, i64 0, i64 %colour
  %address = ptrtoint ptr %block to i64
  %beyond = add i64 %address, 71
  %aligned = and i64 %beyond, -64
  %shifted = add i64 %aligned, %shift
  %array = inttoptr i64 %shifted to ptr
  %note = getelementptr i8, ptr %array, i64 -8
  store ptr %block, ptr %note
  %huge = icmp uge i64 %size, HUGE
  br i1 %huge, label %pages, label %done
pages:
  %next_page = add i64 %shifted, 4095
  %page = and i64 %next_page, -4096
  %first = inttoptr i64 %page to ptr
  %bytes = sub i64 %size, 4096
  %ignored = call i32 @madvise(ptr %first, i64 %bytes, i32 14)
  br label %done
done:
  ret ptr %array
}
define ptr @array_malloc(ptr %context, i64 %size) {
  %room = call i64 @room(i64 %size)
  %block = call ptr @malloc(i64 %room)
  %array = call ptr @place(ptr %block, i64 %size)
  ret ptr %array
}
define ptr @array_calloc(ptr %context, i64 %count, i64 %each) {
  %size = mul i64 %count, %each
  %room = call i64 @room(i64 %size)
  %block = call ptr @calloc(i64 %room, i64 1)
  %array = call ptr @place(ptr %block, i64 %size)
  ret ptr %array
}
define void @array_free(ptr %context, ptr %array, i64 %size) {
  %is_null = icmp eq ptr %array, null
  br i1 %is_null, label %done, label %some
some:
  %note = getelementptr i8, ptr %array, i64 -8
  %block = load ptr, ptr %note
  call void @free(ptr %block)
  br label %done
done:
  ret void
}
define ptr @array_realloc(ptr %context, ptr %array, i64 %size) {
  %is_null = icmp eq ptr %array, null
  br i1 %is_null, label %fresh, label %grown
fresh:
  %first = call ptr @array_malloc(ptr null, i64 %size)
  ret ptr %first
grown:
  %note = getelementptr i8, ptr %array, i64 -8
  %old = load ptr, ptr %note
  %old_address = ptrtoint ptr %old to i64
  %array_address = ptrtoint ptr %array to i64
  %distance = sub i64 %array_address, %old_address
  %room = add i64 %size, 4168
  %block = call ptr @realloc(ptr %old, i64 %room)
  %failed = icmp eq ptr %block, null
  br i1 %failed, label %none, label %some
none:
  ret ptr null
some:
  %was = getelementptr i8, ptr %block, i64 %distance
  %address = ptrtoint ptr %block to i64
  %beyond = add i64 %address, 71
  %aligned = and i64 %beyond, -64
  %new = inttoptr i64 %aligned to ptr
  call void @llvm.memmove.p0.p0.i64(ptr %new, ptr %was, i64 %size, i1 false)
  %new_note = getelementptr i8, ptr %new, i64 -8
  store ptr %block, ptr %new_note
  ret ptr %new
}
"""


class _Handler(ctypes.Structure):
    """PyDataMem_Handler of numpy/ndarraytypes.h, version 1."""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    ]


_forever: list[Any] = []


@cache
def _capsule() -> Any:
    """The allocator as NumPy takes it; never freed, since arrays may outlive everything else."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine()
    code = _CODE.replace("HUGE", str(1 << 22 if sys.platform == "linux" else (1 << 63) - 1))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), target)
    engine.finalize_object()
    functions = (
        engine.get_function_address(f"array_{name}")
        for name in ("malloc", "calloc", "realloc", "free")
    )
    handler = _Handler(b"aligned to 64 bytes", 1, None, *functions)
    engine.detach()
    _forever.append((engine, handler))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    return new(ctypes.addressof(handler), b"mem_handler", None)


def align_arrays() -> bool:
    """Let NumPy's new arrays begin at multiples of 64 bytes. Returns whether it took effect: on
    64-bit Linux and macOS, unless FRAMEWORK_MALLOC=system.
    """
    if sys.platform not in ("linux", "darwin") or struct.calcsize("P") != 8:
        return False
    if os.environ.get("FRAMEWORK_MALLOC") == "system":
        return False
    from numpy._core._multiarray_umath import _ARRAY_API

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(_ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])
    set_handler(_capsule())
    return True
