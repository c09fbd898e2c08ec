"""Quantization: weights as integers or 16-bit floats, calibration, fake quantization, GPTQ, int8 products."""

from __future__ import annotations

from polyopt.models.linear_inputs import layer_inputs as layer_inputs
from polyopt.quantization.activations import quantize_inputs as quantize_inputs
from polyopt.quantization.calibration import Calibration as Calibration
from polyopt.quantization.calibration import Grid as Grid
from polyopt.quantization.calibration import calibrate as calibrate
from polyopt.quantization.fake import fake_quantize as fake_quantize
from polyopt.quantization.fake import fake_quantize_weight as fake_quantize_weight
from polyopt.quantization.gptq import gptq as gptq
from polyopt.quantization.layers import gptq_layers as gptq_layers
from polyopt.quantization.matmul import int8_linear as int8_linear
from polyopt.quantization.matmul import int8_matmul as int8_matmul
from polyopt.quantization.observers import MSE as MSE
from polyopt.quantization.observers import Entropy as Entropy
from polyopt.quantization.observers import MinMax as MinMax
from polyopt.quantization.observers import Observer as Observer
from polyopt.quantization.observers import Percentile as Percentile
from polyopt.quantization.record import Quantized as Quantized
from polyopt.quantization.record import codes_of as codes_of
from polyopt.quantization.reporting import LeafReport as LeafReport
from polyopt.quantization.reporting import Report as Report
from polyopt.quantization.reporting import report as report
from polyopt.quantization.saving import from_arrays as from_arrays
from polyopt.quantization.saving import load as load
from polyopt.quantization.saving import load_grids as load_grids
from polyopt.quantization.saving import moved as moved
from polyopt.quantization.saving import save as save
from polyopt.quantization.saving import to_arrays as to_arrays
from polyopt.quantization.scheme import Cast as Cast
from polyopt.quantization.scheme import Integer as Integer
from polyopt.quantization.weights import dequantize as dequantize
from polyopt.quantization.weights import quantize as quantize
