# SPDX-License-Identifier: Apache-2.0
# runtime: ROS 2, the flow node with its model, and replay; no torch.
#
#   docker build --target runtime --tag zeroflow_ros .
#   docker run --rm --network host --ipc host --user "$(id -u)" zeroflow_ros \
#     ros2 launch zeroflow_ros flow.launch.py input_topic:=/lidar/points odometry_topic:=/odom
#
# Host network and IPC let Fast DDS find the driver and share its memory; shared memory works between processes of
# one user only, hence the user.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base AS runtime

WORKDIR /workspace
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ubuntu 24.04 keeps pip out of its own packages; in this image nothing else needs them.
ENV PIP_BREAK_SYSTEM_PACKAGES=1

# What changes seldom first: package.xml through apt, the extras of setup.py through pip.
COPY package.xml src/zeroflow_ros/
# No versions are pinned: the ROS archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rosdep update --rosdistro "${ROS_DISTRO}" \
    && rosdep install --default-yes --from-paths src --ignore-src --dependency-types=exec \
    && rm -rf /var/lib/apt/lists/*
COPY setup.py setup.cfg src/zeroflow_ros/
COPY .ci/requirements.py src/zeroflow_ros/.ci/
RUN python3 src/zeroflow_ros/.ci/requirements.py speed replay registration \
    | pip3 install --no-cache-dir --requirement /dev/stdin

COPY LICENSE src/zeroflow_ros/
COPY resource src/zeroflow_ros/resource
COPY launch src/zeroflow_ros/launch
COPY config src/zeroflow_ros/config
COPY zeroflow_ros src/zeroflow_ros/zeroflow_ros
RUN . "/opt/ros/${ROS_DISTRO}/setup.bash" \
    && colcon build \
    && rm -rf build log \
    && useradd --create-home --uid 1001 flow
USER 1001

# Any user may run this image (--user), so what is written at run time goes where everybody may write.
ENV ROS_LOG_DIR=/tmp/ros_log NUMBA_CACHE_DIR=/tmp/numba_cache
ENTRYPOINT ["/bin/bash", "-c", ". /workspace/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "zeroflow_ros", "flow.launch.py"]
