// The CPU layer as PyTorch sees it: tensors in, tensors out. Allocation, vendor GEMMs and the choice of
// plan happen here; the recurrence itself is in forward.h and backward.h.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "plan.h"
#include "runtime.h"

namespace lstm_fused {

// [output, h_n, (c_n)], followed by what backward needs if `save`: per direction, the activated gates
// [N, S*H] and for cells with a cell state c_t [N, H] in the compute type.
std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, bool save);

// Whether one step of few rows: done on the weights as they lie in memory.
bool single_step(const LayerShape& shape);

// That step: [h_1 [D, B, H], (c_1)], followed by what backward needs if `save`.
std::vector<at::Tensor> step_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                     at::TensorList weights, bool save);

// Gradients of input, states and weights, in that order; undefined where `needed` is false.
std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed);

// Calls f(Storage{}) for the element type of a tensor.
template <class F>
auto with_storage(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kDouble: return f(double{});
    case at::kBFloat16: return f(BFloat16{});
    case at::kHalf: return f(Float16{});
    default: return f(float{});
  }
}

template <class Element>
const Element* data(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const Element*>(tensor.const_data_ptr()) : nullptr;
}
template <class Element>
Element* mutable_data(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<Element*>(tensor.mutable_data_ptr()) : nullptr;
}

// The element type of arithmetic: float for 16-bit storage.
inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
inline at::Tensor to_compute(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(compute_type(tensor)).contiguous() : tensor;
}

RecurrenceShape recurrence_shape(const LayerShape& shape, int element_bytes, int lanes, int panel_units,
                                 std::int64_t exchanged);
Sequence sequence(const LayerShape& shape, int direction);

// Packs `count` panels of every direction with all threads; pack(direction, panel) does one.
template <class Pack>
void pack_panels(int threads, int directions, std::int64_t count, const Pack& pack) {
  run_team(threads, [&](int member, int members) {
    const std::int64_t all = directions * count;
    for (std::int64_t i = all * member / members; i < all * (member + 1) / members; ++i) pack(i / count, i % count);
  });
}

// Runs work(direction, share, barrier) for every direction, as the plan says. Where fewer threads come than the
// plan needs, rows are dealt to those that are there: that needs no barrier, so nothing can wait for ever.
template <class Work>
void run_plan(const Plan& plan, const RecurrenceShape& shape, int panel_units, int panel_outputs, const Work& work) {
  std::deque<Barrier> barriers(plan.directions * plan.rows);
  for (Barrier& barrier : barriers) barrier.reset(plan.units, patience_ns(shape, plan));
  run_team(plan.threads(), [&](int member, int members) {
    const bool complete = members == plan.threads();
    const Plan actual = complete ? plan : Plan{1, members, 1};
    const Share share = share_of(actual, member, shape, panel_units, panel_outputs);
    Barrier alone;
    Barrier& barrier = complete ? barriers[member / actual.units] : alone;
    const int first = member / (actual.rows * actual.units);
    for (int direction = first; direction < shape.directions; direction += actual.directions)
      work(direction, share, barrier);
  });
}

}  // namespace lstm_fused
