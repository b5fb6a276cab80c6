"""Every case prepares and computes what it should, at small sizes and without timing."""

import math

import numpy as np
import pytest

from bench import cases
from bench.cases import Case, UnknownCase
from bench.machine import has_torch

needs_torch = pytest.mark.skipif(
    not has_torch(), reason="torch is not installed: pip install torch"
)


def small(case: Case) -> Case:
    """The case with few elements, and with sizes that are not round."""
    by_axes = {2: (33, 65), 3: (17, 33, 24), 4: (3, 8, 5, 6)}
    if case.kernel.endswith("_step"):
        return Case(case.kernel, case.variant, (1001, 5))
    return Case(case.kernel, case.variant, by_axes[len(case.shape)])


CASES = list(dict.fromkeys(map(small, cases.find())))
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_there_is_a_case_of_every_kernel():
    assert {c.kernel for c in CASES} == set(cases.load())


@each_case
def test_ours_prepares_and_is_correct(case):
    kernel = cases.load()[case.kernel]
    args = cases.arguments(case)
    got = cases.results(kernel, args, kernel)
    assert cases.error(got, cases.truth(case)) <= cases.TOLERANCE
    again = cases.arguments(case)
    for a, b in zip(args, again, strict=True):  # every process draws the same, and none was changed
        np.testing.assert_array_equal(a, b)
    assert cases.bytes_moved(kernel, args, got) > 0
    floats = [a.dtype for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    assert set(floats) <= {np.dtype(np.float32)}


@needs_torch
@each_case
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_torch_prepares_and_computes_the_same(case):
    from bench import torch_peers  # noqa: F401  (fills the table)
    from bench.kernel_bench import PEER_TOLERANCES
    from bench.torch_calls import prepare

    call = prepare(case, cases.arguments(case))
    if call is None:
        pytest.skip("torch has no counterpart")
    got = call.results()
    if call.comparable:
        assert cases.error(got, cases.truth(case)) <= PEER_TOLERANCES["float32"]


@needs_torch
def test_nearly_every_kernel_has_a_torch_peer():
    from bench import torch_calls, torch_peers  # noqa: F401  (fills the table)

    peers = {*torch_calls.DIRECT, *torch_calls.PREPARED, *torch_calls.OPTIMIZERS}
    missing = {c.kernel for c in CASES if c.kernel not in peers and c.label not in peers}
    assert not missing


def test_a_case_prepares_as_a_side():
    from bench import sides

    case = Case("relu", "_sample", (8, 16))
    work = sides.ours(case)
    assert work.facts["version"] in ("tuned", "reference")
    assert work.facts["bytes"] == 2 * 8 * 16 * 4
    work.step()
    sides.reference(case).step()
    assert sides.copy(1 << 12).facts["bytes"] == 1 << 13


# Choosing -----------------------------------------------------------------------------------------


def test_names_are_kernels_variants_or_families():
    assert {c.kernel for c in cases.find(["softmax_grad"])} == {"softmax_grad"}
    assert {c.variant for c in cases.find(["batch_norm-nchw"])} == {"nchw"}
    assert {"softmax", "log_softmax", "logsumexp_grad"} <= {
        c.kernel for c in cases.find(["softmax"])
    }
    assert len(cases.find(["relu", "relu"])) == len(cases.find(["relu"]))


def test_sizes_go_to_the_cases_with_as_many_axes():
    chosen = cases.find(["batch_norm"], [(2, 3, 4, 5)])
    assert {c.shape for c in chosen} == {(2, 3, 4, 5)}
    assert {c.variant for c in chosen} == {"nchw", "channels_last"}
    assert [str(c) for c in cases.find(["relu"], [(5, 7), (9, 9)])] == ["relu[5x7]", "relu[9x9]"]
    with pytest.raises(UnknownCase, match=r"no case of relu takes --sizes 2x3x4: .* 4096x1024"):
        cases.find(["relu"], [(2, 3, 4)])


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(UnknownCase, match=r"unknown kernel 'sofmax': did you mean .*softmax"):
        cases.find(["sofmax"])
    with pytest.raises(UnknownCase, match=r"unknown kernel 'zzz': there are .*relu"):
        cases.find(["zzz"])


@pytest.mark.parametrize("text", ["", "12xx3", "0x5", "axb", "-3x4", "3.5x2"])
def test_a_malformed_size_is_shown(text):
    with pytest.raises(UnknownCase, match="expected positive numbers like 768x128"):
        cases.parse_size(text)


def test_sizes_are_read_and_written_alike():
    assert cases.parse_size("768x128") == (768, 128)
    assert cases.size_text((32, 64, 32, 32)) == "32x64x32x32"


# Errors and bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([0.1, 0.0], [0.0, 0.0], 0.1),
        ([1.0], [1.0, 2.0], math.inf),
        ([np.nan], [1.0], math.inf),
        ([np.inf], [1.0], math.inf),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf], [-np.inf], math.inf),
        ([], [], 0.0),
    ],
)
def test_error_of_a_result(got, expected, error):
    found = cases.error([np.array(got, np.float32)], [np.array(expected)])
    assert found == pytest.approx(error, rel=1e-6)


def test_integers_are_equal_or_wrong():
    assert cases.error([np.array([1, 2])], [np.array([1, 2])]) == 0
    assert cases.error([np.array([1, 2])], [np.array([1, 3])]) == math.inf
    assert cases.error([None, np.ones(2)], [np.zeros(5), np.ones(2)]) == 0


def test_bytes_count_what_is_overwritten_twice_and_an_out_once():
    n = 1000
    step = Case("adam_step", "adamw", (n, 1))
    kernel, args = cases.load()["adam_step"], cases.arguments(step)
    got = cases.results(kernel, args, kernel)
    assert cases.bytes_moved(kernel, args, got) == 7 * n * 4  # reads p g m v, writes p m v
    fill = Case("uniform", "_", (10, 10))
    kernel, args = cases.load()["uniform"], cases.arguments(fill)
    got = cases.results(kernel, args, kernel)
    assert cases.bytes_moved(kernel, args, got) == 400


def test_operations_of_attention_are_those_of_the_half_that_is_seen():
    shape = (2, 3, 64, 16)
    forward, backward = (
        cases.Case(kernel, "causal", shape, "float32") for kernel in ("attention", "attention_grad")
    )
    assert cases.flops(forward) == 2 * (2 * 2 * 3 * 64 * 64 * 16) // 2
    assert cases.flops(backward) == 5 * cases.flops(forward) // 2
