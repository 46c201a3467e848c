// The CUDA error that the next cudaGetLastError returns, and what a fault of a kernel becomes.
#pragma once

#include <cuda_runtime_api.h>

#include "fault.h"

namespace ptx {

extern bool exit_on_fault;  // a program ends with status 99; a library returns an error from the launch

cudaError_t failed(cudaError_t error);  // keeps it for cudaGetLastError, and returns it
cudaError_t unless_failed();            // what a synchronisation returns: an earlier fault, or cudaSuccess
cudaError_t faulted(const Fault& fault);

}  // namespace ptx
