// Sums over the rows of a matrix, for the bias gradients: rows in order, whatever the number of threads.
#pragma once

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Compute>
void sum_columns(const Compute* matrix, std::int64_t rows, std::int64_t ld, std::int64_t begin, std::int64_t end,
                 Compute* sums) {
  using V = Vec<Compute>;
  constexpr int L = lanes<V>, together = 4;
  std::int64_t j = begin;
  for (; j + together * L <= end; j += together * L) {
    V sum[together] = {};
    for (std::int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int v = 0; v < together; ++v) sum[v] += load<V>(matrix + row * ld + j + v * L);
    for (int v = 0; v < together; ++v) store<V>(sums + j + v * L, sum[v]);
  }
  for (; j < end; j += L) {
    with_count<L>(j, end, [&](auto count) {
      V sum{};
      for (std::int64_t row = 0; row < rows; ++row) sum += load<V>(matrix + row * ld + j, count);
      store<V>(sums + j, sum, count);
    });
  }
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
