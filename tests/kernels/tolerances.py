"""How close is close: one table of tolerances by dtype, and the comparison that uses it."""

import numpy as np

#: dtype -> (relative to the element, relative to the largest element of the result or 1). What is
#: computed in float32 sums in another order than float64 does; 16-bit results are rounded once:
#: half a unit in the last place.
TOLERANCES = {
    "float64": (1e-12, 1e-13),
    "float32": (1e-5, 2e-6),
    "float16": (6e-4, 3e-6),
    "bfloat16": (4.5e-3, 3e-6),
}


def assert_close(
    got, expected, *, wider: float = 1.0, what: str = "", spreads: bool = False
) -> None:
    """`got` equals the float64 array `expected` within the tolerance of got's dtype, times `wider`.

    NaN and infinities have to be in the same places with the same signs; with `spreads`, wherever
    `expected` has either there has to be either in `got`, which may have more of them.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, expected, err_msg=what)
        return
    relative, absolute = TOLERANCES[got.dtype.name]
    with np.errstate(all="ignore"):
        rounded = expected.astype(got.dtype).astype(np.float64)
    expected = np.where(
        np.isfinite(rounded), expected, rounded
    )  # infinite where the dtype overflows
    got = got.astype(np.float64)
    finite = np.isfinite(expected)
    if spreads:
        assert not np.isfinite(got[~finite]).any(), f"{what}: finite where the reference is not"
        finite &= np.isfinite(got)
    else:
        np.testing.assert_array_equal(
            got[~finite], expected[~finite], err_msg=f"{what}: NaN and infinities"
        )
        assert np.isfinite(got[finite]).all(), f"{what}: NaN or inf where the reference is finite"
    scale = np.abs(expected[finite]).max(initial=1.0)
    allowed = wider * (relative * np.abs(expected[finite]) + absolute * scale)
    error = np.abs(got[finite] - expected[finite])
    worst = np.argmax(error / allowed) if error.size else 0
    assert (error <= allowed).all(), (
        f"{what}: off by {error[worst]:.3g} at a value of {expected[finite][worst]:.6g}, "
        f"allowed {allowed[worst]:.3g}; {(error > allowed).sum()} of {error.size} elements are off"
    )
