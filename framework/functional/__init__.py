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
from framework.functional.convolution import (
    conv1d as conv1d,
    conv2d as conv2d,
    conv3d as conv3d,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    conv_transpose3d as conv_transpose3d,
)
from framework.functional.dropout import (
    channel_dropout as channel_dropout,
    dropout as dropout,
    locked_dropout as locked_dropout,
)
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
    local_response_norm as local_response_norm,
    rms_norm as rms_norm,
)
from framework.functional.pooling import (
    adaptive_avg_pool1d as adaptive_avg_pool1d,
    adaptive_avg_pool2d as adaptive_avg_pool2d,
    adaptive_avg_pool3d as adaptive_avg_pool3d,
    adaptive_max_pool1d as adaptive_max_pool1d,
    adaptive_max_pool2d as adaptive_max_pool2d,
    adaptive_max_pool3d as adaptive_max_pool3d,
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    avg_pool3d as avg_pool3d,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
    max_pool3d as max_pool3d,
    max_unpool1d as max_unpool1d,
    max_unpool2d as max_unpool2d,
    max_unpool3d as max_unpool3d,
)
from framework.functional.positions import rotary as rotary, rotary_angles as rotary_angles
from framework.functional.recurrent import gru as gru, lstm as lstm, rnn as rnn
from framework.functional.softmax import (
    log_softmax as log_softmax,
    logsumexp as logsumexp,
    softmax as softmax,
)
from framework.functional.unfolding import fold as fold, unfold as unfold
from framework.functional.upsampling import (
    interpolate as interpolate,
    pixel_shuffle as pixel_shuffle,
    pixel_unshuffle as pixel_unshuffle,
)
