"""The named conventions against PyTorch's, Keras' and TensorFlow's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyopt.quantization import Integer, codes_of, dequantize, quantize
from polyopt.testing import assert_close, assert_same_bits

DEPRECATED = "ignore:.*quantized tensor creation functions:UserWarning"


def weights() -> Any:
    x = np.random.default_rng(7).standard_normal((24, 50)).astype(np.float32)
    return x * np.logspace(-3, 1, 24, dtype=np.float32)[:, None] + np.float32(0.02)


@pytest.mark.filterwarnings(DEPRECATED)
def test_torch_codes_for_one_scale() -> None:
    import torch

    x = torch.tensor(weights())
    q = quantize(x, Integer(per="tensor", symmetric=False, convention="torch"))
    theirs = torch.quantize_per_tensor(x, float(q.scale), int(q.zero_point), torch.qint8)
    assert_same_bits(q.codes, theirs.int_repr().numpy())
    assert_close(dequantize(q), theirs.dequantize().numpy(), because="one difference, one product")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", DEPRECATED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_torch_observer_for_one_scale(symmetric: bool) -> None:
    import torch
    from torch.ao.quantization.observer import MinMaxObserver

    x = torch.tensor(weights())
    kind = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    observer = MinMaxObserver(dtype=torch.qint8, qscheme=kind)
    observer(x)
    scale, zero = observer.calculate_qparams()
    q = quantize(x, Integer(per="tensor", symmetric=symmetric, convention="torch"))
    assert_same_bits(np.asarray(q.scale), scale.numpy()[0] if scale.ndim else scale.numpy())
    assert int(zero) == (0 if symmetric else int(q.zero_point))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", DEPRECATED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_torch_observer_and_codes_by_channel(symmetric: bool) -> None:
    import torch
    from torch.ao.quantization.observer import PerChannelMinMaxObserver

    x = torch.tensor(weights())
    kind = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=kind)
    observer(x)
    scale, zero = observer.calculate_qparams()
    q = quantize(x, Integer(symmetric=symmetric, convention="torch"))
    assert_same_bits(np.asarray(q.scale)[:, 0], scale.numpy())
    if not symmetric:
        assert_same_bits(np.asarray(q.zero_point)[:, 0], zero.numpy().astype(np.int8))
    theirs = torch.quantize_per_channel(x, scale.double(), zero, 0, torch.qint8)
    assert_same_bits(q.codes, theirs.int_repr().numpy())


@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
@pytest.mark.parametrize("bits", [8, 4])
def test_keras_abs_max(axis: Any, bits: int) -> None:
    from keras import quantizers

    x = weights()
    high = 2 ** (bits - 1) - 1
    codes, inverse = quantizers.abs_max_quantize(x, axis=axis, value_range=(-high, high), to_numpy=True)
    scheme = (
        Integer(bits, "tensor", convention="keras")
        if isinstance(axis, tuple)
        else Integer(bits, axis=1 - axis, convention="keras")
    )
    q = quantize(x, scheme)
    assert_same_bits(codes_of(q), np.asarray(codes))
    assert_same_bits(q.scale, (np.float32(1) / np.asarray(inverse)).reshape(q.scale.shape))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_tensorflow_fake_quant(bits: int, narrow: bool) -> None:
    import tensorflow as tf

    x = weights()
    scheme = Integer(bits, "tensor", symmetric=False, convention="tensorflow", narrow=narrow)
    theirs = tf.quantization.fake_quant_with_min_max_vars(
        x, float(x.min()), float(x.max()), num_bits=bits, narrow_range=narrow
    ).numpy()
    q = quantize(x, scheme)
    # Theirs is steps·s + least, in two roundings.
    step = float(q.scale)
    assert_close(
        dequantize(q), theirs, rtol=1e-6, atol=step * 1e-4, because="last bits of a point of the grid"
    )


def test_tensorflow_fake_quant_by_channel() -> None:
    import tensorflow as tf

    x = weights().T.copy()
    # It takes the range as it is given; ours always holds 0.
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(x, low, high).numpy()
    q = quantize(x, Integer(symmetric=False, convention="tensorflow"))
    atol = float(np.max(q.scale)) * 1e-4
    assert_close(dequantize(q), theirs, rtol=1e-6, atol=atol, because="last bits of a point of the grid")
