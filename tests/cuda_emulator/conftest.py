"""The emulator in place of CuPy, or the reason why it cannot be."""

import pytest

from tests.conftest import skip_or_fail
from tests.cuda_emulator import cupy_module, programs


def require_emulator() -> None:
    """Skip, or fail, without a C++ compiler."""
    skip_or_fail(programs.missing())


@pytest.fixture
def cupy():
    """The module that `import cupy` gives within the test."""
    require_emulator()
    with cupy_module.installed() as module:
        yield module
