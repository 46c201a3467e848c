#include "layer.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include "../cells/all_cells.h"
#include "../cpu/layer.h"
#include "../row_sums.h"
#include "kernels.h"
#include "layer_plan.h"
#include "steps.h"
#include "stream.h"

namespace lstm_fused::cuda {

namespace {

using Tensors = std::vector<at::Tensor>;

// Columns of `output` [.., D*P] that are a direction's, as a matrix [N, P].
at::Tensor of_direction(const LayerShape& shape, const at::Tensor& output, int d) {
  return output.view({shape.N, shape.D * shape.P}).narrow(1, d * shape.P, shape.P);
}

// Data rows of the steps [begin, end) in the direction of time.
at::Tensor of_steps(const LayerShape& shape, int d, const at::Tensor& rows, std::int64_t begin, std::int64_t end) {
  if (begin == 0 && end == shape.T) return rows;
  const std::int64_t time = d == 1 || shape.reverse ? shape.T - end : begin;
  return rows.narrow(0, time * shape.B, (end - begin) * shape.B);
}

// A state that rows begin anew in, [*]; undefined for zero.
at::Tensor reset_state(const LayerShape& shape, std::size_t i, int d) {
  return i < shape.resets.states.size() ? whole(shape.resets.states[i][d]) : at::Tensor();
}

// What recurs in a direction. With a projection, h = W_hr m, that is m = o * tanh(c): gates are W x + (U W_hr) m_{t-1},
// but for the first step, where U h_0 is added to W x instead; so the kernels have one product a step, and h is made of
// all m at once.
struct Recurrence {
  at::Tensor weights;  // [G*H, H]: U or U W_hr
  at::Tensor h0;       // [B, H], undefined for zero
  at::Tensor output;   // [N, H]: h or m, a view of the layer's output where it can be
  at::Tensor h_n;      // [B, H]
};
// U h of the states that are not a step's result: initial ones, undefined for zero, and those that rows begin anew in.
void add_states(const LayerShape& shape, int d, const DirectionWeights& w, at::Tensor& input_gates,
                const at::Tensor& table, at::Tensor initial) {
  const bool reverse = d == 1 || shape.reverse;
  const at::Tensor anew = begins_anew(shape, reverse), reset_h = reset_state(shape, 0, d);
  if (initial.defined()) {
    const at::Tensor first = first_rows(shape, reverse, table, input_gates);
    if (anew.defined()) initial = initial.masked_fill(anew.index_select(0, first), 0);
    input_gates.index_add_(0, first, initial.mm(w.w_hh.t()));
  }
  if (reset_h.defined()) input_gates.add_(anew.to(reset_h.dtype()) * w.w_hh.mv(reset_h));
}
Recurrence recurrence(const LayerShape& shape, int d, const DirectionWeights& w, at::Tensor& input_gates,
                      const at::Tensor& table, const at::Tensor& h0, const at::Tensor& output, const at::Tensor& h_n,
                      bool hint) {
  const at::Tensor initial = h0.defined() ? h0[d] : h0;
  if (!shape.projected) return {whole(w.w_hh), initial, of_direction(shape, output, d), h_n[d]};
  if (shape.N > 0) add_states(shape, d, w, input_gates, table, initial);
  return {w.w_hh.mm(w.w_hr),
          {},
          of_data_rows(shape, {shape.N, shape.H}, output.options(), hint),
          at::empty({shape.B, shape.H}, output.options())};
}
void project(const LayerShape& shape, int d, const DirectionWeights& w, const Recurrence& r, const at::Tensor& output,
             const at::Tensor& h_n) {
  of_direction(shape, output, d).copy_(r.output.mm(w.w_hr.t()));
  h_n[d].copy_(r.h_n.mm(w.w_hr.t()));
}

// c_0 [D, B, H], which the kernels make c_n of; undefined for cells without.
at::Tensor initial_cells(const LayerShape& shape, at::TensorList states, const at::TensorOptions& compute) {
  if (shape.states < 2) return {};
  if (states.empty()) return at::zeros({shape.D, shape.B, shape.H}, compute);
  return states[1].to(compute.dtype(), /*non_blocking=*/false, /*copy=*/true).contiguous();
}

// W x + b_ih of the steps [begin, end).
void multiply_input(const LayerShape& shape, int d, const DirectionWeights& w, const at::Tensor& x,
                    const at::Tensor& input_gates, std::int64_t begin, std::int64_t end) {
  const at::Tensor rows = of_steps(shape, d, x, begin, end);
  at::Tensor gates = of_steps(shape, d, input_gates, begin, end);
  if (shape.bias) at::addmm_out(gates, w.b_ih, rows, w.w_ih.t());
  else at::mm_out(gates, rows, w.w_ih.t());
}

// All steps; where the plan has first ones, the others' input is multiplied beside them.
template <class Storage, class MultiplyRest>
void run_steps(const LayerShape& shape, const Plan& plan, const ForwardArgs<Storage>& a, const at::Tensor& x,
               const MultiplyRest& multiply_rest) {
  const auto launch = [&](const ForwardArgs<Storage>& args) {
    const std::string error = launch_forward<Storage>(shape.cell, plan, args, shape.batch_sizes, current_stream(x));
    check_launch(error, "forward", shape, plan);
  };
  if (!plan.first_steps) return launch(a);
  side_by_side(x, [&] { launch(of_steps(a, 0, plan.first_steps)); }, multiply_rest);
  launch(of_steps(a, plan.first_steps, shape.T));
}

template <class Storage>
Tensors forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                Save save) {
  using Compute = compute_t<Storage>;
  const std::int64_t N = shape.N, B = shape.B, H = shape.H, gates = shape.G * H, S = shape.S * H;
  const at::TensorOptions storage = input.options(), compute = storage.dtype(compute_type(input));
  const at::Tensor x = input.reshape({N, shape.I}), table = sequence_table(shape, input);
  const Plan plan = plan_for<Storage>(shape, false);
  const bool hint = by_hint(shape, plan);
  const at::Tensor output = of_data_rows(shape, shape.output_sizes(), storage, hint),
                   h_n = at::empty({shape.D, B, shape.P}, storage);
  const at::Tensor h0 = states.empty() ? at::Tensor() : whole(states[0]), resets = dense(shape.resets.before);
  const at::Tensor c = initial_cells(shape, states, compute);
  const at::Tensor arrived = counters(shape, plan, storage);
  Tensors saved;
  for (int d = 0; d < shape.D; ++d) {
    const DirectionWeights w = direction_weights(shape, weights, d);
    // W x stands where the activated gates will: each unit reads its own before it writes them. As wide if none are
    // saved: the leading dimension is part of what cuBLAS chooses an algorithm by, and another sum has other bits.
    const at::Tensor buffer = at::empty({N, S}, storage);
    at::Tensor input_gates = buffer.narrow(1, 0, gates);
    const std::int64_t first = plan.first_steps ? plan.first_steps : shape.T;
    multiply_input(shape, d, w, x, input_gates, 0, first);
    const Recurrence r = recurrence(shape, d, w, input_gates, table, h0, output, h_n, hint);
    const at::Tensor bias = shape.bias ? w.b_hh.contiguous() : at::Tensor();
    const at::Tensor reset_h = reset_state(shape, 0, d), reset_c = reset_state(shape, 1, d);
    at::Tensor cells;
    if (save != Save::nothing && shape.states == 2) cells = of_data_rows(shape, {N, H}, compute);
    ForwardArgs<Storage> a;
    a.sequence = sequence_on_device(shape, d, table);
    a.H = H;
    a.input_gates = data<Storage>(buffer);
    a.input_ld = S;
    a.recurrent = data<Storage>(r.weights);
    a.bias_h = data<Storage>(bias);
    a.h0 = data<Storage>(r.h0);
    a.resets = data<bool>(resets);
    a.reset_h = shape.projected ? nullptr : data<Storage>(reset_h);
    a.reset_c = data<Storage>(reset_c);
    a.saved = save == Save::gates ? mutable_data<Storage>(buffer) : nullptr;
    a.cells = mutable_data<Compute>(cells);
    a.output = mutable_data<Storage>(r.output);
    a.output_ld = r.output.stride(0);
    a.h_n = mutable_data<Storage>(r.h_n);
    a.c = c.defined() ? mutable_data<Compute>(c) + d * B * H : nullptr;
    a.arrived = reinterpret_cast<unsigned*>(arrived[d].mutable_data_ptr<int>());
    a.hint = hint;
    const at::Tensor words = exchange(plan, shape.T + 1, B, H, storage);
    a.exchange = mutable_data<Storage>(words);
    a.cell_clip = static_cast<Compute>(shape.cell_clip);
    if (N > 0) run_steps(shape, plan, a, x, [&] { multiply_input(shape, d, w, x, input_gates, first, shape.T); });
    if (shape.projected) project(shape, d, w, r, output, h_n);
    if (save == Save::gates) saved.push_back(buffer);
    if (cells.defined()) saved.push_back(cells);
  }
  Tensors results = {output, h_n};
  if (c.defined()) results.push_back(c.to(storage.dtype()));
  results.insert(results.end(), saved.begin(), saved.end());
  return results;
}

// What is for all gates [.., S*H], for those that rows of U belong to: [.., G*H].
at::Tensor recurrent_columns(const LayerShape& shape, const at::Tensor& of_gates) {
  Tensors columns;
  host::with_cell(shape.cell, [&](auto cell) {
    for (const int column : cell.recurrent_column) columns.push_back(of_gates.narrow(-1, column * shape.H, shape.H));
  });
  return shape.S == shape.G ? of_gates : at::cat(columns, -1);
}

// The gates that forward did not save, of both directions: all h_{t-1} are known, so those of one step of N rows.
Tensors with_gates(const LayerShape& shape, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                   const at::Tensor& output, at::TensorList cells) {
  LayerShape step = shape;
  step.T = step.D = 1;
  step.B = shape.N;
  step.batch_sizes = nullptr;
  step.device_batch_sizes = at::Tensor();
  step.offsets.clear();
  const at::Tensor x = input.reshape({1, shape.N, shape.I}), table = sequence_table(shape, input);
  Tensors saved;
  for (int d = 0; d < shape.D; ++d) {
    const auto before = [&](std::size_t i, const at::Tensor& all) {
      const at::Tensor initial =
          i < states.size() ? states[i][d].to(all.dtype()) : at::zeros({shape.B, all.size(1)}, all.options());
      return previous_rows(shape, d == 1 || shape.reverse, table, all, initial).to(input.scalar_type()).unsqueeze(0);
    };
    Tensors all_before = {before(0, of_direction(shape, output, d))};
    if (shape.states == 2) all_before.push_back(before(1, cells[d]));
    const std::int64_t each = shape.weights_per_direction();
    const Tensors results = cuda::layer_forward(step, x, all_before, weights.slice(d * each, each), Save::gates);
    saved.push_back(results[1 + shape.states]);
    if (shape.states == 2) saved.push_back(cells[d]);
  }
  return saved;
}

// One direction in backward.
struct DirectionGradients {
  const LayerShape& shape;
  int d;
  DirectionWeights w;
  at::Tensor saved, cells;         // [N, S*H], [N, H]
  at::Tensor x, output, d_output;  // [N, *]; d_output undefined for zero
  at::Tensor h0, c0;               // [B, *], undefined for zero
  at::Tensor resets;               // [T, B], undefined for none
  at::Tensor reset_h, reset_c;     // [*], undefined for zero
  at::Tensor dh, dc;               // [B, *]: dL/dh_n and dL/dc_n, in the end dL/dh0 and dL/dc0
  at::Tensor d_reset_h, d_reset_c; // [B, *]: by row, undefined if not needed
  at::Tensor d_cells;              // [N, H], undefined for zero
  at::Tensor d_gates;              // [N, S*H]
  at::Tensor table;                // as sequence_table says
  at::Tensor anew = begins_anew(shape, reverse());

  bool reverse() const { return d == 1 || shape.reverse; }
  at::Tensor input_columns() const { return d_gates.narrow(1, 0, shape.G * shape.H); }
  // What comes to h reaches m = o * tanh(c) through W_hr, see Recurrence.
  at::Tensor to_hidden(const at::Tensor& d_h) const {
    return shape.projected && d_h.defined() ? d_h.mm(w.w_hr.to(d_h.dtype())) : d_h;
  }

  // Starts the kernel, which makes d_gates.
  template <class Storage>
  void launch(const Plan& plan, const at::Tensor& arrived, bool hint) const {
    using Compute = compute_t<Storage>;
    const at::Tensor recurrent = (shape.projected ? w.w_hh.mm(w.w_hr) : w.w_hh).t().contiguous();
    const at::Tensor d_hidden = to_hidden(d_output), d_last = to_hidden(dh);
    BackwardArgs<Storage> a;
    a.sequence = sequence_on_device(shape, d, table);
    a.H = shape.H;
    a.recurrent = data<Storage>(recurrent);
    a.saved = data<Storage>(saved);
    a.cells = data<Compute>(cells);
    a.output = data<Storage>(output);
    a.output_ld = output.stride(0);
    a.h0 = data<Storage>(h0);
    a.c0 = data<Storage>(c0);
    a.resets = data<bool>(resets);
    a.reset_h = data<Storage>(reset_h);
    a.reset_c = data<Storage>(reset_c);
    a.d_output = data<Storage>(d_hidden);
    a.d_output_ld = d_hidden.defined() ? d_hidden.stride(0) : 0;
    a.d_cells = data<Compute>(d_cells);
    a.dh = mutable_data<Compute>(d_last);
    a.dc = mutable_data<Compute>(dc);
    if (!shape.projected) a.d_reset_h = mutable_data<Compute>(d_reset_h);
    a.d_reset_c = mutable_data<Compute>(d_reset_c);
    a.d_gates = mutable_data<Storage>(d_gates);
    a.arrived = reinterpret_cast<unsigned*>(arrived[d].mutable_data_ptr<int>());
    a.hint = hint;
    const at::Tensor words = exchange(plan, shape.T, shape.B, shape.S * shape.H, d_gates.options());
    a.exchange = mutable_data<Storage>(words);
    a.cell_clip = static_cast<Compute>(shape.cell_clip);
    a.grad_clip = static_cast<Compute>(shape.grad_clip);
    check_launch(launch_backward<Storage>(shape.cell, plan, a, shape.batch_sizes, current_stream(x)), "backward", shape,
                 plan);
  }

  // Puts the weights' gradients, as far as they are needed, into their places of `results` from `first` on. dh_n: [B,
  // P].
  void weights(Tensors& results, const std::vector<bool>& needed, std::size_t first, const at::Tensor& dh_n,
               const RowSums& sum) const {
    if (needed[first]) results[first] = sum(input_columns(), x);
    const std::size_t last = first + shape.weights_per_direction() - 1;
    const bool bias_i = shape.bias && needed[first + 2], bias_h = shape.bias && needed[first + 3];
    const bool projection = shape.projected && needed[last];
    at::Tensor d_u;
    if (needed[first + 1] || projection) d_u = recurrent_columns(shape, d_gates);
    if (needed[first + 1]) results[first + 1] = sum(d_u, h_before());
    const at::Tensor d_bias = bias_i || bias_h ? sum(d_gates) : at::Tensor();
    if (bias_i) results[first + 2] = d_bias.narrow(-1, 0, shape.G * shape.H).clone();  // not the memory of the other
    if (bias_h) results[first + 3] = recurrent_columns(shape, d_bias);
    if (!projection) return;
    // dL/dh of every step: the output's, and through U the next step's, or dL/dh_n.
    at::Tensor through_u = d_u.mm(w.w_hh);
    if (anew.defined()) through_u.masked_fill_(anew, 0);
    at::Tensor d_h = previous_rows(shape, !reverse(), table, through_u, dh_n);
    if (d_output.defined()) d_h = d_h + d_output;
    const at::Tensor o = saved.narrow(1, 3 * shape.H, shape.H);
    results[last] = sum(d_h, o * cells.tanh().to(o.dtype()));
  }

  // h_{t-1} of every data row, [N, P].
  at::Tensor h_before() const {
    const at::Tensor initial = h0.defined() ? h0 : at::zeros({shape.B, shape.P}, x.options());
    const at::Tensor rows = previous_rows(shape, reverse(), table, output, initial);
    if (!anew.defined()) return rows;
    return reset_h.defined() ? at::where(anew, reset_h, rows) : rows.masked_fill(anew, 0);
  }

  // With a projection what comes to a first step's h_{t-1} comes through U alone: dL/dh_0, and that of reset_h.
  void states_through_u() const {
    const at::Tensor first = first_rows(shape, reverse(), table, x), U = w.w_hh.to(dh.dtype());
    at::Tensor d_first = d_gates.index_select(0, first);
    if (anew.defined()) d_first.masked_fill_(anew.index_select(0, first), 0);
    dh.copy_(d_first.to(dh.dtype()).mm(U));
    if (!d_reset_h.defined()) return;
    const at::Tensor d_anew = d_gates.masked_fill(anew.logical_not(), 0).view({shape.T, shape.B, d_gates.size(1)});
    d_reset_h.copy_(d_anew.to(dh.dtype()).sum(0).mm(U));
  }
};

// [D, B, *] by row: [(samples), D, *]
at::Tensor sum_by_direction(const at::Tensor& rows, const RowSums& sum) {
  Tensors sums;
  for (const at::Tensor& own : rows.unbind(0)) sums.push_back(sum(own));
  return at::stack(sums, -2);
}

template <class Storage>
Tensors backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input, at::TensorList states,
                 at::TensorList weights, const at::Tensor& output, at::TensorList saved,
                 const std::vector<bool>& needed, std::int64_t samples) {
  const std::int64_t N = shape.N, B = shape.B;
  const at::TensorOptions storage = input.options(), compute = storage.dtype(compute_type(input));
  const at::Tensor x = input.reshape({N, shape.I}), table = sequence_table(shape, input);
  const auto state_gradient = [&](std::size_t i, std::int64_t size) {
    if (!grads[i].defined()) return at::zeros({shape.D, B, size}, compute);
    return grads[i].to(compute.dtype(), /*non_blocking=*/false, /*copy=*/true).contiguous();
  };
  const bool has_c = shape.states == 2;
  const at::Tensor dh = state_gradient(1, shape.P), dc = has_c ? state_gradient(2, shape.H) : at::Tensor();
  const at::Tensor d_output = grads[0].defined() ? grads[0].contiguous() : at::Tensor(), all_h = output.contiguous();
  const at::Tensor resets = dense(shape.resets.before);
  const std::size_t first_reset = 1 + states.size() + weights.size();
  Tensors d_resets(2);
  for (std::size_t i = 0; i < shape.resets.states.size(); ++i)
    if (needed[first_reset + i]) d_resets[i] = at::zeros({shape.D, B, i == 0 ? shape.P : shape.H}, compute);
  const Plan plan = plan_for<Storage>(shape, true);
  const bool hint = by_hint(shape, plan);
  const at::Tensor arrived = counters(shape, plan, storage);
  Tensors results(needed.size());
  for (int d = 0; d < shape.D; ++d) {
    const auto state = [&](std::size_t i) { return i < states.size() ? states[i][d].contiguous() : at::Tensor(); };
    const DirectionGradients of = {shape,
                                   d,
                                   direction_weights(shape, weights, d),
                                   saved[d * shape.states],
                                   has_c ? saved[d * shape.states + 1] : at::Tensor(),
                                   x,
                                   of_direction(shape, all_h, d),
                                   d_output.defined() ? of_direction(shape, d_output, d) : at::Tensor(),
                                   state(0),
                                   state(1),
                                   resets,
                                   reset_state(shape, 0, d),
                                   reset_state(shape, 1, d),
                                   dh[d],
                                   has_c ? dc[d] : at::Tensor(),
                                   d_resets[0].defined() ? d_resets[0][d] : at::Tensor(),
                                   d_resets[1].defined() ? d_resets[1][d] : at::Tensor(),
                                   has_c ? to_compute(grads[3 + d]) : at::Tensor(),
                                   of_data_rows(shape, {N, shape.S * shape.H}, storage, hint),
                                   table};
    const at::Tensor dh_n = shape.projected ? of.dh.to(storage.dtype(), false, /*copy=*/true) : at::Tensor();
    if (N > 0) of.launch<Storage>(plan, arrived, hint);
    if (needed[0]) {
      const at::Tensor d_rows = of.input_columns().matmul(of.w.w_ih);
      results[0] = results[0].defined() ? results[0] + d_rows : d_rows;
    }
    const std::size_t first_weight = 1 + states.size() + d * shape.weights_per_direction();
    of.weights(results, needed, first_weight, dh_n, RowSums{samples});
    if (shape.projected && N > 0) of.states_through_u();
  }
  if (needed[0]) results[0] = results[0].reshape(input.sizes());
  if (!states.empty() && needed[1]) results[1] = dh;
  if (states.size() > 1 && needed[2]) results[2] = dc;
  for (std::size_t i = 0; i < shape.resets.states.size(); ++i)
    if (d_resets[i].defined()) results[first_reset + i] = sum_by_direction(d_resets[i], RowSums{samples});
  return results;
}

}  // namespace

std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, Save save) {
  const c10::OptionalDeviceGuard guard(input.device());
  return with_storage(input.scalar_type(),
                      [&](auto storage) { return forward<decltype(storage)>(shape, input, states, weights, save); });
}

std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples) {
  const c10::OptionalDeviceGuard guard(input.device());
  if (!gates_saved(shape, saved))
    return cuda::layer_backward(shape, grads, input, states, weights, output,
                                with_gates(shape, input, states, weights, output, saved), needed, samples);
  return with_storage(input.scalar_type(), [&](auto storage) {
    return backward<decltype(storage)>(shape, grads, input, states, weights, output, saved, needed, samples);
  });
}

}  // namespace lstm_fused::cuda
