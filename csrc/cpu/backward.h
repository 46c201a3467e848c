// The fused backward: from the last step to the first, the cell's gradients, then dh_{t-1} = dgates_t U.
// The two are a step's halves, with one barrier between them where workers share rows.
#pragma once

#include "product.h"
#include "worker.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Cell, class Storage>
class Backward : Worker {
  using Compute = compute_t<Storage>;
  using V = Vec<Compute>;
  static constexpr int G = Cell::gates, S = Cell::saved, L = lanes<V>;

 public:
  static constexpr int panel_vectors = 2;
  static constexpr int panel_width = panel_vectors * L;

  Backward(const BackwardArgs<Storage>& args, const Share& share, Barrier& barrier)
      : Worker(share, barrier, args.H, args.P), a(args) {}

  void run() {
    if (!start()) return;
    for (std::int64_t step = a.sequence.steps - 1; step >= 0; --step) {
      const std::int64_t t = a.sequence.time(step);
      if (a.projection.data) {
        add_output_gradient(t);
        if (!meet()) return;
        project_back(t, step);
      } else {
        differentiate_units(t, step);
      }
      if (!meet()) return;
      if (step > 0 || a.need_dh0) multiply_recurrent(t);
      begin_anew(t);
    }
  }

 private:
  using Columns = Product<panel_vectors, Compute>;

  static std::int64_t panels(std::int64_t outputs) { return (outputs + panel_width - 1) / panel_width; }

  // A row's state before a step; null: zero.
  struct State {
    const Storage* h;   // [P]
    const Compute* c;   // [H]
  };

  State state_before(std::int64_t t, std::int64_t step, std::int64_t b) const {
    if (a.sequence.begins_anew(a.resets, t, b)) return {a.reset_h, a.reset_c};
    const std::int64_t before = a.sequence.reverse ? t + 1 : t - 1;
    if (step == 0 || b >= a.sequence.active(before)) {
      const std::int64_t column = a.sequence.column(b);
      return {a.h0 ? a.h0 + column * a.P : nullptr, a.c0 ? a.c0 + column * a.H : nullptr};
    }
    const Compute* const c = Cell::carries_cell ? a.cells + (a.sequence.offset(before) + b) * a.H : nullptr;
    return {a.output + a.sequence.place(before, b) * a.output_ld, c};
  }

  // What rows that begin anew with a step pass on is the gradient of the state they begin in.
  void begin_anew(std::int64_t t) {
    if (!a.resets) return;
    const auto give = [](Compute* from, Compute* to, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        if (to) to[i] += from[i];
        from[i] = 0;
      }
    };
    const std::int64_t begin = a.projection.data ? share.projected_begin : share.unit_begin;
    const std::int64_t end = a.projection.data ? share.projected_end : share.unit_end;
    for (std::int64_t j = 0; j < my_rows(a.sequence.batch); ++j) {
      const std::int64_t b = row(j), h = b * a.P, c = b * a.H;
      if (!a.sequence.begins_anew(a.resets, t, b)) continue;
      give(a.dh + h, a.d_reset_h ? a.d_reset_h + h : nullptr, begin, end);
      if constexpr (Cell::carries_cell)
        give(a.dc + c, a.d_reset_c ? a.d_reset_c + c : nullptr, share.unit_begin, share.unit_end);
    }
  }

  template <class Count>
  LSTM_FUSED_INLINE V output_gradient(std::int64_t t, std::int64_t b, std::int64_t unit, Count count) const {
    return a.d_output ? load<V>(a.d_output + a.sequence.place(t, b) * a.d_output_ld + unit, count) : V{};
  }

  auto is_clipped(const V& c) const {
    const V low = broadcast<V>(-a.cell_clip), high = broadcast<V>(a.cell_clip);
    return (c <= low) | (c >= high);
  }

  void differentiate_units(std::int64_t t, std::int64_t step) {
    for (std::int64_t j = 0; j < my_rows(a.sequence.active(t)); ++j) {
      const std::int64_t b = row(j), data = a.sequence.offset(t) + b;
      const Compute* const dh1 = a.dh + a.sequence.column(b) * a.P;
      const State before = state_before(t, step, b);
      for (std::int64_t unit = share.unit_begin; unit < share.unit_end; unit += L) {
        with_count<L>(unit, a.H, [&](auto count) {
          const V dh = load<V>(dh1 + unit, count) + output_gradient(t, b, unit, count);
          differentiate_unit(data, before, b, unit, count, dh);
        });
      }
    }
  }

  template <class Count>
  LSTM_FUSED_INLINE void differentiate_unit(std::int64_t data, const State& before, std::int64_t b, std::int64_t unit,
                                            Count count, const V& dh1) {
    V s[S], d[S], h0{}, c0{}, c1{}, dc{}, dh0{};
    const std::int64_t column = a.sequence.column(b);
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) s[i] = load<V>(a.saved + (data * S + i) * a.H + unit, count);
    if (Cell::reads_h0 && before.h) h0 = load<V>(before.h + unit, count);
    if constexpr (Cell::carries_cell) {
      c1 = load<V>(a.cells + data * a.H + unit, count);
      if (before.c) c0 = load<V>(before.c + unit, count);
      dc = load<V>(a.dc + column * a.H + unit, count);
      if (a.d_cells) dc += load<V>(a.d_cells + data * a.H + unit, count);
    }
    Cell::d_output(s, h0, c1, dh1, d, dc, dh0);
    if (Cell::carries_cell && a.cell_clip < no_clip<Compute>) dc = is_clipped(c1) ? V{} : dc;
    Cell::d_update(s, h0, c0, d, dc, dh0);
    if (a.grad_clip < no_clip<Compute>) {
#pragma GCC unroll 8
      for (int i = 0; i < S; ++i) d[i] = clamp<V>(d[i], a.grad_clip);
    }
    if constexpr (Cell::carries_cell) store(a.dc + column * a.H + unit, dc, count);
    if constexpr (Cell::reads_h0) store(a.dh + column * a.P + unit, dh0, count);
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) store(a.d_gates + data * d_gates_ld + i * a.H + unit, d[i], count);
    if (a.projection.data) store(a.unprojected + data * a.H + unit, Cell::output(s, h0, c1), count);
  }

  // dh_{t-1} = dgates_t U, beside what the cell passed on directly.
  void multiply_recurrent(std::int64_t t) {
    static constexpr int whole_row[] = {0};
    constexpr bool contiguous = Cell::recurrent_column[G - 1] == G - 1;
    const Segments k = contiguous ? Segments{1, whole_row, G * a.H} : Segments{G, Cell::recurrent_column, a.H};
    const std::int64_t data = a.sequence.offset(t);
    const std::int64_t begin = a.projection.data ? share.projected_begin : share.unit_begin;
    const std::int64_t end = a.projection.data ? share.projected_end : share.unit_end;
    const std::int64_t rows = my_rows(a.sequence.active(t));
    Columns::run(
        rows, Columns::to_and_fro(begin / panel_width, panels(end), G * a.H, t, rows), Columns::nothing,
        Columns::row_by_row([&](std::int64_t j, std::int64_t panel, const V(&product)[panel_vectors]) {
          for (int v = 0; v < panel_vectors; ++v) {
            const std::int64_t p = panel * panel_width + v * L;
            if (p >= a.P) return;
            with_count<L>(p, a.P, [&](auto count) {
              Compute* dh = a.dh + a.sequence.column(row(j)) * a.P + p;
              store(dh, Cell::reads_h0 ? load<V>(dh, count) + product[v] : product[v], count);
            });
          }
        }),
        Columns::term(a.recurrent, k, [&](std::int64_t j) { return a.d_gates + (data + row(j)) * d_gates_ld; }));
  }

  // With a projection: dL/dh_t in full, kept for the gradient of W_hr.
  void add_output_gradient(std::int64_t t) {
    for (std::int64_t j = 0; j < my_rows(a.sequence.active(t)); ++j) {
      const std::int64_t b = row(j), data = a.sequence.offset(t) + b;
      for (std::int64_t p = share.projected_begin; p < share.projected_end; p += L) {
        with_count<L>(p, a.P, [&](auto count) {
          store(a.d_projected + data * d_projected_ld + p,
                load<V>(a.dh + a.sequence.column(b) * a.P + p, count) + output_gradient(t, b, p, count), count);
        });
      }
    }
  }

  // d(o * tanh(c)) = dL/dh_t W_hr, and on through the cell.
  void project_back(std::int64_t t, std::int64_t step) {
    const std::int64_t offset = a.sequence.offset(t);
    Columns::run(
        my_rows(a.sequence.active(t)), {share.unit_begin / panel_width, panels(share.unit_end)}, Columns::nothing,
        Columns::row_by_row([&](std::int64_t j, std::int64_t panel, const V(&product)[panel_vectors]) {
          const std::int64_t b = row(j);
          const State before = state_before(t, step, b);
          for (int v = 0; v < panel_vectors; ++v) {
            const std::int64_t unit = panel * panel_width + v * L;
            if (unit >= a.H) return;
            with_count<L>(unit, a.H,
                          [&](auto count) { differentiate_unit(offset + b, before, b, unit, count, product[v]); });
          }
        }),
        Columns::term(a.projection, a.P,
                      [&](std::int64_t j) { return a.d_projected + (offset + row(j)) * d_projected_ld; }));
  }

  const BackwardArgs<Storage>& a;
  const std::int64_t d_gates_ld = row_stride<Compute>(S * a.H), d_projected_ld = row_stride<Compute>(a.P);
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
