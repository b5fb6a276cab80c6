"""The emulator in place of CuPy, or the reason why it cannot be."""

import os

import pytest

from tests.cuda_emulator import cupy_module, programs


def require_emulator() -> None:
    """Skip without a C++ compiler; fail where FRAMEWORK_EMULATOR=required, as .ci/run has it."""
    reason = programs.missing()
    if reason and os.environ.get("FRAMEWORK_EMULATOR") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def cupy():
    """The module that `import cupy` gives within the test."""
    require_emulator()
    with cupy_module.installed() as module:
        yield module
