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
std::map<const Kernel*, u64> opted_in;        // dynamic shared memory asked for with cudaFuncSetAttribute
thread_local std::vector<Configuration> configurations;  // of <<<>>> whose call has not come yet

const Kernel* kernel_at(const void* function) {
  const auto found = names().find(function);
  return found == names().end() ? nullptr : kernel_named(found->second);
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, u64 shared, bool cooperative) {
  const DeviceLock lock(device_mutex());
  read_settings();
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  const cudaError_t refused = refuse_launch(*kernel, grid, block, shared, opted_in[kernel], cooperative);
  if (refused != cudaSuccess) return failed(refused);
  const u32 sms = static_cast<u32>(device_limits().sms);
  const u64 resident = u64{sms} * static_cast<u64>(blocks_per_sm(*kernel, block.x * block.y * block.z, shared));
  try {
    run_grid(*kernel, grid, block, arguments, shared, resident, sms);
  } catch (const Fault& fault) {
    return faulted(fault);
  }
  return cudaSuccess;
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
  return launch(kernel, grid, block, arguments, shared, false);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t) {
  return launch(function, grid, block, arguments, shared, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                        std::size_t shared, cudaStream_t) {
  return launch(function, grid, block, arguments, shared, true);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) cooperative = a.val.cooperative;
    if (a.id == cudaLaunchAttributeClusterDimension && a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z > 1)
      return failed(cudaErrorNotSupported);
  }
  return launch(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, cooperative);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Kernel* kernel = kernel_at(function);
  if (!kernel) return failed(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || kernel->shared_bytes + static_cast<u32>(value) > device_limits().shared_per_block)
    return failed(cudaErrorInvalidValue);
  opted_in[kernel] = static_cast<u64>(value);
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
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(std::max<u64>(opted_in[kernel], shared_default));
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
