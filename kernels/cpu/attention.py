"""Loops of kernels/attention.py: tiles of 64 queries by some keys, in which a lane is a query.

Scores, weights and outputs of a tile are held with their queries side by side (S^T, P^T, O^T), so
that the softmax over keys goes down columns, without sums across lanes. Then keys and values are
read as they lie, element by element into all lanes; only queries (and output gradients) are
turned, once a tile. What a causal mask or a window hides is left out in steps of 16 keys by 16
queries.

A thread owns whole tiles forward, whole heads of keys backward, and whole tiles of a mask: no sum
depends on how many threads there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu.engine import define, jit, loop
from kernels.cpu.lanes import (
    LANES,
    bytes_at,
    each,
    floats_at,
    load,
    longs_at,
    select,
    spread,
    store,
    total,
    turn,
)
from kernels.cpu.philox import LOW, SHIFT, philox
from kernels.cpu.vectormath import exp_nonpositive, fast_max, log

#: Queries of a tile: four registers.
ROWS = 64

#: Keys of a tile: with 64 queries 32 KiB of weights forward, twice 16 backward, in L1 or near it.
KEYS, KEYS_BACK = 128, 64

ZERO, ONE = np.float32(0), np.float32(1)
INF, MINUS_INF = np.float32(np.inf), np.float32(-np.inf)
_NONE = np.uint64(0)

#: No gradient of a mask is asked for.
NOWHERE = (0, 0, 0, 0, 0, 0, 0, 0)


# Products -----------------------------------------------------------------------------------------


def _tile(rows: int, registers: int) -> Any:
    """A compiled c[ci + r cr + j] (+)= sum over k < n of a[ai + r ar + k ak] b[bi + k bk + j], for
    `rows` r and 16 * `registers` j, added to what is there if `more`.
    """
    down, across = range(rows), range(registers)
    lines = [f"def tile_{rows}x{registers}(a, ai, ar, ak, b, bi, bk, c, ci, cr, n, more):"]
    lines += [f"    c{r} = ci + {r} * cr" for r in down]
    lines += ["    if more:"]
    lines += [f"        s{r}_{j} = load(c, c{r} + {16 * j}, 16)" for r in down for j in across]
    lines += ["    else:"]
    lines += [f"        s{r}_{j} = each(ZERO)" for r in down for j in across]
    lines += ["    for k in range(n):"]
    lines += [f"        y{j} = load(b, bi + {16 * j}, 16)" for j in across]
    for r in down:
        lines += [f"        x = spread(a, ai + {r} * ar)"]
        lines += [f"        s{r}_{j} += x * y{j}" for j in across]
    lines += ["        ai += ak", "        bi += bk"]
    lines += [f"    store(c, c{r} + {16 * j}, 16, s{r}_{j})" for r in down for j in across]
    names = {"load": load, "each": each, "spread": spread, "store": store, "ZERO": ZERO}
    return jit(define(f"tile_{rows}x{registers}", "\n".join(lines) + "\n", **names))


_four4, _one4 = _tile(4, 4), _tile(1, 4)
_four3, _one3 = _tile(4, 3), _tile(1, 3)
_eight2, _one2 = _tile(8, 2), _tile(1, 2)
_eight1, _one1 = _tile(8, 1), _tile(1, 1)


@jit
def _product(a, ai, ar, ak, b, bi, bk, c, ci, cr, rows, registers, n, more):
    """The same for any number of rows and registers."""
    j = 0
    while j < registers:
        wide = min(4, registers - j)
        x, y = bi + LANES * j, ci + LANES * j
        step = 4 if wide > 2 else 8
        r = 0
        while r < rows:
            whole = rows - r >= step
            i, k = ai + r * ar, y + r * cr
            if wide == 4:
                if whole:
                    _four4(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
                else:
                    _one4(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
            elif wide == 3:
                if whole:
                    _four3(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
                else:
                    _one3(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
            elif wide == 2:
                if whole:
                    _eight2(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
                else:
                    _one2(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
            elif whole:
                _eight1(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
            else:
                _one1(a, i, ar, ak, b, x, bk, c, k, cr, n, more)
            r += step if whole else 1
        j += wide


# What is seen -------------------------------------------------------------------------------------


@jit(forceinline=True)
def _floor(i):
    return i // LANES * LANES


@jit
def _key_range(first, rows, causal, window, keys):
    """The keys that the queries at positions first, ..., first + rows - 1 may see."""
    low, high = 0, keys
    if causal:
        high = min(high, first + rows)
    if window > 0:
        low = max(0, first - window + 1)
        high = min(high, first + rows - 1 + window)
    return _floor(low), high


@jit
def _registers(key, first, columns, causal, window):
    """Which registers of queries may see one of the 16 keys from `key` on: from, to."""
    start, stop = 0, columns
    if causal:
        start = max(0, (key - first) // LANES)
    if window > 0:
        last = key + LANES - 1 + window - 1 - first  # the last query that sees a key of these
        stop = min(stop, last // LANES + 1) if last >= 0 else 0
        if not causal:
            start = max(start, (key - window + 1 - first) // LANES)
    return start, stop


@jit
def _stretch(key, stop, first, columns, causal, window):
    """Keys from `key` on that the same registers see: their end, and the registers."""
    start, end = _registers(key, first, columns, causal, window)
    key += LANES
    while key < stop:
        other, another = _registers(key, first, columns, causal, window)
        if other != start or another != end:
            break
        key += LANES
    return min(key, stop), start, end


@jit
def _hide(scores, row, key, stop, start, end, first, causal, window, slope, positions):
    """Slopes, and -inf where a key is not seen, on the rows of scores from `row` on."""
    for i in range(start, end):
        low = first + LANES * i
        ahead = causal and stop - 1 > low
        behind = window > 0 and low + LANES - 1 - key >= window
        before = window > 0 and not causal and stop - 1 - low >= window
        if not (ahead or behind or before or slope != ZERO):
            continue
        position = load(positions, LANES * i, LANES)
        reach = np.float32(window) if window > 0 else INF
        for s in range(key, stop):
            place = (row + s - key) * ROWS + LANES * i
            distance = position - np.float32(s)
            far = fast_max(distance, -distance)
            x = load(scores, place, LANES) - far * slope
            x = select(far < reach, x, MINUS_INF)
            if causal:
                x = select(distance < ZERO, MINUS_INF, x)
            store(scores, place, LANES, x)


@jit
def _mask(scores, row, key, stop, start, end, first, rows, address, kind, t_step, s_step, square):
    """A mask at `address`, of bytes (kind 1) or of numbers (2), for rows `first` and on."""
    seen, added = bytes_at(address), floats_at(address)
    if t_step == 0:  # of keys alone
        for s in range(key, stop):
            i = s * s_step
            more = added[i // 4] if kind == 2 else select(seen[i] == 0, MINUS_INF, ZERO)
            if more == ZERO:
                continue
            place = (row + s - key) * ROWS
            for t in range(place + LANES * start, place + LANES * end, LANES):
                x = load(scores, t, LANES) + more
                store(scores, t, LANES, each(MINUS_INF) if more == MINUS_INF else x)
        return
    done = key
    if kind == 2 and s_step == 4:
        while done + LANES <= stop:
            for i in range(start, end):
                place, left = (row + done - key) * ROWS + LANES * i, min(LANES, rows - LANES * i)
                line = (first + LANES * i) * t_step // 4 + done
                turn(added, line, t_step // 4, left, square, 0, LANES, LANES)
                for k in range(LANES):
                    more = load(square, LANES * k, LANES)
                    x = load(scores, place, LANES) + more
                    store(scores, place, LANES, select(more == MINUS_INF, MINUS_INF, x))
                    place += ROWS
            done += LANES
    for s in range(done, stop):
        place = (row + s - key) * ROWS
        for t in range(LANES * start, min(LANES * end, rows)):
            i = (first + t) * t_step + s * s_step
            if kind == 1:
                scores[place + t] = select(seen[i] == 0, MINUS_INF, scores[place + t])
            elif added[i // 4] == MINUS_INF:
                scores[place + t] = MINUS_INF
            else:
                scores[place + t] += added[i // 4]


@jit
def _draw(keep, row, wide, key, stop, seed, offset, drop, scale):
    """keep (key, query) = `scale` where a weight stays, else 0; `row` is the first query's."""
    k0, k1 = seed & LOW, seed >> SHIFT
    for eight in range(key // 8, (stop + 7) // 8):
        first = (8 * eight - key) * ROWS
        for t in range(ROWS):
            c = offset + np.uint64((row + t) * (wide // 8) + eight)
            words = philox(c, c >> SHIFT, _NONE, _NONE, k0, k1)
            for j in range(4):
                low = np.int64(words[j] & np.uint64(0xFFFF))
                high = np.int64((words[j] >> np.uint64(16)) & np.uint64(0xFFFF))
                keep[first + 2 * j * ROWS + t] = scale if low >= drop else ZERO
                keep[first + (2 * j + 1) * ROWS + t] = scale if high >= drop else ZERO


@jit
def _turn_rows(x, first, step, rows, columns, out):
    """Rows of x, `step` apart, as columns of out (columns, ROWS); 0 beyond them."""
    for d in range(0, columns, LANES):
        for i in range(0, ROWS, LANES):
            turn(x, first + i * step + d, step, rows - i, out, d * ROWS + i, ROWS, LANES)


@jit
def _turn_back(x, out, first, step, rows, columns):
    """Columns of x (columns, ROWS) as rows of out."""
    for d in range(0, columns, LANES):
        for i in range(0, rows, LANES):
            turn(x, d * ROWS + i, ROWS, LANES, out, first + i * step + d, step, rows - i)


@jit
def _scale(x, count, factor):
    for i in range(0, count, LANES):
        store(x, i, LANES, load(x, i, LANES) * factor)


@jit
def _fill(x, first, count, value):
    for i in range(first, first + count, LANES):
        store(x, i, LANES, each(value))


# Forward ------------------------------------------------------------------------------------------


@jit
def _peaks(scores, row, count, start, end, peaks):
    """peaks = the largest score of each query so far."""
    for i in range(LANES * start, LANES * end, LANES):
        a = load(peaks, i, LANES)
        b = c = d = a
        place = row * ROWS + i
        four = count // 4 * 4
        for _ in range(0, four, 4):
            a = fast_max(a, load(scores, place, LANES))
            b = fast_max(b, load(scores, place + ROWS, LANES))
            c = fast_max(c, load(scores, place + 2 * ROWS, LANES))
            d = fast_max(d, load(scores, place + 3 * ROWS, LANES))
            place += 4 * ROWS
        for _ in range(four, count):
            a = fast_max(a, load(scores, place, LANES))
            place += ROWS
        store(peaks, i, LANES, fast_max(fast_max(a, b), fast_max(c, d)))


@jit
def _exponentials(scores, row, count, start, end, peaks, sums):
    """scores = e^(score - peak), added up in sums."""
    for i in range(LANES * start, LANES * end, LANES):
        m = load(peaks, i, LANES)
        s = load(sums, i, LANES)
        place = row * ROWS + i
        four = count // 4 * 4
        for _ in range(0, four, 4):
            a = exp_nonpositive(load(scores, place, LANES) - m)
            b = exp_nonpositive(load(scores, place + ROWS, LANES) - m)
            c = exp_nonpositive(load(scores, place + 2 * ROWS, LANES) - m)
            d = exp_nonpositive(load(scores, place + 3 * ROWS, LANES) - m)
            store(scores, place, LANES, a)
            store(scores, place + ROWS, LANES, b)
            store(scores, place + 2 * ROWS, LANES, c)
            store(scores, place + 3 * ROWS, LANES, d)
            s += (a + b) + (c + d)
            place += 4 * ROWS
        for _ in range(four, count):
            a = exp_nonpositive(load(scores, place, LANES) - m)
            store(scores, place, LANES, a)
            s += a
            place += ROWS
        store(sums, i, LANES, s)


@jit
def _thin(weights, keep, row, count, start, end):
    """weights *= keep, 0 where it is 0."""
    for s in range(row, row + count):
        for i in range(s * ROWS + LANES * start, s * ROWS + LANES * end, LANES):
            factor = load(keep, i, LANES)
            store(weights, i, LANES, select(factor == ZERO, ZERO, load(weights, i, LANES) * factor))


@jit
def _move_peaks(before, now, sums, out, columns, first):
    """What was added up by the peaks before is made relative to those now; -inf becomes 0."""
    for i in range(0, ROWS, LANES):
        new = load(now, i, LANES)
        old = load(before, i, LANES)
        safe = select(new == MINUS_INF, ZERO, new)
        store(now, i, LANES, safe)
        store(before, i, LANES, new)
        if first or total(select(new > old, ONE, ZERO)) == ZERO:
            continue
        factor = exp_nonpositive(old - safe)
        store(sums, i, LANES, load(sums, i, LANES) * factor)
        for place in range(i, columns * ROWS, ROWS):
            store(out, place, LANES, load(out, place, LANES) * factor)


@jit
def _forward_tile(
    task, addresses, sizes, steps, scale, seed, offset, kept,
    qt, ot, p, keep, m, peaks, sums, at, square,
):  # fmt: skip
    q, k, v, out, lse = (
        floats_at(addresses[0]),
        floats_at(addresses[1]),
        floats_at(addresses[2]),
        floats_at(addresses[3]),
        floats_at(addresses[4]),
    )
    _, H, T, S, D, G, causal, window, begin, kind, drop, wide, E = sizes
    tiles = (T + ROWS - 1) // ROWS
    b, h, t = task // tiles // H, task // tiles % H, task % tiles * ROWS
    g = h // (H // G)
    rows = min(ROWS, T - t)
    columns = (rows + LANES - 1) // LANES
    first = begin + t
    keys = S if addresses[6] == 0 else min(S, longs_at(addresses[6])[b])
    slope = ZERO if addresses[7] == 0 else floats_at(addresses[7])[h]
    k0, ks = b * steps[3] + g * steps[4], steps[5]
    v0, vs = b * steps[6] + g * steps[7], steps[8]
    mask = addresses[5] + b * steps[12] + h * steps[13]
    _turn_rows(q, b * steps[0] + h * steps[1] + t * steps[2], steps[2], rows, D, qt)
    _scale(qt, D * ROWS, scale)
    _fill(ot, 0, E * ROWS, ZERO)
    _fill(m, 0, ROWS, MINUS_INF)
    _fill(sums, 0, ROWS, ZERO)
    for i in range(ROWS):
        at[i] = np.float32(first + i)
    low, high = _key_range(first, rows, causal, window, keys)
    block = low
    while block < high:
        stop = min(block + KEYS, high)
        for i in range(0, ROWS, LANES):
            store(peaks, i, LANES, load(m, i, LANES))
        key = block
        while key < stop:
            end, c0, c1 = _stretch(key, stop, first, columns, causal, window)
            if c0 < c1:
                row = key - block
                place = row * ROWS + LANES * c0
                _product(
                    k, k0 + key * ks, ks, 1, qt, LANES * c0, ROWS, p, place, ROWS,
                    end - key, c1 - c0, D, False,
                )  # fmt: skip
                _hide(p, row, key, end, c0, c1, first, causal, window, slope, at)
                if kind > 0:
                    _mask(
                        p, row, key, end, c0, c1, t, rows, mask, kind, steps[14], steps[15], square
                    )
                _peaks(p, row, end - key, c0, c1, peaks)
            key = end
        _move_peaks(m, peaks, sums, ot, E, block == low)
        if drop >= 0:
            _draw(keep, (b * H + h) * T + t, wide, block, stop, seed, offset, drop, kept)
        key = block
        while key < stop:
            end, c0, c1 = _stretch(key, stop, first, columns, causal, window)
            if c0 < c1:
                row = key - block
                _exponentials(p, row, end - key, c0, c1, peaks, sums)
                if drop >= 0:
                    _thin(p, keep, row, end - key, c0, c1)
                _product(
                    v, v0 + key * vs, 1, vs, p, row * ROWS + LANES * c0, ROWS, ot, LANES * c0,
                    ROWS, E, c1 - c0, end - key, True,
                )  # fmt: skip
            key = end
        block = stop
    for i in range(0, ROWS, LANES):
        s = load(sums, i, LANES)
        factor = select(s == ZERO, ZERO, ONE / s)
        for place in range(i, E * ROWS, ROWS):
            store(ot, place, LANES, load(ot, place, LANES) * factor)
    _turn_back(ot, out, b * steps[9] + h * steps[10] + t * steps[11], steps[11], rows, E)
    place = (b * H + h) * T + t
    for i in range(rows):
        top = m[i]
        lse[place + i] = (ZERO if top == MINUS_INF else top) + log(sums[i])


@loop("tasks", allocates=True)
def forward(tasks, addresses, sizes, steps, scale, seed, offset, kept):
    """Tiles of queries by number: heads of a sequence one after another, tiles of a head."""
    D, E = sizes[4], sizes[12]
    qt, ot = np.empty(D * ROWS, np.float32), np.empty(E * ROWS, np.float32)
    p = np.empty(KEYS * ROWS, np.float32)
    keep = np.empty(KEYS * ROWS if sizes[10] >= 0 else 0, np.float32)
    m, peaks = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    sums, at = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    square = np.empty(LANES * LANES, np.float32)
    for task in tasks:
        _forward_tile(
            task, addresses, sizes, steps, scale, seed, offset, kept,
            qt, ot, p, keep, m, peaks, sums, at, square,
        )  # fmt: skip


# Backward -----------------------------------------------------------------------------------------


@jit
def _slopes_of_scores(p, g, keep, count, start, end, lse, delta, scale, thin):
    """p, scores, become weights; g, dout v^T, the gradients of the scores, times the scale."""
    for i in range(LANES * start, LANES * end, LANES):
        shift, mean = load(lse, i, LANES), load(delta, i, LANES)
        for place in range(i, count * ROWS + i, ROWS):
            w = exp_nonpositive(load(p, place, LANES) - shift)
            dw = load(g, place, LANES)
            if thin:
                factor = load(keep, place, LANES)
                dw = select(factor == ZERO, ZERO, dw * factor)
                store(p, place, LANES, select(factor == ZERO, ZERO, w * factor))
            else:
                store(p, place, LANES, w)
            store(g, place, LANES, w * (dw - mean) * scale)


@jit
def _add_turned(g, count, start, end, first, rows, key, address, t_step, s_step, square):
    """Rows g of keys, from `key` on, added to where queries from `first` on come before keys."""
    to = floats_at(address)
    whole = rows // LANES  # registers of queries
    for i in range(start, end):
        done = 0
        if t_step == 0 and i < whole:
            for s in range(count):
                to[(key + s) * s_step // 4] += total(load(g, s * ROWS + LANES * i, LANES))
            continue
        if s_step == 4:
            while done + LANES <= count:
                turn(g, done * ROWS + LANES * i, ROWS, LANES, square, 0, LANES, LANES)
                line = (first + LANES * i) * t_step // 4 + key + done
                for t in range(min(LANES, rows - LANES * i)):
                    store(to, line, LANES, load(to, line, LANES) + load(square, LANES * t, LANES))
                    line += t_step // 4
                done += LANES
        for s in range(done, count):
            for t in range(LANES * i, min(LANES * i + LANES, rows)):
                to[((first + t) * t_step + (key + s) * s_step) // 4] += g[s * ROWS + t]


@jit
def _backward_tile(
    b, h, t, addresses, sizes, steps, scale, seed, offset, kept, into,
    qt, gt, dqt, p, g, keep, lse, delta, at, square,
):  # fmt: skip
    """dq of a tile of queries, and its part of dk and dv; or, where `into` has an address, its part
    of the gradient of the mask there.
    """
    q, k, v, out, dout = (
        floats_at(addresses[0]),
        floats_at(addresses[1]),
        floats_at(addresses[2]),
        floats_at(addresses[3]),
        floats_at(addresses[8]),
    )
    dq, dk, dv = floats_at(addresses[9]), floats_at(addresses[10]), floats_at(addresses[11])
    _, H, T, S, D, G, causal, window, begin, kind, drop, wide, E = sizes
    to_mask = into[0] + b * into[1] + h * into[2] if into[0] != 0 else 0
    group = h // (H // G)
    rows = min(ROWS, T - t)
    columns = (rows + LANES - 1) // LANES
    first = begin + t
    keys = S if addresses[6] == 0 else min(S, longs_at(addresses[6])[b])
    slope = ZERO if addresses[7] == 0 else floats_at(addresses[7])[h]
    q0, qs = b * steps[0] + h * steps[1] + t * steps[2], steps[2]
    k0, ks = b * steps[3] + group * steps[4], steps[5]
    v0, vs = b * steps[6] + group * steps[7], steps[8]
    o0, os = b * steps[9] + h * steps[10] + t * steps[11], steps[11]
    g0, gs = b * steps[16] + h * steps[17] + t * steps[18], steps[18]
    dk0, dks = b * steps[22] + group * steps[23], steps[24]
    dv0, dvs = b * steps[25] + group * steps[26], steps[27]
    mask = addresses[5] + b * steps[12] + h * steps[13]
    _turn_rows(q, q0, qs, rows, D, qt)
    _scale(qt, D * ROWS, scale)
    _turn_rows(dout, g0, gs, rows, E, gt)
    _fill(dqt, 0, D * ROWS, ZERO)
    _fill(lse, 0, ROWS, INF)
    _fill(delta, 0, ROWS, ZERO)
    given = floats_at(addresses[4])
    for i in range(rows):
        x = given[(b * H + h) * T + t + i]
        lse[i] = INF if x == MINUS_INF else x
        s = each(ZERO)
        for d in range(0, E, LANES):
            s += load(dout, g0 + i * gs + d, LANES) * load(out, o0 + i * os + d, LANES)
        delta[i] = total(s)
    for i in range(ROWS):
        at[i] = np.float32(first + i)
    key, high = _key_range(first, rows, causal, window, keys)
    while key < high:
        end, c0, c1 = _stretch(key, min(key + KEYS_BACK, high), first, columns, causal, window)
        if c0 < c1:
            n, c, left = end - key, c1 - c0, LANES * c0
            some = min(LANES * c1, rows) - left
            _product(k, k0 + key * ks, ks, 1, qt, left, ROWS, p, left, ROWS, n, c, D, False)
            _hide(p, 0, key, end, c0, c1, first, causal, window, slope, at)
            if kind > 0:
                _mask(p, 0, key, end, c0, c1, t, rows, mask, kind, steps[14], steps[15], square)
            _product(v, v0 + key * vs, vs, 1, gt, left, ROWS, g, left, ROWS, n, c, E, False)
            if drop >= 0:
                _draw(keep, (b * H + h) * T + t, wide, key, end, seed, offset, drop, kept)
            factor = scale if to_mask == 0 else ONE
            _slopes_of_scores(p, g, keep, n, c0, c1, lse, delta, factor, drop >= 0)
            if to_mask != 0:
                _add_turned(g, n, c0, c1, t, rows, key, to_mask, into[3], into[4], square)
                key = end
                continue
            _product(
                p, left, ROWS, 1, dout, g0 + left * gs, gs, dv, dv0 + key * dvs, dvs,
                n, E // LANES, some, True,
            )  # fmt: skip
            _product(
                g, left, ROWS, 1, q, q0 + left * qs, qs, dk, dk0 + key * dks, dks,
                n, D // LANES, some, True,
            )  # fmt: skip
            _product(k, k0 + key * ks, 1, ks, g, left, ROWS, dqt, left, ROWS, D, c, n, True)
        key = end
    if to_mask != 0:
        return
    _turn_back(dqt, dq, b * steps[19] + h * steps[20] + t * steps[21], steps[21], rows, D)


@loop("tasks", allocates=True)
def backward(tasks, addresses, sizes, steps, scale, seed, offset, kept, into):
    """Heads of keys by number: their gradients, and those of the queries that they serve.

    Or the gradient of a mask, `into`: its address, its steps in bytes over (B, H, T, S), which are
    0 where it is broadcast, its own B and H, and the tiles of its own rows. Tasks are those tiles;
    each adds up what is broadcast, in order.
    """
    B, H, T, S, D, G = sizes[:6]
    E = sizes[12]
    qt, gt = np.empty(D * ROWS, np.float32), np.empty(E * ROWS, np.float32)
    dqt = np.empty(D * ROWS, np.float32)
    p, g = np.empty(KEYS_BACK * ROWS, np.float32), np.empty(KEYS_BACK * ROWS, np.float32)
    keep = np.empty(KEYS_BACK * ROWS if sizes[10] >= 0 else 0, np.float32)
    lse, delta, at = (
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.float32),
    )
    square = np.empty(LANES * LANES, np.float32)
    dk, dv = floats_at(addresses[10]), floats_at(addresses[11])
    own_b, own_h, tiles = into[5], into[6], into[7]
    for task in tasks:
        if into[0] == 0:
            b0, group, t0 = task // G, task % G, 0
            b1, h0, h1, t1 = b0 + 1, group * (H // G), (group + 1) * (H // G), T
            for s in range(S):
                _fill(dk, b0 * steps[22] + group * steps[23] + s * steps[24], D, ZERO)
                _fill(dv, b0 * steps[25] + group * steps[26] + s * steps[27], E, ZERO)
        else:
            b0, h0, t0 = task // tiles // own_h, task // tiles % own_h, task % tiles * ROWS
            b1, h1 = B if own_b == 1 else b0 + 1, H if own_h == 1 else h0 + 1
            t1 = T if tiles == 1 else min(t0 + ROWS, T)
        for b in range(b0, b1):
            for h in range(h0, h1):
                for t in range(t0, t1, ROWS):
                    _backward_tile(
                        b, h, t, addresses, sizes, steps, scale, seed, offset, kept, into,
                        qt, gt, dqt, p, g, keep, lse, delta, at, square,
                    )  # fmt: skip
