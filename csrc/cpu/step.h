// A single time step on weights as they lie in memory: rearranging them would cost more than it saves. The work is
// bound by reading W and U once, so a block of `lanes` rows is multiplied with every batch row while in L1.
#pragma once

#include <algorithm>

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

// Lane i of the result is the sum of the lanes of a[i]. At each stage two vectors become one: a lane and its neighbour
// at distance `block` are added, and the sums of one vector take the lanes without that bit, those of the other the
// lanes with it.
template <class V>
LSTM_FUSED_INLINE V sum_lanes(V (&a)[lanes<V>]) {
  if constexpr (lanes<V> > 1) {
    const auto stage = [&]<int block, int... j>(std::integral_constant<int, block>, std::integer_sequence<int, j...>) {
      constexpr int n = lanes<V>;
#pragma GCC unroll 16
      for (int i = 0; i < n / (2 * block); ++i)
        a[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], (j & block ? n + j - block : j)...) +
               __builtin_shufflevector(a[2 * i], a[2 * i + 1], (j & block ? n + j : j + block)...);
    };
    const auto lane = std::make_integer_sequence<int, lanes<V>>{};
    stage(std::integral_constant<int, 1>{}, lane);
    if constexpr (lanes<V> > 2) stage(std::integral_constant<int, 2>{}, lane);
    if constexpr (lanes<V> > 4) stage(std::integral_constant<int, 4>{}, lane);
    if constexpr (lanes<V> > 8) stage(std::integral_constant<int, 8>{}, lane);
  }
  return a[0];
}

template <class Cell, class Storage>
class Step {
  using Compute = compute_t<Storage>;
  using V = Vec<Compute>;
  static constexpr int G = Cell::gates, S = Cell::saved, L = lanes<V>;
  // Rows of the weights that are read side by side, four vectors of each at a time.
  static constexpr int rows_together = std::min(L, 4);

 public:
  Step(const StepArgs<Storage>& args) : a(args) {}

  void run(std::int64_t unit_begin, std::int64_t unit_end) {
    const std::int64_t blocks = (unit_end - unit_begin + L - 1) / L;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t unit = unit_begin + (a.last_unit_first ? blocks - 1 - i : i) * L;
      const int count = static_cast<int>(std::min<std::int64_t>(L, a.H - unit));
      for (int g = 0; g < G; ++g) {
        const std::int64_t row = g * a.H + unit;
        multiply(a.w_ih + row * a.I, count, a.I, a.input, x[g]);
        if (a.h0) multiply(a.w_hh + row * a.H, count, a.H, a.h0, r[g]);
      }
      for (std::int64_t b = 0; b < a.batch; ++b) with_count<L>(unit, a.H, [&](auto units) { update(b, unit, units); });
    }
  }

 private:
  // out[b] = the dot products of `count` consecutive weight rows [K] with row b of `source` [B, K].
  void multiply(const Storage* weights, int count, std::int64_t K, const Storage* source, V (&out)[max_step_batch]) {
    const Storage* row[L];
    for (int i = 0; i < L; ++i) row[i] = weights + std::min(i, count - 1) * K;
    const std::int64_t whole = K - K % L, fours = K - K % (4 * L);
    for (std::int64_t b = 0; b < a.batch; ++b) {
      const Storage* const x = source + b * K;
      V sums[L] = {};
      for (int first = 0; first < L; first += rows_together) {
        for (std::int64_t k = 0; k < fours; k += 4 * L) {
          V value[4];
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) value[n] = load<V>(x + k + n * L);
#pragma GCC unroll 4
          for (int i = first; i < first + rows_together; ++i)
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) sums[i] += load<V>(row[i] + k + n * L) * value[n];
        }
        for (std::int64_t k = fours; k < whole; k += L) {
          const V value = load<V>(x + k);
#pragma GCC unroll 4
          for (int i = first; i < first + rows_together; ++i) sums[i] += load<V>(row[i] + k) * value;
        }
      }
      if (whole < K) {
        const int rest = static_cast<int>(K - whole);
        const V value = load<V>(x + whole, rest);
        for (int i = 0; i < L; ++i) sums[i] += load<V>(row[i] + whole, rest) * value;
      }
      out[b] = sum_lanes<V>(sums);
    }
  }

  template <class Count>
  LSTM_FUSED_INLINE void update(std::int64_t b, std::int64_t unit, Count count) {
    V input[G], recurrent[G], s[S], h0{}, c0{}, c1{};
    for (int g = 0; g < G; ++g) {
      input[g] = x[g][b];
      recurrent[g] = a.h0 ? r[g][b] : V{};
      if (!a.b_ih) continue;
      input[g] += load<V>(a.b_ih + g * a.H + unit, count);
      recurrent[g] += load<V>(a.b_hh + g * a.H + unit, count);
    }
    const std::int64_t at = b * a.H + unit;
    if (Cell::reads_h0 && a.h0) h0 = load<V>(a.h0 + at, count);
    if (Cell::carries_cell && a.c0) c0 = load<V>(a.c0 + at, count);
    Cell::update(input, recurrent, h0, c0, s, c1);
    if (Cell::carries_cell) c1 = clamp<V>(c1, a.cell_clip);
    store(a.h1 + at, Cell::output(s, h0, c1), count);
    if (Cell::carries_cell) store(a.c1 + at, c1, count);
    if (a.saved)
      for (int i = 0; i < S; ++i) store(a.saved + (b * S + i) * a.H + unit, s[i], count);
    if (Cell::carries_cell && a.cells) store(a.cells + at, c1, count);
  }

  const StepArgs<Storage>& a;
  V x[G][max_step_batch], r[G][max_step_batch];
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
