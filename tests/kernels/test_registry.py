"""Which version of a kernel runs, and what happens to 16-bit arguments."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from kernels import registry
from kernels.registry import Draw, Kernel, kernel, reference_kernels

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def scratch(monkeypatch):
    """A registry of its own, forgotten after the test; numba counts as installed."""
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "_mode", "tuned")
    monkeypatch.setattr(registry, "has_numba", lambda: True)


@pytest.fixture
def double(scratch):
    """A kernel that notes which version ran with which dtype."""

    @kernel
    def double(x, times=2.0):
        """times x."""
        double.ran.append(("reference", x.dtype.name))
        return x * times

    @double.cpu
    def _(x, times=2.0):
        double.ran.append(("cpu", x.dtype.name))
        return x * np.float32(times)

    double.ran = []
    return double


def test_float32_runs_the_tuned_version(double):
    assert double(np.ones(3, np.float32), times=3.0).tolist() == [3, 3, 3]
    assert double.ran == [("cpu", "float32")]


def test_float64_runs_the_reference(double):
    assert double(np.ones(3)).dtype == np.float64
    assert double.ran == [("reference", "float64")]


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16])
def test_16_bits_are_computed_in_float32_and_rounded_once(double, dtype):
    y = double(np.ones(3, dtype))
    assert y.dtype == dtype
    assert double.ran == [("cpu", "float32")]


def test_a_version_may_be_made_for_other_dtypes(double):
    @double.cpu(dtypes=("float16",))
    def _(x, times=2.0):
        double.ran.append(("half", x.dtype.name))
        return x

    double(np.ones(3, np.float16))
    assert double.ran == [("half", "float16")]


def test_reference_kernels_for_a_while(double):
    x = np.ones(3, np.float32)
    with reference_kernels():
        double(x)
        with reference_kernels():
            double(x)
        double(x)
    double(x)
    assert [version for version, _ in double.ran] == ["reference"] * 3 + ["cpu"]


def test_reference_kernels_ends_with_an_error(double):
    with pytest.raises(KeyError), reference_kernels():
        raise KeyError
    assert double.version("cpu") is not None


def test_without_numba_the_reference_runs(double, monkeypatch):
    monkeypatch.setattr(registry, "has_numba", lambda: False)
    double(np.ones(3, np.float32))
    double(np.ones(3, np.float16))
    assert double.ran == [("reference", "float32")] * 2
    assert double.version("cpu") is None


def test_has_numba_is_whether_it_can_be_found(monkeypatch):
    for found in (None, object()):
        registry.has_numba.cache_clear()
        monkeypatch.setattr(registry, "find_spec", lambda name, found=found: found)
        assert registry.has_numba() is (found is not None)
    registry.has_numba.cache_clear()


def test_statistics_stay_float32(scratch):
    @kernel(statistics=(1,))
    def moments(x):
        """Centred x and the mean."""
        return x - x.mean(), x.mean(keepdims=True)

    y, mean = moments(np.ones(3, np.float16))
    assert y.dtype == np.float16
    assert mean.dtype == np.float32


def test_every_argument_is_widened_but_not_integers(scratch):
    seen = []

    @kernel
    def scatter(x, index, scale=None):
        """x[index] scale."""
        seen.extend(a.dtype.name for a in (x, index, scale))
        return x[index] * scale

    x = np.ones(3, BFLOAT16)
    assert scatter(x, np.array([1, 2]), scale=x[:2]).dtype == BFLOAT16
    assert seen == ["float32", "int64", "float32"]


def test_16_bit_arrays_are_overwritten_in_place(scratch):
    @kernel(inplace=("p",))
    def step(g, p, rate):
        """p -= rate g."""
        p -= rate * g
        return p

    g, p = np.full(2, 2, np.float16), np.ones(2, np.float16)
    assert step(g, p, 0.25) is p
    assert p.tolist() == [0.5, 0.5]


def test_several_results_one_of_them_in_place(scratch):
    @kernel(inplace=("out",))
    def twice(a, x, out=None):
        """2 a in `out`, and the sum; `x` is a name like any other."""
        out = np.empty_like(a) if out is None else out
        out[...] = 2 * a
        return out, a.sum(keepdims=True)

    a, out = np.ones(3, np.float16), np.zeros(3, np.float16)
    y, total = twice(a, a, out)
    assert y is out
    assert out.tolist() == [2, 2, 2]
    assert (total.dtype, total.item()) == (np.float16, 3)
    y, total = twice(a, x=a)
    assert (y.dtype, total.dtype) == (np.float16, np.float16)


def test_a_0_dimensional_result_is_an_array(scratch):
    @kernel
    def total(x):
        """The sum, and the sum with a companion."""
        return x.sum(), x

    y, _ = total(np.ones(3))
    assert isinstance(y, np.ndarray)
    assert y.shape == ()


def test_a_reference_may_overflow_without_a_warning(scratch):
    @kernel
    def grow(x):
        """e^x."""
        return np.exp(x)

    assert grow(np.array([1e4])).tolist() == [np.inf]


@pytest.mark.parametrize("x", [1.0, [1.0], None, np.float32(1)])
def test_the_first_argument_is_an_array(double, x):
    with pytest.raises(
        TypeError, match=f"double: the first argument is a {type(x).__name__}, not an array"
    ):
        double(x)


def test_two_kernels_of_one_name(double):
    def reference(x):
        return x

    reference.__name__ = "double"
    with pytest.raises(ValueError, match="there are two kernels named 'double'"):
        kernel(reference)


def test_a_kernel_knows_its_name_text_and_family(double):
    assert isinstance(double, Kernel)
    assert (double.name, double.__doc__) == ("double", "times x.")
    assert double.family == "test_registry"
    assert repr(double) == "<kernel double>"
    assert registry.all_kernels() == {"double": double}


def test_samples_are_told_apart_by_name(double):
    @double.sample
    def _(draw, shape):
        return (draw.normal(shape),)

    @double.sample
    def tripled(draw, shape):
        return draw.normal(shape), 3.0

    assert list(double.samples) == ["_", "tripled"]


def test_draws_are_reproducible_and_as_asked():
    for name, args in {
        "normal": ((3, 4),),
        "uniform": (3, 4),
        "integers": (7, 3, 4),
        "mask": ((3, 4),),
    }.items():
        one, two = (getattr(Draw(5), name)(*args) for _ in range(2))
        assert one.shape == (3, 4)
        np.testing.assert_array_equal(one, two)
    assert Draw().integers(7, 1000).max() == 6
    assert Draw().uniform(100, low=2, high=3).min() >= 2


@pytest.mark.parametrize(
    ("mode", "code", "expected"),
    [
        ("reference", "print(registry._mode)", "reference"),
        ("tuned", "print(registry._mode)", "tuned"),
        ("fast", "", "FRAMEWORK_KERNELS='fast': expected 'tuned' or 'reference'"),
    ],
)
def test_the_environment_chooses_the_versions(mode, code, expected):
    done = subprocess.run(
        [sys.executable, "-c", f"from kernels import registry\n{code}"],
        env=os.environ | {"FRAMEWORK_KERNELS": mode},
        cwd=os.path.dirname(os.path.dirname(registry.__file__)),
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == (mode != "fast")
