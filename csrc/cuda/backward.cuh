// The fused backward of the steps [begin, end), the last first. A step begins with dL/dh_t: what the output's gradient
// says, and dgates_{t+1} U; the lanes that are given a sum differentiate the cell of its row and unit.
// Step -1 stands for what is left when all are done: dL/dh_0. So one meeting a step is enough.
#pragma once

#include "../cells/all_cells.h"
#include "block.cuh"
#include "kernels.h"

namespace lstm_fused::cuda {

template <class Cell, class Storage, class Product>
class Backward {
  using Compute = compute_t<Storage>;
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  __device__ Backward(const BackwardArgs<Storage>& args, const Plan& plan, Product product)
      : a(args), plan(plan), product(product), units(units_of_block(plan, args.H)) {}

  __device__ void run(std::int64_t begin, std::int64_t end) {
    product.keep_weights();
    Meeting meeting(plan, a.arrived);
    for (std::int64_t step = end - 1; step >= begin; --step) {
      const std::int64_t now = active_at(step), later = active_at(step + 1);
      const Range mine = rows_of_block(plan, now > later ? now : later);
      for (std::int64_t row = mine.begin; row < mine.end; row += product.rows)
        run_rows(step, row, mine.end, now, later);
      if (step > begin && mine.begin < mine.end) meeting.wait();
    }
  }

 private:
  __device__ std::int64_t active_at(std::int64_t step) const {
    return step < 0 || step == a.sequence.steps ? 0 : a.sequence.active(a.sequence.time(step));
  }

  __device__ bool begins_anew(std::int64_t step, std::int64_t b) const {
    return a.sequence.begins_anew(a.resets, a.sequence.time(step), b);
  }

  // What a unit's derivative reads beside its product; loaded before it.
  struct Given {
    Compute s[S], dh1{}, d_output{}, h0{}, c0{}, c1{}, dc{};
  };

  // `now` and `later` rows take part in this step and in the one after it.
  __device__ void run_rows(std::int64_t step, std::int64_t first_row, std::int64_t row_end, std::int64_t now,
                           std::int64_t later) {
    product.next_rows();
    const std::int64_t offset_later = later ? a.sequence.offset(a.sequence.time(step + 1)) : 0;
    const auto row = [&](int r) -> const Storage* {
      return first_row + r < later && r < row_end - first_row ? a.d_gates + (offset_later + first_row + r) * S * a.H
                                                              : nullptr;
    };
    const auto column = [&](std::int64_t k) { return column_of(k); };
    for (std::int64_t first = units.begin; first < units.end; first += product.pass_units()) {
      Given given[Product::items];
#pragma unroll
      for (int i = 0; i < Product::items; ++i) {
        const Item item = product.item(i, first);
        const std::int64_t b = first_row + item.row;
        if (item.valid && b < row_end) given[i] = load_given(step, b, item.unit, now);
      }
      Compute sums[Product::items][1];
      product.multiply(first, row, column, sums);
#pragma unroll
      for (int i = 0; i < Product::items; ++i) {
        const Item item = product.item(i, first);
        const std::int64_t b = first_row + item.row;
        if (!item.valid || b >= row_end) continue;
        Compute& dh1 = given[i].dh1;
        if (b < later) {
          dh1 += sums[i][0];
          if (begins_anew(step + 1, b)) {  // so this is none of h_t, but of the state that it began in
            if (a.d_reset_h) a.d_reset_h[b * a.H + item.unit] += dh1;
            dh1 = 0;
          }
        }
        dh1 += given[i].d_output;
        if (b < now) differentiate(step, b, item.unit, given[i]);
        else a.dh[b * a.H + item.unit] = given[i].dh1;  // the row begins after this step: this is its dL/dh_0
      }
    }
  }

  // The column of the gradient buffer that belongs to row k of U.
  __device__ std::int64_t column_of(std::int64_t k) const { return column_from<0>(k); }
  template <int gate>
  __device__ std::int64_t column_from(std::int64_t k) const {
    constexpr int column = Cell::recurrent_column[gate];
    if constexpr (gate + 1 < G)
      if (k >= (gate + 1) * a.H) return column_from<gate + 1>(k);
    return k + (column - gate) * a.H;
  }

  __device__ Given load_given(std::int64_t step, std::int64_t b, std::int64_t unit, std::int64_t now) const {
    Given given;
    given.dh1 = a.dh[b * a.H + unit];
    if (b >= now) return given;
    const std::int64_t t = a.sequence.time(step), data = a.sequence.offset(t) + b;
    const std::int64_t previous = a.sequence.reverse ? t + 1 : t - 1;
    const bool anew = begins_anew(step, b), has_previous = !anew && step > 0 && b < a.sequence.active(previous);
    const Storage *const h0 = anew   ? a.reset_h
                              : a.h0 ? a.h0 + b * a.H
                                     : nullptr,
                         *const c0 = anew   ? a.reset_c
                                     : a.c0 ? a.c0 + b * a.H
                                            : nullptr;
    const std::int64_t before = has_previous ? a.sequence.offset(previous) + b : 0;
    if (a.d_output) given.d_output = load(a.d_output + data * a.d_output_ld + unit);
    for (int i = 0; i < S; ++i) given.s[i] = load(a.saved + (data * S + i) * a.H + unit);
    if constexpr (Cell::reads_h0) {
      if (has_previous) given.h0 = load(a.output + before * a.output_ld + unit);
      else if (h0) given.h0 = load(h0 + unit);
    }
    if constexpr (Cell::carries_cell) {
      given.c1 = a.cells[data * a.H + unit];
      if (has_previous) given.c0 = a.cells[before * a.H + unit];
      else if (c0) given.c0 = load(c0 + unit);
      given.dc = a.dc[b * a.H + unit];
      if (a.d_cells) given.dc += a.d_cells[data * a.H + unit];
    }
    return given;
  }

  __device__ void differentiate(std::int64_t step, std::int64_t b, std::int64_t unit, const Given& given) {
    const std::int64_t data = a.sequence.offset(a.sequence.time(step)) + b;
    Compute d[S], dc = given.dc, dh0{};
    Cell::d_output(given.s, given.h0, given.c1, given.dh1, d, dc, dh0);
    if (Cell::carries_cell && a.cell_clip < no_clip<Compute>)
      if (given.c1 <= -a.cell_clip || given.c1 >= a.cell_clip) dc = 0;
    Cell::d_update(given.s, given.h0, given.c0, d, dc, dh0);
    for (int i = 0; i < S; ++i) store(a.d_gates + (data * S + i) * a.H + unit, host::clamp(d[i], a.grad_clip));
    if constexpr (Cell::carries_cell) {
      const bool anew = begins_anew(step, b);
      if (anew && a.d_reset_c) a.d_reset_c[b * a.H + unit] += dc;
      a.dc[b * a.H + unit] = anew ? Compute(0) : dc;
    }
    a.dh[b * a.H + unit] = dh0;  // beside what comes through U
  }

  const BackwardArgs<Storage>& a;
  const Plan& plan;
  Product product;
  const Range units;
};

template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    backward_kernel(const BackwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  const Range units = units_of_block(plan, args.H);
  const Weights<Storage> weights = {args.recurrent, Cell::gates * args.H, args.H, 1, units.begin, units.end};
  const bool aligned = all_aligned<Storage>(args.H, 0, args.recurrent, args.d_gates);
  const auto product = make_product<Storage, 1, rows>(weights, plan, aligned);
  Backward<Cell, Storage, std::remove_const_t<decltype(product)>>(args, plan, product).run(begin, end);
}

}  // namespace lstm_fused::cuda
