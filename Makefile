# SPDX-License-Identifier: Apache-2.0
# Everything runs in the virtual environment .venv of this checkout; nothing is installed elsewhere.
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_EXTRAS := ros speed replay registration simulation camera
TEST_EXTRAS := $(DEMO_EXTRAS) ground training export test
# The tests compare our metrics with these. Their dependencies (open3d, kornia, ...; over 1 GB) are not needed for that.
OFFICIAL_METRICS := av2==0.3.6 bucketed-scene-flow-eval==2.0.25

# NVIDIA's parser and builder without a GPU: the tests check that they accept our models. TensorRT itself needs a GPU.
TENSORRT_GATE := tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116

# The wheels in .venv contain ROS 2; a sourced ROS installation and its settings would conflict with them.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH CMAKE_PREFIX_PATH \
	RMW_IMPLEMENTATION FASTRTPS_DEFAULT_PROFILES_FILE FASTDDS_DEFAULT_PROFILES_FILE _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles what is imported, at first import; to compile all 13,000 files here would take over a minute.
PIP_INSTALL := -m pip install --quiet --no-compile
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

.DEFAULT_GOAL := help
.PHONY: help demo test lint format benchmark soak fuzz field clean

help:
	@echo 'make demo [BAG=path]  scene flow of a bag or a simulated drive: latency table, out/flow.png, out/flow.mcap'
	@echo 'make test [ARGS=..]   linters and the whole test suite; ARGS go to pytest'
	@echo 'make lint             linters only;  make format  fixes what they can fix'
	@echo 'make benchmark        latency of the embedded model on this machine'
	@echo "make soak [ARGS=..]   run the node on an hour's worth of sweeps, or under overload, and check memory and output"
	@echo 'make fuzz [ARGS=..]   49,000 hostile clouds, images, model files, bags and YAML files; 20 minutes'
	@echo 'make field BAGS=folder BOXES=file  flow of recordings as drivers, mounts and weather make them: a table of verdicts'
	@echo 'make clean            remove all generated files, and .venv'

demo: $(VENV)/.demo-ready
	@$(BIN)/python -m zeroflow_ros.demo $(if $(BAG),--bag '$(BAG)')

# Two processes, each in its own ROS domain: many tests spend more time waiting for messages than computing. Each computes
# in one thread: four threads on two cores would mostly wait for one another.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10 $(ARGS)

lint: $(VENV)/.test-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.test-ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

benchmark: $(VENV)/.test-ready
	@$(BIN)/python -m export.benchmark

soak: $(VENV)/.test-ready
	@PYTHONPATH=. $(BIN)/python test/support/soak.py $(ARGS)

fuzz: $(VENV)/.test-ready
	@$(BIN)/python test/fuzz/fuzz.py $(ARGS)

field: $(VENV)/.test-ready
	@PYTHONPATH=. $(BIN)/python test/support/field_report.py '$(BAGS)' '$(BOXES)' $(ARGS)

clean:
	rm -rf $(VENV) out build install log *.egg-info .pytest_cache .ruff_cache .hypothesis test/fuzz/.hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python-ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or later is needed, $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@echo 'Making the virtual environment $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) --upgrade pip 'setuptools<80' wheel
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.python-ready setup.py
	@echo 'Installing ROS 2, ONNX Runtime and tools into $(VENV): about 200 MB, a minute or two ...'
	@$(BIN)/python .ci/requirements.py $(DEMO_EXTRAS) > $(VENV)/requirements.txt
	@$(BIN)/python $(PIP_INSTALL) --requirement $(VENV)/requirements.txt
	@touch $@

$(VENV)/.test-ready: $(VENV)/.demo-ready setup.py
	@echo 'Installing PyTorch, ONNX and the test tools into $(VENV): a few minutes ...'
	@$(BIN)/python .ci/requirements.py $(TEST_EXTRAS) > $(VENV)/requirements.txt
	@$(BIN)/python $(PIP_INSTALL) --requirement $(VENV)/requirements.txt
	@$(BIN)/python $(PIP_INSTALL) --no-deps --only-binary :all: $(OFFICIAL_METRICS) || \
		echo 'No $(OFFICIAL_METRICS) for this Python: the tests that call them will skip.'
	@$(BIN)/python $(PIP_INSTALL) --no-deps --only-binary :all: $(TENSORRT_GATE) || \
		echo 'No $(TENSORRT_GATE) for this computer: the tests that build engines with it will skip.'
	@$(BIN)/python $(PIP_INSTALL) --only-binary :all: dufomap || \
		echo 'No dufomap for this Python: no dynamic/static labels for SeFlow, and their tests will skip.'
	@touch $@
