# SPDX-License-Identifier: Apache-2.0
"""Pictures, the Rerun viewer, arrows and reports."""
