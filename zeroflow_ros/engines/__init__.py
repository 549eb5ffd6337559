# SPDX-License-Identifier: Apache-2.0
"""Engines that run a model file (ONNX Runtime, TensorRT), the model card, and parity checks."""
