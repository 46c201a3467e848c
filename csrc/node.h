// What the nodes of the autograd graph have in common.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>
#include <type_traits>
#include <vector>

namespace lstm_fused {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline bool requires_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool has_tangent(const at::Tensor& t) { return t.defined() && t._fw_grad(0).defined(); }

// A node with tensors that are kept until the graph is released.
class KeepingNode : public torch::autograd::Node {
 public:
  std::vector<torch::autograd::SavedVariable> kept;

  void keep(const at::Tensor& tensor, bool is_output = false) { kept.emplace_back(tensor, is_output); }
  void keep(at::TensorList tensors) {
    for (const at::Tensor& tensor : tensors) keep(tensor);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (torch::autograd::SavedVariable& variable : kept) variable.reset_data();
  }

 protected:
  std::vector<at::Tensor> unpack() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<at::Tensor> tensors;
    for (const torch::autograd::SavedVariable& variable : kept) tensors.push_back(variable.unpack(getptr()));
    return tensors;
  }
};

// Nodes are held by the kind of pointer that this version of torch has for them. Older ones hold them by shared_ptr,
// with a deleter that takes a long graph down without recursion.
template <class T>
auto make_node() {
  using torch::autograd::Node;
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>)
    return std::shared_ptr<T>(new T(), [](auto* node) { deleteNode(node); });
  else return c10::make_intrusive<T>();
}

}  // namespace lstm_fused
