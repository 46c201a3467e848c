// Autograd of the layer and step ops for eager mode: a C++ node, because overhead decides the small shapes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace lstm_fused {

std::vector<at::Tensor> layer_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                       at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                       bool bidirectional);

// Whether a call must go through autograd. Raises where it would have to and cannot (forward mode).
bool needs_graph(const at::Tensor& input, at::TensorList states, at::TensorList weights);

}  // namespace lstm_fused
