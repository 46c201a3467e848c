"""Builds lstm_fused/_C.so: plain C++ against libtorch, without pybind11 and without libpython.

LSTM_FUSED_CUDA=0|1|auto says whether CUDA kernels are to be built; this version has none, so 1 is an error.
"""

import os

from setuptools import Extension, setup
from torch.utils import cpp_extension

CUDA = os.environ.get("LSTM_FUSED_CUDA", "auto")
WHY_NO_CUDA = "this version of lstm_fused has no CUDA kernels"
if CUDA not in ("0", "1", "auto"):
    raise SystemExit(f"LSTM_FUSED_CUDA must be 0, 1 or auto, not {CUDA!r}")
if CUDA == "1":
    raise SystemExit(f"LSTM_FUSED_CUDA=1: {WHY_NO_CUDA}")
print(f"lstm_fused: building the CPU backend (scalar, AVX2, AVX-512); no CUDA backend: {WHY_NO_CUDA}")

SOURCES = [
    "csrc/ops.cpp",
    "csrc/autograd.cpp",
    "csrc/checks.cpp",
    "csrc/reference.cpp",
    "csrc/segments.cpp",
    "csrc/cpu/layer_forward.cpp",
    "csrc/cpu/layer_backward.cpp",
    "csrc/cpu/layer_recompute.cpp",
    "csrc/cpu/layer_step.cpp",
    "csrc/cpu/runtime.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cpu/team.cpp",
    "csrc/cpu/isa_scalar.cpp",
    "csrc/cpu/isa_avx2.cpp",
    "csrc/cpu/isa_avx512.cpp",
]

# -isystem: warnings are for our own code.
TORCH_HEADERS = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]

setup(
    ext_modules=[
        Extension(
            "lstm_fused._C",
            SOURCES,
            library_dirs=cpp_extension.library_paths(),
            libraries=["c10", "torch", "torch_cpu"],
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wno-psabi",
                "-Wno-missing-field-initializers",
                *TORCH_HEADERS,
            ],
            extra_link_args=["-Wl,-s"],
        )
    ],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True, use_ninja=True)},
)
