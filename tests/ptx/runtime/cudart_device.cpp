// CUDA runtime API: the device, streams and events. There is one device, and everything happens at once and in order.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>

#include "devices.h"
#include "errors.h"

using namespace ptx;

namespace {

using Clock = std::chrono::steady_clock;

cudaStream_t new_stream() {
  static std::uintptr_t last = 16;  // 1 and 2 are the names of default streams
  return reinterpret_cast<cudaStream_t>(last += 16);
}

Clock::time_point& time_of(cudaEvent_t event) { return *reinterpret_cast<Clock::time_point*>(event); }

}  // namespace

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* devices) {
  *devices = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return unless_failed(); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const DeviceLimits& d = device_limits();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = d.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = d.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = d.sms; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = threads_per_block; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = d.threads_per_sm; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = registers_per_sm; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = registers_per_sm; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = shared_default; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(d.shared_per_block); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(d.shared_per_sm); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = d.major >= 8 ? shared_reserved : 0; break;
    case cudaDevAttrWarpSize: *value = lanes; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrClusterLaunch: *value = d.major >= 9; break;
    case cudaDevAttrClockRate: *value = 1'000'000; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return failed(cudaErrorInvalidDevice);
  const DeviceLimits& d = device_limits();
  *p = {};
  std::strncpy(p->name, d.name, sizeof p->name - 1);
  p->major = d.major;
  p->minor = d.minor;
  p->multiProcessorCount = d.sms;
  p->warpSize = lanes;
  p->maxThreadsPerBlock = threads_per_block;
  p->maxThreadsPerMultiProcessor = d.threads_per_sm;
  p->regsPerBlock = p->regsPerMultiprocessor = registers_per_sm;
  p->sharedMemPerBlock = shared_default;
  p->sharedMemPerBlockOptin = d.shared_per_block;
  p->sharedMemPerMultiprocessor = d.shared_per_sm;
  p->reservedSharedMemPerBlock = d.major >= 8 ? shared_reserved : 0;
  p->totalGlobalMem = std::size_t{8} << 30;
  p->cooperativeLaunch = 1;
  p->clusterLaunch = d.major >= 9;
  const int most_threads[] = {1024, 1024, 64}, most_blocks[] = {2147483647, 65535, 65535};
  std::memcpy(p->maxThreadsDim, most_threads, sizeof most_threads);
  std::memcpy(p->maxGridSize, most_blocks, sizeof most_blocks);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new_stream();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return unless_failed(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return unless_failed(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Clock::time_point);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &time_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  time_of(event) = Clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return unless_failed(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return unless_failed(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(time_of(to) - time_of(from)).count();
  return cudaSuccess;
}
}
