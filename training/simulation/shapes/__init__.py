# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes of the objects in a street."""
