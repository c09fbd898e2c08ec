"""Ops on TensorFlow: ``tf.*`` with the names, dtype promotion and special values of the array API standard.

``tf.experimental.numpy`` is not used: its promotion is a process-wide switch. Variables count as arrays
everywhere; a result is always a tensor.
"""

from __future__ import annotations

from tensorflow import bfloat16 as bfloat16
from tensorflow import bool as bool
from tensorflow import float16 as float16
from tensorflow import float32 as float32
from tensorflow import float64 as float64
from tensorflow import int8 as int8
from tensorflow import int16 as int16
from tensorflow import int32 as int32
from tensorflow import int64 as int64
from tensorflow import uint8 as uint8

from polyopt_tensorflow.creation import arange as arange
from polyopt_tensorflow.creation import asarray as asarray
from polyopt_tensorflow.creation import full as full
from polyopt_tensorflow.creation import full_like as full_like
from polyopt_tensorflow.creation import ones as ones
from polyopt_tensorflow.creation import ones_like as ones_like
from polyopt_tensorflow.creation import zeros as zeros
from polyopt_tensorflow.creation import zeros_like as zeros_like
from polyopt_tensorflow.dtypes import finfo as finfo
from polyopt_tensorflow.dtypes import isdtype as isdtype
from polyopt_tensorflow.dtypes import result_type as result_type
from polyopt_tensorflow.elementwise import abs as abs
from polyopt_tensorflow.elementwise import add as add
from polyopt_tensorflow.elementwise import astype as astype
from polyopt_tensorflow.elementwise import ceil as ceil
from polyopt_tensorflow.elementwise import clip as clip
from polyopt_tensorflow.elementwise import cos as cos
from polyopt_tensorflow.elementwise import divide as divide
from polyopt_tensorflow.elementwise import equal as equal
from polyopt_tensorflow.elementwise import exp as exp
from polyopt_tensorflow.elementwise import expm1 as expm1
from polyopt_tensorflow.elementwise import floor as floor
from polyopt_tensorflow.elementwise import greater as greater
from polyopt_tensorflow.elementwise import greater_equal as greater_equal
from polyopt_tensorflow.elementwise import isfinite as isfinite
from polyopt_tensorflow.elementwise import isinf as isinf
from polyopt_tensorflow.elementwise import isnan as isnan
from polyopt_tensorflow.elementwise import less as less
from polyopt_tensorflow.elementwise import less_equal as less_equal
from polyopt_tensorflow.elementwise import log as log
from polyopt_tensorflow.elementwise import log1p as log1p
from polyopt_tensorflow.elementwise import logical_and as logical_and
from polyopt_tensorflow.elementwise import logical_not as logical_not
from polyopt_tensorflow.elementwise import logical_or as logical_or
from polyopt_tensorflow.elementwise import maximum as maximum
from polyopt_tensorflow.elementwise import minimum as minimum
from polyopt_tensorflow.elementwise import multiply as multiply
from polyopt_tensorflow.elementwise import negative as negative
from polyopt_tensorflow.elementwise import not_equal as not_equal
from polyopt_tensorflow.elementwise import pow as pow
from polyopt_tensorflow.elementwise import round as round
from polyopt_tensorflow.elementwise import sign as sign
from polyopt_tensorflow.elementwise import sqrt as sqrt
from polyopt_tensorflow.elementwise import square as square
from polyopt_tensorflow.elementwise import subtract as subtract
from polyopt_tensorflow.elementwise import tanh as tanh
from polyopt_tensorflow.elementwise import where as where
from polyopt_tensorflow.shaping import all as all
from polyopt_tensorflow.shaping import any as any
from polyopt_tensorflow.shaping import argmax as argmax
from polyopt_tensorflow.shaping import broadcast_to as broadcast_to
from polyopt_tensorflow.shaping import concat as concat
from polyopt_tensorflow.shaping import expand_dims as expand_dims
from polyopt_tensorflow.shaping import matmul as matmul
from polyopt_tensorflow.shaping import matrix_transpose as matrix_transpose
from polyopt_tensorflow.shaping import max as max
from polyopt_tensorflow.shaping import mean as mean
from polyopt_tensorflow.shaping import min as min
from polyopt_tensorflow.shaping import permute_dims as permute_dims
from polyopt_tensorflow.shaping import repeat_until as repeat_until
from polyopt_tensorflow.shaping import reshape as reshape
from polyopt_tensorflow.shaping import squeeze as squeeze
from polyopt_tensorflow.shaping import stack as stack
from polyopt_tensorflow.shaping import sum as sum
from polyopt_tensorflow.shaping import take as take
from polyopt_tensorflow.shaping import take_along_axis as take_along_axis
