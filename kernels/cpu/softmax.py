"""Loops of kernels/softmax.py.

Row loops take C-contiguous (rows, columns) arrays and are cut by rows between threads. Column loops
take (outer, n, inner), reduce over n, and go down COLUMN_BLOCK neighbouring columns at a time;
their tasks number the pairs (outer, block of columns). The block stays in L2 for the second and
third look at it up to n of about 2000.

fast_max does not look for NaN. It need not: a NaN makes the sum over the same row NaN, and that
reaches every result.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, load, store, whole
from kernels.cpu.rows import row_dot, row_exp_sum, row_max, row_softmax
from kernels.cpu.vectormath import absolute, exp, exp_nonpositive, fast_max, log

ZERO = np.float32(0)
ONE = np.float32(1)
INF = np.float32(np.inf)

#: Columns that a column loop takes together: 8 vectors of 16 floats, 512 bytes of each row.
COLUMN_BLOCK = 128

#: "No mask", as an array: a compiled loop takes one type only.
NO_MASK = np.empty((0, 0), np.bool_)
NO_MASK_COLUMNS = np.empty((0, 0, 0), np.bool_)

# Rows ---------------------------------------------------------------------------------------------
# The helpers look alike on purpose: each is one pass over one row, and LLVM vectorises a pass, not
# a row.


@jit(fastmath={"contract"}, forceinline=True)
def _log_p(x, m, log_s):
    """Not for `reassoc` to make x - (m + log_s) of: log_s would drown in a large maximum."""
    return (x - m) - log_s


@jit
def _max_masked(x, keep):
    m = -INF
    for i in range(x.shape[0]):
        m = fast_max(m, x[i] if keep[i] else -INF)
    return m


@jit
def _exp_sum_masked(x, m, keep):
    s = ZERO
    for i in range(x.shape[0]):
        s += exp(x[i] - m) if keep[i] else ZERO
    return s


@jit
def _softmax_masked(x, keep, out):
    m = _max_masked(x, keep)
    s = ZERO
    for i in range(x.shape[0]):
        e = exp_nonpositive(x[i] - m) if keep[i] else ZERO
        out[i] = e
        s += e
    scale = ONE / s
    for i in range(x.shape[0]):
        out[i] = out[i] * scale if keep[i] else ZERO


@loop("x", "mask", "out")
def softmax(x, mask, out):
    """out = softmax of each row of x; `mask` is NO_MASK or like x."""
    if mask.shape[0] == 0:
        for r in range(x.shape[0]):
            row_softmax(x[r], row_max(x[r]), out[r])
    else:
        for r in range(x.shape[0]):
            _softmax_masked(x[r], mask[r], out[r])


@jit(forceinline=True)
def _log_softmax(x, out):
    full = whole(x.shape[0])
    m = row_max(x)
    log_s = log(row_exp_sum(x, m))
    for i in range(0, full, LANES):
        store(out, i, LANES, (load(x, i, LANES) - m) - log_s)
    rest = x.shape[0] - full
    store(out, full, rest, (load(x, full, rest) - m) - log_s)


@jit
def _log_softmax_masked(x, keep, out):
    m = _max_masked(x, keep)
    log_s = log(_exp_sum_masked(x, m, keep))
    for i in range(x.shape[0]):
        out[i] = _log_p(x[i], m, log_s) if keep[i] else -INF


@loop("x", "mask", "out")
def log_softmax(x, mask, out):
    """out = log-softmax of each row of x; `mask` is NO_MASK or like x."""
    if mask.shape[0] == 0:
        for r in range(x.shape[0]):
            _log_softmax(x[r], out[r])
    else:
        for r in range(x.shape[0]):
            _log_softmax_masked(x[r], mask[r], out[r])


@jit
def _exp_sum(x, m):
    """For any m: the sum of a row with an infinity is infinite."""
    s = ZERO
    for i in range(x.shape[0]):
        s += exp(x[i] - m)
    return s


@jit
def _finite(m):
    return m if absolute(m) < INF else ZERO


@loop("x", "mask", "out")
def logsumexp(x, mask, out):
    """out (rows,) = log-sum-exp of each row of x; `mask` is NO_MASK or like x."""
    for r in range(x.shape[0]):
        if mask.shape[0] == 0:
            m = _finite(row_max(x[r]))
            s = _exp_sum(x[r], m)
        else:
            m = _finite(_max_masked(x[r], mask[r]))
            s = _exp_sum_masked(x[r], m, mask[r])
        out[r] = log(s) + m


@jit
def _logsumexp_grad(dy, x, y, out):
    for i in range(x.shape[0]):
        out[i] = dy * exp(x[i] - y)


@jit
def _logsumexp_grad_masked(dy, x, y, keep, out):
    for i in range(x.shape[0]):
        out[i] = dy * exp(x[i] - y) if keep[i] else ZERO


@loop("dy", "y", "x", "mask", "out")
def logsumexp_grad(dy, y, x, mask, out):
    """out = dy * e^(x - y) row by row, with one dy and one y a row."""
    if mask.shape[0] == 0:
        for r in range(x.shape[0]):
            _logsumexp_grad(dy[r], x[r], y[r], out[r])
    else:
        for r in range(x.shape[0]):
            _logsumexp_grad_masked(dy[r], x[r], y[r], mask[r], out[r])


@jit(forceinline=True)
def _softmax_grad(dy, y, out):
    full = whole(y.shape[0])
    rest = y.shape[0] - full
    s = row_dot(dy, y)
    for i in range(0, full, LANES):
        store(out, i, LANES, (load(dy, i, LANES) - s) * load(y, i, LANES))
    store(out, full, rest, (load(dy, full, rest) - s) * load(y, full, rest))


@loop("dy", "y", "out")
def softmax_grad(dy, y, out):
    """out = (dy - sum of dy * y) * y, row by row."""
    for r in range(y.shape[0]):
        _softmax_grad(dy[r], y[r], out[r])


@jit(forceinline=True)
def _probability(log_p):
    """e^log_p; what is no log-probability, infinity say, comes out infinite."""
    return exp_nonpositive(np.float32(89) if log_p > np.float32(89) else log_p)


@jit
def _log_softmax_grad(dy, y, out):
    s = ZERO
    for i in range(y.shape[0]):
        s += ZERO if y[i] == -INF else dy[i]
    for i in range(y.shape[0]):
        out[i] = (ZERO if y[i] == -INF else dy[i]) - _probability(y[i]) * s


@loop("dy", "y", "out")
def log_softmax_grad(dy, y, out):
    """out = dy - e^y * (sum of dy), row by row; 0 where y is -inf."""
    for r in range(y.shape[0]):
        _log_softmax_grad(dy[r], y[r], out[r])


# Columns
# -------------------------------------------------------------------------------------------- Again
# a helper is one pass over one row, now of a block of columns, whose statistics m and s stay in L1.


@jit
def _place(task, inner):
    """Of a task: its outer index, its first column and the one after its last."""
    blocks = (inner + COLUMN_BLOCK - 1) // COLUMN_BLOCK
    first = task % blocks * COLUMN_BLOCK
    return task // blocks, first, min(first + COLUMN_BLOCK, inner)


@jit(allocates=True)
def _scratch():
    return np.empty(COLUMN_BLOCK, np.float32)


@jit
def _max_into(x, m):
    for i in range(m.shape[0]):
        m[i] = fast_max(m[i], x[i])


@jit
def _max_into_masked(x, keep, m):
    for i in range(m.shape[0]):
        m[i] = fast_max(m[i], x[i] if keep[i] else -INF)


@jit
def _column_max(x, mask, o, first, last, m):
    m[:] = -INF
    for j in range(x.shape[1]):
        if mask.shape[0] == 0:
            _max_into(x[o, j, first:last], m)
        else:
            _max_into_masked(x[o, j, first:last], mask[o, j, first:last], m)


@jit
def _exp_sum_into(x, m, s):
    for i in range(m.shape[0]):
        s[i] += exp(x[i] - m[i])


@jit
def _exp_sum_into_masked(x, keep, m, s):
    for i in range(m.shape[0]):
        s[i] += exp(x[i] - m[i]) if keep[i] else ZERO


@jit
def _column_exp_sum(x, mask, o, first, last, m, s):
    s[:] = ZERO
    for j in range(x.shape[1]):
        if mask.shape[0] == 0:
            _exp_sum_into(x[o, j, first:last], m, s)
        else:
            _exp_sum_into_masked(x[o, j, first:last], mask[o, j, first:last], m, s)


@jit
def _exp_into(x, m, s, out):
    for i in range(m.shape[0]):
        e = exp_nonpositive(x[i] - m[i])
        out[i] = e
        s[i] += e


@jit
def _exp_into_masked(x, keep, m, s, out):
    for i in range(m.shape[0]):
        e = exp_nonpositive(x[i] - m[i]) if keep[i] else ZERO
        out[i] = e
        s[i] += e


@jit
def _divide(s, out):
    for i in range(s.shape[0]):
        out[i] /= s[i]


@jit
def _divide_masked(s, keep, out):
    for i in range(s.shape[0]):
        out[i] = out[i] / s[i] if keep[i] else ZERO


@jit
def _softmax_columns(tasks, x, mask, out, peaks, sums):
    for t in range(tasks.shape[0]):
        o, first, last = _place(tasks[t], x.shape[2])
        m, s = peaks[: last - first], sums[: last - first]
        _column_max(x, mask, o, first, last, m)
        s[:] = ZERO
        if mask.shape[0] == 0:
            for j in range(x.shape[1]):
                _exp_into(x[o, j, first:last], m, s, out[o, j, first:last])
            for j in range(x.shape[1]):
                _divide(s, out[o, j, first:last])
        else:
            for j in range(x.shape[1]):
                keep = mask[o, j, first:last]
                _exp_into_masked(x[o, j, first:last], keep, m, s, out[o, j, first:last])
            for j in range(x.shape[1]):
                _divide_masked(s, mask[o, j, first:last], out[o, j, first:last])


@loop("tasks", allocates=True)
def softmax_columns(tasks, x, mask, out):
    """out = softmax of (outer, n, inner) x over n; `mask` is NO_MASK_COLUMNS or like x."""
    _softmax_columns(tasks, x, mask, out, _scratch(), _scratch())


@jit
def _logarithm(s):
    for i in range(s.shape[0]):
        s[i] = log(s[i])


@jit
def _subtract(x, m, log_s, out):
    for i in range(m.shape[0]):
        out[i] = _log_p(x[i], m[i], log_s[i])


@jit
def _subtract_masked(x, keep, m, log_s, out):
    for i in range(m.shape[0]):
        out[i] = _log_p(x[i], m[i], log_s[i]) if keep[i] else -INF


@jit
def _log_softmax_columns(tasks, x, mask, out, peaks, sums):
    for t in range(tasks.shape[0]):
        o, first, last = _place(tasks[t], x.shape[2])
        m, s = peaks[: last - first], sums[: last - first]
        _column_max(x, mask, o, first, last, m)
        _column_exp_sum(x, mask, o, first, last, m, s)
        _logarithm(s)
        for j in range(x.shape[1]):
            if mask.shape[0] == 0:
                _subtract(x[o, j, first:last], m, s, out[o, j, first:last])
            else:
                keep = mask[o, j, first:last]
                _subtract_masked(x[o, j, first:last], keep, m, s, out[o, j, first:last])


@loop("tasks", allocates=True)
def log_softmax_columns(tasks, x, mask, out):
    """out = log-softmax of (outer, n, inner) x over n; `mask` is NO_MASK_COLUMNS or like x."""
    _log_softmax_columns(tasks, x, mask, out, _scratch(), _scratch())


@jit
def _make_finite(m):
    for i in range(m.shape[0]):
        m[i] = _finite(m[i])


@jit
def _log_plus(s, m, out):
    for i in range(m.shape[0]):
        out[i] = log(s[i]) + m[i]


@jit
def _logsumexp_columns(tasks, x, mask, out, peaks, sums):
    for t in range(tasks.shape[0]):
        o, first, last = _place(tasks[t], x.shape[2])
        m, s = peaks[: last - first], sums[: last - first]
        _column_max(x, mask, o, first, last, m)
        _make_finite(m)
        _column_exp_sum(x, mask, o, first, last, m, s)
        _log_plus(s, m, out[o, 0, first:last])


@loop("tasks", allocates=True)
def logsumexp_columns(tasks, x, mask, out):
    """out (outer, 1, inner) = log-sum-exp of (outer, n, inner) x over n."""
    _logsumexp_columns(tasks, x, mask, out, _scratch(), _scratch())


@jit
def _dot_into(dy, y, s):
    for i in range(s.shape[0]):
        s[i] += dy[i] * y[i]


@jit
def _softmax_grad_into(dy, y, s, out):
    for i in range(s.shape[0]):
        out[i] = (dy[i] - s[i]) * y[i]


@jit
def _softmax_grad_columns(tasks, dy, y, out, sums):
    for t in range(tasks.shape[0]):
        o, first, last = _place(tasks[t], y.shape[2])
        s = sums[: last - first]
        s[:] = ZERO
        for j in range(y.shape[1]):
            _dot_into(dy[o, j, first:last], y[o, j, first:last], s)
        for j in range(y.shape[1]):
            _softmax_grad_into(dy[o, j, first:last], y[o, j, first:last], s, out[o, j, first:last])


@loop("tasks", allocates=True)
def softmax_grad_columns(tasks, dy, y, out):
    """out = (dy - sum of dy * y over n) * y of (outer, n, inner) arrays."""
    _softmax_grad_columns(tasks, dy, y, out, _scratch())


@jit
def _add_into(dy, y, s):
    for i in range(s.shape[0]):
        s[i] += ZERO if y[i] == -INF else dy[i]


@jit
def _log_softmax_grad_into(dy, y, s, out):
    for i in range(s.shape[0]):
        out[i] = (ZERO if y[i] == -INF else dy[i]) - _probability(y[i]) * s[i]


@jit
def _log_softmax_grad_columns(tasks, dy, y, out, sums):
    for t in range(tasks.shape[0]):
        o, first, last = _place(tasks[t], y.shape[2])
        s = sums[: last - first]
        s[:] = ZERO
        for j in range(y.shape[1]):
            _add_into(dy[o, j, first:last], y[o, j, first:last], s)
        for j in range(y.shape[1]):
            _log_softmax_grad_into(
                dy[o, j, first:last], y[o, j, first:last], s, out[o, j, first:last]
            )


@loop("tasks", allocates=True)
def log_softmax_grad_columns(tasks, dy, y, out):
    """out = dy - e^y * (sum of dy over n) of (outer, n, inner) arrays; 0 where y is -inf."""
    _log_softmax_grad_columns(tasks, dy, y, out, _scratch())
