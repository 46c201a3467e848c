// CUDA runtime API: memory. Device memory is memory of the process.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>

#include "access.h"
#include "errors.h"
#include "settings.h"

using namespace ptx;

namespace {

constexpr int never_written = 0xff;  // NaN in every float type

// An end of a copy is right if it is outside of all allocations (the host's), or all of it is inside of one.
bool fits(const void* begin, std::size_t bytes) {
  const u64 address = reinterpret_cast<u64>(begin);
  return !bytes || !allocations().find(address, 1) || allocations().find(address, bytes);
}

// Which bytes are written goes with the bytes.
void copy_written(const void* to, const void* from, std::size_t bytes) {
  const u64 target = reinterpret_cast<u64>(to), source = reinterpret_cast<u64>(from);
  Allocation* t = allocations().find(target, bytes);
  if (!t || t->written.empty()) return;
  const auto flags = t->written.begin() + static_cast<s64>(target - t->begin);
  const Allocation* s = allocations().find(source, bytes);
  if (s && !s->written.empty()) std::copy_n(s->written.begin() + static_cast<s64>(source - s->begin), bytes, flags);
  else std::fill_n(flags, bytes, 1);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const DeviceLock lock(device_mutex());
  read_settings();
  *memory = bytes ? std::aligned_alloc(256, (bytes + 511) / 256 * 256) : nullptr;
  if (!bytes) return cudaSuccess;
  if (!*memory) return failed(cudaErrorMemoryAllocation);
  std::memset(*memory, never_written, bytes);
  allocations().add(*memory, bytes, settings().unwritten);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) { return cudaMalloc(memory, bytes); }
cudaError_t cudaMallocManaged(void** memory, std::size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }

// The host writes to these without telling: all of it counts as written.
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  if (error == cudaSuccess && *memory) allocations().add(*memory, bytes, false);
  return error;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }

cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  if (!allocations().remove(memory)) return failed(cudaErrorInvalidValue);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  const DeviceLock lock(device_mutex());
  if (!fits(to, bytes) || !fits(from, bytes)) return failed(cudaErrorInvalidValue);
  std::memmove(to, from, bytes);
  copy_written(to, from, bytes);
  return unless_failed();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  for (std::size_t row = 0; row < height; ++row) {
    const cudaError_t error =
        cudaMemcpy(static_cast<u8*>(to) + row * to_pitch, static_cast<const u8*>(from) + row * from_pitch, width, kind);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}

cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  const DeviceLock lock(device_mutex());
  if (!fits(memory, bytes)) return failed(cudaErrorInvalidValue);
  std::memset(memory, value, bytes);
  allocations().note_written(memory, bytes);
  return unless_failed();
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}
}
