# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: the store, the jobs that fill it, and quality checks."""
