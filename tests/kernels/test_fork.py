"""A process forked after a parallel loop: OpenMP would end it, were it asked for threads."""

import os
import subprocess
import sys

import pytest

from kernels.registry import has_numba

CODE = """
import os, sys
import numpy as np
from kernels import matmul, softmax

def work():
    y = softmax.softmax(x)
    p = matmul.matmul(x, x[:300], transpose_b=True)
    return float(y.sum()), float(abs(p).sum())

x = np.random.default_rng(0).standard_normal((600, 400)).astype(np.float32)
ours = work()
child = os.fork()
if child == 0:
    theirs = work()
    os._exit(0 if np.allclose(ours, theirs) else 7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_a_forked_process_computes_on_one_thread():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], timeout=300)
    assert run.returncode == 0
