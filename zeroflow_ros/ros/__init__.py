# SPDX-License-Identifier: Apache-2.0
"""What knows ROS: messages, parameters, publishers, subscriptions, tf, markers."""
