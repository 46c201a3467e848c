// Weights rearranged so that the product reads them front to back: panels of `width` outputs, and within a
// panel the `width` weights of input 0, then those of input 1, ... Missing outputs of the last panel are 0.
#pragma once

#include <algorithm>

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

// a[i][j] <-> a[j][i], by swapping ever larger off-diagonal blocks.
template <class V>
LSTM_FUSED_INLINE void transpose(V (&a)[lanes<V>]) {
  if constexpr (lanes<V> > 1) {
    const auto stage = [&]<int block, int... j>(std::integral_constant<int, block>, std::integer_sequence<int, j...>) {
      constexpr int n = lanes<V>;
#pragma GCC unroll 32
      for (int i = 0; i < n; ++i) {
        if (i & block) continue;
        const V upper = __builtin_shufflevector(a[i], a[i + block], (j & block ? n + j - block : j)...);
        const V lower = __builtin_shufflevector(a[i], a[i + block], (j & block ? n + j : j + block)...);
        a[i] = upper;
        a[i + block] = lower;
      }
    };
    const auto lane = std::make_integer_sequence<int, lanes<V>>{};
    stage(std::integral_constant<int, 1>{}, lane);
    if constexpr (lanes<V> > 2) stage(std::integral_constant<int, 2>{}, lane);
    if constexpr (lanes<V> > 4) stage(std::integral_constant<int, 4>{}, lane);
    if constexpr (lanes<V> > 8) stage(std::integral_constant<int, 8>{}, lane);
  }
}

// The weights of `count` <= lanes outputs, whose rows [K] start at `rows` and are K apart, into every
// `width`-th vector of `packed`.
template <class Storage>
void pack_outputs(const Storage* rows, int count, std::int64_t K, int width, compute_t<Storage>* packed) {
  using V = Vec<compute_t<Storage>>;
  for (std::int64_t k = 0; k < K; k += lanes<V>) {
    with_count<lanes<V>>(k, K, [&](auto columns) {
      V block[lanes<V>] = {};
      for (int i = 0; i < count; ++i) block[i] = load<V>(rows + i * K + k, columns);
      transpose<V>(block);
      for (int i = 0; i < columns; ++i) store<V>(packed + (k + i) * width, block[i]);
    });
  }
}

// U [G*H, K] by unit blocks: panel u holds gate 0 of units u*lanes.., then gate 1, ...
template <int gates, class Storage>
void pack_gates(const Storage* U, std::int64_t H, std::int64_t K, std::int64_t panel, compute_t<Storage>* packed) {
  constexpr int n = lanes_of<compute_t<Storage>>;
  constexpr int width = gates * n;
  const std::int64_t unit = panel * n;
  const int count = static_cast<int>(std::min<std::int64_t>(n, H - unit));
  for (int g = 0; g < gates; ++g)
    pack_outputs(U + (g * H + unit) * K, count, K, width, packed + panel * K * width + g * n);
}

// W [outputs, K], product along its columns: panel p holds outputs p*width...
template <int width, class Storage>
void pack_columns(const Storage* W, std::int64_t outputs, std::int64_t K, std::int64_t panel,
                  compute_t<Storage>* packed) {
  constexpr int n = lanes_of<compute_t<Storage>>;
  for (int i = 0; i < width; i += n) {
    const std::int64_t first = panel * width + i;
    const int count = static_cast<int>(std::clamp<std::int64_t>(outputs - first, 0, n));
    pack_outputs(W + std::min(first, outputs - 1) * K, count, K, width, packed + panel * K * width + i);
  }
}

// A range of panels of W [K, outputs], product along its rows. A row is taken through all of them, some sixteen at a
// time: panel by panel every piece of a cache line or two would lie on another page.
template <int width, class Storage>
void pack_rows(const Storage* W, std::int64_t outputs, std::int64_t K, std::int64_t panel_begin, std::int64_t panel_end,
               compute_t<Storage>* packed) {
  using V = Vec<compute_t<Storage>>;
  constexpr std::int64_t together = 16;
  for (std::int64_t panel = panel_begin; panel < panel_end; panel += together) {
    const std::int64_t begin = panel * width, end = std::min(panel + together, panel_end) * width;
    for (std::int64_t k = 0; k < K; ++k)
      for (std::int64_t i = begin; i < end; i += lanes<V>) {
        V values{};
        if (i < outputs)
          with_count<lanes<V>>(i, outputs, [&](auto count) { values = load<V>(W + k * outputs + i, count); });
        store<V>(packed + (i / width * K + k) * width + i % width, values);
      }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
