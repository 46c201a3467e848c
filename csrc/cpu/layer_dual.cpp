#include "layer_dual.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "../cells/all_cells.h"
#include "../cuts.h"
#include "../padded.h"
#include "layer.h"

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;

constexpr std::int64_t units_per_thread = 4096;  // of a step: fewer are done before a thread has begun

// A value and its derivative along the tangent; an undefined one is zero.
struct Pair {
  at::Tensor value, tangent;

  Pair select(int index) const {
    return {value.select(0, index), tangent.defined() ? tangent.select(0, index) : tangent};
  }
  Pair t() const { return {value.t(), tangent.defined() ? tangent.t() : tangent}; }
  // Side by side as the kernels have them: [..., K] -> [..., 2, K].
  at::Tensor stacked() const { return at::stack({value, tangent.defined() ? tangent : at::zeros_like(value)}, -2); }
};

Pair pair(const at::Tensor& source, const at::Tensor& seed) { return {to_compute(source), to_compute(seed)}; }

at::Tensor value_of(const at::Tensor& stacked) { return stacked.select(-2, 0); }
at::Tensor tangent_of(const at::Tensor& stacked) { return stacked.select(-2, 1); }

// Of rows [n, 2, K] with a matrix [K, outputs]: [n, 2, outputs].
at::Tensor product(const at::Tensor& rows, const Pair& matrix) {
  const at::Tensor both =
      rows.reshape({rows.size(0) * 2, rows.size(2)}).mm(matrix.value).view({rows.size(0), 2, matrix.value.size(1)});
  if (matrix.tangent.defined()) tangent_of(both).addmm_(value_of(rows), matrix.tangent);
  return both;
}

// The tangent of left^T right, a sum over data rows [N, 2, *].
at::Tensor outer_sum_tangent(const at::Tensor& left, const at::Tensor& right) {
  return tangent_of(left).t().mm(value_of(right)).addmm_(value_of(left).t(), tangent_of(right));
}

// One direction of one layer. Values by data row are [N, 2, *], states [B, 2, *].
template <class Cell, class Compute>
class DualDirection {
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  DualDirection(const LayerShape& shape, const at::Tensor& x, const std::vector<Pair>& states,
                const std::vector<Pair>& reset_states, const DirectionWeights& weights, const DirectionWeights& seeds,
                int index)
      : shape(shape), kernels(active_isa().kernels<Compute>(shape.cell)), x(x) {
    w = {pair(weights.w_ih, seeds.w_ih), pair(weights.w_hh, seeds.w_hh), pair(weights.b_ih, seeds.b_ih),
         pair(weights.b_hh, seeds.b_hh), pair(weights.w_hr, seeds.w_hr)};
    time = {shape.T, shape.B, index == 1, shape.batch_sizes, shape.offsets.empty() ? nullptr : shape.offsets.data()};
    h = states.empty() ? x.new_zeros({shape.B, 2, shape.P}) : states[0].stacked();
    if (Cell::carries_cell) c = states.empty() ? x.new_zeros({shape.B, 2, shape.H}) : states[1].stacked();
    for (const Pair& state : reset_states) cuts.states.push_back(state.stacked());
  }

  // Leaves h_n and c_n in `h` and `c`, and what backward needs.
  void forward() {
    const at::Tensor x_gates = product(x, w.w_ih.t());
    const at::Tensor bias_x = shape.bias ? w.b_ih.stacked() : at::Tensor();
    const at::Tensor bias_h = shape.bias ? w.b_hh.stacked() : at::Tensor();
    h0 = by_row(shape.P);
    output = by_row(shape.P);
    saved = by_row(S * shape.H);
    if (Cell::carries_cell) c0 = by_row(shape.H), c1 = by_row(shape.H);
    unprojected = shape.projected ? by_row(shape.H) : output;
    const Pair u = w.w_hh.t(), projection = shape.projected ? w.w_hr.t() : Pair{};
    for (std::int64_t i = 0; i < shape.T; ++i) {
      const std::int64_t t = time.time(i);
      h = cuts.before(time, t, h, 0);
      rows(h0, t).copy_(first(h, t));
      if (Cell::carries_cell) {
        c = cuts.before(time, t, c, 1);
        rows(c0, t).copy_(first(c, t));
      }
      const at::Tensor u_gates = product(rows(h0, t), u);
      const DualForwardArgs<Compute> args{shape.H,
                                          at(x_gates, t),
                                          data<Compute>(u_gates),
                                          data<Compute>(bias_x),
                                          data<Compute>(bias_h),
                                          at(h0, t),
                                          at(c0, t),
                                          at(saved, t),
                                          at(c1, t),
                                          at(unprojected, t),
                                          clip()};
      each_row(t, [&](std::int64_t begin, std::int64_t end) { kernels.dual_forward(args, begin, end); });
      if (shape.projected) rows(output, t).copy_(product(rows(unprojected, t), projection));
      first(h, t).copy_(rows(output, t));
      if (Cell::carries_cell) first(c, t).copy_(rows(c1, t));
    }
  }

  // From gradients of h_t and c_t by data row (or undefined), h_n and c_n; leaves those of h_0 and c_0 in `dh` and
  // `dc`.
  void backward(const at::Tensor& d_output, const at::Tensor& d_cells, const at::Tensor& d_h_n,
                const at::Tensor& d_c_n) {
    dh = Pair{d_h_n, {}}.stacked();
    if (Cell::carries_cell) dc = Pair{d_c_n, {}}.stacked();
    if (shape.resets.before.defined()) {
      d_reset[0] = at::zeros_like(dh);
      if (Cell::carries_cell) d_reset[1] = at::zeros_like(dc);
    }
    d_x = by_row(G * shape.H);
    d_u = host::same_columns<Cell>() ? d_x : by_row(G * shape.H);
    if (shape.projected) d_projected = by_row(shape.P);
    for (std::int64_t i = shape.T - 1; i >= 0; --i) {
      const std::int64_t t = time.time(i);
      const at::Tensor dh_t = first(dh, t);
      if (d_output.defined()) value_of(dh_t).add_(rows(d_output, t));
      if (d_cells.defined()) value_of(first(dc, t)).add_(rows(d_cells, t));
      if (shape.projected) rows(d_projected, t).copy_(dh_t);
      const at::Tensor d_unprojected = shape.projected ? product(dh_t, w.w_hr) : dh_t;
      const DualBackwardArgs<Compute> args{shape.H,
                                           at(saved, t),
                                           at(h0, t),
                                           at(c0, t),
                                           at(c1, t),
                                           data<Compute>(d_unprojected),
                                           Cell::carries_cell ? mutable_data<Compute>(dc) : nullptr,
                                           mutable_data<Compute>(dh),
                                           at(d_x, t),
                                           at(d_u, t),
                                           clip()};
      each_row(t, [&](std::int64_t begin, std::int64_t end) { kernels.dual_backward(args, begin, end); });
      const at::Tensor through_u = product(rows(d_u, t), w.w_hh);
      if (Cell::reads_h0) dh_t.add_(through_u);
      else dh_t.copy_(through_u);
      cuts.give(time, t, dh, d_reset[0]);
      if (Cell::carries_cell) cuts.give(time, t, dc, d_reset[1]);
    }
  }

  void add_input_gradient(bool wanted, at::Tensor& sum) const {
    if (!wanted) return;
    at::Tensor gradient = tangent_of(d_x).mm(w.w_ih.value);
    if (w.w_ih.tangent.defined()) gradient.addmm_(value_of(d_x), w.w_ih.tangent);
    sum = sum.defined() ? sum.add_(gradient) : gradient;
  }

  // Those wanted, from number `next` on.
  void set_weight_gradients(const std::vector<bool>& wanted, Tensors& results, std::size_t next) const {
    const auto set = [&](const auto& gradient) {
      if (wanted[next]) results[next] = gradient();
      ++next;
    };
    set([&] { return outer_sum_tangent(d_x, x); });
    set([&] { return outer_sum_tangent(d_u, h0); });
    if (shape.bias) {
      set([&] { return tangent_of(d_x).sum(0); });
      set([&] { return tangent_of(d_u).sum(0); });
    }
    if (shape.projected) set([&] { return outer_sum_tangent(d_projected, unprojected); });
  }

  const LayerShape& shape;
  const CellKernels<Compute> kernels;
  const at::Tensor x;        // [N, 2, I]
  struct {
    Pair w_ih, w_hh, b_ih, b_hh, w_hr;
  } w;
  Cuts cuts{shape.resets.before, {}};
  Sequence time;
  at::Tensor h, c, dh, dc;                                   // [B, 2, *]
  at::Tensor h0, c0, c1, saved, output, unprojected;         // [N, 2, *]
  at::Tensor d_x, d_u, d_projected;                          // [N, 2, *]
  at::Tensor d_reset[2];                           // [B, 2, *]

 private:
  at::Tensor by_row(std::int64_t width) const { return x.new_empty({shape.N, 2, width}); }
  // The rows of step t among all data rows, and among those of the batch.
  at::Tensor rows(const at::Tensor& all, std::int64_t t) const { return all.narrow(0, time.offset(t), time.active(t)); }
  at::Tensor first(const at::Tensor& state, std::int64_t t) const { return state.narrow(0, 0, time.active(t)); }
  Compute* at(const at::Tensor& all, std::int64_t t) const {
    return all.defined() ? mutable_data<Compute>(all) + time.offset(t) * 2 * all.size(2) : nullptr;
  }
  Compute clip() const { return static_cast<Compute>(shape.cell_clip); }
  template <class F>
  void each_row(std::int64_t t, const F& f) const {
    at::parallel_for(0, time.active(t), std::max<std::int64_t>(1, units_per_thread / shape.H), f);
  }
};

template <class Cell, class Compute>
Tensors run(const LayerShape& shape, const BackwardCall& call, at::TensorList seeds, const std::vector<bool>& wanted) {
  const std::size_t S = call.states.size(), grads = call.grads.size(), W = call.weights.size();
  const at::Tensor x = pair(call.input, seeds[0]).stacked().reshape({shape.N, 2, shape.I});
  const auto d_state = [&](std::size_t i, std::int64_t width, int d) {
    return call.grads[i].defined() ? to_compute(call.grads[i].select(0, d)) : x.new_zeros({shape.B, width});
  };
  const bool backward = std::find(wanted.begin() + grads, wanted.end(), true) != wanted.end();
  Tensors results(wanted.size()), outputs, states_n[2], d_states[2], d_resets[2];
  for (int d = 0; d < shape.D; ++d) {
    std::vector<Pair> states, reset_states;
    for (std::size_t i = 0; i < S; ++i) states.push_back(pair(call.states[i], seeds[1 + i]).select(d));
    for (std::size_t i = 0; i < call.resets.states.size(); ++i)
      reset_states.push_back(pair(call.resets.states[i], seeds[1 + S + W + i]).select(d));
    DualDirection<Cell, Compute> direction(shape, x, states, reset_states, direction_weights(shape, call.weights, d),
                                           direction_weights(shape, seeds.slice(1 + S, W), d), d);
    direction.forward();
    outputs.push_back(tangent_of(direction.output));
    states_n[0].push_back(tangent_of(direction.h));
    if (Cell::carries_cell) {
      states_n[1].push_back(tangent_of(direction.c));
      results[1 + shape.states + d] = tangent_of(direction.c1);
    }
    if (!backward) continue;
    at::Tensor d_output = to_compute(call.grads[0]);
    if (d_output.defined()) d_output = d_output.reshape({shape.N, shape.D * shape.P}).narrow(1, d * shape.P, shape.P);
    direction.backward(d_output, Cell::carries_cell ? call.grads[1 + shape.states + d] : at::Tensor(),
                       d_state(1, shape.P, d), Cell::carries_cell ? d_state(2, shape.H, d) : at::Tensor());
    direction.add_input_gradient(wanted[grads], results[grads]);
    direction.set_weight_gradients(wanted, results, grads + 1 + S + d * shape.weights_per_direction());
    d_states[0].push_back(tangent_of(direction.dh));
    if (Cell::carries_cell) d_states[1].push_back(tangent_of(direction.dc));
    for (std::size_t i = 0; i < reset_states.size(); ++i)
      d_resets[i].push_back(tangent_of(direction.d_reset[i]).sum(0));
  }
  results[0] = at::cat(outputs, 1).reshape(shape.output_sizes());
  for (int i = 0; i < shape.states; ++i) results[1 + i] = at::stack(states_n[i]);
  if (!backward) return results;
  if (wanted[grads]) results[grads] = results[grads].reshape(call.input.sizes());
  for (std::size_t i = 0; i < S; ++i) results[grads + 1 + i] = at::stack(d_states[i]);
  for (std::size_t i = 0; i < call.resets.states.size(); ++i)
    results[grads + 1 + S + W + i] = at::stack(d_resets[i], -2);
  return results;
}

// The same for any cell and type.
Tensors run(const LayerShape& shape, const BackwardCall& call, at::TensorList seeds, const std::vector<bool>& wanted) {
  Tensors results;
  host::with_cell(call.cell, [&](auto cell) {
    using Cell = decltype(cell);
    results = compute_type(call.input) == at::kDouble ? run<Cell, double>(shape, call, seeds, wanted)
                                                      : run<Cell, float>(shape, call, seeds, wanted);
  });
  return results;
}

Tensors run_padded(const LayerShape& shape, const BackwardCall& call, at::TensorList seeds,
                   const std::vector<bool>& wanted) {
  const Unpadded unpadded(shape, call.input.device());
  const std::size_t grads = call.grads.size();
  BackwardCall packed = call;
  Tensors packed_seeds = seeds.vec();
  packed.input = unpadded.rows(call.input);
  packed.grads[0] = unpadded.rows(call.grads[0]);
  packed_seeds[0] = unpadded.rows(seeds[0]);
  for (int i = 1; i <= shape.states; ++i) packed.grads[i] = unpadded.states(call.grads[i]);
  packed.states = unpadded.states(call.states);
  for (std::size_t i = 1; i <= call.states.size(); ++i) packed_seeds[i] = unpadded.states(seeds[i]);
  Tensors results = run(unpadded.shape, packed, packed_seeds, wanted);
  const auto batch = [&](at::Tensor& rows) {
    if (rows.defined()) rows = unpadded.batch(rows);
  };
  batch(results[0]);
  batch(results[grads]);
  for (int i = 1; i <= shape.states; ++i)
    results[i] = unpadded.states_of_batch(results[i], call.states.empty() ? at::Tensor() : seeds[i]);
  for (std::size_t i = 1; i <= call.states.size(); ++i)
    if (results[grads + i].defined()) results[grads + i] = unpadded.states_of_batch(results[grads + i], {});
  return results;
}

}  // namespace

std::vector<at::Tensor> dual_backward(const BackwardCall& call, at::TensorList seeds, const std::vector<bool>& wanted) {
  const NoAutocast no_autocast;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const LayerShape shape =
      check_layer(call.cell, call.input, call.states, call.weights, call.batch_sizes, call.options, call.resets);
  Tensors results = shape.padded() ? run_padded(shape, call, seeds, wanted) : run(shape, call, seeds, wanted);
  for (std::size_t i = 0; i < results.size(); ++i) {
    at::Tensor& result = results[i];
    const bool is_cells = i > static_cast<std::size_t>(shape.states) && i < call.grads.size();
    if (!wanted[i]) result = at::Tensor();
    else if (!is_cells) result = result.to(call.input.scalar_type());
  }
  return results;
}

}  // namespace lstm_fused
