// One time step with its derivative along a tangent, forward and backward, on products that the caller has taken: the
// cell on dual numbers. Of a row [2, *] the first half is the value, the second the tangent.
#pragma once

#include "../cells/dual.h"
#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Cell, class Compute>
class DualStep {
  using V = Vec<Compute>;
  using D = Dual<V>;
  static constexpr int G = Cell::gates, S = Cell::saved, L = lanes<V>;

 public:
  static void forward(const DualForwardArgs<Compute>& a, std::int64_t row_begin, std::int64_t row_end) {
    each_block(a.H, row_begin, row_end, [&](std::int64_t row, std::int64_t unit, auto count) {
      D x[G], u[G], s[S], h0{}, c0{}, c1{};
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        x[g] = load(a.x, row, G * a.H, g * a.H + unit, count);
        u[g] = load(a.u, row, G * a.H, g * a.H + unit, count);
        if (!a.bias_x) continue;
        x[g] = x[g] + load(a.bias_x, 0, G * a.H, g * a.H + unit, count);
        u[g] = u[g] + load(a.bias_h, 0, G * a.H, g * a.H + unit, count);
      }
      if constexpr (Cell::reads_h0) h0 = load(a.h0, row, a.H, unit, count);
      if constexpr (Cell::carries_cell) c0 = load(a.c0, row, a.H, unit, count);
      Cell::template update<D>(x, u, h0, c0, s, c1);
      if constexpr (Cell::carries_cell) {
        c1 = {clamp<V>(c1.value, a.cell_clip), unclipped(c1.value, a.cell_clip, c1.tangent)};
        store(a.c1, row, a.H, unit, c1, count);
      }
#pragma GCC unroll 8
      for (int i = 0; i < S; ++i) store(a.saved, row, S * a.H, i * a.H + unit, s[i], count);
      store(a.h1, row, a.H, unit, Cell::template output<D>(s, h0, c1), count);
    });
  }

  static void backward(const DualBackwardArgs<Compute>& a, std::int64_t row_begin, std::int64_t row_end) {
    each_block(a.H, row_begin, row_end, [&](std::int64_t row, std::int64_t unit, auto count) {
      D s[S], d[S], h0{}, c0{}, c1{}, dc{}, dh0{};
#pragma GCC unroll 8
      for (int i = 0; i < S; ++i) s[i] = load(a.saved, row, S * a.H, i * a.H + unit, count);
      const D dh1 = load(a.dh1, row, a.H, unit, count);
      if constexpr (Cell::reads_h0) h0 = load(a.h0, row, a.H, unit, count);
      if constexpr (Cell::carries_cell) {
        c0 = load(a.c0, row, a.H, unit, count);
        c1 = load(a.c1, row, a.H, unit, count);
        dc = load(a.dc, row, a.H, unit, count);
      }
      Cell::template d_output<D>(s, h0, c1, dh1, d, dc, dh0);
      dc = {unclipped(c1.value, a.cell_clip, dc.value), unclipped(c1.value, a.cell_clip, dc.tangent)};
      Cell::template d_update<D>(s, h0, c0, d, dc, dh0);
      if constexpr (Cell::carries_cell) store(a.dc, row, a.H, unit, dc, count);
      if constexpr (Cell::reads_h0) store(a.dh0, row, a.H, unit, dh0, count);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        store(a.d_x, row, G * a.H, g * a.H + unit, d[g], count);
        if (a.d_u != a.d_x) store(a.d_u, row, G * a.H, g * a.H + unit, d[Cell::recurrent_column[g]], count);
      }
    });
  }

 private:
  // Calls f(row, unit, count) for every block of units of the rows.
  template <class F>
  static void each_block(std::int64_t units, std::int64_t row_begin, std::int64_t row_end, F f) {
    for (std::int64_t row = row_begin; row < row_end; ++row)
      for (std::int64_t unit = 0; unit < units; unit += L)
        with_count<L>(unit, units, [&](auto count) { f(row, unit, count); });
  }

  template <class Count>
  LSTM_FUSED_INLINE static D load(const Compute* rows, std::int64_t row, std::int64_t width, std::int64_t unit,
                                  Count count) {
    const Compute* const p = rows + row * 2 * width + unit;
    return {LSTM_FUSED_TARGET::load<V>(p, count), LSTM_FUSED_TARGET::load<V>(p + width, count)};
  }
  template <class Count>
  LSTM_FUSED_INLINE static void store(Compute* rows, std::int64_t row, std::int64_t width, std::int64_t unit,
                                      const D& x, Count count) {
    Compute* const p = rows + row * 2 * width + unit;
    LSTM_FUSED_TARGET::store(p, x.value, count);
    LSTM_FUSED_TARGET::store(p + width, x.tangent, count);
  }

  // x, or zero where a clip holds c.
  LSTM_FUSED_INLINE static V unclipped(const V& c, Compute clip, const V& x) {
    const V low = broadcast<V>(-clip), high = broadcast<V>(clip);
    return ((c <= low) | (c >= high)) ? V{} : x;
  }
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
