// Memory of tensors: in huge pages, and kept for the next call.
//
// malloc gives large blocks back to the system when they are freed, and a call that gets them anew waits for every
// page, of 4 KiB, to be filled with zeros. Pages that small also cost time where memory is kept: a sequence's gates are
// written and read once and the weights at every step, and a processor finds only so many pages without a look at their
// tables.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lstm_fused {

// at::empty; on the CPU without the dispatcher, and but for small ones in memory as described.
at::Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options);

// The same, filled with zeros.
at::Tensor allocate_zeros(at::IntArrayRef sizes, const at::TensorOptions& options);

// At most so many bytes are kept while nothing uses them; what is beyond is given back now, and whenever it is freed.
// Gives what the limit was.
std::int64_t keep_memory(std::int64_t limit);

}  // namespace lstm_fused
