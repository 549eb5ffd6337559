# SPDX-License-Identifier: Apache-2.0
# runtime: ROS 2, the flow node with its model, and replay; on the CPU, no torch.
#
#   docker build --target runtime --tag zeroflow_ros .
#   docker run --rm --network host --ipc host --user "$(id -u)" zeroflow_ros \
#     ros2 launch zeroflow_ros flow.launch.py input_topic:=/lidar/points odometry_topic:=/odom
#
# Host network and IPC let Fast DDS find the driver and share its memory; shared memory works between processes of
# one user only, hence the user.
#
# runtime-tensorrt: runtime, and TensorRT beside it. An image of its own, because it is gigabytes that a vehicle
# without an NVIDIA GPU has no use for. The engine for the GPU is built at the first start; the mounted folder keeps it.
#
#   docker build --target runtime-tensorrt --tag zeroflow_ros:tensorrt .
#   docker run --rm --gpus all --network host --ipc host --user "$(id -u)" --volume "$PWD/engines:/engines" \
#     --env XDG_CACHE_HOME=/engines zeroflow_ros:tensorrt \
#     ros2 launch zeroflow_ros flow.launch.py engine:=tensorrt input_topic:=/lidar/points odometry_topic:=/odom
#
# training: labels, training, evaluation and export, for one command each; see the end of this file.
ARG ROS_DISTRO=jazzy
# Of the major version that the wheels of the extra `tensorrt` are built for.
ARG CUDA_VERSION=13.0.2

# pycuda comes as source only. The compiler and the CUDA headers that it needs, 5 GB, stay in this stage.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS pycuda
# The Python of Ubuntu 24.04 is that of Jazzy's image. No versions are pinned: the archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
# Without its random numbers it needs no library of the toolkit at run time, only the driver's libcuda.
RUN echo 'CUDA_ENABLE_CURAND = False' > /etc/aksetup-defaults.py \
    && pip3 wheel --no-cache-dir --no-deps --wheel-dir /wheels pycuda
# The node's own kernels, for every GPU that this CUDA knows.
COPY zeroflow_ros/engines/pillars.cu /
RUN nvcc -fmad=false -arch=all-major --fatbin -o /pillars.fatbin /pillars.cu

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

FROM runtime AS runtime-tensorrt
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=pycuda /wheels /tmp/wheels
# The wheel that was built above goes before the source of the same version.
RUN python3 src/zeroflow_ros/.ci/requirements.py tensorrt \
    | pip3 install --no-cache-dir --find-links /tmp/wheels --requirement /dev/stdin \
    && rm -rf /tmp/wheels
COPY --from=pycuda /pillars.fatbin /tmp/
RUN . install/setup.bash \
    && mv /tmp/pillars.fatbin "$(python3 -c 'import zeroflow_ros.engines as room; print(*room.__path__)')"
USER 1001

# training: no ROS, since bags are read and written without it. PyPI's torch brings its own CUDA, so that the base image
# needs none; for a machine without a GPU give the index of PyTorch's CPU wheels as the build argument PIP_EXTRA_INDEX_URL.
#
#   docker build --target training --tag zeroflow_ros:training .
#   docker run --rm --gpus all --ipc host --user "$(id -u)" --volume "$PWD:/data" zeroflow_ros:training \
#     python3 -m training.distill /data/drive.mcap --out /data/model.onnx --work /data/work
#
# Mount the checkout over /workspace and checkpoints record its commit, too.
FROM python:3.12-slim AS training
ARG PIP_EXTRA_INDEX_URL
WORKDIR /workspace
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# git says which code made a checkpoint.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY setup.py setup.cfg ./
COPY .ci/requirements.py .ci/
RUN pip3 install --no-cache-dir 'setuptools<80' \
    && python3 .ci/requirements.py speed replay registration ground simulation training export ray dynamic \
    | pip3 install --no-cache-dir --requirement /dev/stdin
COPY LICENSE ./
COPY config config
COPY zeroflow_ros zeroflow_ros
COPY training training
COPY export export
RUN useradd --create-home --uid 1001 flow
USER 1001

# Any user may run this image, too; torch asks for the user's name, and an unknown user has none.
ENV HOME=/tmp USER=flow NUMBA_CACHE_DIR=/tmp/numba_cache PYTHONUNBUFFERED=1
CMD ["python3", "-m", "training.distill", "--help"]
