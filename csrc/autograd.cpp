#include "autograd.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "checks.h"

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;
using ForwardOp = Tensors(const std::string&, const at::Tensor&, at::TensorList, at::TensorList, const OptionalTensor&,
                          bool);
using BackwardOp = Tensors(const std::string&, const c10::List<OptionalTensor>&, const at::Tensor&, at::TensorList,
                           at::TensorList, const OptionalTensor&, bool, const at::Tensor&, at::TensorList,
                           const c10::List<bool>&);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Stands between the gradients and all that they depend on when backward runs with create_graph=True: the gradients
// themselves are right, but no path to their derivative, nor an input that seems unused, may go round the error.
class NoSecondDerivative : public torch::autograd::Function<NoSecondDerivative> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, at::TensorList gradients,
                                                at::TensorList /*sources*/) {
    return gradients.vec();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "lstm_fused: the second derivative of a fused layer is not implemented");
  }
};

class LayerNode : public torch::autograd::Function<LayerNode> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                                                at::TensorList states, at::TensorList weights,
                                                const OptionalTensor& batch_sizes, const std::string& cell,
                                                bool bidirectional) {
    static const auto op = find_op<ForwardOp>("lstm_fused::forward");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Tensors results = op.call(cell, input, states, weights, batch_sizes, bidirectional);
    const std::size_t visible = 1 + find_cell(cell).states();
    Tensors saved = {input, batch_sizes.value_or(at::Tensor()), results[0]};
    saved.insert(saved.end(), states.begin(), states.end());
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), results.begin() + visible, results.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    context->saved_data["cell"] = cell;
    context->saved_data["bidirectional"] = bidirectional;
    context->saved_data["states"] = static_cast<int64_t>(states.size());
    context->saved_data["weights"] = static_cast<int64_t>(weights.size());
    results.resize(visible);
    return results;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    static const auto op = find_op<BackwardOp>("lstm_fused::backward");
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const std::string& cell = context->saved_data["cell"].toStringRef();
    const bool bidirectional = context->saved_data["bidirectional"].toBool();
    const std::size_t states = context->saved_data["states"].toInt(), weights = context->saved_data["weights"].toInt();
    const std::size_t inputs = 1 + states + weights;
    const at::TensorList all = saved;

    c10::List<OptionalTensor> given;
    for (const at::Tensor& grad : grads) given.push_back(grad.defined() ? OptionalTensor(grad) : std::nullopt);
    c10::List<bool> needed;
    for (std::size_t i = 0; i < inputs; ++i) needed.push_back(context->needs_input_grad(i));

    Tensors results;
    {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      results = op.call(cell, given, saved[0], all.slice(3, states), all.slice(3 + states, weights),
                        saved[1].defined() ? OptionalTensor(saved[1]) : std::nullopt, bidirectional, saved[2],
                        all.slice(3 + inputs - 1), needed);
    }
    for (std::size_t i = 0; i < inputs; ++i)
      if (!needed[i]) results[i] = at::Tensor();
    if (at::GradMode::is_enabled()) {
      Tensors sources = {saved[0]};
      for (const at::Tensor& grad : grads)
        if (grad.defined()) sources.push_back(grad);
      sources.insert(sources.end(), saved.begin() + 3, saved.begin() + 3 + states + weights);
      refuse_second_derivative(results, sources);
    }
    results.resize(inputs + 3);  // batch_sizes, cell and bidirectional have none
    return results;
  }

 private:
  static void refuse_second_derivative(Tensors& results, at::TensorList sources) {
    Tensors defined;
    for (const at::Tensor& result : results)
      if (result.defined()) defined.push_back(result);
    const Tensors guarded = NoSecondDerivative::apply(at::TensorList(defined), sources);
    auto next = guarded.begin();
    for (at::Tensor& result : results)
      if (result.defined()) result = *next++;
  }
};

bool any_of(const at::Tensor& input, at::TensorList states, at::TensorList weights,
            bool (*property)(const at::Tensor&)) {
  return property(input) || std::any_of(states.begin(), states.end(), property) ||
         std::any_of(weights.begin(), weights.end(), property);
}

}  // namespace

bool needs_graph(const at::Tensor& input, at::TensorList states, at::TensorList weights) {
  TORCH_CHECK(input.defined(), "input: expected a tensor, got none");
  const auto has_tangent = [](const at::Tensor& t) { return t.defined() && t._fw_grad(0).defined(); };
  TORCH_CHECK_NOT_IMPLEMENTED(!any_of(input, states, weights, has_tangent),
                              "lstm_fused: forward-mode differentiation of a fused layer is not implemented");
  const auto requires_grad = [](const at::Tensor& t) { return t.defined() && t.requires_grad(); };
  return at::GradMode::is_enabled() && any_of(input, states, weights, requires_grad);
}

std::vector<at::Tensor> layer_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                       at::TensorList weights, const OptionalTensor& batch_sizes, bool bidirectional) {
  // Checked here because a tensor on another device would already have chosen another kernel.
  TORCH_CHECK(!batch_sizes.has_value() || !batch_sizes->defined() || batch_sizes->device().is_cpu(),
              "batch_sizes: expected a CPU tensor, got one on ", batch_sizes->device());
  if (needs_graph(input, states, weights))
    return LayerNode::apply(input, states, weights, batch_sizes, cell, bidirectional);
  static const auto op = find_op<ForwardOp>("lstm_fused::layer");
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(cell, input, states, weights, batch_sizes, bidirectional);
}

}  // namespace lstm_fused
