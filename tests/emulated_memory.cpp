// All memory of CPU tensors made known to the PTX runner as memory of the device: what a kernel reads or writes outside
// of a tensor is a fault, and so is what it reads before anybody has written it.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>

#include "ptx/runtime/ptx.h"

namespace {

void release(void* memory) {
  ptx_unregister(memory);
  std::free(memory);
}

class KnownMemory : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const std::size_t least = bytes ? bytes : 1;
    void* const memory = std::aligned_alloc(256, (least + 255) / 256 * 256);
    std::memset(memory, 0xff, least);  // NaN in every type
    ptx_register(memory, least, 1);  // the host may write what is unwritten here, unseen
    return {memory, memory, release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

KnownMemory known_memory;
[[maybe_unused]] const bool installed = (c10::SetCPUAllocator(&known_memory, 100), true);

}  // namespace
