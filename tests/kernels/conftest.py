"""Shared by the tests of kernels."""

from collections.abc import Callable

import pytest

from tests.kernels.tolerances import assert_close


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """`assert_close`."""
    return assert_close
