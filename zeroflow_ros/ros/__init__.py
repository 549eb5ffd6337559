# SPDX-License-Identifier: Apache-2.0
"""Code that depends on ROS: messages, parameters, publishers, subscriptions, tf, markers."""
