# SPDX-License-Identifier: Apache-2.0
"""Scores: metrics, estimators, benchmark boards, and pictures of scores."""
