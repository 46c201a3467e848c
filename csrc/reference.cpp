#include "reference.h"

#include <ATen/ATen.h>

#include "cells/all_cells.h"
#include "checks.h"
#include "cuts.h"
#include "padded.h"
#include "recurrence.h"
#include "row_sums.h"

namespace lstm_fused {

namespace host {

template <>
inline at::Tensor sigmoid<at::Tensor>(const at::Tensor& x) {
  return at::sigmoid(x);
}

template <>
inline at::Tensor tanh<at::Tensor>(const at::Tensor& x) {
  return at::tanh(x);
}

}  // namespace host

namespace {

using Tensors = std::vector<at::Tensor>;

// The element type of arithmetic, as in the kernels: float for 16-bit storage.
at::Tensor to_compute(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat) : tensor;
}

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// The first `rows` rows, and a matrix with its first rows put in the place of them.
at::Tensor first_rows(const at::Tensor& matrix, std::int64_t rows) {
  return rows == matrix.size(0) ? matrix : matrix.narrow(0, 0, rows);
}
at::Tensor with_first_rows(const at::Tensor& rows, const at::Tensor& matrix) {
  const std::int64_t count = rows.size(0), all = matrix.size(0);
  return count == all ? rows : at::cat({rows, matrix.narrow(0, count, all - count)});
}

// One direction of one layer. Rows that have ended, or have not begun, keep their state.
template <class Cell>
class Direction {
  static constexpr int G = Cell::gates, S = Cell::saved;

 public:
  // One step's values: [rows of the step, H], h0 [rows, P].
  struct Step {
    at::Tensor s[S], h0, c0, c1, unprojected;
  };

  // Gradients by data row, [N, *], and what they are multiplied with for the weights' gradients.
  struct Gradients {
    at::Tensor d_x, d_u;            // [N, G*H], at W x and at U h
    at::Tensor h0;                  // [N, P]
    at::Tensor dh, unprojected;     // [N, P], [N, H]: only with a projection
    at::Tensor d_initial[2];        // [B, P], [B, H]
    at::Tensor d_resets[2];         // [B, P], [B, H]: by row; undefined without resets
  };

  Direction(const LayerShape& shape, const at::Tensor& rows, at::TensorList states, at::TensorList weights, int index)
      : shape(shape), index(index), x(rows) {
    const DirectionWeights own = direction_weights(shape, weights, index);
    w = {to_compute(own.w_ih), to_compute(own.w_hh), to_compute(own.b_ih), to_compute(own.b_hh), to_compute(own.w_hr)};
    time = {shape.T, shape.B, index == 1, shape.batch_sizes, shape.offsets.empty() ? nullptr : shape.offsets.data()};
    for (std::int64_t t = 0; t < shape.T; ++t) step_sizes.push_back(time.active(t));
    const auto initial = [&](std::size_t i, std::int64_t width) {
      return i < states.size() ? to_compute(states[i].select(0, index)) : rows.new_zeros({shape.B, width});
    };
    h = initial(0, shape.P);
    if (Cell::carries_cell) c = initial(1, shape.H);
    for (const at::Tensor& state : shape.resets.states) cuts.states.push_back(to_compute(state.select(0, index)));
    steps.resize(shape.T);
  }

  // Fills `steps`; leaves h_n and c_n in `h` and `c`. Returns h_t by data row, [N, P].
  at::Tensor forward() {
    const Tensors x_gates = by_step(at::linear(x, w.w_ih, optional(w.b_ih)));
    Tensors output(shape.T);
    visit([&](std::int64_t t, Step& step) {
      const Tensors x_t = x_gates[t].chunk(G, 1);
      const Tensors u_t = at::linear(step.h0, w.w_hh, optional(w.b_hh)).chunk(G, 1);
      Cell::template update<at::Tensor>(x_t.data(), u_t.data(), step.h0, step.c0, step.s, step.c1);
      if (shape.cell_clip < no_clip<double>) step.c1 = at::clamp(step.c1, -shape.cell_clip, shape.cell_clip);
      step.unprojected = Cell::template output<at::Tensor>(step.s, step.h0, step.c1);
      output[t] = shape.projected ? at::linear(step.unprojected, w.w_hr) : step.unprojected;
      return output[t];
    });
    return at::cat(output);
  }

  // c_t by data row, [N, H].
  at::Tensor all_cells() const {
    Tensors cells;
    for (const Step& step : steps) cells.push_back(step.c1);
    return at::cat(cells);
  }

  // From gradients of h_t and c_t by data row (or undefined), h_n and c_n.
  Gradients backward(const at::Tensor& d_output, const at::Tensor& d_cells, at::Tensor dh, at::Tensor dc) {
    const Tensors d_outputs = d_output.defined() ? by_step(d_output) : Tensors(shape.T);
    const Tensors d_all_cells = d_cells.defined() ? by_step(d_cells) : Tensors(shape.T);
    Tensors d_x(shape.T), d_u(shape.T), h0(shape.T), d_projected(shape.T), unprojected(shape.T);
    at::Tensor d_resets[2];
    if (shape.resets.before.defined()) {
      d_resets[0] = at::zeros_like(dh);
      if (dc.defined()) d_resets[1] = at::zeros_like(dc);
    }
    for (std::int64_t i = shape.T - 1; i >= 0; --i) {
      const std::int64_t t = time.time(i), rows = step_sizes[t];
      const Step& step = steps[t];
      at::Tensor dh1 = first_rows(dh, rows), dc1 = dc.defined() ? first_rows(dc, rows) : dc;
      if (d_outputs[t].defined()) dh1 = dh1 + d_outputs[t];
      if (d_all_cells[t].defined()) dc1 = dc1 + d_all_cells[t];
      const at::Tensor d_unprojected = shape.projected ? dh1.matmul(w.w_hr) : dh1;
      at::Tensor d[S], direct;
      Cell::template d_output<at::Tensor>(step.s, step.h0, step.c1, d_unprojected, d, dc1, direct);
      if (shape.cell_clip < no_clip<double>) dc1 = dc1.masked_fill(step.c1.abs() >= shape.cell_clip, 0);
      Cell::template d_update<at::Tensor>(step.s, step.h0, step.c0, d, dc1, direct);
      if (shape.grad_clip < no_clip<double>)
        for (at::Tensor& gradient : d) gradient = at::clamp(gradient, -shape.grad_clip, shape.grad_clip);
      d_x[t] = at::cat(at::TensorList(d, G), 1);
      d_u[t] = host::same_columns<Cell>() ? d_x[t] : recurrent_columns(d);
      h0[t] = step.h0;
      d_projected[t] = dh1;
      unprojected[t] = step.unprojected;
      at::Tensor dh0 = d_u[t].matmul(w.w_hh);
      if (direct.defined()) dh0 = dh0 + direct;
      dh = with_first_rows(dh0, dh);
      if (dc.defined()) dc = with_first_rows(dc1, dc);
      cuts.give(time, t, dh, d_resets[0]);
      if (dc.defined()) cuts.give(time, t, dc, d_resets[1]);
    }
    Gradients result{at::cat(d_x), {}, at::cat(h0), {}, {}, {dh, dc}, {d_resets[0], d_resets[1]}};
    result.d_u = host::same_columns<Cell>() ? result.d_x : at::cat(d_u);
    if (shape.projected) {
      result.dh = at::cat(d_projected);
      result.unprojected = at::cat(unprojected);
    }
    return result;
  }

  at::Tensor h, c;     // [B, P], [B, H]
  DirectionWeights w;  // in the compute type

 private:
  // Calls f(t, step), which returns h_t [rows of t, P], in the direction's order, and carries the states from step to
  // step.
  template <class F>
  void visit(const F& f) {
    for (std::int64_t i = 0; i < shape.T; ++i) {
      const std::int64_t t = time.time(i), rows = step_sizes[t];
      Step& step = steps[t];
      step.h0 = first_rows(cuts.before(time, t, h, 0), rows);
      if (Cell::carries_cell) step.c0 = first_rows(cuts.before(time, t, c, 1), rows);
      h = with_first_rows(f(t, step), h);
      if (Cell::carries_cell) c = with_first_rows(step.c1, c);
    }
  }

  static at::Tensor recurrent_columns(const at::Tensor d[]) {
    Tensors columns;
    for (const int column : Cell::recurrent_column) columns.push_back(d[column]);
    return at::cat(columns, 1);
  }

  // Split and not sliced: the gradient of T slices would be T sums over all rows.
  Tensors by_step(const at::Tensor& rows) const { return to_compute(rows).split_with_sizes(step_sizes); }

  const LayerShape& shape;
  const int index;
  const at::Tensor x;  // [N, I]
  Cuts cuts{shape.resets.before, {}};
  Sequence time;
  std::vector<std::int64_t> step_sizes;  // [T]
  std::vector<Step> steps;               // [T]
};

template <class Cell>
Tensors layer(const LayerShape& shape, const at::Tensor& input, at::TensorList states, at::TensorList weights) {
  const at::Tensor rows = to_compute(input).reshape({shape.N, shape.I});
  Tensors outputs, h_n, c_n, cells;
  for (int d = 0; d < shape.D; ++d) {
    Direction<Cell> direction(shape, rows, states, weights, d);
    outputs.push_back(direction.forward());
    h_n.push_back(direction.h);
    c_n.push_back(direction.c);
    if (Cell::carries_cell) cells.push_back(direction.all_cells());
  }
  Tensors results = {at::cat(outputs, 1).reshape(shape.output_sizes()), at::stack(h_n)};
  if (Cell::carries_cell) results.push_back(at::stack(c_n));
  for (at::Tensor& result : results) result = result.to(input.scalar_type());
  results.insert(results.end(), cells.begin(), cells.end());
  return results;
}

template <class Cell>
Tensors backward(const LayerShape& shape, const BackwardCall& call) {
  const at::Tensor rows = to_compute(call.input).reshape({shape.N, shape.I});
  const auto columns = [&](const at::Tensor& all, int d) {
    return all.reshape({shape.N, shape.D * shape.P}).narrow(1, d * shape.P, shape.P);
  };
  const auto state_gradient = [&](std::size_t i, std::int64_t width, int d) {
    return call.grads[i].defined() ? to_compute(call.grads[i].select(0, d)) : rows.new_zeros({shape.B, width});
  };
  const RowSums sum{call.samples};
  const std::size_t S = call.states.size();
  const std::size_t first_reset = 1 + S + call.weights.size();
  Tensors results(call.needed.size()), d_initial[2], d_resets[2];
  for (int d = 0; d < shape.D; ++d) {
    Direction<Cell> direction(shape, rows, call.states, call.weights, d);
    direction.forward();
    const auto g =
        direction.backward(call.grads[0].defined() ? columns(call.grads[0], d) : at::Tensor(),
                           Cell::carries_cell ? call.grads[3 + d] : at::Tensor(), state_gradient(1, shape.P, d),
                           Cell::carries_cell ? state_gradient(2, shape.H, d) : at::Tensor());
    for (int i = 0; i < shape.states; ++i) {
      d_initial[i].push_back(g.d_initial[i]);
      if (g.d_resets[i].defined()) d_resets[i].push_back(sum(g.d_resets[i]));
    }
    if (call.needed[0]) {
      const at::Tensor d_rows = g.d_x.matmul(direction.w.w_ih);
      results[0] = results[0].defined() ? results[0] + d_rows : d_rows;
    }
    const std::size_t first = 1 + S + d * shape.weights_per_direction(), last = shape.weights_per_direction() - 1;
    const auto want = [&](std::size_t i) { return call.needed[first + i]; };
    if (want(0)) results[first] = sum(g.d_x, rows);
    if (want(1)) results[first + 1] = sum(g.d_u, g.h0);
    if (shape.bias && want(2)) results[first + 2] = sum(g.d_x);
    if (shape.bias && want(3)) results[first + 3] = sum(g.d_u);
    if (shape.projected && want(last)) results[first + last] = sum(g.dh, g.unprojected);
  }
  if (call.needed[0]) results[0] = results[0].reshape(call.input.sizes());
  for (std::size_t i = 0; i < S; ++i)
    if (call.needed[1 + i]) results[1 + i] = at::stack(d_initial[i]);
  for (std::size_t i = 0; i < call.resets.states.size(); ++i)
    if (call.needed[first_reset + i]) results[first_reset + i] = at::stack(d_resets[i], -2);
  for (at::Tensor& result : results)
    if (result.defined()) result = result.to(call.input.scalar_type());
  return results;
}

// A loop over steps has to know them.
void check_batch_sizes_known(const LayerShape& shape) {
  TORCH_CHECK(!shape.device_batch_sizes.defined(),
              "batch_sizes: expected dtype Long, got Int: second derivatives and forward mode need lengths on the CPU");
}

}  // namespace

std::vector<at::Tensor> reference_layer(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                        at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                        const LayerOptions& options, const Resets& resets) {
  const NoAutocast no_autocast;
  const LayerShape shape = check_layer(cell, input, states, weights, batch_sizes, options, resets);
  check_batch_sizes_known(shape);
  const auto run = [&](const LayerShape& shape, const at::Tensor& input, at::TensorList states) {
    Tensors results;
    host::with_cell(cell, [&](auto cell) { results = layer<decltype(cell)>(shape, input, states, weights); });
    return results;
  };
  if (shape.padded()) return Unpadded(shape, input.device()).run(input, states, run);
  return run(shape, input, states);
}

std::vector<at::Tensor> reference_backward(const BackwardCall& call) {
  const NoAutocast no_autocast;
  const LayerShape shape =
      check_layer(call.cell, call.input, call.states, call.weights, call.batch_sizes, call.options, call.resets);
  check_batch_sizes_known(shape);
  const std::size_t grads = 1 + shape.states + (shape.states - 1) * shape.D;
  const std::size_t inputs = 1 + call.states.size() + call.weights.size() + call.resets.states.size();
  TORCH_CHECK(call.grads.size() == grads && call.needed.size() == inputs, "lstm_fused::backward: expected ", grads,
              " grads and ", inputs, " values of needed, got ", call.grads.size(), " and ", call.needed.size());
  const auto run = [&](const LayerShape& shape, const BackwardCall& call) {
    Tensors results;
    host::with_cell(call.cell, [&](auto cell) { results = backward<decltype(cell)>(shape, call); });
    return results;
  };
  if (!shape.padded()) return run(shape, call);
  BackwardCall packed = call;
  return Unpadded(shape, call.input.device())
      .run_back(call.grads, call.input, call.states,
                [&](const LayerShape& shape, const Tensors& grads, const at::Tensor& rows, const Tensors& states) {
                  packed.grads = grads;
                  packed.input = rows;
                  packed.states = states;
                  return run(shape, packed);
                });
}

}  // namespace lstm_fused
