// Starting a kernel as its plan says, every call checked. Included by the files that instantiate the kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels.h"

namespace lstm_fused::cuda {

inline std::string error_text(const char* call, cudaError_t error) {
  return error == cudaSuccess ? std::string() : std::string(call) + ": " + cudaGetErrorString(error);
}

inline std::int64_t blocks_for(std::int64_t count, std::int64_t each) { return (count + each - 1) / each; }

// Starts a kernel over the steps [begin, end), or of all steps, with blocks for `batch` rows.
template <class Kernel, class Args>
std::string start(Kernel* kernel, const Args& args, const Plan& plan, std::int64_t batch, std::int64_t begin,
                  std::int64_t end, cudaStream_t stream) {
  const std::int64_t units = blocks_for(args.H, plan.units_per_block);
  const std::int64_t rows = blocks_for(batch, plan.rows_per_block);
  const dim3 blocks(static_cast<unsigned>(rows), static_cast<unsigned>(units));
  const auto shared = static_cast<std::size_t>(plan.shared_bytes);
  cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error_text("cudaFuncSetAttribute", error);
  Args own = args;
  Plan own_plan = plan;
  void* arguments[] = {&own, &own_plan, &begin, &end};
  if (plan.kind == Kind::grid) {
    int together = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&together, kernel, threads, shared);
    if (error != cudaSuccess) return error_text("cudaOccupancyMaxActiveBlocksPerMultiprocessor", error);
    if (rows * units > static_cast<std::int64_t>(together) * current_device().multiprocessors)
      return "plan grid: expected blocks that are on the device together, got " + std::to_string(rows * units);
    error = cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(threads), arguments, shared,
                                        stream);
    return error_text("cudaLaunchCooperativeKernel", error);
  }
  error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(threads), arguments, shared, stream);
  return error_text("cudaLaunchKernel", error);
}

}  // namespace lstm_fused::cuda
