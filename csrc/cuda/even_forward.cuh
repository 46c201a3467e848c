// The fused forward where every step has the same rows and none begins anew: forward.cuh's for plans that hold the
// weights in registers (Plan::even). A lane has the same items at every step, and nothing that a step needs but the
// last one's results is looked up after it has begun: a step waits for some hundred instructions one after the other,
// each of which counts.
// (With several items a lane, what it reads beside the product is read in the step, for want of registers.)
#pragma once

#include "../cells/all_cells.h"
#include "chain_product.cuh"
#include "coming.cuh"
#include "kernels.h"

namespace lstm_fused::cuda {

template <class Cell, class Storage, int items, bool wide>
class EvenForward {
  using Value = Approximate;
  using Product = ChainProduct<Storage, weight_rows, Cell::gates, wide, 4>;
  static constexpr int G = Cell::gates, S = Cell::saved;
  // Of many items, what is read beside the product would take registers from it.
  static constexpr bool looks_ahead = items == 1;

 public:
  __device__ EvenForward(const ForwardArgs<Storage>& args, const Plan& plan)
      : a(args),
        H(static_cast<int>(a.H)),
        T(static_cast<int>(a.sequence.steps)),
        B(static_cast<int>(a.sequence.batch)),
        units(units_of_block(plan, H)),
        rows(rows_of_block(plan, B)),
        exchange(a.exchange, B, H),
        product(Weights<Storage>(a.recurrent, H, H, G, units), plan, rows, exchange),
        own(product.template of_lane<items>(units, rows)),
        step_rows(a.sequence.reverse ? -B : B),
        data((a.sequence.reverse ? T - 1 : 0) * static_cast<std::int64_t>(B) + own.row),
        mine(exchange.at(own.row, own.unit)),
        input_gates(a.input_gates + data * a.input_ld + own.unit),
        saved(a.saved + data * (S * H) + own.unit),
        cells(a.cells + data * H + own.unit),
        coming(rows, G) {
    coming.begin(a.input_gates + (data - own.row + coming.row) * a.input_ld + coming.part * H + units.begin,
                 step_rows * a.input_ld);
  }

  __device__ void run() {
    begin();
    for (int step = 0; step < T; ++step) {
      product.ask();
      product.multiply();
      Given given[items] = {};
      if (looks_ahead) given[0] = ahead;
      else own.each([&](int i) { load(i, given[i]); });
#pragma unroll
      for (int i = 0; i < items; ++i) {
        if (!product.has(i)) break;
        float sums[weight_rows];
        product.sums(i, sums);
        Value s[S];
        update(i, given[i], sums, s);
        hand_on(i);
        if (own.has(i)) save(i, s);
      }
      advance();
      if (looks_ahead && step + 1 < T && own.has(0)) load(0, ahead);
      coming.ask(step + coming.steps < T);
      __syncthreads();  // everybody has read the partial sums; and before, the next ones' results are not there
    }
    end();
  }

 private:
  // The initial state is handed on as a step's results are.
  __device__ void begin() {
    if (own.unit < own.end_unit && a.bias_h)
#pragma unroll
      for (int g = 0; g < G; ++g) bias[g] = cuda::load(a.bias_h + g * H + own.unit);
    const std::int64_t first = rows_before(own.row, H) + own.unit;
    own.each([&](int i) {
      if (a.h0) h[i] = as_written(a.h0[first + own.offset(i, H)]);
      carried[i] = Cell::carries_cell ? a.c[first + own.offset(i, H)] : to_compute(h[i]);
    });
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (product.has(i)) hand_on(i);
    mine += exchange.step_stride();
    if (looks_ahead && own.has(0)) load(0, ahead);
  }

  // What a unit's update reads beside its product: as it is, so that nothing waits for it before it is needed.
  struct Given {
    Storage x[G];
  };
  __device__ void load(int i, Given& given) const {
    const Storage* const from = input_gates + own.offset(i, a.input_ld);
#pragma unroll
    for (int g = 0; g < G; ++g) given.x[g] = from[g * H];
  }

  __device__ void update(int i, const Given& given, const float (&sums)[weight_rows], Value (&s)[S]) {
    Value in[G], r[G], c1{};
#pragma unroll
    for (int g = 0; g < G; ++g) in[g] = to_compute(given.x[g]), r[g] = sums[g] + bias[g];
    const Value before = carried[i];
    Cell::template update<Value>(in, r, before, before, s, c1);
    if constexpr (Cell::carries_cell) c1 = host::clamp(number(c1), a.cell_clip);
    h[i] = to_storage<Storage>(number(Cell::template output<Value>(s, before, c1)));
    carried[i] = Cell::carries_cell ? number(c1) : to_compute(h[i]);
  }

  // To all blocks that have these rows. Called by all lanes of a warp.
  __device__ void hand_on(int i) const {
    const unsigned word = word_of<Product::neighbour>(h[i]);
    if (own.has(i)) publish(mine + own.offset(i, exchange), h[i], word, /*hint=*/true, own.unit);
  }

  __device__ void save(int i, const Value (&s)[S]) const {
    if (a.saved)
#pragma unroll
      for (int k = 0; k < S; ++k) store(saved + own.offset(i, S * H) + k * H, number(s[k]));
    if (Cell::carries_cell && a.cells) cells[own.offset(i, H)] = carried[i];
  }

  __device__ void advance() {
    mine += exchange.step_stride();
    input_gates += step_rows * a.input_ld;
    saved += step_rows * (S * H);
    cells += step_rows * H;
  }

  __device__ void end() const {
    const std::int64_t last = rows_before(own.row, H) + own.unit;
    own.each([&](int i) {
      a.h_n[last + own.offset(i, H)] = h[i];
      if constexpr (Cell::carries_cell) a.c[last + own.offset(i, H)] = carried[i];
    });
  }

  const ForwardArgs<Storage>& a;
  const int H, T, B;
  const Range units, rows;
  const Exchange<Storage> exchange;
  Product product;
  const Items<items, rows_apart(wide)> own;
  const std::int64_t step_rows, data; // from a step's data row to the next one's; the first
  // Of the lane's first item, where its h is handed on, what is read for the next step, and what is kept of it.
  Storage* mine;
  const Storage* input_gates;
  Storage* saved;
  float* cells;
  float bias[G] = {}, carried[items] = {};  // c, or h
  Storage h[items] = {};
  Given ahead = {};
  Coming coming;
};

template <class Cell, class Storage, int items, bool wide>
__global__ void __launch_bounds__(threads, 1) even_forward_kernel(const ForwardArgs<Storage> args, const Plan plan) {
  if constexpr (has_tensor_cores) EvenForward<Cell, Storage, items, wide>(args, plan).run();
}

}  // namespace lstm_fused::cuda
