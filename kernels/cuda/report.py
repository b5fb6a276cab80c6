"""Registers and memory of every CUDA kernel, as the compiler made them:

python -m kernels.cuda report [--arch sm_90]

Needs NVRTC and no GPU. Exits with 1 if a kernel keeps anything in local memory: registers that were
spilled, or an array indexed at run time, either of which is traffic nobody asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from kernels.cuda import compiler, nvrtc
from kernels.cuda.cubin import Usage, usage
from kernels.cuda.sources import Program, programs


def measured(
    program: Program, arch: str, options: Iterable[str] = compiler.OPTIONS
) -> dict[str, Usage]:
    """What each instantiation of `program` takes on `arch`; CompileError if it does not compile."""
    cubin, symbols = nvrtc.compile(program.text, program.expressions, arch, options)
    found = usage(cubin)
    return {expression: found[symbol] for expression, symbol in symbols.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cuda", description=__doc__)
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser("report", help="registers and memory of every kernel")
    report.add_argument("--arch", default="sm_90", help="sm_80, sm_90, sm_100, ...")
    arch = parser.parse_args(arguments).arch
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    if reason := nvrtc.missing():
        console.print(reason)
        return 2
    spilled = 0
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False)
    for column in ("source", f"kernel, {arch}"):
        table.add_column(column, overflow="fold")
    for column in ("registers", "local", "shared", "constant"):
        table.add_column(column, justify="right")
    for program in programs():
        for expression, u in measured(program, arch).items():
            sizes = (u.registers, u.local, u.shared, u.constant)
            style = "bold red" if u.local else None
            table.add_row(program.name, expression, *map(str, sizes), style=style)
            spilled += u.local > 0
        table.add_section()
    console.print(table)
    console.print("registers a thread; bytes of local memory a thread, of the rest a block")
    if spilled:
        console.print(f"{spilled} kernels use local memory", style="bold red")
    return 1 if spilled else 0
