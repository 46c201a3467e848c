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

// Input gates of this many bytes are computed at a time, to be consumed while they are in cache.
constexpr std::int64_t chunk_bytes = 2 << 20;
constexpr std::int64_t chunk_rows = 256;  // fewer rows would read W too often for what they compute

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
  const int threads = usable_threads();
  const RecurrenceShape recurrence =
      recurrence_shape(shape, sizeof(Compute), kernels.unit_panel, kernels.unit_panel, shape.P);
  const Plan plan = choose_plan(recurrence, this_machine(threads), forced_plan());

  std::vector<at::Tensor> kept;  // tensors that args point into
  std::vector<ForwardArgs<Storage>> args{static_cast<std::size_t>(shape.D)};
  std::vector<at::Tensor> w_ih{static_cast<std::size_t>(shape.D)}, saved;
  at::Tensor input_gates[2];

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
    const at::Tensor h0 = states.empty() ? at::Tensor() : to_compute(states[0]);
    const at::Tensor c0 = states.size() < 2 ? at::Tensor() : to_compute(states[1]);
    for (int d = 0; d < shape.D; ++d) {
      ForwardArgs<Storage>& a = args[d];
      const DirectionWeights w = direction_weights(shape, weights, d);
      a.sequence = sequence(shape, d);
      a.H = H;
      a.P = P;
      w_ih[d] = to_compute(w.w_ih);
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
    }
    if (shape.N > 0) {
      pack_weights();
      run_chunks();
    }
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

  void pack_weights() {
    const std::int64_t panels = (shape.H + kernels.unit_panel - 1) / kernels.unit_panel;
    const std::int64_t outputs = shape.projected ? (shape.P + kernels.output_panel - 1) / kernels.output_panel : 0;
    const std::int64_t panel_size = shape.P * shape.G * kernels.unit_panel,
                       output_size = shape.H * kernels.output_panel;
    std::vector<const Storage*> U(shape.D), W(shape.D);
    std::vector<Compute*> packed_U(shape.D), packed_W(shape.D);
    for (int d = 0; d < shape.D; ++d) {
      const DirectionWeights w = direction_weights(shape, weights, d);
      U[d] = data<Storage>(keep(w.w_hh.contiguous()));
      packed_U[d] = mutable_data<Compute>(keep(at::empty({panels * panel_size}, compute_options)));
      args[d].recurrent = packed_U[d];
      if (!shape.projected) continue;
      W[d] = data<Storage>(keep(w.w_hr.contiguous()));
      packed_W[d] = mutable_data<Compute>(keep(at::empty({outputs * output_size}, compute_options)));
      args[d].projection = packed_W[d];
    }
    pack_panels(plan.threads(), shape.D, panels + outputs, [&](std::int64_t d, std::int64_t i) {
      if (i < panels) kernels.pack_gates(U[d], shape.H, shape.P, i, packed_U[d]);
      else kernels.pack_columns(W[d], shape.P, shape.H, i - panels, packed_W[d]);
    });
  }

  void run_chunks() {
    const std::int64_t row_bytes = shape.G * shape.H * sizeof(Compute);
    const std::int64_t steps = (std::max(chunk_bytes / row_bytes, chunk_rows) + shape.B - 1) / shape.B;
    for (std::int64_t begin = 0; begin < shape.T; begin += steps) {
      const std::int64_t end = std::min(begin + steps, shape.T);
      for (int d = 0; d < shape.D; ++d) project_input(d, begin, end);
      run_plan(
          plan, recurrence, kernels.unit_panel, kernels.output_panel,
          [&](int d, const Share& share, Barrier& barrier) { kernels.forward(args[d], share, barrier, begin, end); });
    }
  }

  // W x of the steps [begin, end): into the saved gates where those have the compute type, else into a buffer.
  void project_input(int d, std::int64_t begin, std::int64_t end) {
    ForwardArgs<Storage>& a = args[d];
    const std::int64_t first_time = a.sequence.reverse ? shape.T - end : begin;
    const std::int64_t last_time = first_time + (end - begin) - 1;
    const std::int64_t first = a.sequence.offset(first_time);
    const std::int64_t rows = a.sequence.offset(last_time) + a.sequence.active(last_time) - first;
    const std::int64_t width = shape.G * shape.H;
    at::Tensor gates;
    if (save && same_type) {
      gates = saved[d * shape.states].narrow(0, first, rows).narrow(1, 0, width);
    } else {
      if (!input_gates[d].defined() || input_gates[d].size(0) < rows)
        input_gates[d] = at::empty({rows, width}, compute_options);
      gates = input_gates[d].size(0) == rows ? input_gates[d] : input_gates[d].narrow(0, 0, rows);
    }
    const at::Tensor x = rows == shape.N ? input : input.narrow(0, first, rows);
    multiply(gates, x.to(compute_options.dtype()), w_ih[d].t());
    a.input_gates = data<Compute>(gates);
    a.input_ld = gates.stride(0);
    a.input_row = first;
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
