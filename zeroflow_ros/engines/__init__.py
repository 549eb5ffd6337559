# SPDX-License-Identifier: Apache-2.0
"""Run a model file: model card, ONNX Runtime, TensorRT, CUDA, parity."""
