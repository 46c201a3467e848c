#include <algorithm>

#include "layer.h"
#include "memory.h"

namespace lstm_fused {

RecurrenceShape recurrence_shape(const LayerShape& s, int element_bytes, int lanes, int panel_units,
                                 std::int64_t exchanged) {
  return {s.T, s.B, s.H, s.P, s.G, s.D, element_bytes, lanes, panel_units, s.projected, exchanged, s.batch_sizes};
}

PlacedSequence sequence(const LayerShape& shape, int direction) {
  const auto given = [](const std::vector<std::int64_t>& numbers) {
    return numbers.empty() ? nullptr : numbers.data();
  };
  return {{shape.T, shape.B, direction == 1 || shape.reverse, shape.batch_sizes, given(shape.offsets)},
          given(shape.columns)};
}

namespace {

// Rows of a worker whose W x is computed together: enough that W is read seldom, few enough that the result is still in
// cache when the recurrence takes it.
constexpr std::int64_t chunk_rows = 96;

// Elements of a direction's packed matrices: W, U, (W_hr).
template <class Storage>
std::vector<std::int64_t> packed_sizes(const LayerShape& shape, const CellKernels<Storage>& kernels) {
  const std::int64_t rows = divide_up(shape.H, kernels.unit_panel) * kernels.unit_panel * shape.G;
  std::vector<std::int64_t> sizes = {rows * shape.I, rows * shape.P};
  if (shape.projected) sizes.push_back(divide_up(shape.P, kernels.output_panel) * kernels.output_panel * shape.H);
  return sizes;
}

// The weights of every direction as the forward kernel reads them, panel by panel.
template <class Storage>
class Packing {
  using Compute = compute_t<Storage>;

 public:
  Packing(const LayerShape& layer_shape, const CellKernels<Storage>& cell_kernels, at::TensorList weights,
          const at::TensorOptions& options)
      : shape(layer_shape), kernels(cell_kernels) {
    for (int d = 0; d < shape.D; ++d) {
      const DirectionWeights w = direction_weights(shape, weights, d);
      const at::Tensor* const matrices[] = {&w.w_ih, &w.w_hh, &w.w_hr};
      for (std::size_t k = 0; k < sizes.size(); ++k) {
        from.push_back(matrices[k]->contiguous());
        packed.push_back(allocate({sizes[k]}, options));
      }
    }
  }

  // How much there is to pack. Both matrices of a panel come one after the other: where units are split, the worker
  // that packs them is the one that will read them.
  std::int64_t count() const { return shape.D * in_a_direction; }
  void pack(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t i = begin; i < end; ++i) pack_one(i);
  }

  std::vector<at::Tensor> packed;  // per direction W, U, (W_hr)

 private:
  void pack_one(std::int64_t index) const {
    const std::size_t first = index / in_a_direction * sizes.size();
    const std::int64_t i = index % in_a_direction;
    const auto source = [&](int k) { return data<Storage>(from[first + k]); };
    const auto to = [&](int k) { return mutable_data<Compute>(packed[first + k]); };
    if (i >= 2 * panels) kernels.pack_columns(source(2), shape.P, shape.H, i - 2 * panels, to(2));
    else if (i % 2 == 0) kernels.pack_gates(source(0), shape.H, shape.I, i / 2, to(0));
    else kernels.pack_gates(source(1), shape.H, shape.P, i / 2, to(1));
  }

  const LayerShape& shape;
  const CellKernels<Storage>& kernels;
  const std::vector<std::int64_t> sizes = packed_sizes(shape, kernels);
  std::vector<at::Tensor> from;
  const std::int64_t panels = divide_up(shape.H, kernels.unit_panel);
  const std::int64_t outputs = shape.projected ? divide_up(shape.P, kernels.output_panel) : 0;
  const std::int64_t in_a_direction = 2 * panels + outputs;
};

template <class Storage>
struct ForwardLayer {
  using Compute = compute_t<Storage>;
  static constexpr bool same_type = std::is_same_v<Storage, Compute>;

  const LayerShape& shape;
  const at::Tensor input;  // [N, I], or the padded batch
  at::TensorList states, weights;
  at::TensorList packed;  // the weights, by pack_layer; empty: packed at every call
  const Save save;
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
    const bool gates_alone = save == Save::gates_alone;
    const at::Tensor output = gates_alone ? at::Tensor() : allocate(shape.output_sizes(), storage_options);
    const at::Tensor h_n = gates_alone ? at::Tensor() : allocate({shape.D, B, P}, compute_options);
    const at::Tensor c_n = shape.states == 2 ? allocate({shape.D, B, H}, compute_options) : at::Tensor();
    const at::Tensor h = allocate({shape.D, 2, B, row_stride<Compute>(P)}, compute_options);
    const at::Tensor unprojected = shape.projected && !gates_alone
                                       ? allocate({shape.D, B, row_stride<Compute>(H)}, compute_options)
                                       : at::Tensor();
    const at::Tensor x = to_compute(input);
    const at::Tensor h0 = states.empty() ? at::Tensor() : to_compute(states[0]);
    const at::Tensor c0 = states.size() < 2 ? at::Tensor() : to_compute(states[1]);
    const at::Tensor resets = dense(shape.resets.before);
    std::vector<at::Tensor> reset_states;
    for (const at::Tensor& state : shape.resets.states) reset_states.push_back(to_compute(state));
    const at::Tensor no_bias = shape.bias ? at::Tensor() : allocate_zeros({shape.G * H}, compute_options);
    for (int d = 0; d < shape.D; ++d) {
      ForwardArgs<Storage>& a = args[d];
      const DirectionWeights w = direction_weights(shape, weights, d);
      a.sequence = sequence(shape, d);
      a.I = I;
      a.H = H;
      a.P = P;
      a.input = data<Compute>(x);
      a.bias_x = data<Compute>(keep(shape.bias ? to_compute(w.b_ih) : no_bias));
      a.bias_h = data<Compute>(keep(shape.bias ? to_compute(w.b_hh) : no_bias));
      a.h0 = h0.defined() ? data<Compute>(h0) + d * B * P : nullptr;
      a.c0 = c0.defined() ? data<Compute>(c0) + d * B * H : nullptr;
      a.resets = data<bool>(resets);
      if (!reset_states.empty()) a.reset_h = data<Compute>(reset_states[0]) + d * P;
      if (reset_states.size() > 1) a.reset_c = data<Compute>(reset_states[1]) + d * H;
      a.output = output.defined() ? mutable_data<Storage>(output) + d * P : nullptr;
      a.output_ld = shape.D * P;
      a.h = mutable_data<Compute>(h) + d * 2 * B * row_stride<Compute>(P);
      a.h_n = h_n.defined() ? mutable_data<Compute>(h_n) + d * B * P : nullptr;
      a.c = c_n.defined() ? mutable_data<Compute>(c_n) + d * B * H : nullptr;
      a.unprojected =
          unprojected.defined() ? mutable_data<Compute>(unprojected) + d * B * row_stride<Compute>(H) : nullptr;
      a.cell_clip = static_cast<Compute>(shape.cell_clip);
      allocate_saved(a);
      allocate_input_gates(a);
    }
    if (shape.N > 0 || shape.padded()) run_recurrence();
    if (gates_alone) return saved;
    std::vector<at::Tensor> results = {output, h_n.to(input.scalar_type())};
    if (c_n.defined()) results.push_back(c_n.to(input.scalar_type()));
    results.insert(results.end(), saved.begin(), saved.end());
    return results;
  }

  void allocate_saved(ForwardArgs<Storage>& a) {
    if (save >= Save::gates) {
      saved.push_back(allocate({shape.N, shape.S * shape.H}, storage_options));
      a.saved = mutable_data<Storage>(saved.back());
    }
    if (save == Save::nothing || save == Save::gates_alone || shape.states < 2) return;
    saved.push_back(allocate({shape.N, shape.H}, compute_options));
    a.cells = mutable_data<Compute>(saved.back());
  }

  // In training W x goes straight into the memory of the saved gates, where these have the compute type.
  void allocate_input_gates(ForwardArgs<Storage>& a) {
    const std::int64_t rows = std::max<std::int64_t>(shape.B, 1);
    a.chunk_steps = std::max<std::int64_t>(1, std::min(shape.T, chunk_rows * plan.rows / rows));
    a.rows_in_step = rows_for_input_in_step(recurrence, this_machine(plan.threads()), plan, shape.I);
    if (!shape.batch_sizes && rows / plan.rows >= a.rows_in_step) return;
    if constexpr (same_type) {
      if (save >= Save::gates) {
        a.gates_in_place = true;
        a.input_gates = a.saved;
        a.input_ld = shape.S * shape.H;
        return;
      }
    }
    a.input_ld = shape.G * shape.H;
    a.input_gates = mutable_data<Compute>(keep(allocate({a.chunk_steps * shape.B, a.input_ld}, compute_options)));
  }

  void run_recurrence() {
    std::optional<Packing<Storage>> packing;
    if (packed.empty()) packing.emplace(shape, kernels, weights, compute_options);
    const at::TensorList matrices = packing ? at::TensorList(packing->packed) : packed;
    const std::vector<std::int64_t> sizes = packed_sizes(shape, kernels);
    TORCH_CHECK(matrices.size() == shape.D * sizes.size(), "packed: expected ", shape.D * sizes.size(),
                " tensors, got ", matrices.size());
    for (int d = 0; d < shape.D; ++d) {
      const auto matrix = [&](int k) {
        const at::Tensor& found = matrices[d * sizes.size() + k];
        TORCH_CHECK(found.is_contiguous() && found.numel() == sizes[k] && found.scalar_type() == compute_type(input),
                    "packed: expected ", sizes[k], " elements of ", compute_type(input), ", got ", found.numel(),
                    " of ", found.scalar_type());
        return data<Compute>(found);
      };
      args[d].input_weights = matrix(0);
      args[d].recurrent = matrix(1);
      if (shape.projected) args[d].projection = matrix(2);
    }
    const double gates = static_cast<double>(shape.G * shape.H) / plan.units;  // of one worker
    const double packing_ns = packing ? gates * (shape.I + shape.P) * shape.D / plan.rows : 0;  // a nanosecond each
    const double apart_ns =
        packing_ns + product_ns(gates * shape.I * args[0].chunk_steps * shape.B / plan.rows, recurrence.lanes);
    run_plan(
        plan, recurrence, kernels.unit_panel, kernels.output_panel, apart_ns, packing ? packing->count() : 0,
        [&](std::int64_t begin, std::int64_t end) { packing->pack(begin, end); },
        [&](int d, const Share& share, Barrier& barrier) { kernels.forward(args[d], share, barrier); });
  }
};

}  // namespace

std::vector<at::Tensor> pack_layer(const LayerShape& shape, at::TensorList weights) {
  return with_storage(weights[0].scalar_type(), [&](auto storage) {
    const auto kernels = active_isa().kernels<decltype(storage)>(shape.cell);
    Packing<decltype(storage)> packing(shape, kernels, weights, weights[0].options().dtype(compute_type(weights[0])));
    packing.pack(0, packing.count());
    return packing.packed;
  });
}

std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, Save save, at::TensorList packed) {
  if (single_step(shape) && save != Save::gates_alone) {
    std::vector<at::Tensor> results = step_forward(shape, input, states, weights, save);
    const at::Tensor& h_n = results[0];
    const at::Tensor output =
        shape.D == 1 ? h_n.clone() : h_n.transpose(0, 1).clone(at::MemoryFormat::Contiguous).view(shape.output_sizes());
    results.insert(results.begin(), output);
    return results;
  }
  return with_storage(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    ForwardLayer<Storage> layer{.shape = shape,
                                .input = input.contiguous(),
                                .states = states,
                                .weights = weights,
                                .packed = packed,
                                .save = save};
    return layer.run();
  });
}

}  // namespace lstm_fused
