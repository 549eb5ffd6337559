# SPDX-License-Identifier: Apache-2.0
"""How numbers are stored in 8 bits."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quantization:
    """real = (stored - zero_point) * scale, stored as uint8, as ONNX defines it; scale is a float32."""

    scale: float
    zero_point: int

    def stored(self, real: np.ndarray) -> np.ndarray:
        """Return real numbers, float32, as stored: rounded to the nearest, halves to even; uint8 of the same shape."""
        return np.clip(np.rint(real / np.float32(self.scale)) + self.zero_point, 0, 255).astype(np.uint8)

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Return stored numbers, uint8, as real ones; float32 of the same shape."""
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
