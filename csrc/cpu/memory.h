// Memory of tensors.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <ATen/ops/empty.h>

#include <cstdint>

namespace lstm_fused {

// at::empty, which asks for huge pages where it is large. Such memory comes fresh from the system at every call, and to
// be given it in pages of 4 KiB can take a tenth of a training step. (numpy asks from the same size on.) A huge page is
// filled with zeros when it is first written to, which may take longer than those wait who wait for a step's result: not
// for memory that members write to who share rows.
inline at::Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t huge_page = 2 << 20, least = 4 << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()), end = begin + tensor.nbytes();
  if (tensor.nbytes() >= least) {
    const std::uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page, last = end / huge_page * huge_page;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // an advice: whether it is taken is no matter
  }
#endif
  return tensor;
}

}  // namespace lstm_fused
