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
  using Value = typename Product::Value;
  static constexpr int G = Cell::gates, S = Cell::saved, items = Product::items;

 public:
  __device__ Backward(const BackwardArgs<Storage>& args, const Plan& plan, const Product& product)
      : a(args),
        plan(plan),
        product(product),
        steps{args.sequence},
        H(static_cast<int>(args.H)),
        units(units_of_block(plan, H)) {}

  __device__ void run(int begin, int end) {
    product.keep_weights();
    Meeting meeting(plan, a.arrived, a.hint, product.updating_warps());
    const Range all = rows_of_block(plan, steps.batch);
    // As in Forward.
    const bool same = all.end - all.begin <= product.rows && units.end - units.begin <= product.pass_units();
    Given given[items];
    if (same) {
      each_item(product, units.begin, all, [&](int i, int b, int unit) { load_carried(b, unit, given[i]); });
      look_ahead(end - 1, end, all, given);
    }
    for (int step = end - 1; step >= begin; --step) {
      const int now = steps.active(step), later = steps.active(step + 1);
      const Range mine = rows_of_block(plan, now > later ? now : later);
      for (int row = mine.begin; row < mine.end; row += product.rows)
        run_rows(step, begin, end, {row, mine.end}, now, later, same, given);
      if (step == begin) break;
      const bool any = mine.begin < mine.end;
      if (any) meeting.arrive();
      if (same) look_ahead(step - 1, end, all, given);
      if (any) meeting.wait();
    }
  }

 private:
  // What a unit's derivative reads beside its product; and what it carries: dL/dh beside what comes through U, dL/dc.
  struct Given {
    Storage s[S] = {}, d_output{}, h0{};  // as they are, so that nothing waits for them before they are needed
    Compute c0{}, c1{}, dh{}, dc{};
  };

  // Of the gradients at all of a unit's columns those that U's rows belong to, one gate after the other.
  template <int gate>
  __device__ void keep(Storage* at, const Storage (&d)[S]) const {
    constexpr int column = Cell::recurrent_column[gate];
    at[gate * H] = d[column];
    if constexpr (gate + 1 < G) keep<gate + 1>(at, d);
  }

  __device__ void load_carried(int b, int unit, Given& given) const {
    given.dh = a.dh[rows_before(b, H) + unit];
    if constexpr (Cell::carries_cell) given.dc = a.dc[rows_before(b, H) + unit];
  }

  // Of a step everything that does not depend on the last one's results.
  __device__ void look_ahead(int step, int end, const Range& all, Given (&given)[items]) {
    const int now = steps.active(step), later = steps.active(step + 1), most = now > later ? now : later;
    each_item(product, units.begin, {all.begin, all.end < now ? all.end : now},
              [&](int i, int b, int unit) { load_given(step, b, unit, given[i]); });
    product.aim(source_rows(step, end, {all.begin, all.end < most ? all.end : most}, later));
  }

  __device__ auto source_rows(int step, int end, const Range& rows, int later) const {
    return [=, this](int r) -> SourceRow<Storage> {
      const int b = rows.begin + r;
      if (b >= later || b >= rows.end) return {};
      if (plan.kept) return {kept_row<Storage>(plan, step + 1, row_of_block(plan, b)), false};
      return {a.d_gates + rows_before(steps.data_row(step + 1, b), S * H), step + 1 < end};
    };
  }

  // `now` and `later` rows take part in this step and in the one after it.
  __device__ void run_rows(int step, int begin, int end, const Range& rows, int now, int later, bool same,
                           Given (&given)[items]) {
    const auto row = source_rows(step, end, rows, later);
    const auto shift = [&](int k) { return S == G || plan.kept ? 0 : shift_of(k); };
    if (!same) product.aim(row);
    for (int first = units.begin; first < units.end; first += product.pass_units()) {
      if (!same)
        each_item(product, first, rows, [&](int i, int b, int unit) {
          load_carried(b, unit, given[i]);
          if (b < now) load_given(step, b, unit, given[i]);
        });
      Compute sums[items][1];
      product.multiply(first, row, shift, sums);
      Storage d[S] = {};
      unsigned words[S] = {};
      each_item(product, first, rows, [&](int i, int b, int unit) {
        Given& own = given[i];
        if (b < later) {
          own.dh += sums[i][0];
          if (steps.begins_anew(a.resets, step + 1, b)) {  // so this is none of h_t, but of the state that it began in
            if (a.d_reset_h) a.d_reset_h[rows_before(b, H) + unit] += own.dh;
            own.dh = 0;
          }
        }
        if (b < now) {
          differentiate(step, b, unit, own, d);
          if constexpr (items > 1) put(step, b, unit, d, words);
        }
        if (same && step > begin && b < now) return;
        a.dh[rows_before(b, H) + unit] = own.dh;  // of a row that begins after this step: its dL/dh_0
        if constexpr (Cell::carries_cell) a.dc[rows_before(b, H) + unit] = own.dc;
      });
      if constexpr (items > 1) continue;
      if (a.hint)
#pragma unroll
        for (int i = 0; i < S; ++i) words[i] = word_of<Product::neighbour>(d[i]);
      each_item(product, first, rows, [&](int /*i*/, int b, int unit) {
        if (b < now) put(step, b, unit, d, words);
      });
    }
  }

  __device__ void put(int step, int b, int unit, const Storage (&d)[S], const unsigned (&words)[S]) {
    Storage* const at = a.d_gates + rows_before(steps.data_row(step, b), S * H) + unit;
#pragma unroll
    for (int i = 0; i < S; ++i) publish(at + i * H, d[i], words[i], a.hint, unit);
  }

  // How far the column of the gradient buffer that belongs to row k of U lies behind k.
  template <int gate = 0>
  __device__ int shift_of(int k) const {
    if constexpr (gate + 1 < G)
      if (k >= (gate + 1) * H) return shift_of<gate + 1>(k);
    return (Cell::recurrent_column[gate] - gate) * H;
  }

  __device__ void load_given(int step, int b, int unit, Given& given) const {
    const int data = steps.data_row(step, b);
    const bool anew = steps.begins_anew(a.resets, step, b);
    const bool has_previous = !anew && step > 0 && b < steps.active(step - 1);
    const int before = has_previous ? steps.data_row(step - 1, b) : 0;
    if (a.d_output) given.d_output = a.d_output[rows_before(data, static_cast<int>(a.d_output_ld)) + unit];
    const Storage* const saved = a.saved + rows_before(data, S * H) + unit;
#pragma unroll
    for (int i = 0; i < S; ++i) given.s[i] = saved[i * H];
    const std::int64_t first = rows_before(b, H) + unit;  // in h_0 and c_0
    if constexpr (Cell::reads_h0) {
      if (has_previous) given.h0 = a.output[rows_before(before, static_cast<int>(a.output_ld)) + unit];
      else given.h0 = anew ? (a.reset_h ? a.reset_h[unit] : Storage{}) : a.h0 ? a.h0[first] : Storage{};
    }
    if constexpr (Cell::carries_cell) {
      given.c1 = a.cells[rows_before(data, H) + unit];
      if (has_previous) given.c0 = a.cells[rows_before(before, H) + unit];
      else given.c0 = anew ? (a.reset_c ? load(a.reset_c + unit) : 0) : a.c0 ? load(a.c0 + first) : 0;
      if (a.d_cells) given.dc += a.d_cells[rows_before(data, H) + unit];
    }
  }

  // Leaves in `given` what is carried to the step before.
  __device__ void differentiate(int step, int b, int unit, Given& given, Storage (&stored)[S]) {
    Value s[S], d[S], dc = given.dc, dh0{};
#pragma unroll
    for (int i = 0; i < S; ++i) s[i] = to_compute(given.s[i]);
    const Value h0 = to_compute(given.h0);
    Cell::template d_output<Value>(s, h0, given.c1, given.dh + to_compute(given.d_output), d, dc, dh0);
    if (Cell::carries_cell && a.cell_clip < no_clip<Compute>)
      if (given.c1 <= -a.cell_clip || given.c1 >= a.cell_clip) dc = 0;
    Cell::template d_update<Value>(s, h0, given.c0, d, dc, dh0);
#pragma unroll
    for (int i = 0; i < S; ++i) stored[i] = to_storage<Storage>(host::clamp(number(d[i]), a.grad_clip));
    if (plan.kept) keep<0>(kept_row<Storage>(plan, step, row_of_block(plan, b)) + unit, stored);
    given.dh = number(dh0);
    if constexpr (Cell::carries_cell) {
      given.dc = number(dc);
      if (!steps.begins_anew(a.resets, step, b)) return;
      if (a.d_reset_c) a.d_reset_c[rows_before(b, H) + unit] += given.dc;
      given.dc = 0;
    }
  }

  const BackwardArgs<Storage>& a;
  const Plan& plan;
  Product product;
  const Steps steps;
  const int H;
  const Range units;
};

template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    backward_kernel(const BackwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  if constexpr (rows > 0 || has_tensor_cores) {
    const Range units = units_of_block(plan, static_cast<int>(args.H));
    const Weights<Storage> weights(args.recurrent, args.H, Cell::gates * args.H, 1, units);
    const auto product = make_product<Storage, 1, Cell::gates, rows>(weights, plan, args.hint);
    Backward<Cell, Storage, std::remove_const_t<decltype(product)>>(args, plan, product)
        .run(static_cast<int>(begin), static_cast<int>(end));
  }
}

}  // namespace lstm_fused::cuda
