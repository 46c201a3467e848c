// A layer out of ATen operations alone: slower than the kernels, but differentiable to any order and in either mode.
// The mathematics is the cells', on tensors in the place of numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace lstm_fused {

// What `lstm_fused::layer` returns.
std::vector<at::Tensor> reference_layer(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                        at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                        bool bidirectional);

// A call of `lstm_fused::backward`, tensors that are not there undefined.
struct BackwardCall {
  std::string cell;
  std::vector<at::Tensor> grads;  // of output, h_n, (c_n)
  at::Tensor input;
  std::vector<at::Tensor> states, weights;
  std::optional<at::Tensor> batch_sizes;
  bool bidirectional = false;
  std::vector<bool> needed;  // of input, states, weights
  std::int64_t samples = 0;
};

// What `lstm_fused::backward` returns, undefined where it is not needed. With the forward's `output` and `saved` it
// starts from these; without, forward is done again, so that the result can be derived by all that it depends on.
std::vector<at::Tensor> reference_backward(const BackwardCall& call, const at::Tensor& output = {},
                                           at::TensorList saved = {});

}  // namespace lstm_fused
