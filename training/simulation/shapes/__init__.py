# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes of what stands and moves in a street."""
