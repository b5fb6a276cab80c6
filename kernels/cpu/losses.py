"""Row loops of kernels/losses.py: one pass over each row of (rows, classes) logits gives its loss
and its gradient.

A row of up to some thousand classes stays in L1/L2 between its passes, so memory sees one read and
one write of an element. fast_max does not look for NaN; a NaN in the row makes the sum of
exponentials NaN, and with it loss and gradient.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.rows import row_exp_sum, row_max, row_softmax
from kernels.cpu.vectormath import exp_nonpositive, log

ZERO = np.float32(0)
ONE = np.float32(1)
INF = np.float32(np.inf)

#: "No weight" and "no gradient wanted", as arrays: a compiled loop takes one type only.
NO_WEIGHT = np.empty(0, np.float32)
NO_GRADIENT = np.empty((0, 0), np.float32)


@jit
def first_outside(targets, classes, ignore_index):
    """The first row whose target is neither a class nor `ignore_index`; -1 if there is none."""
    for r in range(targets.shape[0]):
        t = targets[r]
        if (t < 0 or t >= classes) and t != ignore_index:
            return r
    return -1


@jit(fastmath={"contract"}, forceinline=True)
def _minus_log_p(x, m, log_s):
    """Not for `reassoc` to make (m + log_s) - x of: log_s would drown in a large maximum."""
    return log_s - (x - m)


@jit
def _exp_into(x, m, out):
    s = ZERO
    for i in range(x.shape[0]):
        e = exp_nonpositive(x[i] - m)
        out[i] = e
        s += e
    return s


@jit
def _scale(out, factor):
    for i in range(out.shape[0]):
        out[i] *= factor


@jit
def _total(w):
    s = ZERO
    for i in range(w.shape[0]):
        s += w[i]
    return s


@jit
def _smooth_loss(x, m, log_s):
    """Minus the sum of the log-probabilities of a row with this maximum and log of the sum of
    exponentials.
    """
    s = ZERO
    for i in range(x.shape[0]):
        s += _minus_log_p(x[i], m, log_s)
    return s


@jit
def _smooth_loss_weighted(x, w, m, log_s):
    """The same, each times w; 0 where w is 0, be the log-probability -inf."""
    s = ZERO
    for i in range(x.shape[0]):
        s += ZERO if w[i] == ZERO else w[i] * _minus_log_p(x[i], m, log_s)
    return s


@jit
def _scale_and_take(out, factor, taken):
    for i in range(out.shape[0]):
        out[i] = out[i] * factor - taken


@jit
def _scale_and_take_weighted(out, factor, w, taken):
    for i in range(out.shape[0]):
        out[i] = out[i] * factor - w[i] * taken


@loop("logits", "targets", "shifts", "losses", "dlogits")
def cross_entropy_indices(logits, targets, ignore_index, shifts, losses, dlogits):
    """Losses and gradients for class indices in range. `shifts` (rows,) is scratch: the logarithms
    are taken at the end, of many rows at once.
    """
    gradient = dlogits.shape[0] > 0
    for r in range(logits.shape[0]):
        t = targets[r]
        if t == ignore_index:
            losses[r] = ONE
            shifts[r] = ZERO
            if gradient:
                dlogits[r, :] = ZERO
            continue
        x = logits[r]
        m = row_max(x)
        shifts[r] = x[t] - m
        if gradient:
            losses[r] = row_softmax(x, m, dlogits[r])
            dlogits[r, t] -= ONE
        else:
            losses[r] = row_exp_sum(x, m)
    for r in range(losses.shape[0]):
        losses[r] = _minus_log_p(shifts[r], ZERO, log(losses[r]))


@loop("logits", "targets", "losses", "dlogits")
def cross_entropy_weighted(logits, targets, weight, ignore_index, smoothing, losses, dlogits):
    """The same with class weights, (classes,) or NO_WEIGHT, and label smoothing."""
    classes = logits.shape[1]
    gradient = dlogits.shape[0] > 0
    weighted = weight.shape[0] > 0
    spread = smoothing / np.float32(classes)  # what each class gets of the smoothed target
    total = _total(weight) if weighted else np.float32(classes)
    for r in range(logits.shape[0]):
        t = targets[r]
        if t == ignore_index:
            losses[r] = ZERO
            if gradient:
                dlogits[r, :] = ZERO
            continue
        x = logits[r]
        m = row_max(x)
        s = _exp_into(x, m, dlogits[r]) if gradient else row_exp_sum(x, m)
        hit = (ONE - smoothing) * (weight[t] if weighted else ONE)
        log_s = log(s)
        # a class of weight 0 counts nothing, even at a logit of -inf
        loss = ZERO if hit == ZERO else hit * _minus_log_p(x[t], m, log_s)
        if smoothing > ZERO:
            if weighted:
                loss += spread * _smooth_loss_weighted(x, weight, m, log_s)
            else:
                loss += spread * _smooth_loss(x, m, log_s)
        losses[r] = loss
        if gradient:
            if smoothing > ZERO:
                factor = (hit + spread * total) / s
                if weighted:
                    _scale_and_take_weighted(dlogits[r], factor, weight, spread)
                else:
                    _scale_and_take(dlogits[r], factor, spread)
            else:
                _scale(dlogits[r], hit / s)
            dlogits[r, t] -= hit


@jit
def _distribution(p, smoothing, spread, q):
    for i in range(p.shape[0]):
        q[i] = p[i] * (ONE - smoothing) + spread


@jit
def _distribution_weighted(p, weight, smoothing, spread, q):
    for i in range(p.shape[0]):
        q[i] = weight[i] * (p[i] * (ONE - smoothing) + spread)


@jit
def _scale_and_subtract(out, factor, q):
    for i in range(out.shape[0]):
        out[i] = out[i] * factor - q[i]


@loop("logits", "p", "losses", "dlogits", allocates=True)
def cross_entropy_probabilities(logits, p, weight, smoothing, losses, dlogits):
    """Losses and gradients for target probabilities p, like logits; `weight` (classes,) or
    NO_WEIGHT.
    """
    classes = logits.shape[1]
    spread = smoothing / np.float32(classes)
    q = np.empty(classes, np.float32)
    for r in range(logits.shape[0]):
        x = logits[r]
        if weight.shape[0] == 0:
            _distribution(p[r], smoothing, spread, q)
        else:
            _distribution_weighted(p[r], weight, smoothing, spread, q)
        m = row_max(x)
        if dlogits.shape[0] > 0:
            s = _exp_into(x, m, dlogits[r])
            _scale_and_subtract(dlogits[r], _total(q) / s, q)
        else:
            s = row_exp_sum(x, m)
        losses[r] = _smooth_loss_weighted(x, q, m, log(s))


@jit
def _row_times(x, factor, out):
    for i in range(x.shape[0]):
        out[i] = x[i] * factor


@loop("dlogits", "dy", "out")
def cross_entropy_grad(dlogits, dy, out):
    """out = dlogits * dy, one dy a row."""
    for r in range(dlogits.shape[0]):
        _row_times(dlogits[r], dy[r], out[r])
