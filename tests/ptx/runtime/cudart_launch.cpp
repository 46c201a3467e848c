// CUDA runtime API: kernels and variables of the program, launches, attributes and occupancy.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <vector>

#include "access.h"
#include "device.h"
#include "devices.h"
#include "errors.h"
#include "ptx.h"
#include "schedule.h"
#include "settings.h"

using namespace ptx;

namespace {

struct Configuration {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};

// Filled before main by code that nvcc generates for the host: functions and variables by their host addresses.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;
  return all;
}
std::map<const Kernel*, OptIns> opted_in;
thread_local std::vector<Configuration> configurations;  // of <<<>>> whose call has not come yet

const Kernel* kernel_at(const void* function) {
  const auto found = names().find(function);
  return found == names().end() ? nullptr : kernel_named(found->second);
}

// With the clusters that the kernel's source asks for.
Shape shape_of(const Kernel& kernel, dim3 grid, dim3 block, u64 shared, bool cooperative = false) {
  const u32* c = kernel.cluster;
  return {grid, block, c[0] ? dim3(c[0], c[1], c[2]) : dim3(), c[0] != 0, shared, cooperative};
}

// With what the launch's attributes ask for.
Shape shape_of(const Kernel& kernel, const cudaLaunchConfig_t& config) {
  Shape shape = shape_of(kernel, config.gridDim, config.blockDim, config.dynamicSmemBytes);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& a = config.attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) shape.cooperative = a.val.cooperative;
    const auto& c = a.val.clusterDim;
    if (a.id != cudaLaunchAttributeClusterDimension || !(c.x && c.y && c.z)) continue;
    shape.cluster = dim3(c.x, c.y, c.z);
    shape.clustered = true;
  }
  return shape;
}

cudaError_t launch(const Kernel* kernel, const Shape& shape, void** arguments) {
  const cudaError_t refused = refuse_launch(*kernel, shape, opted_in[kernel]);
  if (refused != cudaSuccess) return failed(refused);
  const u64 resident = resident_clusters(*kernel, shape) * count_of(shape.cluster);
  try {
    run_grid(*kernel, shape, arguments, resident, static_cast<u32>(device_limits().sms));
  } catch (const Fault& fault) {
    return faulted(fault);
  }
  return cudaSuccess;
}

// `more` is what shape_of takes after the kernel.
template <class... More>
cudaError_t launch(const void* function, void** arguments, const More&... more) {
  const DeviceLock lock(device_mutex());
  read_settings();
  const Kernel* kernel = kernel_at(function);
  return kernel ? launch(kernel, shape_of(*kernel, more...), arguments) : failed(cudaErrorInvalidDeviceFunction);
}

const Variable* variable_at(const void* symbol) {
  const auto found = names().find(symbol);
  return found == names().end() ? nullptr : variable_named(found->second);
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host, char* name, const char*, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  names()[host] = name;
}
void __cudaRegisterVar(void**, char* host, char*, const char* name, int, std::size_t, int, int) {
  names()[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, static_cast<cudaStream_t>(stream)});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  const Configuration& c = configurations.back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  configurations.pop_back();
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                               cudaStream_t) {
  return launch(kernel, arguments, grid, block, shared);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t) {
  return launch(function, arguments, grid, block, shared);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                        std::size_t shared, cudaStream_t) {
  return launch(function, arguments, grid, block, shared, true);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return launch(function, arguments, *config);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) opted_in[kernel].large_clusters = value;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || kernel->shared_bytes + static_cast<u32>(value) > device_limits().shared_per_block)
    return failed(cudaErrorInvalidValue);
  opted_in[kernel].dynamic_shared = static_cast<u64>(value);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = kernel->max_threads ? static_cast<int>(kernel->max_threads) : threads_per_block;
  attributes->sharedSizeBytes = kernel->shared_bytes;
  attributes->localSizeBytes = kernel->local_bytes;
  attributes->numRegs = static_cast<int>(kernel->registers);
  attributes->ptxVersion = attributes->binaryVersion = static_cast<int>(kernel->target);
  attributes->maxDynamicSharedSizeBytes =
      static_cast<int>(std::max<u64>(opted_in[kernel].dynamic_shared, shared_default));
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          std::size_t shared) {
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  *blocks = blocks_per_sm(*kernel, static_cast<u32>(threads), shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   std::size_t shared, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  const Shape shape = shape_of(*kernel, *config);
  const cudaError_t refused = refuse_launch(*kernel, shape, opted_in[kernel]);
  if (refused != cudaSuccess) return failed(refused);
  *clusters = static_cast<int>(resident_clusters(*kernel, shape));
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  const Variable* v = variable_at(symbol);
  if (!v) return failed(cudaErrorInvalidSymbol);
  *address = v->address;
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes, std::size_t offset,
                               cudaMemcpyKind) {
  const Variable* v = variable_at(symbol);
  if (!v) return failed(cudaErrorInvalidSymbol);
  if (offset + bytes > v->size) return failed(cudaErrorInvalidValue);
  std::memcpy(static_cast<u8*>(v->address) + offset, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t bytes, std::size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpyToSymbol(symbol, from, bytes, offset, kind);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes, std::size_t offset, cudaMemcpyKind) {
  const Variable* v = variable_at(symbol);
  if (!v) return failed(cudaErrorInvalidSymbol);
  if (offset + bytes > v->size) return failed(cudaErrorInvalidValue);
  std::memcpy(to, static_cast<u8*>(v->address) + offset, bytes);
  return cudaSuccess;
}

void ptx_register(const void* begin, std::size_t bytes, int written) { allocations().add(begin, bytes, !written); }
void ptx_unregister(const void* begin) { allocations().remove(begin); }
}
