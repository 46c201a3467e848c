// Autograd of the ops, written as torch writes that of its own: nodes that hold what they need, and kernels for the
// Autograd key that attach them. So reverse mode to any order, forward mode and torch.func's transforms all work, and
// an eager call pays for none of them.
//
// First derivatives are the fused kernels'. What only higher derivatives and tangents need comes from the reference.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "checks.h"

namespace lstm_fused {

// Whether a call leaves a node behind, or has tangents.
bool is_differentiated(const at::Tensor& input, at::TensorList states, at::TensorList weights,
                       at::TensorList reset_states = {});

// Resets as the operators take them.
Resets make_resets(const std::optional<at::Tensor>& resets, const std::optional<at::Tensor>& reset_h,
                   const std::optional<at::Tensor>& reset_c);

std::vector<at::Tensor> layer_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                       at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                       bool bidirectional, std::optional<double> cell_clip,
                                       std::optional<double> grad_clip, bool recompute,
                                       const std::optional<at::Tensor>& resets,
                                       const std::optional<at::Tensor>& reset_h,
                                       const std::optional<at::Tensor>& reset_c);

std::vector<at::Tensor> forward_autograd(const std::string& cell, const at::Tensor& input, at::TensorList states,
                                         at::TensorList weights, const std::optional<at::Tensor>& batch_sizes,
                                         bool bidirectional, std::optional<double> cell_clip,
                                         std::optional<double> grad_clip, bool recompute,
                                         const std::optional<at::Tensor>& resets,
                                         const std::optional<at::Tensor>& reset_h,
                                         const std::optional<at::Tensor>& reset_c);

std::vector<at::Tensor> backward_autograd(const std::string& cell, const c10::List<std::optional<at::Tensor>>& grads,
                                          const at::Tensor& input, at::TensorList states, at::TensorList weights,
                                          const std::optional<at::Tensor>& batch_sizes, bool bidirectional,
                                          std::optional<double> cell_clip, std::optional<double> grad_clip,
                                          const at::Tensor& output, at::TensorList saved, const c10::List<bool>& needed,
                                          std::int64_t samples, const std::optional<at::Tensor>& resets,
                                          const std::optional<at::Tensor>& reset_h,
                                          const std::optional<at::Tensor>& reset_c);

}  // namespace lstm_fused
