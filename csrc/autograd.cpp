#include "autograd.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "checks.h"
#include "cpu/layer_dual.h"
#include "node.h"
#include "reference.h"

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;
using ForwardOp = decltype(forward_autograd);
using BackwardOp = decltype(backward_autograd);

const auto& backward_op() {
  static const auto op = find_op<BackwardOp>("lstm_fused::backward");
  return op;
}

OptionalTensor optional(const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

using Property = bool (*)(const at::Tensor&);
bool any_of(Property property, const at::Tensor& tensor) { return property(tensor); }
bool any_of(Property property, at::TensorList tensors) { return std::any_of(tensors.begin(), tensors.end(), property); }
template <class... Tensors>
bool any_of_all(Property property, const Tensors&... tensors) {
  return (any_of(property, tensors) || ...);
}
template <class... Tensors>
bool needs_graph(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && any_of_all(requires_grad, tensors...);
}

// What the two nodes share: the call's options.
class LayerNode : public KeepingNode {
 public:
  std::string cell;
  LayerOptions options;
  std::size_t states = 0, weights = 0, reset_states = 0;
};

class LayerBackward : public LayerNode {
 public:
  std::string name() const override { return "LayerBackward"; }

  // Compiled autograd: what decides the trace, and the trace with stand-ins for the tensors.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(cell);
    args.collect(options.bidirectional);
    args.collect(options.cell_clip);
    args.collect(options.grad_clip);
    args.collect(options.recompute);
    args.collect(static_cast<std::uint64_t>(states));
    args.collect(static_cast<std::uint64_t>(weights));
    args.collect(static_cast<std::uint64_t>(reset_states));
    args.collect(kept, true);
  }
  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(kept);
    Tensors results = apply(Tensors(grads));
    saved.after(kept);
    return results;
  }

  // kept: input, batch_sizes, resets, output, states, weights, reset states, saved
  Tensors apply(Tensors&& grads) override {
    const Tensors tensors = unpack();
    const at::TensorList all = tensors, from_states = all.slice(4), from_weights = from_states.slice(states),
                         from_resets = from_weights.slice(weights);
    const std::size_t inputs = 1 + states + weights + reset_states;
    c10::List<OptionalTensor> given;
    for (const at::Tensor& grad : grads) given.push_back(optional(grad));
    c10::List<bool> needed;
    for (std::size_t i = 0; i < inputs; ++i) needed.push_back(task_should_compute_output(i));
    const auto reset_state = [&](std::size_t i) { return i < reset_states ? optional(from_resets[i]) : std::nullopt; };
    Tensors results = backward_op().call(
        cell, given, tensors[0], from_states.slice(0, states), from_weights.slice(0, weights), optional(tensors[1]),
        options.bidirectional, options.cell_clip, options.grad_clip, tensors[3], from_resets.slice(reset_states),
        needed, 0, optional(tensors[2]), reset_state(0), reset_state(1));
    for (std::size_t i = 0; i < inputs; ++i)
      if (!needed[i]) results[i] = at::Tensor();
    return results;
  }
};

// The derivative of backward, by the incoming gradients and by everything that forward depended on. What forward
// saved, and its output, are no sources of their own: the reference comes to them from the input again. Runs the engine
// within the engine, which compiled autograd cannot trace: there torch says that this node does not support it.
class LayerBackwardBackward : public LayerNode {
 public:
  std::vector<bool> needed;
  std::int64_t samples = 0;

  std::string name() const override { return "LayerBackwardBackward"; }

  // kept: batch_sizes, resets, then the sources: incoming gradients, input, states, weights, reset states
  Tensors apply(Tensors&& seeds) override {
    const NoAutocast no_autocast;
    Tensors sources = unpack();
    const OptionalTensor batch_sizes = optional(sources[0]);
    const at::Tensor resets = sources[1];
    sources.erase(sources.begin(), sources.begin() + 2);
    const bool create_graph = at::GradMode::is_enabled();
    std::vector<bool> wanted;
    for (std::size_t i = 0; i < sources.size(); ++i)
      wanted.push_back(sources[i].defined() && task_should_compute_output(i));
    if (!create_graph && dual_numbers_do(batch_sizes, sources, seeds))
      return dual_backward(call_of(sources, batch_sizes, resets), seeds, wanted);
    Tensors wanted_sources;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      at::Tensor& source = sources[i];
      if (!source.defined()) continue;
      source = create_graph ? source.view_as(source) : source.detach();  // a path of its own to the result
      if (!wanted[i]) continue;
      if (!source.requires_grad()) source.set_requires_grad(true);
      wanted_sources.push_back(source);
    }
    const at::AutoGradMode with_graph(true);
    const BackwardCall call = call_of(sources, batch_sizes, resets);
    const Tensors gradients = reference_backward(call);
    Tensors outputs, used_seeds;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined() || !seeds[i].defined() || !gradients[i].requires_grad()) continue;
      outputs.push_back(gradients[i]);
      used_seeds.push_back(seeds[i]);
    }
    Tensors results(sources.size());
    if (outputs.empty() || wanted_sources.empty()) return results;
    const Tensors found = torch::autograd::grad(outputs, wanted_sources, used_seeds, std::nullopt, create_graph, true);
    auto from = found.begin();
    for (std::size_t i = 0; i < sources.size(); ++i)
      if (wanted[i]) results[i] = *from++;
    return results;
  }

 private:
  BackwardCall call_of(const Tensors& sources, const OptionalTensor& batch_sizes, const at::Tensor& resets) const {
    const auto input = sources.end() - (1 + states + weights + reset_states);
    const auto from_weights = input + 1 + states, from_resets = from_weights + weights;
    return {cell,
            Tensors(sources.begin(), input),
            *input,
            Tensors(input + 1, from_weights),
            Tensors(from_weights, from_resets),
            batch_sizes,
            options,
            needed,
            samples,
            {resets, Tensors(from_resets, sources.end())}};
  }

  // Plain tensors of the CPU, whose tangents nobody asks for, and a backward that is forward's derivative.
  bool dual_numbers_do(const OptionalTensor& batch_sizes, at::TensorList sources, at::TensorList seeds) const {
    const auto is_other = [](const at::Tensor& t) {
      return t.defined() && (!t.device().is_cpu() || at::isTensorSubclassLike(t) || has_tangent(t));
    };
    const bool known_sizes = !batch_sizes || batch_sizes->scalar_type() == at::kLong;
    return !samples && !options.grad_clip && known_sizes && !any_of_all(is_other, sources, seeds);
  }
};

// A limited gradient is that of no function, so that there is none whose tangents could be taken.
void check_forward_mode(const std::optional<double>& grad_clip) {
  TORCH_CHECK(!grad_clip, "grad_clip: expected None in forward mode, got ", *grad_clip,
              ": what it makes of a gradient is not the derivative of the layer");
}

// Tangents of the results, from those of the inputs.
void add_tangents(Tensors& results, const std::string& cell, const at::Tensor& input, at::TensorList states,
                  at::TensorList weights, const OptionalTensor& batch_sizes, const LayerOptions& options,
                  const Resets& resets, const std::vector<std::size_t>& differentiable) {
  check_forward_mode(options.grad_clip);
  const Tensors dual = reference_layer(cell, input, states, weights, batch_sizes, options, resets);
  for (std::size_t i = 0; i < dual.size(); ++i)
    if (has_tangent(dual[i])) results[differentiable[i]]._set_fw_grad(dual[i]._fw_grad(0), 0, false);
}

// Of forward's results: output, h_n, (c_n, and per direction c_t among what is saved).
std::vector<std::size_t> differentiable_results(const std::string& cell, const LayerOptions& options) {
  const std::size_t states = find_cell(cell).states();
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i <= states; ++i) indices.push_back(i);
  const std::size_t saved = options.recompute ? states - 1 : states;  // by direction, c_t the last of them
  if (states == 2)
    for (std::size_t d = 1; d <= (options.bidirectional ? 2u : 1u); ++d) indices.push_back(states + d * saved);
  return indices;
}

}  // namespace

bool is_differentiated(const at::Tensor& input, at::TensorList states, at::TensorList weights,
                       at::TensorList reset_states) {
  TORCH_CHECK(input.defined(), "input: expected a tensor, got none");
  return needs_graph(input, states, weights, reset_states) ||
         any_of_all(has_tangent, input, states, weights, reset_states);
}

Resets make_resets(const OptionalTensor& resets, const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  Resets made{resets.value_or(at::Tensor()), {}};
  if (reset_h && reset_h->defined()) made.states.push_back(*reset_h);
  if (reset_c && reset_c->defined()) {
    TORCH_CHECK(!made.states.empty(), "reset_h: expected a tensor beside reset_c, got none");
    made.states.push_back(*reset_c);
  }
  return made;
}

std::vector<at::Tensor> forward_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                         at::TensorList weights, const OptionalTensor& batch_sizes, bool bidirectional,
                                         std::optional<double> cell_clip, std::optional<double> grad_clip,
                                         bool recompute, const OptionalTensor& resets, const OptionalTensor& reset_h,
                                         const OptionalTensor& reset_c) {
  const LayerOptions options{bidirectional, cell_clip, grad_clip, recompute};
  const Resets cuts = make_resets(resets, reset_h, reset_c);
  static const auto op = find_op<ForwardOp>("lstm_fused::forward");
  Tensors results;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    results = op.call(cell, input, states, weights, batch_sizes, bidirectional, cell_clip, grad_clip, recompute, resets,
                      reset_h, reset_c);
  }
  const std::size_t visible = 1 + find_cell(cell).states();
  const std::vector<std::size_t> differentiable = differentiable_results(cell, options);
  const at::TensorList reset_states = cuts.states;
  if (needs_graph(input, states, weights, reset_states)) {
    const auto node = make_node<LayerBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(input, states, weights, reset_states));
    node->cell = cell;
    node->options = options;
    node->states = states.size();
    node->weights = weights.size();
    node->reset_states = reset_states.size();
    for (const std::size_t i : differentiable) torch::autograd::set_history(results[i], node);
    node->kept.reserve(4 + states.size() + weights.size() + reset_states.size() + results.size() - visible);
    node->keep(input);
    node->keep(batch_sizes.value_or(at::Tensor()));
    node->keep(cuts.before);
    node->keep(results[0], true);
    for (const at::TensorList tensors : {states, weights, reset_states}) node->keep(tensors);
    for (std::size_t i = visible; i < results.size(); ++i) node->keep(results[i], results[i].requires_grad());
  }
  if (any_of_all(has_tangent, input, states, weights, reset_states))
    add_tangents(results, cell, input, states, weights, batch_sizes, options, cuts, differentiable);
  return results;
}

std::vector<at::Tensor> layer_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                       at::TensorList weights, const OptionalTensor& batch_sizes, bool bidirectional,
                                       std::optional<double> cell_clip, std::optional<double> grad_clip, bool recompute,
                                       const OptionalTensor& resets, const OptionalTensor& reset_h,
                                       const OptionalTensor& reset_c) {
  TORCH_CHECK(input.defined(), "input: expected a tensor, got none");
  // Checked here because a tensor on another device would already have chosen another kernel.
  TORCH_CHECK(!batch_sizes.has_value() || !batch_sizes->defined() || batch_sizes->device().is_cpu() ||
                  batch_sizes->scalar_type() == at::kInt,
              "batch_sizes: expected a CPU tensor, got one on ", batch_sizes->device());
  TORCH_CHECK(!resets || !resets->defined() || resets->device() == input.device(), "resets: expected device ",
              input.device(), " as input's, got ", resets->device());
  if (is_differentiated(input, states, weights, make_resets(resets, reset_h, reset_c).states)) {
    Tensors results = forward_autograd(cell, input, states, weights, batch_sizes, bidirectional, cell_clip, grad_clip,
                                       recompute, resets, reset_h, reset_c);
    results.resize(1 + find_cell(cell).states());
    return results;
  }
  static const auto op = find_op<ForwardOp>("lstm_fused::layer");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(cell, input, states, weights, batch_sizes, bidirectional, cell_clip, grad_clip, recompute, resets,
                 reset_h, reset_c);
}

std::vector<at::Tensor> backward_autograd(const std::string& cell, const c10::List<OptionalTensor>& grads,
                                          const at::Tensor& input, at::TensorList states, at::TensorList weights,
                                          const OptionalTensor& batch_sizes, bool bidirectional,
                                          std::optional<double> cell_clip, std::optional<double> grad_clip,
                                          const at::Tensor& output, at::TensorList saved, const c10::List<bool>& needed,
                                          std::int64_t samples, const OptionalTensor& resets,
                                          const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const LayerOptions options{bidirectional, cell_clip, grad_clip};
  const Resets cuts = make_resets(resets, reset_h, reset_c);
  const at::TensorList reset_states = cuts.states;
  Tensors given;
  for (const OptionalTensor& grad : grads) given.push_back(grad.value_or(at::Tensor()));
  const std::vector<bool> wanted(needed.begin(), needed.end());
  if (any_of_all(has_tangent, input, states, weights, reset_states, at::TensorList(given))) {
    check_forward_mode(grad_clip);
    Tensors results = reference_backward(
        {cell, given, input, states.vec(), weights.vec(), batch_sizes, options, wanted, samples, cuts});
    for (at::Tensor& result : results)
      if (!result.defined()) result = input.new_empty({0});  // an op's results are always defined
    return results;
  }
  Tensors results;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    results = backward_op().call(cell, grads, input, states, weights, batch_sizes, bidirectional, cell_clip, grad_clip,
                                 output, saved, needed, samples, resets, reset_h, reset_c);
  }
  if (needs_graph(input, states, weights, reset_states, at::TensorList(given))) {
    const auto node = make_node<LayerBackwardBackward>();
    node->set_next_edges(
        torch::autograd::collect_next_edges(at::TensorList(given), input, states, weights, reset_states));
    node->cell = cell;
    node->options = options;
    node->states = states.size();
    node->weights = weights.size();
    node->reset_states = reset_states.size();
    node->needed = wanted;
    node->samples = samples;
    node->keep(batch_sizes.value_or(at::Tensor()));
    node->keep(cuts.before);
    node->keep(given);
    node->keep(input);
    for (const at::TensorList tensors : {states, weights, reset_states}) node->keep(tensors);
    for (std::size_t i = 0; i < results.size(); ++i)
      torch::autograd::set_history(wanted[i] ? results[i] : at::Tensor(), node);
  }
  return results;
}

}  // namespace lstm_fused
