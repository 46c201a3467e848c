// Memory of tensors.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <ATen/ops/empty.h>

#include <cstdint>

#include "plan.h"

namespace lstm_fused {

// Whether a team would break up over one: it is filled with zeros when it is first written to, for a millisecond or so,
// in which others may wait for what a member writes to it in a step.
inline bool notices_huge_pages(const RecurrenceShape& shape, const Plan& plan) {
  constexpr std::int64_t handed_over_ns = 4'000'000;
  return plan.units > 1 && patience_ns(shape, plan, 0) < handed_over_ns;
}

// at::empty, which asks for huge pages where it is large: malloc seldom keeps so much, but gets it from the system anew
// at every call, and to be given it in pages of 4 KiB can take a tenth of a training step. (numpy asks for them, too.)
inline at::Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t huge_page = 2 << 20, least = 8 * huge_page;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()), end = begin + tensor.nbytes();
  if (tensor.nbytes() >= least) {
    const std::uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page, last = end / huge_page * huge_page;
    madvise(reinterpret_cast<void*>(first), last - first,
            MADV_HUGEPAGE);  // an advice: whether it is taken is no matter
  }
#endif
  return tensor;
}

}  // namespace lstm_fused
