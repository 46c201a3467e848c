// Sums over the rows of a matrix, for the bias gradients: rows in order, whatever the number of threads.
#pragma once

#include <algorithm>

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

// Adds up runs of `run` rows first: a single running sum over tens of thousands of rows would gather their rounding
// errors.
template <class V, int together, class Count>
LSTM_FUSED_INLINE void sum_block(const element_t<V>* matrix, std::int64_t rows, std::int64_t ld, Count count,
                                 element_t<V>* sums) {
  constexpr std::int64_t run = 64;
  V total[together] = {};
  for (std::int64_t begin = 0; begin < rows; begin += run) {
    V sum[together] = {};
    for (std::int64_t row = begin; row < std::min(begin + run, rows); ++row)
#pragma GCC unroll 4
      for (int v = 0; v < together; ++v) sum[v] += load<V>(matrix + row * ld + v * lanes<V>, count);
    for (int v = 0; v < together; ++v) total[v] += sum[v];
  }
  for (int v = 0; v < together; ++v) store(sums + v * lanes<V>, total[v], count);
}

template <class Compute>
void sum_columns(const Compute* matrix, std::int64_t rows, std::int64_t ld, std::int64_t begin, std::int64_t end,
                 Compute* sums) {
  using V = Vec<Compute>;
  constexpr int L = lanes<V>, together = 4;
  std::int64_t j = begin;
  for (; j + together * L <= end; j += together * L)
    sum_block<V, together>(matrix + j, rows, ld, AllLanes<L>{}, sums + j);
  for (; j < end; j += L)
    with_count<L>(j, end, [&](auto count) { sum_block<V, 1>(matrix + j, rows, ld, count, sums + j); });
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
