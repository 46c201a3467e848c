"""Runs CUDA kernels on the CPU, for tests: nvcc's PTX is translated to C++ that executes a warp at a time.

``build`` makes a program or a shared library of .cu files; the kernels' sources are not touched. What is checked while
they run is told in ``runtime/settings.h``, what calls the runtime knows besides CUDA's in ``runtime/ptx.h``.
"""

from .build import BuildError, build, find_nvcc, toolkit_root
from .translate import Translation, translate

__all__ = ["BuildError", "Translation", "build", "find_nvcc", "toolkit_root", "translate"]
