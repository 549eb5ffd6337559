# SPDX-License-Identifier: Apache-2.0
"""Random streets: layout, terrain, scenery, traffic, and the drive of the ego vehicle."""
