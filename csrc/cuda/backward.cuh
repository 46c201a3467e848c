// The fused backward of the steps [begin, end), the last first. A step begins with dL/dh_t: what the output's gradient
// says, and dgates_{t+1} U. A warp takes four units, and then a lane for each row and unit differentiates the cell.
// Step -1 stands for what is left when all are done: dL/dh_0. So one meeting a step is enough.
#pragma once

#include "forward.cuh"

namespace lstm_fused::cuda {

template <class Cell, class Storage, int rows>
class Backward {
  using Compute = compute_t<Storage>;
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  __device__ Backward(const BackwardArgs<Storage>& args, const Plan& plan)
      : a(args), plan(plan), K(G * args.H), product(G * args.H, plan.staged_columns, shared_memory) {
    unit_begin = static_cast<std::int64_t>(blockIdx.y) * plan.units_per_block;
    unit_end = unit_begin + plan.units_per_block < a.H ? unit_begin + plan.units_per_block : a.H;
  }

  __device__ void run(std::int64_t begin, std::int64_t end) {
    if (plan.resident)
      make_resident(product.behind_staged(), plan.units_per_block, K,
                    [&](std::int64_t i) { return in_memory(unit_begin + i); });
    for (std::int64_t step = end - 1; step >= begin; --step) {
      run_step(step);
      if (step > begin) meet(plan.kind);
    }
  }

 private:
  // The column of U of a unit; null where there is none.
  __device__ const Storage* in_memory(std::int64_t unit) const {
    return unit < unit_end ? a.recurrent + unit * K : nullptr;
  }

  __device__ std::int64_t active_at(std::int64_t step) const {
    return step < 0 || step == a.sequence.steps ? 0 : a.sequence.active(a.sequence.time(step));
  }

  __device__ void run_step(std::int64_t step) {
    const std::int64_t now = active_at(step), later = active_at(step + 1);
    const std::int64_t offset_later = later ? a.sequence.offset(a.sequence.time(step + 1)) : 0;
    const BlockRows block = rows_of_block(plan.kind, rows, now > later ? now : later);
    for (std::int64_t row = block.begin; row < block.end; row += rows) {
      product.next_rows();
      const auto source = [&](int r, std::int64_t k) {
        if (row + r >= later) return Compute(0);
        return load_fresh(a.d_gates + (offset_later + row + r) * S * a.H + column_of(k));
      };
      for (std::int64_t first = unit_begin; first < unit_end; first += warps * weight_rows) {
        const std::int64_t first_of_warp = first + threadIdx.x / 32 * weight_rows;
        const Storage* weights[weight_rows];
        for (int i = 0; i < weight_rows; ++i) {
          weights[i] = in_memory(first_of_warp + i);
          if (plan.resident && weights[i]) weights[i] = product.behind_staged() + (first_of_warp + i - unit_begin) * K;
        }
        const Compute sum = product.multiply(weights, source);
        const std::int64_t b = row + product.my_sum() / weight_rows,
                           unit = first_of_warp + product.my_sum() % weight_rows;
        if (!product.first_of_sum() || unit >= unit_end || b >= block.end) continue;
        const Compute dh = a.dh[b * a.H + unit] + (b < later ? sum : Compute(0));
        if (b < now) differentiate(step, b, unit, dh);
        else a.dh[b * a.H + unit] = dh;  // the row begins after this step: this is its dL/dh_0
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

  __device__ void differentiate(std::int64_t step, std::int64_t b, std::int64_t unit, Compute dh1) {
    const std::int64_t t = a.sequence.time(step), data = a.sequence.offset(t) + b;
    const std::int64_t previous = a.sequence.reverse ? t + 1 : t - 1;
    const bool has_previous = step > 0 && b < a.sequence.active(previous);
    const std::int64_t before = has_previous ? a.sequence.offset(previous) + b : 0;
    Compute s[S], d[S], h0{}, c0{}, c1{}, dc{}, dh0{};
    if (a.d_output) dh1 += load(a.d_output + data * a.d_output_ld + unit);
    for (int i = 0; i < S; ++i) s[i] = load(a.saved + (data * S + i) * a.H + unit);
    if constexpr (Cell::reads_h0) {
      if (has_previous) h0 = load(a.output + before * a.output_ld + unit);
      else if (a.h0) h0 = load(a.h0 + b * a.H + unit);
    }
    if constexpr (Cell::carries_cell) {
      c1 = a.cells[data * a.H + unit];
      if (has_previous) c0 = a.cells[before * a.H + unit];
      else if (a.c0) c0 = load(a.c0 + b * a.H + unit);
      dc = a.dc[b * a.H + unit];
      if (a.d_cells) dc += a.d_cells[data * a.H + unit];
    }
    Cell::d_output(s, h0, c1, dh1, d, dc, dh0);
    if (Cell::carries_cell && a.cell_clip < no_clip<Compute>)
      if (c1 <= -a.cell_clip || c1 >= a.cell_clip) dc = 0;
    Cell::d_update(s, h0, c0, d, dc, dh0);
    for (int i = 0; i < S; ++i) store(a.d_gates + (data * S + i) * a.H + unit, host::clamp(d[i], a.grad_clip));
    if constexpr (Cell::carries_cell) a.dc[b * a.H + unit] = dc;
    a.dh[b * a.H + unit] = dh0;  // beside what comes through U
  }

  const BackwardArgs<Storage>& a;
  const Plan& plan;
  const std::int64_t K;
  Product<Storage, rows> product;
  std::int64_t unit_begin, unit_end;
};

template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    backward_kernel(const BackwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  Backward<Cell, Storage, rows>(args, plan).run(begin, end);
}

}  // namespace lstm_fused::cuda
