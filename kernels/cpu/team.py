"""One OpenMP launch from compiled code: `on_team(piece, pieces, threads, args)`.

numba's own parallel loop costs 1.6 us a launch, of which 1.2 are its bookkeeping and a second
barrier; GOMP_parallel costs 0.4 (two cores, Zen 5). It is the entry point which GCC compiles
``#pragma omp parallel`` to, and the threads are those of numba's OpenMP layer, which is linked to
the same library.

Source: the libgomp manual, "Implementing PARALLEL construct".
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I32 = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()

#: What the compiled code calls.
_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@cache
def has_team() -> bool:
    """Is numba's OpenMP layer the one of GCC's library? (Its symbols are made known to LLVM.)"""
    if not sys.platform.startswith("linux") or numba.config.THREADING_LAYER not in _OPENMP:
        return False
    try:
        from numba.np.ufunc import omppool  # linked to libgomp.so.1 on Linux
    except ImportError:
        return False
    library = ctypes.CDLL(omppool.__file__)
    for name in _SYMBOLS:
        try:
            function = getattr(library, name)  # dlsym looks into what it is linked to
        except AttributeError:
            return False
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return True


#: numba's names for "OpenMP, if it is there".
_OPENMP = ("default", "omp")


def _declared(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _outlined(context: Any, builder: Any, callee: Any, signature: Any, record: Any) -> Any:
    """void f(record *): the pieces of this thread, every n-th of a team of n."""
    name = f"{callee.name}.on_team"
    kind = ir.FunctionType(ir.VoidType(), [_POINTER])
    function = ir.Function(builder.module, kind, name)
    function.linkage = "internal"
    body = ir.IRBuilder(function.append_basic_block("entry"))
    fields = body.load(body.bitcast(function.args[0], record.as_pointer()))
    pieces, *args = cgutils.unpack_tuple(body, fields)
    word = pieces.type
    first = body.sext(body.call(_declared(body, "omp_get_thread_num", _I32), []), word)
    team = body.sext(body.call(_declared(body, "omp_get_num_threads", _I32), []), word)
    with cgutils.for_range_slice(body, first, pieces, team, word) as (piece, _):
        # the loops raise nothing: there is no status to look at
        context.call_conv.call_function(
            body, callee, signature.return_type, signature.args, [piece, pieces, *args]
        )
    body.ret_void()
    return function


@intrinsic
def on_team(typing: Any, piece: Any, pieces: Any, threads: Any, args: Any) -> Any:
    """piece(i, pieces, *args) for each i below `pieces`, on `threads` threads at most."""
    called = piece.get_call_type(typing, (types.intp, types.intp, *args.types), {})
    compiled = piece.dispatcher.overloads[called.args]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, count, threads, packed = values
        callee = context.declare_function(builder.module, compiled.fndesc)
        context.add_linking_libs([compiled.library])
        fields = [count, *cgutils.unpack_tuple(builder, packed)]
        record = cgutils.pack_struct(builder, fields)
        place = cgutils.alloca_once_value(builder, record)
        function = _outlined(context, builder, callee, called, record.type)
        launch = _declared(
            builder, "GOMP_parallel", ir.VoidType(), function.type, _POINTER, _I32, _I32
        )
        fewer = builder.icmp_signed("<", count, threads)
        team = builder.trunc(builder.select(fewer, count, threads), _I32)
        builder.call(launch, [function, builder.bitcast(place, _POINTER), team, _I32(0)])
        return context.get_dummy_value()

    return types.void(piece, types.intp, types.intp, args), generate
