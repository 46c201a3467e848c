#include "layer.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <cstdlib>
#include <stdexcept>

#include "../cells/all_cells.h"
#include "../cpu/layer.h"
#include "../row_sums.h"
#include "kernels.h"
#include "stream.h"

namespace lstm_fused::cuda {

namespace {

using Tensors = std::vector<at::Tensor>;

std::string forced_plan() {
  const char* const name = std::getenv("LSTM_FUSED_CUDA_PLAN");
  return name ? name : "";
}

// Whether products of float32 numbers may be of rounded ones: what torch allows its own recurrent layers.
bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

template <class Storage>
Plan plan_for(const LayerShape& shape, bool backward) {
  const Shape all = {shape.T, shape.B, shape.H, shape.G, sizeof(Storage), sizeof(compute_t<Storage>), tf32_allowed()};
  try {
    return choose_plan(all, current_device(), backward, forced_plan());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, "LSTM_FUSED_CUDA_PLAN: ", error.what());
  }
}

void check_launch(const std::string& error, const char* direction, const LayerShape& s, const Plan& plan) {
  TORCH_CHECK(error.empty(), "lstm_fused: ", direction, " of ", s.cell, " (plan ", plan.describe(), "; T=", s.T,
              " B=", s.B, " H=", s.H, "): ", error);
}

void check_supported(const LayerShape& shape) {
  TORCH_CHECK(!shape.projected, "proj_size: expected none on CUDA in this version, got ", shape.P);
}

// A packed sequence's steps on the device: [2, T], batch sizes and offsets. Undefined for a padded one.
at::Tensor sequence_table(const LayerShape& shape, const at::Tensor& input) {
  if (!shape.batch_sizes) return {};
  const at::Tensor table = at::empty({2, shape.T}, at::TensorOptions(at::kLong).pinned_memory(input.is_cuda()));
  auto* const values = table.mutable_data_ptr<std::int64_t>();
  std::copy_n(shape.batch_sizes, shape.T, values);
  std::copy_n(shape.offsets.data(), shape.T, values + shape.T);
  return table.to(input.device(), /*non_blocking=*/true);
}

Sequence sequence_on_device(const LayerShape& shape, int direction, const at::Tensor& table) {
  Sequence sequence = {shape.T, shape.B, direction == 1 || shape.reverse, nullptr, nullptr};
  if (table.defined()) {
    sequence.batch_sizes = table.const_data_ptr<std::int64_t>();
    sequence.offsets = sequence.batch_sizes + shape.T;
  }
  return sequence;
}

// Where blocks that have the same rows count themselves in, for each direction.
at::Tensor counters(const LayerShape& shape, const Plan& plan, const at::TensorOptions& options) {
  return at::zeros({shape.D, (shape.B + plan.rows_per_block - 1) / plan.rows_per_block}, options.dtype(at::kInt));
}

template <class Storage>
Tensors forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                Save save) {
  using Compute = compute_t<Storage>;
  const std::int64_t N = shape.N, B = shape.B, H = shape.H, gates = shape.G * H, S = shape.S * H;
  const at::TensorOptions storage = input.options(), compute = storage.dtype(compute_type(input));
  const at::Tensor x = input.reshape({N, shape.I}), table = sequence_table(shape, input);
  const at::Tensor output = at::empty(shape.output_sizes(), storage), h_n = at::empty({shape.D, B, H}, storage);
  const at::Tensor h0 = states.empty() ? at::Tensor() : states[0].contiguous();
  at::Tensor c;
  if (shape.states == 2)
    c = states.empty() ? at::zeros({shape.D, B, H}, compute)
                       : states[1].to(compute.dtype(), /*non_blocking=*/false, /*copy=*/true).contiguous();
  const Plan plan = plan_for<Storage>(shape, false);
  const at::Tensor arrived = counters(shape, plan, storage);
  Tensors saved;
  for (int d = 0; d < shape.D; ++d) {
    const DirectionWeights w = direction_weights(shape, weights, d);
    // W x stands where the activated gates will: each unit reads its own before it writes them.
    const at::Tensor buffer = at::empty({N, save == Save::gates ? S : gates}, storage);
    at::Tensor input_gates = buffer.narrow(1, 0, gates);
    if (shape.bias) at::addmm_out(input_gates, w.b_ih, x, w.w_ih.t());
    else at::mm_out(input_gates, x, w.w_ih.t());
    const at::Tensor recurrent = w.w_hh.contiguous(), bias = shape.bias ? w.b_hh.contiguous() : at::Tensor();
    const at::Tensor cells = save != Save::nothing && shape.states == 2 ? at::empty({N, H}, compute) : at::Tensor();
    ForwardArgs<Storage> a;
    a.sequence = sequence_on_device(shape, d, table);
    a.H = H;
    a.input_gates = data<Storage>(buffer);
    a.input_ld = buffer.size(1);
    a.recurrent = data<Storage>(recurrent);
    a.bias_h = data<Storage>(bias);
    a.h0 = h0.defined() ? data<Storage>(h0) + d * B * H : nullptr;
    a.saved = save == Save::gates ? mutable_data<Storage>(buffer) : nullptr;
    a.cells = mutable_data<Compute>(cells);
    a.output = mutable_data<Storage>(output) + d * H;
    a.output_ld = shape.D * H;
    a.h_n = mutable_data<Storage>(h_n) + d * B * H;
    a.c = c.defined() ? mutable_data<Compute>(c) + d * B * H : nullptr;
    a.arrived = reinterpret_cast<unsigned*>(arrived[d].mutable_data_ptr<int>());
    a.cell_clip = static_cast<Compute>(shape.cell_clip);
    if (N > 0) {
      const std::string error = launch_forward<Storage>(shape.cell, plan, a, shape.batch_sizes, current_stream(input));
      check_launch(error, "forward", shape, plan);
    }
    if (save == Save::gates) saved.push_back(buffer);
    if (cells.defined()) saved.push_back(cells);
  }
  Tensors results = {output, h_n};
  if (c.defined()) results.push_back(c.to(storage.dtype()));
  results.insert(results.end(), saved.begin(), saved.end());
  return results;
}

// h_{t-1} of every data row, [N, H].
at::Tensor previous_states(const LayerShape& shape, bool reverse, const at::Tensor& h, const at::Tensor& h0) {
  const std::int64_t N = shape.N, B = shape.B;
  if (!shape.batch_sizes) return reverse ? at::cat({h.narrow(0, B, N - B), h0}) : at::cat({h0, h.narrow(0, 0, N - B)});
  Tensors parts;
  for (std::int64_t t = 0; t < shape.T; ++t) {
    const std::int64_t before = reverse ? t + 1 : t - 1, rows = shape.batch_sizes[t];
    const std::int64_t known = before < 0 || before == shape.T ? 0 : std::min(rows, shape.batch_sizes[before]);
    if (known) parts.push_back(h.narrow(0, shape.offsets[before], known));
    if (known < rows) parts.push_back(h0.narrow(0, known, rows - known));
  }
  return at::cat(parts);
}

// The columns of d_gates [N, S*H] that belong to the rows of U: [N, G*H].
at::Tensor recurrent_columns(const LayerShape& shape, const at::Tensor& d_gates) {
  Tensors columns;
  host::with_cell(shape.cell, [&](auto cell) {
    for (const int column : cell.recurrent_column) columns.push_back(d_gates.narrow(1, column * shape.H, shape.H));
  });
  return shape.S == shape.G ? d_gates : at::cat(columns, 1);
}

// The gates that forward did not save, of both directions: all h_{t-1} are known, so those of one step of N rows.
Tensors with_gates(const LayerShape& shape, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                   const at::Tensor& output, at::TensorList cells) {
  LayerShape step = shape;
  step.T = step.D = 1;
  step.B = shape.N;
  step.batch_sizes = nullptr;
  step.offsets.clear();
  const at::Tensor x = input.reshape({1, shape.N, shape.I}), h = output.reshape({shape.N, shape.D * shape.H});
  Tensors saved;
  for (int d = 0; d < shape.D; ++d) {
    const auto initial = [&](std::size_t i, const at::TensorOptions& options) {
      return i < states.size() ? states[i][d].to(options.dtype()) : at::zeros({shape.B, shape.H}, options);
    };
    const auto before = [&](const at::Tensor& all, std::size_t i) {
      const at::Tensor found = previous_states(shape, d == 1 || shape.reverse, all, initial(i, all.options()));
      return found.to(input.scalar_type()).unsqueeze(0);
    };
    Tensors all_before = {before(h.narrow(1, d * shape.H, shape.H), 0)};
    if (shape.states == 2) all_before.push_back(before(cells[d], 1));
    const std::int64_t each = shape.weights_per_direction();
    const Tensors results = cuda::layer_forward(step, x, all_before, weights.slice(d * each, each), Save::gates);
    saved.push_back(results[1 + shape.states]);
    if (shape.states == 2) saved.push_back(cells[d]);
  }
  return saved;
}

template <class Storage>
Tensors backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input, at::TensorList states,
                 at::TensorList weights, const at::Tensor& output, at::TensorList saved,
                 const std::vector<bool>& needed, std::int64_t samples) {
  using Compute = compute_t<Storage>;
  const std::int64_t N = shape.N, B = shape.B, H = shape.H, gates = shape.G * H, S = shape.S * H;
  const at::TensorOptions storage = input.options(), compute = storage.dtype(compute_type(input));
  const at::Tensor x = input.reshape({N, shape.I}), table = sequence_table(shape, input);
  const auto state_gradient = [&](std::size_t i) {
    if (!grads[i].defined()) return at::zeros({shape.D, B, H}, compute);
    return grads[i].to(compute.dtype(), /*non_blocking=*/false, /*copy=*/true).contiguous();
  };
  const at::Tensor dh = state_gradient(1), dc = shape.states == 2 ? state_gradient(2) : at::Tensor();
  const at::Tensor d_output = grads[0].defined() ? grads[0].contiguous() : at::Tensor();
  const at::Tensor h0 = states.empty() ? at::Tensor() : states[0].contiguous();
  const at::Tensor c0 = states.size() < 2 ? at::Tensor() : states[1].contiguous();
  const Plan plan = plan_for<Storage>(shape, true);
  const at::Tensor arrived = counters(shape, plan, storage);
  const RowSums sum{samples};
  Tensors results(needed.size());
  for (int d = 0; d < shape.D; ++d) {
    const DirectionWeights w = direction_weights(shape, weights, d);
    const at::Tensor recurrent = w.w_hh.t().contiguous(), d_gates = at::empty({N, S}, storage);
    const at::Tensor d_cells = shape.states == 2 ? to_compute(grads[3 + d]) : at::Tensor();
    BackwardArgs<Storage> a;
    a.sequence = sequence_on_device(shape, d, table);
    a.H = H;
    a.recurrent = data<Storage>(recurrent);
    a.saved = data<Storage>(saved[d * shape.states]);
    a.cells = shape.states == 2 ? data<Compute>(saved[d * shape.states + 1]) : nullptr;
    a.output = data<Storage>(output) + d * H;
    a.output_ld = a.d_output_ld = shape.D * H;
    a.h0 = h0.defined() ? data<Storage>(h0) + d * B * H : nullptr;
    a.c0 = c0.defined() ? data<Storage>(c0) + d * B * H : nullptr;
    a.d_output = d_output.defined() ? data<Storage>(d_output) + d * H : nullptr;
    a.d_cells = data<Compute>(d_cells);
    a.dh = mutable_data<Compute>(dh) + d * B * H;
    a.dc = dc.defined() ? mutable_data<Compute>(dc) + d * B * H : nullptr;
    a.d_gates = mutable_data<Storage>(d_gates);
    a.arrived = reinterpret_cast<unsigned*>(arrived[d].mutable_data_ptr<int>());
    a.cell_clip = static_cast<Compute>(shape.cell_clip);
    a.grad_clip = static_cast<Compute>(shape.grad_clip);
    if (N > 0) {
      const std::string error = launch_backward<Storage>(shape.cell, plan, a, shape.batch_sizes, current_stream(input));
      check_launch(error, "backward", shape, plan);
    }
    const at::Tensor d_x = d_gates.narrow(1, 0, gates);
    if (needed[0]) {
      const at::Tensor d_rows = d_x.matmul(w.w_ih);
      results[0] = results[0].defined() ? results[0] + d_rows : d_rows;
    }
    const std::size_t first = 1 + states.size() + d * shape.weights_per_direction();
    if (needed[first]) results[first] = sum(d_x, x);
    if (shape.bias && needed[first + 2]) results[first + 2] = sum(d_x);
    const bool bias_h = shape.bias && needed[first + 3];
    if (!needed[first + 1] && !bias_h) continue;
    const at::Tensor d_u = recurrent_columns(shape, d_gates);
    if (needed[first + 1]) {
      const at::Tensor initial = h0.defined() ? h0[d] : at::zeros({B, H}, storage);
      const at::Tensor h = output.reshape({N, shape.D * H}).narrow(1, d * H, H);
      results[first + 1] = sum(d_u, N > 0 ? previous_states(shape, a.sequence.reverse, h, initial) : h);
    }
    if (bias_h) results[first + 3] = sum(d_u);
  }
  if (needed[0]) results[0] = results[0].reshape(input.sizes());
  if (!states.empty() && needed[1]) results[1] = dh;
  if (states.size() > 1 && needed[2]) results[2] = dc;
  return results;
}

}  // namespace

std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, Save save) {
  check_supported(shape);
  const c10::OptionalDeviceGuard guard(input.device());
  return with_storage(input.scalar_type(),
                      [&](auto storage) { return forward<decltype(storage)>(shape, input, states, weights, save); });
}

std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples) {
  check_supported(shape);
  const c10::OptionalDeviceGuard guard(input.device());
  if (!gates_saved(shape, saved))
    return cuda::layer_backward(shape, grads, input, states, weights, output,
                                with_gates(shape, input, states, weights, output, saved), needed, samples);
  return with_storage(input.scalar_type(), [&](auto storage) {
    return backward<decltype(storage)>(shape, grads, input, states, weights, output, saved, needed, samples);
  });
}

}  // namespace lstm_fused::cuda
