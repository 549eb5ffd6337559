# SPDX-License-Identifier: Apache-2.0
"""A stereo camera in the simulated streets: surfaces with textures, light, images, and exact scene flow."""
