"""F: the differentiable kernels, file by file the mirror of kernels/."""

from framework.autograd.arithmetic import (
    absolute as absolute,
    add as add,
    clip as clip,
    cos as cos,
    divide as divide,
    einsum as einsum,
    erf as erf,
    exp as exp,
    log as log,
    matmul as matmul,
    maximum as maximum,
    minimum as minimum,
    multiply as multiply,
    power as power,
    sin as sin,
    sqrt as sqrt,
    subtract as subtract,
    where as where,
)
from framework.autograd.shaping import (
    concatenate as concatenate,
    expand as expand,
    flatten as flatten,
    pad as pad,
    permute as permute,
    reshape as reshape,
    split as split,
    squeeze as squeeze,
    stack as stack,
    transpose as transpose,
    unsqueeze as unsqueeze,
)
from framework.functional.activations import *  # noqa: F403
from framework.functional.attention import (
    alibi_slopes as alibi_slopes,
    packed_attention as packed_attention,
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from framework.functional.dropout import dropout as dropout
from framework.functional.embedding import (
    embedding as embedding,
    embedding_at_positions as embedding_at_positions,
    one_hot as one_hot,
)
from framework.functional.linear import (
    bilinear as bilinear,
    feed_forward as feed_forward,
    linear as linear,
)
from framework.functional.losses import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    cross_entropy as cross_entropy,
    hinge_loss as hinge_loss,
    huber_loss as huber_loss,
    kl_div as kl_div,
    l1_loss as l1_loss,
    linear_cross_entropy as linear_cross_entropy,
    mse_loss as mse_loss,
    nll_loss as nll_loss,
    smooth_l1_loss as smooth_l1_loss,
)
from framework.functional.normalization import (
    add_layer_norm as add_layer_norm,
    add_rms_norm as add_rms_norm,
    batch_norm as batch_norm,
    group_norm as group_norm,
    instance_norm as instance_norm,
    layer_norm as layer_norm,
    rms_norm as rms_norm,
)
from framework.functional.positions import rotary as rotary, rotary_angles as rotary_angles
from framework.functional.softmax import (
    log_softmax as log_softmax,
    logsumexp as logsumexp,
    softmax as softmax,
)
