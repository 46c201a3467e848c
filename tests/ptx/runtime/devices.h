// The limits of named devices, and which launches they refuse.
#pragma once

#include <cuda_runtime_api.h>

#include "warp.h"

namespace ptx {

struct DeviceLimits {
  const char* name;
  int major, minor;
  int sms;
  int threads_per_sm;
  u32 shared_per_sm, shared_per_block;  // bytes; the latter after opting in, without that it is `shared_default`
};

constexpr u32 shared_default = 48 * 1024;
constexpr u32 shared_reserved = 1024;  // of each block, by the driver, from compute capability 8.0 on
constexpr int registers_per_sm = 65536, threads_per_block = 1024;

const DeviceLimits& device_limits();  // of the device that PTX_DEVICE names

// How many blocks of this many threads an SM holds at a time; 0 if not even one.
int blocks_per_sm(const Kernel& kernel, u32 threads, u64 dynamic_shared);

// What a launch returns instead of running, or cudaSuccess. `opted_in`: dynamic shared memory that the program has
// asked for with cudaFuncSetAttribute.
cudaError_t refuse_launch(const Kernel& kernel, dim3 grid, dim3 block, u64 dynamic_shared, u64 opted_in,
                          bool cooperative);

}  // namespace ptx
