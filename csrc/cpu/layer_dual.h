// The derivative of a layer's backward.
#pragma once

#include <vector>

#include "../reference.h"

namespace lstm_fused {

// With backward's results r_i = d<g, F(s)>/ds_i of incoming gradients g and sources s (input, states, weights, reset
// states), and seeds v: the gradients of sum_i <v_i, r_i> by g and by s, in that order, undefined where not `wanted`.
//
// That sum is <g, dF(s; v)>, dF the derivative of forward along v. So the gradients by g are dF(s; v), and those by s
// the derivative along v of what backward gives: both come from one forward and one backward pass on dual numbers.
// An undefined v_i is zero. Not with grad_clip, whose backward is no derivative of F, and not with `samples`.
std::vector<at::Tensor> dual_backward(const BackwardCall& call, at::TensorList seeds, const std::vector<bool>& wanted);

}  // namespace lstm_fused
