// The operators, their schemas and their registration.
//
// `layer` is what users of the package reach; `forward` and `backward` are its kernels apart, for autograd.
// forward returns layer's results followed by what backward needs: per direction, the activated gates [N, S*H]
// (S = 4: i f g o, or r z n and U_n h + b_hn) in the input's dtype and, for the LSTM, c_t [N, H] in float32
// (float64 for float64 input), which has a derivative of its own; with `recompute` c_t alone. backward with `samples`
// sums the weights' gradients for each sample apart, [samples, *] each; row b*samples + v belongs to sample v.
// Input is a padded batch [T, B, I], for which `batch_sizes` are the lengths of its rows [B] (default T), or packed
// data [N, I], for which they are the rows at each step [T]. `resets`, bool [T, B], says before which steps rows begin
// anew, from reset_h [D, P] and reset_c [D, H] or zeros, whose gradients follow those of the weights. `reference` is
// layer out of ATen operations. `segments` is what lengths and resets make of a padded batch; `take_rows` and
// `put_rows` bring a padded batch there and back. `packed_layer` is layer on weights that `pack` has rearranged; it has
// no derivative.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "autograd.h"
#include "checks.h"
#include "cpu/layer.h"
#include "cpu/memory.h"
#include "cuda/plan.h"
#ifdef LSTM_FUSED_CUDA
#include "cuda/layer.h"
#include "padded.h"
#endif
#include "reference.h"
#include "rows.h"
#include "segments.h"

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

void check_batch_sizes_known(const LayerShape& shape) {
  TORCH_CHECK(!shape.device_batch_sizes.defined(), "batch_sizes: expected dtype Long, got Int");
}

// The host code for a kind of device, as the operators call it.
struct Cpu {
  static Tensors forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                         at::TensorList weights, Save save) {
    check_batch_sizes_known(shape);
    return layer_forward(shape, input, states, weights, save);
  }
  static Tensors backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input, at::TensorList states,
                          at::TensorList weights, const at::Tensor& output, at::TensorList saved,
                          const std::vector<bool>& needed, std::int64_t samples) {
    const auto run = [&](auto function) {
      return function(shape, grads, input, states, weights, output, saved, needed, samples);
    };
    if (!gates_saved(shape, saved)) return run(layer_backward_recomputing);
    return run([](auto&&... arguments) { return layer_backward(arguments...); });
  }
};

#ifdef LSTM_FUSED_CUDA
struct Cuda {
  static Tensors forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                         at::TensorList weights, Save save) {
    if (!shape.padded()) return cuda::layer_forward(shape, input, states, weights, save);
    return Unpadded(shape, input.device())
        .run(input, states, [&](const LayerShape& packed, const at::Tensor& rows, const Tensors& before) {
          return cuda::layer_forward(packed, rows, before, weights, save);
        });
  }
  static Tensors backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input, at::TensorList states,
                          at::TensorList weights, const at::Tensor& output, at::TensorList saved,
                          const std::vector<bool>& needed, std::int64_t samples) {
    const auto run = [&](const LayerShape& of, at::TensorList d_results, const at::Tensor& rows, at::TensorList before,
                         const at::Tensor& h) {
      return cuda::layer_backward(of, d_results, rows, before, weights, h, saved, needed, samples);
    };
    if (!shape.padded()) return run(shape, grads, input, states, output);
    const Unpadded batch(shape, input.device());
    return batch.run_back(
        grads.vec(), input, states,
        [&](const LayerShape& packed, const Tensors& d_results, const at::Tensor& rows, const Tensors& before) {
          return run(packed, d_results, rows, before, batch.rows(output));
        });
  }
};
#endif

#ifdef LSTM_FUSED_CUDA_EMULATED  // tests: tensors in the host's memory stand for a device's
using OnCpu = Cuda;
#else
using OnCpu = Cpu;
#endif

template <class Backend>
Tensors layer_on(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                 const OptionalTensor& batch_sizes, bool bidirectional, std::optional<double> cell_clip,
                 std::optional<double> grad_clip, bool recompute, const OptionalTensor& resets,
                 const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const NoAutocast no_autocast;
  const LayerOptions options{bidirectional, cell_clip, grad_clip, recompute};
  const Resets cuts = make_resets(resets, reset_h, reset_c);
  return Backend::forward(check_layer(cell, input, states, weights, batch_sizes, options, cuts), input, states, weights,
                          Save::nothing);
}

template <class Backend>
Tensors forward_on(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                   const OptionalTensor& batch_sizes, bool bidirectional, std::optional<double> cell_clip,
                   std::optional<double> grad_clip, bool recompute, const OptionalTensor& resets,
                   const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const NoAutocast no_autocast;
  const LayerOptions options{bidirectional, cell_clip, grad_clip, recompute};
  const Resets cuts = make_resets(resets, reset_h, reset_c);
  return Backend::forward(check_layer(cell, input, states, weights, batch_sizes, options, cuts), input, states, weights,
                          recompute ? Save::states : Save::gates);
}

// The shape of a layer for which no input is there yet.
LayerShape weights_shape(const std::string& cell, at::TensorList weights, bool bidirectional) {
  TORCH_CHECK(!weights.empty() && weights[0].defined() && weights[0].dim() == 2,
              "weights: expected w_ih [G*H, I] first, got none such");
  const at::Tensor one_step = at::empty({1, 1, weights[0].size(1)}, weights[0].options());
  return check_layer(cell, one_step, {}, weights, std::nullopt, {bidirectional});
}

Tensors pack_cpu(const std::string& cell, at::TensorList weights, bool bidirectional) {
  const NoAutocast no_autocast;
  return pack_layer(weights_shape(cell, weights, bidirectional), weights);
}

// What pack_cpu made of these weights is read by its pointers, in the layout of one instruction set.
Tensors packed_layer_cpu(const std::string& cell, const at::Tensor& input, at::TensorList states,
                         at::TensorList weights, at::TensorList packed, const std::string& isa,
                         const OptionalTensor& batch_sizes, bool bidirectional, std::optional<double> cell_clip) {
  const NoAutocast no_autocast;
  TORCH_CHECK(isa == active_isa().name, "packed: expected weights packed for ", active_isa().name,
              ", the active instruction set, got ones for ", isa);
  const LayerShape shape = check_layer(cell, input, states, weights, batch_sizes, {bidirectional, cell_clip});
  check_batch_sizes_known(shape);
  TORCH_CHECK(!packed.empty(), "packed: expected weights packed by pack, got none");
  return layer_forward(shape, input, states, weights, Save::nothing, packed);
}

Tensors packed_layer_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                              at::TensorList weights, at::TensorList packed, const std::string& isa,
                              const OptionalTensor& batch_sizes, bool bidirectional, std::optional<double> cell_clip) {
  TORCH_CHECK(!is_differentiated(input, states, weights),
              "frozen layer: it has no derivatives, in neither direction; differentiate the layer");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lstm_fused::packed_layer", "")
                             .typed<decltype(packed_layer_cpu)>();
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(cell, input, states, weights, packed, isa, batch_sizes, bidirectional, cell_clip);
}

void check_like(const char* name, std::size_t index, const at::Tensor& tensor, at::IntArrayRef sizes,
                at::ScalarType dtype) {
  TORCH_CHECK(tensor.sizes() == sizes && tensor.scalar_type() == dtype, name, "[", index, "]: expected ", dtype,
              " of shape ", sizes, ", got ", tensor.scalar_type(), " of shape ", tensor.sizes());
}

// What forward left, and gradients shaped as its results: the kernel reads all of these by their pointers.
void check_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input, const at::Tensor& output,
                    at::TensorList saved) {
  const std::size_t states = shape.states, D = shape.D, cells = D * (states - 1);
  TORCH_CHECK(grads.size() == 1 + states + cells, "grads: expected ", 1 + states + cells, " tensors or None, got ",
              grads.size());
  TORCH_CHECK(saved.size() == D + cells || saved.size() == cells, "saved: expected ", D + cells, " tensors, or ", cells,
              " without gates, got ", saved.size());
  const at::ScalarType dtype = input.scalar_type(), compute = compute_type(input);
  const std::vector<std::int64_t> rows = shape.output_sizes();
  check_like("output", 0, output, rows, dtype);
  if (grads[0].defined()) check_like("grads", 0, grads[0], rows, dtype);
  for (std::size_t i = 1; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
    if (i > states) check_like("grads", i, grads[i], {shape.N, shape.H}, compute);
    else check_like("grads", i, grads[i], {shape.D, shape.B, i == 1 ? shape.P : shape.H}, dtype);
  }
  for (std::size_t i = 0; i < saved.size(); ++i) {
    const bool gates = saved.size() > cells && i % states == 0;
    if (gates) check_like("saved", i, saved[i], {shape.N, shape.S * shape.H}, dtype);
    else check_like("saved", i, saved[i], {shape.N, shape.H}, compute);
  }
}

template <class Backend>
Tensors backward_on(const std::string& cell, const c10::List<OptionalTensor>& grads, const at::Tensor& input,
                    at::TensorList states, at::TensorList weights, const OptionalTensor& batch_sizes,
                    bool bidirectional, std::optional<double> cell_clip, std::optional<double> grad_clip,
                    const at::Tensor& output, at::TensorList saved, const c10::List<bool>& needed, std::int64_t samples,
                    const OptionalTensor& resets, const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const NoAutocast no_autocast;
  const LayerOptions options{bidirectional, cell_clip, grad_clip};
  const Resets cuts = make_resets(resets, reset_h, reset_c);
  const LayerShape shape = check_layer(cell, input, states, weights, batch_sizes, options, cuts);
  Tensors defined_grads;
  for (const OptionalTensor& grad : grads) defined_grads.push_back(grad.value_or(at::Tensor()));
  std::vector<bool> wanted;
  for (const bool want : needed) wanted.push_back(want);
  check_backward(shape, defined_grads, input, output, saved);
  const std::size_t inputs = 1 + states.size() + weights.size() + cuts.states.size();
  TORCH_CHECK(wanted.size() == inputs, "needed: expected ", inputs, " values, got ", wanted.size());
  TORCH_CHECK(samples == 0 || (samples > 0 && shape.B % samples == 0), "samples: expected a divisor of ", shape.B,
              " rows, got ", samples);
  Tensors dense;  // as forward made them, unless vmap or a hook has been at them
  for (const at::Tensor& tensor : saved) dense.push_back(tensor.contiguous());
  const at::Tensor h = output.contiguous();
  Tensors results = Backend::backward(shape, defined_grads, input, states, weights, h, dense, wanted, samples);
  for (at::Tensor& result : results)  // an op's results are always defined
    result = result.defined() ? result.to(input.scalar_type()) : at::empty({0}, input.options());
  return results;
}

// One time step. Cells have no time axis and no direction: [B, I] -> [1, B, I], [B, H] -> [1, B, H].
Tensors with_leading_axis(at::TensorList tensors) {
  Tensors result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.unsqueeze(0));
  return result;
}

// The same below the dispatcher, each way through which takes as long as fifty units' activations.
at::Tensor view_with_leading_axis(const at::Tensor& matrix) {
  const std::int64_t sizes[] = {1, matrix.size(0), matrix.size(1)},
                     strides[] = {matrix.size(0) * matrix.stride(0), matrix.stride(0), matrix.stride(1)};
  return at::native::as_strided_tensorimpl(matrix, sizes, strides);
}

void check_step(const at::Tensor& input, at::TensorList states) {
  TORCH_CHECK(input.dim() == 2, "input: expected shape [B, I], got ", input.sizes());
  for (const at::Tensor& state : states)
    TORCH_CHECK(state.dim() == 2, "states: expected shape [B, H], got ", state.sizes());
}

Tensors step_as_layer(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights) {
  check_step(input, states);
  static const auto layer =
      c10::Dispatcher::singleton().findSchemaOrThrow("lstm_fused::layer", "").typed<decltype(layer_on<Cpu>)>();
  Tensors results = layer.call(cell, input.unsqueeze(0), with_leading_axis(states), weights, std::nullopt, false,
                               std::nullopt, std::nullopt, false, std::nullopt, std::nullopt, std::nullopt);
  results.erase(results.begin());
  for (at::Tensor& state : results)  // no view, so that it may be detached in place
    state = at::_unsafe_view_symint(state, {state.sym_size(1), state.sym_size(2)});
  return results;
}

Tensors step_cpu(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights) {
  const NoAutocast no_autocast;
  check_step(input, states);
  Tensors states_3d;
  for (const at::Tensor& state : states) states_3d.push_back(view_with_leading_axis(state));
  const at::Tensor input_3d = view_with_leading_axis(input);
  const LayerShape shape = check_layer(cell, input_3d, states_3d, weights, std::nullopt, {});
  if (!single_step(shape)) return step_as_layer(cell, input, states, weights);
  Tensors results = step_forward(shape, input_3d, states_3d, weights, Save::nothing);
  for (at::Tensor& state : results)  // new ones, which nobody else has
    state.unsafeGetTensorImpl()->set_sizes_contiguous({shape.B, shape.H});
  return results;
}

Tensors step_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights) {
  if (is_differentiated(input, states, weights)) return step_as_layer(cell, input, states, weights);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("lstm_fused::step", "").typed<decltype(step_cpu)>();
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(cell, input, states, weights);
}

Tensors reference_op(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                     const OptionalTensor& batch_sizes, bool bidirectional, std::optional<double> cell_clip,
                     std::optional<double> grad_clip, bool recompute, const OptionalTensor& resets,
                     const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const LayerOptions options{bidirectional, cell_clip, grad_clip, recompute};
  Tensors results =
      reference_layer(cell, input, states, weights, batch_sizes, options, make_resets(resets, reset_h, reset_c));
  results.resize(1 + find_cell(cell).states());
  return results;
}

std::string plan_name(const std::string& cell, int64_t T, int64_t B, int64_t /*I*/, int64_t H, int64_t P, int64_t D,
                      int64_t threads) {
  const int gates = find_cell(cell).gates;
  const CellKernels<float> kernels = active_isa().kernels<float>(cell);
  const RecurrenceShape shape = {
      T, B, H, P, gates, static_cast<int>(D), sizeof(float), kernels.unit_panel, kernels.unit_panel, P != H, P};
  return choose_plan(shape, this_machine(static_cast<int>(threads)), forced_plan()).describe();
}

// What the CUDA backend would do on a device, which need not be here.
std::string cuda_plan_name(int64_t T, int64_t B, int64_t H, int64_t gates, int64_t storage_bytes, int64_t compute_bytes,
                           int64_t multiprocessors, int64_t shared_per_block, bool tensor_cores, bool tf32,
                           bool backward, const std::string& forced, bool even, int64_t I) {
  const cuda::Shape shape = {
      T,    B,    H, static_cast<int>(gates), static_cast<int>(storage_bytes), static_cast<int>(compute_bytes),
      tf32, even, I};
  const cuda::Device device = {static_cast<int>(multiprocessors), static_cast<int>(shared_per_block), true,
                               tensor_cores};
  const cuda::Plan plan = cuda::choose_plan(shape, device, backward, forced);
  const auto cycles = static_cast<int64_t>(cuda::step_cycles(plan, shape, device, backward));
  return plan.describe() + ", about " + std::to_string(cycles) + " cycles a step";
}

std::string why_no_cuda() {
#ifdef LSTM_FUSED_CUDA
  return "";
#else
  return LSTM_FUSED_WHY_NO_CUDA;
#endif
}

}  // namespace

TORCH_LIBRARY(lstm_fused, m) {
  for (const std::string name : {"layer", "forward", "reference"}) {
    const std::string schema = name +
                               "(str cell, Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool "
                               "bidirectional, float? cell_clip=None, float? grad_clip=None, bool recompute=False, "
                               "Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None) -> Tensor[]";
    m.def(schema.c_str());
  }
  m.def("backward(str cell, Tensor?[] grads, Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, "
        "bool bidirectional, float? cell_clip, float? grad_clip, Tensor output, Tensor[] saved, bool[] needed, "
        "int samples=0, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None) -> Tensor[]");
  m.def("pack(str cell, Tensor[] weights, bool bidirectional) -> Tensor[]");
  m.def("packed_layer(str cell, Tensor input, Tensor[] states, Tensor[] weights, Tensor[] packed, str isa, "
        "Tensor? batch_sizes, bool bidirectional, float? cell_clip=None) -> Tensor[]");
  m.def("step(str cell, Tensor input, Tensor[] states, Tensor[] weights) -> Tensor[]");
  m.def("segments(Tensor? lengths, Tensor? resets, SymInt steps, SymInt batch, bool batch_first, int layers, "
        "bool bidirectional) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("take_rows(Tensor[] sources, Tensor rows, SymInt first=0) -> Tensor");
  m.def("put_rows(Tensor values, Tensor rows, SymInt[] size, SymInt first=0) -> Tensor");
  m.def("isa() -> str", [] { return std::string(active_isa().name); });
  m.def("isas_compiled() -> str[]", compiled_isas);
  m.def("isas_available() -> str[]", available_isas);
  m.def("set_isa(str name) -> ()", [](const std::string& name) { set_isa(name); });
  m.def("keep_memory(int limit) -> int", [](std::int64_t limit) { return keep_memory(limit); });
  m.def("set_plan(str name) -> ()", [](const std::string& name) { set_forced_plan(name); });
  m.def("plan(str cell, int T, int B, int I, int H, int P, int D, int threads) -> str", plan_name);
  m.def("cuda_plan(int T, int B, int H, int gates, int storage_bytes, int compute_bytes, int multiprocessors, "
        "int shared_per_block, bool tensor_cores, bool tf32, bool backward, str forced, bool even=False, int "
        "input_size=0) -> str",
        cuda_plan_name);
  m.def("why_no_cuda() -> str", why_no_cuda);
}

#ifndef LSTM_FUSED_CUDA_EMULATED
TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) { m.impl("step", step_cpu); }
#ifdef LSTM_FUSED_CUDA
TORCH_LIBRARY_IMPL(lstm_fused, CUDA, m) {
  m.impl("layer", layer_on<Cuda>);
  m.impl("forward", forward_on<Cuda>);
  m.impl("backward", backward_on<Cuda>);
}
#endif
#endif

TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("layer", layer_on<OnCpu>);
  m.impl("forward", forward_on<OnCpu>);
  m.impl("backward", backward_on<OnCpu>);
  m.impl("segments", cut_segments);
  m.impl("take_rows", take_rows_cpu);
  m.impl("put_rows", put_rows_cpu);
  m.impl("pack", pack_cpu);
  m.impl("packed_layer", packed_layer_cpu);
}

TORCH_LIBRARY_IMPL(lstm_fused, CompositeImplicitAutograd, m) { m.impl("reference", reference_op); }

TORCH_LIBRARY_IMPL(lstm_fused, CompositeExplicitAutograd, m) {
  m.impl("step", step_as_layer);
  m.impl("take_rows", take_rows_composite);
  m.impl("put_rows", put_rows_composite);
}

// The other ops have their rules for vmap in Python; these are made of ops that have some.
TORCH_LIBRARY_IMPL(lstm_fused, FuncTorchBatched, m) {
  m.impl("reference", reference_op);
  m.impl("step", step_as_layer);
  m.impl("take_rows", take_rows_composite);
  m.impl("put_rows", put_rows_composite);
}
TORCH_LIBRARY_IMPL(lstm_fused, Batched, m) {  // the older vmap of is_grads_batched
  m.impl("take_rows", take_rows_composite);
  m.impl("put_rows", put_rows_composite);
}

TORCH_LIBRARY_IMPL(lstm_fused, Autograd, m) {
  m.impl("layer", layer_autograd);
  m.impl("forward", forward_autograd);
  m.impl("backward", backward_autograd);
  m.impl("step", step_autograd);
  m.impl("packed_layer", packed_layer_autograd);
  m.impl("take_rows", take_rows_autograd);
  m.impl("put_rows", put_rows_autograd);
}

}  // namespace lstm_fused
