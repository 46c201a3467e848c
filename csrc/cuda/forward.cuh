// The fused forward of the steps [begin, end). A warp has one unit and all of its gates: it multiplies some rows'
// h_{t-1} with the unit's rows of U, and then one lane for each row does the cell update. h_{t-1} is read from where
// the last step has written it: the output.
#pragma once

#include <cooperative_groups.h>

#include "../cells/all_cells.h"
#include "kernels.h"
#include "product.cuh"

namespace lstm_fused::cuda {

extern __shared__ __align__(16) unsigned char shared_memory[];

// Rows of the batch that a block has: in plan `grid` all of them.
struct BlockRows {
  std::int64_t begin, end;
};
__device__ inline BlockRows rows_of_block(Kind kind, int rows, std::int64_t batch) {
  if (kind == Kind::grid) return {0, batch};
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * rows, end = begin + rows;
  return {begin, end < batch ? end : batch};
}

// Everybody whose results the next step reads has done this one.
__device__ inline void meet(Kind kind) {
  if (kind == Kind::grid) cooperative_groups::this_grid().sync();
  else __syncthreads();
}

template <class Cell, class Storage, int rows>
class Forward {
  using Compute = compute_t<Storage>;
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  __device__ Forward(const ForwardArgs<Storage>& args, const Plan& plan)
      : a(args), plan(plan), product(args.H, plan.staged_columns, shared_memory) {
    unit_begin = static_cast<std::int64_t>(blockIdx.y) * plan.units_per_block;
    unit_end = unit_begin + plan.units_per_block < a.H ? unit_begin + plan.units_per_block : a.H;
  }

  __device__ void run(std::int64_t begin, std::int64_t end) {
    if (plan.resident)
      make_resident(product.behind_staged(), weight_rows * plan.units_per_block, a.H,
                    [&](std::int64_t i) { return in_memory(unit_begin + i / weight_rows, i % weight_rows); });
    for (std::int64_t step = begin; step < end; ++step) {
      run_step(step);
      if (step + 1 < end) meet(plan.kind);
    }
  }

 private:
  // The row of U of a unit's gate; null where there is none.
  __device__ const Storage* in_memory(std::int64_t unit, int gate) const {
    return unit < unit_end && gate < G ? a.recurrent + (gate * a.H + unit) * a.H : nullptr;
  }

  __device__ void run_step(std::int64_t step) {
    const std::int64_t t = a.sequence.time(step), active = a.sequence.active(t);
    const BlockRows block = rows_of_block(plan.kind, rows, active);
    for (std::int64_t row = block.begin; row < block.end; row += rows) {
      product.next_rows();
      const auto source = [&](int r, std::int64_t k) {
        return row + r < active ? h_before(t, step, row + r, k) : Compute(0);
      };
      for (std::int64_t first = unit_begin; first < unit_end; first += warps) {
        const std::int64_t unit = first + threadIdx.x / 32;
        const Storage* weights[weight_rows];
        for (int g = 0; g < weight_rows; ++g) {
          weights[g] = in_memory(unit, g);
          if (plan.resident && weights[g])
            weights[g] = product.behind_staged() + ((unit - unit_begin) * weight_rows + g) * a.H;
        }
        const Compute sum = product.multiply(weights, source);
        Compute recurrent[G];  // of the row that this lane updates
        const int mine = threadIdx.x % rows;
        for (int g = 0; g < G; ++g)
          recurrent[g] = __shfl_sync(~0u, sum, (mine * weight_rows + g) * product.lanes_per_sum);
        if (threadIdx.x % 32 < rows && unit < unit_end && row + mine < active)
          update(t, step, row + mine, unit, recurrent);
      }
    }
  }

  // Row b's h_{t-1}: that of the step before in the direction of time, where it has one.
  __device__ Compute h_before(std::int64_t t, std::int64_t step, std::int64_t b, std::int64_t unit) const {
    const std::int64_t before = a.sequence.reverse ? t + 1 : t - 1;
    if (step > 0 && b < a.sequence.active(before))
      return load_fresh(a.output + (a.sequence.offset(before) + b) * a.output_ld + unit);
    return a.h0 ? load(a.h0 + b * a.H + unit) : Compute(0);
  }

  __device__ void update(std::int64_t t, std::int64_t step, std::int64_t b, std::int64_t unit,
                         const Compute (&product_of_gate)[G]) {
    const std::int64_t data = a.sequence.offset(t) + b;
    Compute x[G], r[G], s[S], h0{}, c0{}, c1{};
    for (int g = 0; g < G; ++g) {
      x[g] = load(a.input_gates + data * a.input_ld + g * a.H + unit);
      r[g] = product_of_gate[g] + (a.bias_h ? load(a.bias_h + g * a.H + unit) : Compute(0));
    }
    if constexpr (Cell::reads_h0) h0 = h_before(t, step, b, unit);
    if constexpr (Cell::carries_cell) c0 = a.c[b * a.H + unit];
    Cell::update(x, r, h0, c0, s, c1);
    if constexpr (Cell::carries_cell) c1 = host::clamp(c1, a.cell_clip);
    const Compute h1 = Cell::output(s, h0, c1);
    if constexpr (Cell::carries_cell) a.c[b * a.H + unit] = c1;
    if (a.saved)
      for (int i = 0; i < S; ++i) store(a.saved + (data * S + i) * a.H + unit, s[i]);
    if (Cell::carries_cell && a.cells) a.cells[data * a.H + unit] = c1;
    store(a.output + data * a.output_ld + unit, h1);
    if (b >= a.sequence.first_ending(t)) store(a.h_n + b * a.H + unit, h1);
  }

  const ForwardArgs<Storage>& a;
  const Plan& plan;
  Product<Storage, rows> product;
  std::int64_t unit_begin, unit_end;
};

template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    forward_kernel(const ForwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  Forward<Cell, Storage, rows>(args, plan).run(begin, end);
}

}  // namespace lstm_fused::cuda
