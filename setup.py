"""Builds lstm_fused/_C.so: plain C++ against libtorch, without pybind11 and without libpython; with CUDA kernels where
torch is a CUDA build and nvcc is found. And _direct, by which Python calls it.

LSTM_FUSED_CUDA=0|1|auto says whether CUDA kernels are to be built: never, or else an error, or where that is possible.
TORCH_CUDA_ARCH_LIST names the architectures ("8.0;9.0+PTX"), by default all that the kernels are tested to compile for.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup

CUDA = os.environ.get("LSTM_FUSED_CUDA", "auto")
ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or "7.5;8.0+PTX;8.6;8.9;9.0;10.0;12.0"


def toolkit_of_nvcc() -> str | None:
    """The CUDA toolkit's root, as the nvcc that is found says it."""
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(["nvcc", "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    here = re.search(r"_HERE_=(.*)", said)
    return str(Path(here[1]).parent) if here else None


def smallest() -> list[str]:
    """What makes device code an eighth as large, of an nvcc that can (12.8 on); drivers from R550 on read it."""
    options = subprocess.run(["nvcc", "--help"], capture_output=True, text=True).stdout
    return ["--compress-mode=size"] if "--compress-mode" in options else []


def code_for(architectures: str) -> list[str]:
    """nvcc's options for machine code of "8.0;9.0+PTX", where +PTX adds what later devices compile for themselves.

    All of 8.0 and up is made of the same PTX: the kernels ask for no more, and to make it takes longer than the rest.
    So what "9.0a" has beside 9.0 is not used.
    """
    options = []
    for name in re.split(r"[;\s]+", architectures.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", name)
        if not found:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must be of numbers such as 8.0 and 9.0+PTX, not {name!r}")
        machine = int(found[1] + found[2])
        virtual = 80 if machine >= 80 else machine
        options.append(f"-gencode=arch=compute_{virtual},code=sm_{machine}")
        if found[3]:
            options.append(f"-gencode=arch=compute_{virtual},code=compute_{virtual}")
    return list(dict.fromkeys(options))


def why_no_cuda() -> str:
    """Why CUDA kernels are not built; empty if they are."""
    if CUDA not in ("0", "1", "auto"):
        raise SystemExit(f"LSTM_FUSED_CUDA must be 0, 1 or auto, not {CUDA!r}")
    why = ""
    if CUDA == "0":
        why = "LSTM_FUSED_CUDA=0 said so when it was built"
    elif torch.version.cuda is None:
        why = f"it was built for torch {torch.__version__}, which has no CUDA"
    elif toolkit_of_nvcc() is None:
        why = "nvcc was not found when it was built"
    if why and CUDA == "1":
        raise SystemExit(f"LSTM_FUSED_CUDA=1: no CUDA backend: {why}")
    return why


WHY_NO_CUDA = why_no_cuda()
if not WHY_NO_CUDA:  # read when cpp_extension is imported
    os.environ.setdefault("CUDA_HOME", toolkit_of_nvcc() or "")
from torch.utils import cpp_extension  # noqa: E402

print("lstm_fused: building the CPU backend (scalar, AVX2, AVX-512)", end="")
print(f"; no CUDA backend: {WHY_NO_CUDA}" if WHY_NO_CUDA else " and the CUDA backend")

SOURCES = [
    "csrc/ops.cpp",
    "csrc/autograd.cpp",
    "csrc/checks.cpp",
    "csrc/padded.cpp",
    "csrc/reference.cpp",
    "csrc/segments.cpp",
    "csrc/rows.cpp",
    "csrc/cpu/layer_forward.cpp",
    "csrc/cpu/layer_backward.cpp",
    "csrc/cpu/layer_recompute.cpp",
    "csrc/cpu/layer_step.cpp",
    "csrc/cpu/layer_dual.cpp",
    "csrc/cpu/memory.cpp",
    "csrc/cpu/runtime.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cpu/team.cpp",
    "csrc/cpu/isa_scalar.cpp",
    "csrc/cpu/isa_avx2.cpp",
    "csrc/cpu/isa_avx512.cpp",
    "csrc/cuda/plan.cpp",
]
CUDA_SOURCES = [f"csrc/cuda/{name}" for name in ("layer.cpp", "steps.cpp", "forward.cu", "backward.cu", "exchange.cu")]

DEVICE = "cpu" if WHY_NO_CUDA else "cuda"
# -isystem: warnings are for our own code.
TORCH_HEADERS = [flag for path in cpp_extension.include_paths(DEVICE) for flag in ("-isystem", path)]
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",  # g++'s default; clang would make one operation of a product and a sum in some kernels only
    "-g0",  # Python's own flags ask for debug information, which takes as long as all else and is stripped
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-missing-field-initializers",
]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fvisibility=hidden"]
NVCC_FLAGS += [] if WHY_NO_CUDA else [*smallest(), *code_for(ARCHITECTURES)]


def extension(name: str, sources: list[str], libraries: list[str]) -> Extension:
    return Extension(
        f"lstm_fused.{name}",
        sources,
        define_macros=[("LSTM_FUSED_WHY_NO_CUDA", f'"{WHY_NO_CUDA}"') if WHY_NO_CUDA else ("LSTM_FUSED_CUDA", "1")],
        library_dirs=cpp_extension.library_paths(DEVICE),
        libraries=["c10", "torch", "torch_cpu", *libraries],
        extra_compile_args={"cxx": [*CXX_FLAGS, *TORCH_HEADERS], "nvcc": NVCC_FLAGS},
        extra_link_args=["-Wl,-s"],
    )


class Build(cpp_extension.BuildExtension):
    """Names what is of one version of Python by that version, and only that."""

    def get_ext_filename(self, fullname: str) -> str:
        self.no_python_abi_suffix = fullname.endswith("_C")
        return str(super().get_ext_filename(fullname))


kernels = (SOURCES, []) if WHY_NO_CUDA else (SOURCES + CUDA_SOURCES, ["c10_cuda", "cudart"])
setup(
    ext_modules=[extension("_C", *kernels), extension("_direct", ["csrc/python/direct.cpp"], ["torch_python"])],
    cmdclass={"build_ext": Build.with_options(use_ninja=True)},
)
