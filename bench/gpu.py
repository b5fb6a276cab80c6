"""`python -m bench gpu`: everything that a machine with a GPU can tell, in a few minutes.

The parts in the order of their importance: the tests, the kernels that must be shown, training, the
sanitizer, all other kernels. Each has a limit, and nothing that fails stops the rest. The file is
written again after each part and each kernel, so that a kill leaves what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import cases, gpu_tests, machine, overlap, sanitizer, training
from bench.budget import Budget
from bench.cases import Case
from bench.kernel_bench import KernelBench, Row
from bench.peer import PeerError
from bench.training_tasks import TASKS

#: What --only chooses from, in the order of a run.
PARTS = ("tests", "sanitizer", "kernels", "training")

#: Seconds at most: of the tests, of a tool of the sanitizer, of training; and what the last step
#: of a part may take beyond its limit (a kernel's first compilation, a worker that ends).
TESTS, SANITIZER, TRAINING, RESERVE = 180.0, 45.0, 75.0, 12.0

#: Seconds that a case takes, first result and turns: none is begun with less left.
CASE = 4.0

#: Kernels that must be shown, the most telling first; in both dtypes, against torch.compile too.
MAIN = (
    *("softmax", "layer_norm", "cross_entropy", "gelu", "matmul", "adam_step", "dropout"),
    *("rms_norm", "batch_norm", "linear_gelu", "softmax_grad", "layer_norm_grad", "gelu_grad"),
    *("rms_norm_grad", "batch_norm_grad", "linear_weight_grad", "relu", "silu", "silu_grad"),
)
_MAIN_LABELS = ("adam_step-adamw", "batch_norm-channels_last", "batch_norm_grad-channels_last")
#: Shown with arrays of float32 alone: the optimizers' flat buffers.
_FLOAT32_ONLY = ("adam_step",)

Say = Callable[[str], object]


class Run:
    """A run into one file."""

    def __init__(
        self,
        path: Path,
        budget: Budget,
        say: Say,
        facts: dict[str, Any] | None = None,
        bench: Callable[..., KernelBench] = KernelBench,
    ) -> None:
        self.path, self.budget, self.say = path, budget, say
        self._bench = bench
        self.record: dict[str, Any] = facts or machine.describe(None, "cuda")
        self.record |= {"kind": "gpu", "minutes": budget.seconds / 60}
        self.rows: list[Row] = []
        self._broken: list[str] = []
        self.save()

    def save(self) -> None:
        """The file as of now."""
        self.record["spent"] = round(self.budget.spent, 1)
        machine.write(self.path, self.record)

    def all(self, only: Sequence[str] = PARTS) -> None:
        """The parts named, as far as the time goes."""
        if "tests" in only:
            self._part("tests", self._tests)
        main, others = kernel_cases()
        if "kernels" in only:
            # with what the other parts need left over, if they are to come
            after = TRAINING if "training" in only else 0.0
            after += len(sanitizer.TOOLS) * SANITIZER if "sanitizer" in only else 0.0
            limit = self.budget.part(self.budget.left, keep=RESERVE + min(after, 120.0))
            self._part("kernels", lambda: self._kernels(main, limit, compiled=True))
        if "training" in only:
            self._part("training", self._training)
            self._part("overlap", self._overlap)
        if "sanitizer" in only:
            self._part("sanitizer", self._sanitizer)
        if "kernels" in only:
            limit = self.budget.part(self.budget.left, keep=RESERVE)
            self._part("kernels", lambda: self._kernels(others, limit))
        self.record["finished"] = True
        self.save()

    def _part(self, name: str, work: Callable[[], Any]) -> None:
        """Run a part; an error becomes its result, next to what it had written."""
        if not self.budget.allows(RESERVE):
            self.say(f"{name}: no time left")
            self.record.setdefault(name, {"problem": "no time left"})
            self.save()
            return
        self.say(f"{name} (at {self.budget.spent:.0f} s)")
        try:
            result = work()
        except (PeerError, OSError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            self.say(f"{name}: {problem}")
            self._broken.append(f"{name}: {problem}")
            result = self.record.get(name, {}) | {"problem": problem}
        self.record[name] = result
        self.save()

    # Parts ----------------------------------------------------------------------------------------

    def _tests(self) -> dict[str, Any]:
        limit = self.budget.part(TESTS, keep=RESERVE)
        result = gpu_tests.run(limit.left)
        self.say(
            f"  {result['passed']} passed, {result['failed']} failed, "
            f"{result['not_reached']} not reached in {result['seconds']:.0f} s"
        )
        for failure in result["failures"][:20]:
            self.say(f"  FAILED {failure['test']}: {failure['reason'][:160]}")
        if result["problem"]:
            self.say(f"  {result['problem']}")
        return result

    def _kernels(
        self, chosen: Iterable[Case], limit: Budget, compiled: bool = False
    ) -> dict[str, Any]:
        """Time `chosen` until `limit`; the rows go to those that are there.

        torch.compile takes seconds a case: with `compiled` it is asked for each kernel's first.
        """
        known: dict[str, Any] = self.record.setdefault("kernels", {"rows": [], "not_reached": []})
        known["not_reached"] = []
        torch = ["torch", *["torch.compile"] * compiled] if machine.has_torch() else []
        torch += ["triton"] if torch and machine.has_triton() else []
        if not torch:
            self.say(f"  {machine.TORCH_IS_MISSING}")
        seen: set[tuple[str, str]] = set()
        with self._bench(["reference", "own", *torch], 0.08, 9, device="cuda") as bench:
            copy = bench.copy_bandwidth
            known["copy_bandwidth"] = copy
            for case in chosen:
                if not limit.allows(CASE):
                    known["not_reached"].append(str(case))
                    continue
                first = (case.kernel, case.dtype) not in seen
                seen.add((case.kernel, case.dtype))
                row = bench.run(case, () if first else ("torch.compile",))
                self.rows.append(row)
                figures = row.as_dict(copy)
                figures.pop("turns", None)  # their spread is kept
                known["rows"].append(figures)
                self.save()
                self.say(f"  {line(row, copy)}")
        if known["not_reached"]:
            self.say(f"  {len(known['not_reached'])} cases were not reached")
        return known

    def _training(self) -> dict[str, Any]:
        """Every task, as long as there is time."""
        sides = training.SIDES["cuda"] if machine.has_torch() else ("captured",)
        limit = self.budget.part(TRAINING, keep=RESERVE)
        known: dict[str, Any] = {"results": [], "not_reached": []}
        self.record["training"] = known
        for name, task in TASKS.items():
            if not limit.allows(RESERVE):
                known["not_reached"].append(name)
                continue
            seconds = min(3.0, limit.left / 20)
            result = training.run(name, task, sides, seconds, 12, device="cuda")
            for side in result.turns.laps:
                rate = 1 / result.turns.seconds(side).median
                loss = result.losses[side][-1]
                self.say(f"  {name} {side}: {rate:,.0f} steps/s, loss {loss:.4f}")
            for reason in result.missing.values():
                self.say(f"  {name}: {reason}")
            if not result.agrees:
                self.say(f"  {name} does not train alike: {result.loss_difference:.2g} apart")
            known["results"].append(result.as_dict() | {"turns": None})
            self.save()
        return known

    def _overlap(self) -> dict[str, Any]:
        """How much of the copying of batches the computation hides."""
        return overlap.measure_overlap("cuda")

    def _sanitizer(self) -> dict[str, Any]:
        """Both tools, or why there are none."""
        if sanitizer.find() is None:
            self.say(f"  {sanitizer.MISSING}")
            return {"problem": sanitizer.MISSING}
        found: dict[str, Any] = {}
        for tool in sanitizer.TOOLS:
            limit = self.budget.part(SANITIZER, keep=RESERVE)
            found[tool] = result = sanitizer.run(tool, limit.left)
            self.record["sanitizer"] = found
            self.save()
            end = "" if result.get("complete") else f", ended in {result.get('last')}"
            self.say(f"  {tool}: {result.get('errors')} errors{end}; {result.get('problem') or ''}")
        return found

    @property
    def failures(self) -> list[str]:
        """What was wrong, in a few words each; a part that is missing is not wrong."""
        tests, found = self.record.get("tests", {}), list(self._broken)
        if tests.get("failed"):
            found.append(f"{tests['failed']} tests failed")
        if tests.get("problem") and "passed" in tests:
            found.append(tests["problem"])
        wrong = [str(row.case) for row in self.rows if row.turns is None]
        if wrong:
            found.append(f"not timed: {', '.join(wrong)}")
        for tool in sanitizer.TOOLS:
            if (errors := self.record.get("sanitizer", {}).get(tool, {}).get("errors")) or 0:
                found.append(f"{tool} found {errors} errors")
        for result in self.record.get("training", {}).get("results", []):
            if not result["agrees"]:
                found.append(f"the sides of {result['model']} do not train alike")
        return found


def kernel_cases() -> tuple[list[Case], list[Case]]:
    """The cases that must be shown, and all others, each in the order of a run: the first size of
    every kernel before the second of any.
    """
    narrow = cases.find(device="cuda")
    half = [c for c in cases.find(device="cuda", dtype="bfloat16") if c.kernel not in _FLOAT32_ONLY]

    def is_main(case: Case) -> bool:
        return case.kernel in MAIN and (_is_plain(case) or case.label in _MAIN_LABELS)

    main = [c for c in narrow if is_main(c)]
    main += [c for c in half if is_main(c) and _is_large(c)]
    chosen = set(main)
    others = [c for c in narrow if c not in chosen]
    place = _places(narrow) | _places(half)
    main.sort(key=lambda c: (place[c], c.dtype != "float32", MAIN.index(c.kernel)))
    others.sort(key=lambda c: (place[c], not _is_plain(c)))
    return main, others


def _is_plain(case: Case) -> bool:
    return case.variant in ("_", "_sample", "nn", "mkn", "lookup")


def _places(every: Sequence[Case]) -> dict[Case, int]:
    """Which of its kernel's sizes a case has."""
    count: dict[str, int] = {}
    places = {}
    for case in every:
        places[case] = count.get(case.label, 0)
        count[case.label] = places[case] + 1
    return places


def _is_large(case: Case) -> bool:
    return math.prod(case.shape) >= 1 << 22


def line(row: Row, copy_bandwidth: float) -> str:
    """A row in one line."""
    if row.turns is None:
        return f"{row.case}: {row.problem}"
    ratios = [
        f"x{speedup.median:.2f} {side}"
        for side in row.turns.laps
        if side != "ours" and (speedup := row.speedup(side)) is not None
    ]
    rate = f"{row.flops / 1e12:.1f} TFLOP/s" if row.flops else f"{row.bandwidth / 1e9:.0f} GB/s"
    share = f"{row.bandwidth / copy_bandwidth:.0%} of copy"
    text = f"{row.case}: {row.seconds.median * 1e6:.1f} us, {rate}, {share}, {', '.join(ratios)}"
    return text + (f" [{row.problem}]" if row.problem else "")
