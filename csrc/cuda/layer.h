// The CUDA layer as PyTorch sees it: tensors in, tensors out, as csrc/cpu/layer.h. What is a product over all time
// steps is ATen's; the recurrence is in forward.cuh and backward.cuh. Nothing waits for the device.
#pragma once

#include <vector>

#include "../checks.h"

namespace lstm_fused::cuda {

std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, Save save);

std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples);

}  // namespace lstm_fused::cuda
