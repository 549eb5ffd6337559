# SPDX-License-Identifier: Apache-2.0
# runtime: ROS 2, the flow node with its model, and replay; runs on the CPU, without torch.
#
#   docker build --target runtime --tag zeroflow_ros .
#   docker run --rm --network host --ipc host --user "$(id -u)" zeroflow_ros \
#     ros2 launch zeroflow_ros flow.launch.py input_topic:=/lidar/points odometry_topic:=/odom
#
# Host network and IPC let Fast DDS discover the driver and use shared memory with it. Shared memory works only between
# processes of the same user, hence --user.
#
# runtime-tensorrt: runtime with TensorRT. A separate image, because TensorRT adds gigabytes that a vehicle without an
# NVIDIA GPU does not need. The engine for the GPU is built at the first start; the mounted folder keeps it.
#
#   docker build --target runtime-tensorrt --tag zeroflow_ros:tensorrt .
#   docker run --rm --gpus all --network host --ipc host --user "$(id -u)" --volume "$PWD/engines:/engines" \
#     --env XDG_CACHE_HOME=/engines zeroflow_ros:tensorrt \
#     ros2 launch zeroflow_ros flow.launch.py engine:=tensorrt input_topic:=/lidar/points odometry_topic:=/odom
#
# training: labels, training, evaluation and export; each container runs one command. See the end of this file.
ARG ROS_DISTRO=jazzy
# Its major version must be that of the wheels in the extra `tensorrt`.
ARG CUDA_VERSION=13.0.2

# pycuda is distributed as source only. The compiler and the CUDA headers that it needs, 5 GB, stay in this stage.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS pycuda
# Ubuntu 24.04 has the same Python as the Jazzy image. No versions are pinned: the archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
# Without CURAND pycuda needs no library of the CUDA toolkit at run time, only libcuda of the driver.
RUN echo 'CUDA_ENABLE_CURAND = False' > /etc/aksetup-defaults.py \
    && pip3 wheel --no-cache-dir --no-deps --wheel-dir /wheels pycuda
# The node's own kernels: binaries for every major GPU architecture of this CUDA version and for Orin (8.7), which does
# not run those of the desktop (8.0); and PTX of the lowest, which the driver compiles for any other GPU.
COPY zeroflow_ros/engines/pillars.cu /
RUN nvcc -fmad=false -arch=all-major -gencode arch=compute_87,code=sm_87 -gencode arch=compute_75,code=compute_75 \
    --fatbin -o /pillars.fatbin /pillars.cu

FROM ros:${ROS_DISTRO}-ros-base AS runtime

WORKDIR /workspace
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# pip on Ubuntu 24.04 refuses to install into the system's Python (PEP 668); in this image nothing else uses it.
ENV PIP_BREAK_SYSTEM_PACKAGES=1

# Dependencies first, because they change seldom: those of package.xml with apt, the extras of setup.py with pip.
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

# Any user may run this image (--user), so files are written to folders that are writable for all.
ENV ROS_LOG_DIR=/tmp/ros_log NUMBA_CACHE_DIR=/tmp/numba_cache
ENTRYPOINT ["/bin/bash", "-c", ". /workspace/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "zeroflow_ros", "flow.launch.py", "required:=true"]

FROM runtime AS runtime-tensorrt
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=pycuda /wheels /tmp/wheels
# pip prefers the wheel that was built above to the source of the same version.
RUN python3 src/zeroflow_ros/.ci/requirements.py tensorrt \
    | pip3 install --no-cache-dir --find-links /tmp/wheels --requirement /dev/stdin \
    && rm -rf /tmp/wheels
COPY --from=pycuda /pillars.fatbin /tmp/
RUN . install/setup.bash \
    && mv /tmp/pillars.fatbin "$(python3 -c 'import zeroflow_ros.engines as room; print(*room.__path__)')"
USER 1001

# training: no ROS, because bags are read and written without it. PyPI's torch contains CUDA, so the base image needs
# none. For a machine without a GPU set the build argument PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU wheels.
#
#   docker build --target training --tag zeroflow_ros:training .
#   docker run --rm --gpus all --ipc host --user "$(id -u)" --volume "$PWD:/data" zeroflow_ros:training \
#     python3 -m training.distill /data/drive.mcap --out /data/model.onnx --work /data/work
#
# With the checkout mounted over /workspace, checkpoints also record its commit.
FROM python:3.12-slim AS training
ARG PIP_EXTRA_INDEX_URL
WORKDIR /workspace
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# git: checkpoints record the commit of the code.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY setup.py setup.cfg ./
COPY .ci/requirements.py .ci/
RUN pip3 install --no-cache-dir 'setuptools<80' \
    && python3 .ci/requirements.py speed replay registration ground camera simulation training export ray dynamic \
    | pip3 install --no-cache-dir --requirement /dev/stdin
COPY LICENSE ./
COPY config config
COPY zeroflow_ros zeroflow_ros
COPY training training
COPY export export
RUN useradd --create-home --uid 1001 flow
USER 1001

# Any user may run this image, too. torch needs a user name, and a user that the image does not know has none.
ENV HOME=/tmp USER=flow NUMBA_CACHE_DIR=/tmp/numba_cache PYTHONUNBUFFERED=1
CMD ["python3", "-m", "training.distill", "--help"]
