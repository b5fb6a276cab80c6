"""Tensors and the tape that differentiates through them."""

from framework.autograd.casting import autocast as autocast
from framework.autograd.gradcheck import gradcheck as gradcheck
from framework.autograd.graph import (
    is_grad_enabled as is_grad_enabled,
    no_grad as no_grad,
    record as record,
    set_grad_enabled as set_grad_enabled,
)
from framework.autograd.tensor import (
    Parameter as Parameter,
    Tensor as Tensor,
    from_dlpack as from_dlpack,
    tensor as tensor,
)
