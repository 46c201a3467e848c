// The fused forward of the steps [begin, end). A block multiplies some rows' h_{t-1} with its units' rows of U, and the
// lanes that are given a unit's sums for a row do the cell update. h_{t-1} is read from where the last step has written
// it: the output.
#pragma once

#include "../cells/all_cells.h"
#include "block.cuh"
#include "kernels.h"
#include "tensor_product.cuh"

namespace lstm_fused::cuda {

template <class Cell, class Storage, class Product>
class Forward {
  using Compute = compute_t<Storage>;
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  __device__ Forward(const ForwardArgs<Storage>& args, const Plan& plan, Product product)
      : a(args), plan(plan), product(product), units(units_of_block(plan, args.H)) {}

  __device__ void run(std::int64_t begin, std::int64_t end) {
    product.keep_weights();
    Meeting meeting(plan, a.arrived);
    for (std::int64_t step = begin; step < end; ++step) {
      const std::int64_t t = a.sequence.time(step);
      const Range mine = rows_of_block(plan, a.sequence.active(t));
      for (std::int64_t row = mine.begin; row < mine.end; row += product.rows) run_rows(t, step, row, mine.end);
      if (step + 1 < end && mine.begin < mine.end) meeting.wait();
    }
  }

 private:
  // What a unit's update reads beside its product; loaded before it.
  struct Given {
    Compute x[G], bias[G], h0{}, c0{};
  };

  __device__ void run_rows(std::int64_t t, std::int64_t step, std::int64_t first_row, std::int64_t row_end) {
    product.next_rows();
    const auto row = [&](int r) { return first_row + r < row_end ? state_before(t, step, first_row + r) : nullptr; };
    const auto column = [](std::int64_t k) { return k; };
    for (std::int64_t first = units.begin; first < units.end; first += product.pass_units()) {
      const Item item = product.item(0, first);
      const std::int64_t b = first_row + item.row;
      const bool valid = item.valid && b < row_end;
      Given given;
      if (valid) given = load_given(t, step, b, item.unit);
      Compute sums[1][weight_rows];
      product.multiply(first, row, column, sums);
      if (valid) update(t, b, item.unit, given, sums[0]);
    }
  }

  // Row b's h_{t-1} [H]: that of the step before in the direction of time, where it has one; null: zero.
  __device__ const Storage* state_before(std::int64_t t, std::int64_t step, std::int64_t b) const {
    if (a.sequence.begins_anew(a.resets, t, b)) return a.reset_h;
    const std::int64_t before = a.sequence.reverse ? t + 1 : t - 1;
    if (step > 0 && b < a.sequence.active(before)) return a.output + (a.sequence.offset(before) + b) * a.output_ld;
    return a.h0 ? a.h0 + b * a.H : nullptr;
  }

  __device__ Given load_given(std::int64_t t, std::int64_t step, std::int64_t b, std::int64_t unit) const {
    Given given;
    const Storage* const x = a.input_gates + (a.sequence.offset(t) + b) * a.input_ld + unit;
    for (int g = 0; g < G; ++g) {
      given.x[g] = load(x + g * a.H);
      given.bias[g] = a.bias_h ? load(a.bias_h + g * a.H + unit) : Compute(0);
    }
    if constexpr (Cell::reads_h0)
      if (const Storage* const h0 = state_before(t, step, b)) given.h0 = load_fresh(h0 + unit);
    if constexpr (Cell::carries_cell) {
      if (!a.sequence.begins_anew(a.resets, t, b)) given.c0 = a.c[b * a.H + unit];
      else if (a.reset_c) given.c0 = load(a.reset_c + unit);
    }
    return given;
  }

  __device__ void update(std::int64_t t, std::int64_t b, std::int64_t unit, const Given& given,
                         const Compute (&product_of_gate)[weight_rows]) {
    const std::int64_t data = a.sequence.offset(t) + b;
    Compute r[G], s[S], c1{};
    for (int g = 0; g < G; ++g) r[g] = product_of_gate[g] + given.bias[g];
    Cell::update(given.x, r, given.h0, given.c0, s, c1);
    if constexpr (Cell::carries_cell) c1 = host::clamp(c1, a.cell_clip);
    const Compute h1 = Cell::output(s, given.h0, c1);
    if constexpr (Cell::carries_cell) a.c[b * a.H + unit] = c1;
    if (a.saved)
      for (int i = 0; i < S; ++i) store(a.saved + (data * S + i) * a.H + unit, s[i]);
    if (Cell::carries_cell && a.cells) a.cells[data * a.H + unit] = c1;
    store(a.output + data * a.output_ld + unit, h1);
    if (b >= a.sequence.first_ending(t)) store(a.h_n + b * a.H + unit, h1);
  }

  const ForwardArgs<Storage>& a;
  const Plan& plan;
  Product product;
  const Range units;
};

// `rows` names the product: of so many rows at once.
template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    forward_kernel(const ForwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  const Range units = units_of_block(plan, args.H);
  const Weights<Storage> weights = {args.recurrent, args.H, args.H, Cell::gates, units.begin, units.end};
  const bool aligned = all_aligned<Storage>(args.H, args.output_ld, args.recurrent, args.output, args.h0, args.reset_h);
  const auto product = make_product<Storage, weight_rows, rows>(weights, plan, aligned);
  Forward<Cell, Storage, std::remove_const_t<decltype(product)>>(args, plan, product).run(begin, end);
}

}  // namespace lstm_fused::cuda
