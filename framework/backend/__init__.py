"""Devices, memory and random state."""

from framework.backend import cuda as cuda
from framework.backend.device import (
    Device as Device,
    DeviceError as DeviceError,
    default_device as default_device,
    set_default_device as set_default_device,
)
