// A padded batch as the kernels take it: cut into segments, each a row of its own. A sequence ends at its length, and a
// reset ends one segment and begins the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace lstm_fused {

// Of S segments sorted by length, the longest first, for layers and directions, K in all:
//   batch_sizes [T]: how many are at least t + 1 steps long
//   data_rows [N]: their steps, as rows of the input seen as a matrix: [T*B, I], or [B*T, I] with batch_first
//   sources [K, S]: where the state comes from that a segment starts in: row k*B + b of hx [K, B, *], or, after a
//   reset,
//     row k of the reset states [K, *], which are numbered on from K*B
//   endings [K, B]: where the final state of row b comes from: row k*S + s of the segments' [K, S, *], or, for a row
//     without a step, row k*B + b of hx, numbered on from K*S
using BatchOfSegments = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// lengths: int64 [B] or none; resets: bool [T, B], [B, T] with batch_first, or none.
BatchOfSegments cut_segments(const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                             std::int64_t T, std::int64_t B, bool batch_first, std::int64_t layers, bool bidirectional);

}  // namespace lstm_fused
