#include "devices.h"

#include <cuda_occupancy.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace ptx {

namespace {

constexpr u32 KiB = 1024;

// From the CUDA C++ Programming Guide, "Compute Capabilities", and the devices' data sheets (SMs).
constexpr DeviceLimits devices[] = {
    {"T4", 7, 5, 40, 1024, 64 * KiB, 64 * KiB},         {"A100", 8, 0, 108, 2048, 164 * KiB, 163 * KiB},
    {"A10", 8, 6, 72, 1536, 100 * KiB, 99 * KiB},       {"RTX3090", 8, 6, 82, 1536, 100 * KiB, 99 * KiB},
    {"L4", 8, 9, 58, 1536, 100 * KiB, 99 * KiB},        {"L40S", 8, 9, 142, 1536, 100 * KiB, 99 * KiB},
    {"RTX4090", 8, 9, 128, 1536, 100 * KiB, 99 * KiB},  {"H100", 9, 0, 132, 2048, 228 * KiB, 227 * KiB},
    {"H200", 9, 0, 132, 2048, 228 * KiB, 227 * KiB},    {"B200", 10, 0, 148, 2048, 228 * KiB, 227 * KiB},
    {"RTX5090", 12, 0, 170, 1536, 100 * KiB, 99 * KiB},
};

}  // namespace

const DeviceLimits& device_limits() {
  thread_local DeviceLimits limits;
  const char* asked = std::getenv("PTX_DEVICE");
  const std::string name = asked && *asked ? asked : "H100";
  for (const DeviceLimits& d : devices) {
    if (name != d.name) continue;
    limits = d;
    if (const char* sms = std::getenv("PTX_SMS"); sms && *sms) limits.sms = std::atoi(sms);
    if (const char* bytes = std::getenv("PTX_SHARED"); bytes && *bytes)
      limits.shared_per_block = std::min(limits.shared_per_block, static_cast<u32>(std::atoi(bytes)));
    return limits;
  }
  std::fprintf(stderr, "ptx: PTX_DEVICE: expected a device of devices.cpp, got %s\n", name.c_str());
  std::exit(97);
}

int blocks_per_sm(const Kernel& kernel, u32 threads, u64 dynamic_shared) {
  const DeviceLimits& limits = device_limits();
  cudaOccDeviceProp device;
  device.computeMajor = limits.major;
  device.computeMinor = limits.minor;
  device.maxThreadsPerBlock = threads_per_block;
  device.maxThreadsPerMultiprocessor = limits.threads_per_sm;
  device.regsPerBlock = device.regsPerMultiprocessor = registers_per_sm;
  device.warpSize = lanes;
  device.sharedMemPerBlock = shared_default;
  device.sharedMemPerMultiprocessor = limits.shared_per_sm;
  device.numSms = limits.sms;
  device.sharedMemPerBlockOptin = limits.shared_per_block;
  device.reservedSharedMemPerBlock = limits.major >= 8 ? shared_reserved : 0;
  cudaOccFuncAttributes function;
  function.maxThreadsPerBlock = kernel.max_threads ? static_cast<int>(kernel.max_threads) : threads_per_block;
  function.numRegs = static_cast<int>(std::max(kernel.registers, 16u));  // the header refuses 0
  function.sharedSizeBytes = kernel.shared_bytes;
  function.partitionedGCConfig = PARTITIONED_GC_OFF;
  function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  function.maxDynamicSharedSizeBytes = limits.shared_per_block - kernel.shared_bytes;
  function.numBlockBarriers = 1;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state,
                                                                     static_cast<int>(threads), dynamic_shared);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : 0;
}

u64 resident_clusters(const Kernel& kernel, const Shape& shape) {
  const int blocks = blocks_per_sm(kernel, static_cast<u32>(count_of(shape.block)), shape.dynamic_shared);
  return static_cast<u64>(blocks) * static_cast<u64>(device_limits().sms) / count_of(shape.cluster);
}

namespace {

cudaError_t refuse_clusters(const Kernel& kernel, const Shape& shape, const OptIns& opted_in) {
  const dim3 grid = shape.grid, cluster = shape.cluster;
  const u64 size = count_of(cluster);
  if (!shape.clustered) return kernel.explicit_cluster ? cudaErrorInvalidClusterSize : cudaSuccess;
  if (size > 1 && device_limits().major < 9) return cudaErrorNotSupported;
  if (size > (opted_in.large_clusters ? cluster_most : cluster_portable)) return cudaErrorInvalidClusterSize;
  if (kernel.max_cluster && size > kernel.max_cluster) return cudaErrorInvalidClusterSize;
  const u32 dims[] = {cluster.x, cluster.y, cluster.z};
  if (kernel.cluster[0] && !std::equal(dims, dims + 3, kernel.cluster)) return cudaErrorInvalidClusterSize;
  const bool divides = grid.x % cluster.x == 0 && grid.y % cluster.y == 0 && grid.z % cluster.z == 0;
  return divides ? cudaSuccess : cudaErrorInvalidClusterSize;
}

}  // namespace

cudaError_t refuse_launch(const Kernel& kernel, const Shape& shape, const OptIns& opted_in) {
  const DeviceLimits& limits = device_limits();
  const u64 blocks = count_of(shape.grid), threads = count_of(shape.block);
  if (kernel.target > static_cast<u32>(10 * limits.major + limits.minor)) return cudaErrorNoKernelImageForDevice;
  if (!blocks || !threads || threads > threads_per_block || shape.block.z > 64) return cudaErrorInvalidConfiguration;
  if (shape.grid.x > 0x7fffffffu || shape.grid.y > 65535 || shape.grid.z > 65535) return cudaErrorInvalidConfiguration;
  const cudaError_t refused = refuse_clusters(kernel, shape, opted_in);
  if (refused != cudaSuccess) return refused;
  const u64 shared = kernel.shared_bytes + shape.dynamic_shared;
  if (shared > limits.shared_per_block) return cudaErrorInvalidValue;
  if (shared > shared_default && shape.dynamic_shared > opted_in.dynamic_shared) return cudaErrorInvalidValue;
  if (kernel.max_threads && threads > kernel.max_threads) return cudaErrorLaunchOutOfResources;
  if (!blocks_per_sm(kernel, static_cast<u32>(threads), shape.dynamic_shared))
    return cudaErrorLaunchOutOfResources;  // too many registers
  const u64 resident = resident_clusters(kernel, shape);
  if (!resident) return cudaErrorInvalidClusterSize;
  if (shape.cooperative && blocks / count_of(shape.cluster) > resident) return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace ptx
