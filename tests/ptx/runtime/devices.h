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

constexpr u64 cluster_portable = 8, cluster_most = 16;  // blocks; the latter after opting in

// A launch, as the host asks for it. Without clusters their dimensions are 1, 1, 1.
struct Shape {
  dim3 grid, block, cluster;
  bool clustered;  // clusters are asked for, by the launch or in the kernel's source
  u64 dynamic_shared;
  bool cooperative;
};
inline u64 count_of(dim3 n) { return u64{n.x} * n.y * n.z; }

// What the program has asked for with cudaFuncSetAttribute.
struct OptIns {
  u64 dynamic_shared = 0;
  bool large_clusters = false;
};

const DeviceLimits& device_limits();  // of the device that PTX_DEVICE names

// How many blocks of this many threads an SM holds at a time; 0 if not even one.
int blocks_per_sm(const Kernel& kernel, u32 threads, u64 dynamic_shared);

// How many clusters of the launch the device holds at a time. Devices divide their SMs into groups that no cluster
// crosses, and so may hold less.
u64 resident_clusters(const Kernel& kernel, const Shape& shape);

// What a launch returns instead of running, or cudaSuccess.
cudaError_t refuse_launch(const Kernel& kernel, const Shape& shape, const OptIns& opted_in);

}  // namespace ptx
