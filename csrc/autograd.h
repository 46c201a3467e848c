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

}  // namespace lstm_fused
