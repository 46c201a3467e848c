#include <ATen/ops/empty.h>

#include <algorithm>

#include "layer.h"

namespace lstm_fused {

RecurrenceShape recurrence_shape(const LayerShape& s, int element_bytes, int lanes, int panel_units,
                                 std::int64_t exchanged) {
  return {s.T, s.B, s.H, s.P, s.G, s.D, element_bytes, lanes, panel_units, s.projected, exchanged};
}

Sequence sequence(const LayerShape& shape, int direction) {
  return {shape.T, shape.B, direction == 1, shape.batch_sizes, shape.offsets.empty() ? nullptr : shape.offsets.data()};
}

namespace {

// Rows of a worker whose W x is computed together: enough that W is read seldom, few enough that the result is still in
// cache when the recurrence takes it.
constexpr std::int64_t chunk_rows = 96;

template <class Storage>
struct ForwardLayer {
  using Compute = compute_t<Storage>;
  static constexpr bool same_type = std::is_same_v<Storage, Compute>;

  const LayerShape& shape;
  const at::Tensor input;  // [N, I]
  at::TensorList states, weights;
  const bool save;
  const at::TensorOptions storage_options = input.options(),
                          compute_options = input.options().dtype(compute_type(input));
  const IsaKernels& isa = active_isa();
  const CellKernels<Storage> kernels = isa.kernels<Storage>(shape.cell);
  const RecurrenceShape recurrence =
      recurrence_shape(shape, sizeof(Compute), kernels.unit_panel, kernels.unit_panel, shape.P);
  const Plan plan = current_plan(recurrence);

  std::vector<at::Tensor> kept;  // tensors that args point into
  std::vector<ForwardArgs<Storage>> args{static_cast<std::size_t>(shape.D)};
  std::vector<at::Tensor> saved;

  at::Tensor keep(at::Tensor tensor) {
    if (tensor.defined()) kept.push_back(tensor);
    return tensor;
  }

  std::vector<at::Tensor> run() {
    const auto& [T, B, I, H, P] = std::tie(shape.T, shape.B, shape.I, shape.H, shape.P);
    const at::Tensor output = at::empty(shape.output_sizes(), storage_options);
    const at::Tensor h_n = at::empty({shape.D, B, P}, compute_options);
    const at::Tensor c_n = shape.states == 2 ? at::empty({shape.D, B, H}, compute_options) : at::Tensor();
    const at::Tensor h = at::empty({shape.D, 2, B, row_stride<Compute>(P)}, compute_options);
    const at::Tensor unprojected =
        shape.projected ? at::empty({shape.D, B, row_stride<Compute>(H)}, compute_options) : at::Tensor();
    const at::Tensor x = to_compute(input);
    const at::Tensor h0 = states.empty() ? at::Tensor() : to_compute(states[0]);
    const at::Tensor c0 = states.size() < 2 ? at::Tensor() : to_compute(states[1]);
    for (int d = 0; d < shape.D; ++d) {
      ForwardArgs<Storage>& a = args[d];
      const DirectionWeights w = direction_weights(shape, weights, d);
      a.sequence = sequence(shape, d);
      a.I = I;
      a.H = H;
      a.P = P;
      a.input = data<Compute>(x);
      a.bias_x = data<Compute>(keep(to_compute(w.b_ih)));
      a.bias_h = data<Compute>(keep(to_compute(w.b_hh)));
      a.h0 = h0.defined() ? data<Compute>(h0) + d * B * P : nullptr;
      a.c0 = c0.defined() ? data<Compute>(c0) + d * B * H : nullptr;
      a.output = mutable_data<Storage>(output) + d * P;
      a.output_ld = shape.D * P;
      a.h = mutable_data<Compute>(h) + d * 2 * B * row_stride<Compute>(P);
      a.h_n = mutable_data<Compute>(h_n) + d * B * P;
      a.c = c_n.defined() ? mutable_data<Compute>(c_n) + d * B * H : nullptr;
      a.unprojected =
          unprojected.defined() ? mutable_data<Compute>(unprojected) + d * B * row_stride<Compute>(H) : nullptr;
      if (save) allocate_saved(a);
      allocate_input_gates(a);
    }
    if (shape.N > 0) run_recurrence();
    std::vector<at::Tensor> results = {output, h_n.to(input.scalar_type())};
    if (c_n.defined()) results.push_back(c_n.to(input.scalar_type()));
    results.insert(results.end(), saved.begin(), saved.end());
    return results;
  }

  void allocate_saved(ForwardArgs<Storage>& a) {
    saved.push_back(at::empty({shape.N, shape.S * shape.H}, storage_options));
    a.saved = mutable_data<Storage>(saved.back());
    if (shape.states < 2) return;
    saved.push_back(at::empty({shape.N, shape.H}, compute_options));
    a.cells = mutable_data<Compute>(saved.back());
  }

  // In training W x goes straight into the memory of the saved gates, where these have the compute type.
  void allocate_input_gates(ForwardArgs<Storage>& a) {
    const std::int64_t rows = std::max<std::int64_t>(shape.B, 1);
    a.chunk_steps = std::max<std::int64_t>(1, std::min(shape.T, chunk_rows * plan.rows / rows));
    if constexpr (same_type) {
      if (save) {
        a.gates_in_place = true;
        a.input_gates = a.saved;
        a.input_ld = shape.S * shape.H;
        return;
      }
    }
    a.input_ld = shape.G * shape.H;
    a.input_gates = mutable_data<Compute>(keep(at::empty({a.chunk_steps * shape.B, a.input_ld}, compute_options)));
  }

  void run_recurrence() {
    const std::int64_t panels = divide_up(shape.H, kernels.unit_panel);
    const std::int64_t outputs = shape.projected ? divide_up(shape.P, kernels.output_panel) : 0;
    const std::int64_t width = shape.G * kernels.unit_panel;
    struct Direction {
      const Storage *W, *U, *W_hr;
      Compute *packed_W, *packed_U, *packed_W_hr;
    };
    std::vector<Direction> directions(shape.D);
    for (int d = 0; d < shape.D; ++d) {
      const DirectionWeights w = direction_weights(shape, weights, d);
      const auto packed = [&](std::int64_t size) {
        return mutable_data<Compute>(keep(at::empty({size}, compute_options)));
      };
      Direction& to = directions[d];
      to.W = data<Storage>(keep(w.w_ih.contiguous()));
      to.U = data<Storage>(keep(w.w_hh.contiguous()));
      args[d].input_weights = to.packed_W = packed(panels * shape.I * width);
      args[d].recurrent = to.packed_U = packed(panels * shape.P * width);
      if (!shape.projected) continue;
      to.W_hr = data<Storage>(keep(w.w_hr.contiguous()));
      args[d].projection = to.packed_W_hr = packed(outputs * shape.H * kernels.output_panel);
    }
    // Both matrices of a panel by one worker: where units are split, by the one that will read them.
    const std::int64_t in_a_direction = 2 * panels + outputs;
    const auto pack = [&](std::int64_t index) {
      const Direction& to = directions[index / in_a_direction];
      const std::int64_t i = index % in_a_direction;
      if (i >= 2 * panels) kernels.pack_columns(to.W_hr, shape.P, shape.H, i - 2 * panels, to.packed_W_hr);
      else if (i % 2 == 0) kernels.pack_gates(to.W, shape.H, shape.I, i / 2, to.packed_W);
      else kernels.pack_gates(to.U, shape.H, shape.P, i / 2, to.packed_U);
    };
    const double gates = static_cast<double>(shape.G * shape.H) / plan.units;  // of one worker
    const double apart_ns = gates * (shape.I + shape.P) * shape.D / plan.rows +  // packing, at a nanosecond an element
                            product_ns(gates * shape.I * args[0].chunk_steps * shape.B / plan.rows, recurrence.lanes);
    run_plan(plan, recurrence, kernels.unit_panel, kernels.output_panel, apart_ns, shape.D * in_a_direction, pack,
             [&](int d, const Share& share, Barrier& barrier) { kernels.forward(args[d], share, barrier); });
  }
};

}  // namespace

std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, bool save) {
  if (single_step(shape)) {
    std::vector<at::Tensor> results = step_forward(shape, input, states, weights, save);
    const at::Tensor output = at::empty(shape.output_sizes(), input.options());
    output.view({shape.B, shape.D, shape.H}).copy_(results[0].transpose(0, 1));
    results.insert(results.begin(), output);
    return results;
  }
  return with_storage(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    ForwardLayer<Storage> layer{.shape = shape,
                                .input = input.reshape({shape.N, shape.I}).contiguous(),
                                .states = states,
                                .weights = weights,
                                .save = save};
    return layer.run();
  });
}

}  // namespace lstm_fused
