# SPDX-License-Identifier: Apache-2.0
"""Camera images, camera models, stereo pairs and the scene flow of their pixels, without ROS."""
