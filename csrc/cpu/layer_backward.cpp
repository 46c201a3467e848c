#include "../cells/all_cells.h"
#include "layer_sums.h"
#include "memory.h"

namespace lstm_fused {

namespace {

// Where h_{t-1} of every data row lies: in a row of the output, which are `ld` apart, of h0, or in reset_h.
template <class Compute>
std::vector<const Compute*> previous_rows(const PlacedSequence& sequence, std::int64_t P, const bool* resets,
                                          const Compute* output, std::int64_t ld, const Compute* h0,
                                          const Compute* reset_h) {
  std::vector<const Compute*> rows;
  rows.reserve(sequence.steps * sequence.batch);
  for (std::int64_t t = 0; t < sequence.steps; ++t) {
    const std::int64_t before = sequence.reverse ? t + 1 : t - 1;
    const std::int64_t known = before >= 0 && before < sequence.steps ? sequence.active(before) : 0;
    for (std::int64_t b = 0; b < sequence.active(t); ++b) {
      if (sequence.begins_anew(resets, t, b)) rows.push_back(reset_h);
      else rows.push_back(b < known ? output + sequence.place(before, b) * ld : h0 + sequence.column(b) * P);
    }
  }
  return rows;
}

template <class Storage>
struct BackwardLayer {
  using Compute = compute_t<Storage>;
  using Rows = MatrixPart<Compute>;

  const LayerShape& shape;
  at::TensorList grads;  // of output, h_n, (c_n, c_t by direction); undefined: zero
  const at::Tensor input;  // [N, I] or, as output and its gradient, the padded batch, [T*B, I]
  at::TensorList states, weights;
  const at::Tensor output;
  at::TensorList saved;
  const std::vector<bool>& needed;
  const std::int64_t samples;  // 0: none
  SharedBackward* const shared;
  const bool first_part = !shared || shared->sums.empty();
  const at::TensorOptions compute_options = input.options().dtype(compute_type(input));
  const CellKernels<Storage> kernels = active_isa().kernels<Storage>(shape.cell);
  LayerSums<Storage> sums{kernels, compute_options};
  const RecurrenceShape recurrence =
      recurrence_shape(shape, sizeof(Compute), kernels.unit_panel, kernels.output_panel, shape.G* shape.H);
  const Plan plan = current_plan(recurrence);

  std::vector<at::Tensor> kept, packed_here;
  at::Tensor h_values;  // output in the compute type
  std::deque<std::vector<const Compute*>> kept_rows;
  const std::vector<std::int64_t> places = shape.padded() ? shape.places() : std::vector<std::int64_t>();
  std::vector<at::Tensor> reset_states, d_resets;  // as shape.resets.states; gradients by row [D, B, *], if needed
  std::vector<BackwardArgs<Storage>> args{static_cast<std::size_t>(shape.D)};
  std::vector<Panels<Compute>> input_weights{static_cast<std::size_t>(shape.D)};  // for the gradient of the input
  std::vector<Rows> d_gates{static_cast<std::size_t>(shape.D)}, d_projected{d_gates}, unprojected{d_gates};

  at::Tensor keep(at::Tensor tensor) {
    if (tensor.defined()) kept.push_back(tensor);
    return tensor;
  }

  at::Tensor state_gradient(std::size_t index, std::int64_t width) {
    if (grads[index].defined()) return to_compute(grads[index]).clone();
    return allocate_zeros({shape.D, shape.B, width}, compute_options);
  }

  // What backward's kernel leaves in `place`.
  Rows new_rows(std::int64_t width, std::int64_t ld, Compute*& place) {
    place = mutable_data<Compute>(keep(allocate({shape.N, ld}, compute_options)));
    return {place, shape.N, width, ld};
  }

  std::vector<at::Tensor> run() {
    const auto& [B, H, P, N] = std::tie(shape.B, shape.H, shape.P, shape.N);
    const at::Tensor dh = state_gradient(1, P);
    const at::Tensor dc = shape.states == 2 ? state_gradient(2, H) : at::Tensor();
    const at::Tensor d_output = grads[0].defined() ? grads[0].contiguous() : at::Tensor();
    const at::Tensor h0 = states.empty() ? at::Tensor() : states[0].contiguous();
    const at::Tensor c0 = states.size() < 2 ? at::Tensor() : to_compute(states[1]);
    const at::Tensor resets = keep(dense(shape.resets.before));
    for (std::size_t i = 0; i < shape.resets.states.size(); ++i) {
      const at::Tensor& state = shape.resets.states[i];
      reset_states.push_back(i == 0 ? state.contiguous() : to_compute(state));
      d_resets.push_back(needed[first_reset() + i] ? allocate_zeros({shape.D, B, i == 0 ? P : H}, compute_options)
                                                   : at::Tensor());
    }
    for (int d = 0; d < shape.D; ++d) {
      BackwardArgs<Storage>& a = args[d];
      d_gates[d] = new_rows(shape.S * H, row_stride<Compute>(shape.S * H), a.d_gates);
      if (shape.projected) {
        d_projected[d] = new_rows(P, row_stride<Compute>(P), a.d_projected);
        unprojected[d] = new_rows(H, H, a.unprojected);
      }
      a.sequence = sequence(shape, d);
      a.H = H;
      a.P = P;
      a.saved = data<Storage>(saved[d * shape.states]);
      a.cells = shape.states == 2 ? data<Compute>(saved[d * shape.states + 1]) : nullptr;
      a.output = data<Storage>(output) + d * P;
      a.output_ld = shape.D * P;
      a.h0 = h0.defined() ? data<Storage>(h0) + d * B * P : nullptr;
      a.c0 = c0.defined() ? data<Compute>(c0) + d * B * H : nullptr;
      a.resets = data<bool>(resets);
      if (!reset_states.empty()) {
        a.reset_h = data<Storage>(reset_states[0]) + d * P;
        a.d_reset_h = d_resets[0].defined() ? mutable_data<Compute>(d_resets[0]) + d * B * P : nullptr;
      }
      if (reset_states.size() > 1) {
        a.reset_c = data<Compute>(reset_states[1]) + d * H;
        a.d_reset_c = d_resets[1].defined() ? mutable_data<Compute>(d_resets[1]) + d * B * H : nullptr;
      }
      a.d_output = d_output.defined() ? data<Storage>(d_output) + d * P : nullptr;
      a.d_output_ld = shape.D * P;
      if (shape.states == 2) a.d_cells = data<Compute>(keep(to_compute(grads[3 + d])));
      a.cell_clip = static_cast<Compute>(shape.cell_clip);
      a.grad_clip = static_cast<Compute>(shape.grad_clip);
      a.dh = mutable_data<Compute>(dh) + d * B * P;
      a.dc = dc.defined() ? mutable_data<Compute>(dc) + d * B * H : nullptr;
      a.need_dh0 = (!states.empty() && needed[1]) || a.d_reset_h;
    }
    if (N > 0) run_recurrence();
    return collect(dh, dc);
  }

  void run_recurrence() {
    const int width = kernels.output_panel;
    struct Matrix {
      const Storage* from;
      std::int64_t K, outputs, first, panels;
      Compute* to;
    };
    std::vector<Matrix> matrices;
    std::vector<at::Tensor>& packed = shared ? shared->packed : packed_here;
    std::size_t used = 0;
    std::int64_t packs = 0;
    // Along its rows a matrix can be read as it lies in memory; few data rows would not repay packing it.
    const auto along_rows = [&](const at::Tensor& matrix) -> Panels<Compute> {
      const at::Tensor from = keep(matrix.contiguous());
      const std::int64_t rows = from.size(0), outputs = from.size(1), panels = divide_up(outputs, width);
      if constexpr (std::is_same_v<Storage, Compute>)
        if (!shared && shape.N <= max_step_batch && outputs % width == 0) return {data<Compute>(from), width, outputs};
      if (first_part) packed.push_back(allocate({panels * rows * width}, compute_options));
      Compute* const to = mutable_data<Compute>(packed[used++]);
      if (first_part) {
        matrices.push_back({data<Storage>(from), rows, outputs, packs, panels, to});
        packs += panels;
      }
      return Panels<Compute>::packed(to, rows, width);
    };
    for (int d = 0; d < shape.D; ++d) {
      const DirectionWeights w = direction_weights(shape, weights, d);
      if (shape.T > 1 || args[0].need_dh0 || shape.projected) args[d].recurrent = along_rows(w.w_hh);
      if (shape.projected) args[d].projection = along_rows(w.w_hr);
      if (needed[0]) input_weights[d] = along_rows(w.w_ih);
    }
    const auto pack = [&](std::int64_t begin, std::int64_t end) {
      for (const Matrix& m : matrices) {
        const auto panel = [&](std::int64_t i) { return std::clamp<std::int64_t>(i - m.first, 0, m.panels); };
        kernels.pack_rows(m.from, m.outputs, m.K, panel(begin), panel(end), m.to);
      }
    };
    const double apart_ns = static_cast<double>(shape.G * shape.H * (shape.I + shape.P) * shape.D) / plan.threads();
    run_plan(plan, recurrence, width, width, apart_ns, packs, pack,
             [&](int d, const Share& share, Barrier& barrier) { kernels.backward(args[d], share, barrier); });
  }

  // What is a product or a sum over all data rows.
  std::vector<at::Tensor> collect(const at::Tensor& dh, const at::Tensor& dc) {
    const std::int64_t gates = shape.G * shape.H;
    std::vector<at::Tensor> results(first_reset() + reset_states.size());
    if (needed[0]) results[0] = input_gradient();
    for (int d = 0; d < shape.D; ++d) {
      at::Tensor* const result = &results[1 + states.size() + d * shape.weights_per_direction()];
      const auto want = [&](int index) { return needed[result + index - results.data()]; };
      const int last = shape.weights_per_direction() - 1;
      const Rows d_x = d_gates[d].columns_from(0, gates);
      for (int i = 0; i <= last; ++i)
        if (want(i)) result[i] = sum_for(d * (last + 1) + i);
      if (want(0)) outer_sum(gradient_in(result[0]), d_x, input_rows());
      if (want(1)) recurrent_weight_gradient(d, gradient_in(result[1]));
      if (shape.bias && want(2)) sum_columns(d_x, gradient_in(result[2]));
      if (shape.bias && want(3)) recurrent_bias_gradient(d, gradient_in(result[3]));
      if (shape.projected && want(last)) outer_sum(gradient_in(result[last]), d_projected[d], {unprojected[d]});
    }
    for (std::size_t i = 0; i < d_resets.size(); ++i)
      if (d_resets[i].defined()) results[first_reset() + i] = reset_gradient(d_resets[i]);
    sums.run();
    add_earlier_parts(at::ArrayRef<at::Tensor>(results).slice(1 + states.size(), weights.size()));
    if (!states.empty() && needed[1]) results[1] = dh;
    if (states.size() > 1 && needed[2]) results[2] = dc;
    return results;
  }

  // Of [D, B, *] by row: [(samples), D, *]
  at::Tensor reset_gradient(const at::Tensor& d_rows) {
    std::vector<std::int64_t> sizes = {shape.D, d_rows.size(2)};
    if (samples) sizes.insert(sizes.begin(), samples);
    const at::Tensor gradient = allocate(sizes, compute_options);
    const std::int64_t B = shape.B, width = d_rows.size(2);
    const Rows all = {data<Compute>(d_rows), shape.D * B, width, width};
    for (int d = 0; d < shape.D; ++d) sum_columns(all.rows_from(d * B, B), gradient_in(gradient).from(d * width));
    return gradient;
  }

  std::size_t first_reset() const { return 1 + states.size() + weights.size(); }  // among results

  // Where the gradient of a weight goes: products add to that of earlier parts, sums of columns are added afterwards.
  at::Tensor sum_for(int weight) const {
    if (weights[weight].dim() == 2 && !first_part) return shared->sums[weight];
    std::vector<std::int64_t> sizes = weights[weight].sizes().vec();
    if (samples) sizes.insert(sizes.begin(), samples);
    return allocate(sizes, compute_options);
  }
  void add_earlier_parts(at::TensorList gradients) const {
    if (!shared) return;
    for (std::size_t i = 0; !first_part && i < gradients.size(); ++i)
      if (gradients[i].defined() && weights[i].dim() == 1) gradients[i].add_(shared->sums[i]);
    shared->sums = gradients.vec();
  }

  at::Tensor input_gradient() {
    const at::Tensor d_input = shared ? shared->d_input : allocate(input.sizes(), compute_options);
    if (shape.padded()) sums.clear_others(places, d_input);
    if (shape.N == 0) return d_input;
    std::vector<RowsArgs<Compute>> terms;
    for (int d = 0; d < shape.D; ++d)
      terms.push_back({.K = shape.G * shape.H,
                       .outputs = shape.I,
                       .rows = d_gates[d].data,
                       .rows_ld = d_gates[d].ld,
                       .weights = input_weights[d],
                       .out = mutable_data<Compute>(d_input),
                       .places = shape.padded() ? places.data() : nullptr,
                       .add = d > 0 || (shared && shared->add_to_input)});
    sums.multiply_rows(shape.N, terms);
    return d_input;
  }

  // Neighbouring columns of d_gates that belong to neighbouring rows of U: f(first row / H, first column / H, count).
  template <class F>
  void for_recurrent_runs(F f) {
    host::with_cell(shape.cell, [&](auto cell) {
      for (int g = 0; g < cell.gates;) {
        int count = 1;
        while (g + count < cell.gates && cell.recurrent_column[g + count] == cell.recurrent_column[g] + count) ++count;
        f(g, cell.recurrent_column[g], count);
        g += count;
      }
    });
  }

  // A sum over data rows for each sample apart: f(sample, samples), where sample v has every samples-th row from row v
  // on.
  template <class F>
  void for_samples(F f) const {
    const std::int64_t count = std::max<std::int64_t>(samples, 1);
    for (std::int64_t sample = 0; sample < count; ++sample) f(sample, count);
  }

  // Where a gradient goes, and from there to that of the next sample.
  struct Gradient {
    Compute* data;
    std::int64_t of_sample;

    Gradient from(std::int64_t element) const { return {data + element, of_sample}; }
  };
  Gradient gradient_in(const at::Tensor& tensor) const {
    return {mutable_data<Compute>(tensor), tensor.numel() / std::max<std::int64_t>(samples, 1)};
  }

  // A factor of an outer sum; each of its rows lies where `rows` says, if given.
  struct Right {
    Rows matrix;
    const std::vector<const Compute*>* rows = nullptr;
  };
  Right gathered(std::vector<const Compute*> rows, std::int64_t columns) {
    const std::vector<const Compute*>& own = kept_rows.emplace_back(std::move(rows));
    return {{nullptr, static_cast<std::int64_t>(own.size()), columns, 0}, &own};
  }

  // The input's rows in the order of d_gates'.
  Right input_rows() {
    const Compute* const first = data<Compute>(keep(to_compute(input)));
    if (!shape.padded()) return {{first, shape.N, shape.I, shape.I}};
    std::vector<const Compute*> rows;
    rows.reserve(places.size());
    for (const std::int64_t place : places) rows.push_back(first + place * shape.I);
    return gathered(std::move(rows), shape.I);
  }

  // out [rows, outputs] = left [N, rows]^T right [N, outputs], and the same of a second pair if there is one.
  void outer_sum(const Gradient& out, const Rows& left, const Right& right, const Rows& left2 = {},
                 const Right& right2 = {}) {
    for_samples([&](std::int64_t sample, std::int64_t count) {
      std::vector<OuterSumArgs<Compute>> terms;
      for (const auto& [l, r] : {std::tie(left, right), std::tie(left2, right2)}) {
        if (l.rows == 0) continue;
        OuterSumArgs<Compute> term{.N = l.rows / count,
                                   .outputs = r.matrix.columns,
                                   .left = l.data + sample * l.ld,
                                   .left_ld = count * l.ld,
                                   .out = out.data + sample * out.of_sample,
                                   .add = !first_part || !terms.empty()};
        if (r.rows) {
          term.right_rows = r.rows->data() + sample;
          term.right_ld = count;
        } else {
          term.right = r.matrix.data + sample * r.matrix.ld;
          term.right_ld = count * r.matrix.ld;
        }
        terms.push_back(term);
      }
      if (!terms.empty()) sums.outer_sum(left.columns, terms, count);
      else if (first_part)
        std::fill_n(out.data + sample * out.of_sample, left.columns * right.matrix.columns, Compute(0));
    });
  }

  void sum_columns(const Rows& matrix, const Gradient& out) {
    for_samples([&](std::int64_t sample, std::int64_t count) {
      sums.sum_columns(matrix.rows / count, matrix.columns, matrix.data + sample * matrix.ld, count * matrix.ld,
                       out.data + sample * out.of_sample);
    });
  }

  void recurrent_bias_gradient(int d, const Gradient& out) {
    const std::int64_t H = shape.H;
    for_recurrent_runs([&](int row, int column, int count) {
      sum_columns(d_gates[d].columns_from(column * H, count * H), out.from(row * H));
    });
  }

  // dU = sum over t of dgates_t^T h_{t-1}
  void recurrent_weight_gradient(int d, const Gradient& dU) {
    const std::int64_t B = shape.B, H = shape.H, P = shape.P, N = shape.N, ld = shape.D * P;
    const bool reverse = args[d].sequence.reverse;
    const Compute* const h0 = states.empty() ? nullptr : data<Compute>(keep(to_compute(states[0]))) + d * B * P;
    if (!h_values.defined()) h_values = to_compute(output);
    const Compute* const h = data<Compute>(h_values) + d * P;
    Right before;
    Rows d_g = d_gates[d], d_first = d_g.rows_from(0, 0);
    if (shape.batch_sizes || args[d].resets) {
      before = gathered(rows_before(d, h, ld, h0), P);
    } else {
      before = {Rows{h, N, P, ld}.rows_from(reverse ? B : 0, N - B)};
      d_first = d_g.rows_from(reverse ? N - B : 0, h0 ? B : 0);
      d_g = d_g.rows_from(reverse ? 0 : B, N - B);
    }
    for_recurrent_runs([&](int row, int column, int count) {
      outer_sum(dU.from(row * H * P), d_g.columns_from(column * H, count * H), before,
                d_first.columns_from(column * H, count * H), {{h0, B, P, P}});
    });
  }

  std::vector<const Compute*> rows_before(int d, const Compute* h, std::int64_t ld, const Compute* h0) {
    const std::int64_t P = shape.P;
    const auto zeros = [&](std::int64_t rows) {
      return data<Compute>(keep(allocate_zeros({rows, P}, compute_options)));
    };
    if (!h0) h0 = zeros(shape.B);
    const Compute* const reset =
        reset_states.empty() ? zeros(1) : data<Compute>(keep(to_compute(reset_states[0]))) + d * P;
    return previous_rows(args[d].sequence, P, args[d].resets, h, ld, h0, reset);
  }
};

}  // namespace

std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples,
                                       SharedBackward* shared) {
  return with_storage(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    const at::Tensor rows = input.contiguous().view({-1, shape.I});
    BackwardLayer<Storage> layer{.shape = shape,
                                 .grads = grads,
                                 .input = rows,
                                 .states = states,
                                 .weights = weights,
                                 .output = output,
                                 .saved = saved,
                                 .needed = needed,
                                 .samples = samples,
                                 .shared = shared};
    std::vector<at::Tensor> results = layer.run();
    if (results[0].defined()) results[0] = results[0].reshape(input.sizes());
    return results;
  });
}

}  // namespace lstm_fused
