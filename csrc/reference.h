// A layer out of ATen operations alone: slower than the kernels, but differentiable to any order and in either mode.
// The mathematics is the cells', on tensors in the place of numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "checks.h"

namespace lstm_fused {

// What `lstm_fused::layer` returns and, of a cell with a cell state, c_t per direction [N, H] in the compute type.
std::vector<at::Tensor> reference_layer(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                        at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                        const LayerOptions& options, const Resets& resets);

// A call of `lstm_fused::backward`, tensors that are not there undefined.
struct BackwardCall {
  std::string cell;
  std::vector<at::Tensor> grads;  // of output, h_n, (c_n, and per direction c_t)
  at::Tensor input;
  std::vector<at::Tensor> states, weights;
  std::optional<at::Tensor> batch_sizes;
  LayerOptions options;
  std::vector<bool> needed;  // of input, states, weights, reset states
  std::int64_t samples = 0;
  Resets resets;
};

// What `lstm_fused::backward` returns, undefined where it is not needed. Forward is done again, so that the result can
// be derived by all that it depends on.
std::vector<at::Tensor> reference_backward(const BackwardCall& call);

}  // namespace lstm_fused
