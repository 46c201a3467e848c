// A padded batch as the kernels take it: cut into segments, each a row of its own. A sequence ends at its length, and a
// reset ends one segment and begins the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace lstm_fused {

// Of segments sorted by length, the longest first:
//   batch_sizes [T]: how many are at least t + 1 steps long
//   data_rows [N]: their steps, as rows of the input seen as a matrix: [T*B, I], or [B*T, I] with batch_first
//   sources [2, segments]: for either direction the row of hx that a segment starts from; B where a reset precedes it
//   endings [2, B]: for either direction the segment that ends with the final state of row b; without a step, the
//     number of segments and b more, for row b of hx
using BatchOfSegments = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// lengths: int64 [B] or none; resets: bool [T, B], [B, T] with batch_first, or none.
BatchOfSegments cut_segments(const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                             std::int64_t T, std::int64_t B, bool batch_first);

}  // namespace lstm_fused
