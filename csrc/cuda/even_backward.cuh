// The fused backward where every step has the same rows and none begins anew: backward.cuh's for plans that hold the
// weights in registers, as even_forward.cuh. The exchange has the gradients at the gates that rows of U belong to.
#pragma once

#include "../cells/all_cells.h"
#include "chain_product.cuh"
#include "coming.cuh"
#include "kernels.h"

namespace lstm_fused::cuda {

// Gradients in an exchange are in another order than in d_gates: those that rows of U belong to, U's way, and the rest.
template <class Cell>
constexpr int gate_of_column(int k) {
  int others = k - Cell::gates;
  if (others < 0) return Cell::recurrent_column[k];
  for (int gate = 0;; ++gate) {
    bool recurrent = false;
    for (const int column : Cell::recurrent_column) recurrent |= column == gate;
    if (!recurrent && others-- == 0) return gate;
  }
}
template <class Cell, int k>
inline constexpr int handed_gate = gate_of_column<Cell>(k);

template <class Cell, class Storage, int items, bool wide>
class EvenBackward {
  using Value = Approximate;
  static constexpr int group = wide && Cell::carries_cell ? 2 : Cell::gates;  // as registers suffice
  using Product = ChainProduct<Storage, 1, Cell::gates, wide, group>;
  static constexpr int G = Cell::gates, S = Cell::saved;
  static constexpr bool looks_ahead = items == 1;  // as in EvenForward

 public:
  __device__ EvenBackward(const BackwardArgs<Storage>& args, const Plan& plan)
      : a(args),
        H(static_cast<int>(a.H)),
        T(static_cast<int>(a.sequence.steps)),
        B(static_cast<int>(a.sequence.batch)),
        units(units_of_block(plan, H)),
        rows(rows_of_block(plan, B)),
        exchange(a.exchange, B, S * H),
        product(Weights<Storage>(a.recurrent, H, G * H, 1, units), plan, rows, exchange),
        own(product.template of_lane<items>(units, rows)),
        step_rows(a.sequence.reverse ? B : -B),
        data((a.sequence.reverse ? 0 : T - 1) * static_cast<std::int64_t>(B) + own.row),
        mine(a.exchange),
        saved(a.saved + data * (S * H) + own.unit),
        outputs(a.output + data * a.output_ld + own.unit),
        d_outputs(a.d_output + data * a.d_output_ld + own.unit),
        cells(a.cells + data * H + own.unit),
        coming(rows, S + 2) {
    const std::int64_t row = data - own.row + coming.row;
    if (coming.part < S) {
      coming.begin(a.saved + (row * S + coming.part) * H + units.begin, step_rows * S * H);
    } else if (coming.part > S) {
      if (Cell::carries_cell) coming.begin(a.cells + (row + step_rows) * H + units.begin, step_rows * H);
      else coming.begin(a.output + (row + step_rows) * a.output_ld + units.begin, step_rows * a.output_ld);
    } else if (a.d_output) {
      coming.begin(a.d_output + row * a.d_output_ld + units.begin, step_rows * a.d_output_ld);
    }
  }

  __device__ void run() {
    begin();
    for (int step = T - 1; step >= 0; --step) {
      if (step < T - 1) {
        product.ask();
        product.multiply();
      }
#pragma unroll
      for (int i = 0; i < items; ++i) {
        if (!product.has(i)) break;
        if (step < T - 1) add_product(i);
        Given given = {};
        if (looks_ahead) given = ahead;
        else if (own.has(i)) load(step, i, given);
        differentiate(i, given);
      }
      advance();
      if (looks_ahead && step > 0 && own.has(0)) load(step - 1, 0, ahead);
      coming.ask(step > coming.steps);
      __syncthreads();  // as in EvenForward
    }
    end();
  }

 private:
  // The i-th item's place in h_0 and c_0.
  __device__ std::int64_t first(int i) const { return rows_before(own.row, H) + own.unit + own.offset(i, H); }

  __device__ void begin() {
#pragma unroll
    for (int k = 0; k < S; ++k) place[k] = static_cast<int>(exchange.at(own.row, k * H + own.unit) - a.exchange);
    own.each([&](int i) {
      dh[i] = a.dh[first(i)];
      if constexpr (Cell::carries_cell) dc[i] = a.dc[first(i)], c[i] = cells[own.offset(i, H)];
      if (looks_ahead) load(T - 1, i, ahead);
    });
  }

  // What a unit's derivative reads beside its product, as in EvenForward.
  struct Given {
    Storage s[S], d_output, h0;
    float c0, c1;
  };
  __device__ void load(int step, int i, Given& given) {
    const Storage* const from = saved + own.offset(i, S * H);
#pragma unroll
    for (int k = 0; k < S; ++k) given.s[k] = from[k * H];
    if (a.d_output) given.d_output = d_outputs[own.offset(i, a.d_output_ld)];
    if constexpr (Cell::reads_h0) {
      if (step > 0) given.h0 = outputs[own.offset(i, a.output_ld) + step_rows * a.output_ld];
      else given.h0 = a.h0 ? a.h0[first(i)] : Storage{};
    }
    if constexpr (Cell::carries_cell) {
      given.c1 = c[i];
      if (step > 0) c[i] = cells[own.offset(i, H) + step_rows * H];
      else c[i] = a.c0 ? cuda::load(a.c0 + first(i)) : 0.0f;
      given.c0 = c[i];
      if (a.d_cells) dc[i] += a.d_cells[cells - a.cells + own.offset(i, H)];
    }
  }

  __device__ void add_product(int i) {
    float sum[1];
    product.sums(i, sum);
    dh[i] += sum[0];
  }

  __device__ void differentiate(int i, const Given& given) {
    Value values[S], d[S] = {}, dc_now = dc[i], dh0{};
#pragma unroll
    for (int k = 0; k < S; ++k) values[k] = to_compute(given.s[k]);
    const Value h_before = to_compute(given.h0);
    Cell::template d_output<Value>(values, h_before, given.c1, dh[i] + to_compute(given.d_output), d, dc_now, dh0);
    if (Cell::carries_cell && a.cell_clip < no_clip<float>)
      if (given.c1 <= -a.cell_clip || given.c1 >= a.cell_clip) dc_now = 0;
    Cell::template d_update<Value>(values, h_before, given.c0, d, dc_now, dh0);
    hand_on<0>(i, d);
    dh[i] = number(dh0);
    dc[i] = number(dc_now);
  }

  // To all blocks that have these rows: first the gates that rows of U belong to, and, for nobody else, the others.
  // Called by all lanes of a warp.
  template <int k>
  __device__ void hand_on(int i, const Value (&d)[S]) const {
    constexpr int gate = handed_gate<Cell, k>;
    const Storage value = to_storage<Storage>(host::clamp(number(d[gate]), a.grad_clip));
    const unsigned word = word_of<Product::neighbour>(value);
    if (own.has(i)) publish(mine + place[k] + own.offset(i, exchange), value, word, /*hint=*/true, own.unit);
    if constexpr (k + 1 < S) hand_on<k + 1>(i, d);
  }

  __device__ void advance() {
    mine += exchange.step_stride();
    saved += step_rows * (S * H);
    cells += step_rows * H;
    outputs += step_rows * a.output_ld;
    d_outputs += step_rows * a.d_output_ld;
  }

  // What is left is dL/dh_0 and dL/dc_0.
  __device__ void end() {
    product.ask();
    product.multiply();
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (product.has(i)) add_product(i);
    own.each([&](int i) {
      a.dh[first(i)] = dh[i];
      if constexpr (Cell::carries_cell) a.dc[first(i)] = dc[i];
    });
  }

  const BackwardArgs<Storage>& a;
  const int H, T, B;
  const Range units, rows;
  const Exchange<Storage> exchange;
  Product product;
  const Items<items, rows_apart(wide)> own;
  const std::int64_t step_rows, data;  // from a step's data row to that of the step before; the last step's
  Storage* mine;  // this step's part of the exchange
  int place[S];  // in it, the gates of the lane's first item
  // Of the lane's first item and this step, what is read.
  const Storage *saved, *outputs, *d_outputs;
  const float* cells;
  float dh[items] = {}, dc[items] = {};  // dL/dh beside what comes through U, dL/dc
  float c[items] = {};  // c of the next step to be loaded
  Given ahead = {};
  Coming coming;
};

template <class Cell, class Storage, int items, bool wide>
__global__ void __launch_bounds__(threads, 1) even_backward_kernel(const BackwardArgs<Storage> args, const Plan plan) {
  if constexpr (has_tensor_cores) EvenBackward<Cell, Storage, items, wide>(args, plan).run();
}

}  // namespace lstm_fused::cuda
