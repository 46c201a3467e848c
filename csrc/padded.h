// A padded batch with lengths, for host code that takes packed data: there and back by ATen operations, which have
// derivatives of every order.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "checks.h"

namespace lstm_fused {

class Unpadded {
  using Tensors = std::vector<at::Tensor>;

 public:
  Unpadded(const LayerShape& padded, c10::Device device);

  const LayerShape shape;  // of the packed data; rows without a step are not among its B

  at::Tensor rows(const at::Tensor& batch) const;    // [T, B, C] -> [N, C]
  at::Tensor states(const at::Tensor& state) const;  // [D, B, C] -> [D, B of the packed data, C]
  Tensors states(at::TensorList all) const;

  at::Tensor batch(const at::Tensor& rows) const;  // [N, C] -> [T, B, C], zero where a row has ended
  // The way back of a state; rows without a step have that of `without`, zero if undefined.
  at::Tensor states_of_batch(const at::Tensor& state, const at::Tensor& without) const;

  // forward(shape, input, states) of packed data, on a padded batch: what the operator forward returns.
  template <class Forward>
  Tensors run(const at::Tensor& input, at::TensorList states_before, Forward forward) const {
    Tensors results = forward(shape, rows(input), states(states_before));
    results[0] = batch(results[0]);
    for (int i = 0; i < shape.states; ++i)
      results[1 + i] = states_of_batch(results[1 + i], states_before.empty() ? at::Tensor() : states_before[i]);
    return results;
  }

  // The same of backward(shape, grads, input, states), which returns gradients of input, states and more.
  template <class Backward>
  Tensors run_back(const Tensors& grads, const at::Tensor& input, at::TensorList states_before,
                   Backward backward) const {
    Tensors packed = grads;
    packed[0] = rows(grads[0]);
    for (int i = 1; i <= shape.states; ++i) packed[i] = states(grads[i]);
    Tensors results = backward(shape, packed, rows(input), states(states_before));
    if (results[0].defined()) results[0] = batch(results[0]);
    for (std::size_t i = 1; i <= states_before.size(); ++i)
      if (results[i].defined()) results[i] = states_of_batch(results[i], grads[i]);
    return results;
  }

 private:
  const std::int64_t T, B;
  at::Tensor places, columns;  // as in LayerShape; of the rows with a step
};

}  // namespace lstm_fused
