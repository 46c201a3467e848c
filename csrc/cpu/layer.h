// The CPU layer as PyTorch sees it: tensors in, tensors out. Allocation, packing and the choice of
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

// [output, h_n, (c_n)], followed by what is saved: per direction, with Save::gates the activated gates [N, S*H], and
// unless nothing is saved, for cells with a cell state, c_t [N, H] in the compute type. With Save::gates_alone, for one
// step: only the gates.
// `packed` are the weights as pack_layer left them; without them a call packs them itself.
std::vector<at::Tensor> layer_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                      at::TensorList weights, Save save, at::TensorList packed = {});

// The weights as forward's kernel of the active instruction set reads them: per direction W, U, (W_hr).
std::vector<at::Tensor> pack_layer(const LayerShape& shape, at::TensorList weights);

// Whether one step of few rows: done on the weights as they lie in memory.
bool single_step(const LayerShape& shape);

// That step: [h_1 [D, B, H], (c_1)], followed by what is saved.
std::vector<at::Tensor> step_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                     at::TensorList weights, Save save);

// What backward's calls for the parts of one sequence share, once the first of them has made it.
struct SharedBackward {
  std::vector<at::Tensor> packed;  // the weights that were rearranged
  std::vector<at::Tensor> sums;    // the gradients of the weights, to which each call adds
  at::Tensor d_input;              // where the gradient of this part's input goes, or is added
  bool add_to_input = false;
};

// Gradients of input, states, weights and reset states, in that order and in the compute type; undefined where `needed`
// is false. `grads` are those of output, h_n, (c_n, and per direction c_t), undefined for zero. With `samples`, row b *
// samples + v of the batch belongs to sample v, and the gradients of weights and reset states are [samples, *], those
// of each sample apart.
std::vector<at::Tensor> layer_backward(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                       at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                       at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples,
                                       SharedBackward* shared = nullptr);

// The same, where forward has saved the states alone.
std::vector<at::Tensor> layer_backward_recomputing(const LayerShape& shape, at::TensorList grads,
                                                   const at::Tensor& input, at::TensorList states,
                                                   at::TensorList weights, const at::Tensor& output,
                                                   at::TensorList saved, const std::vector<bool>& needed,
                                                   std::int64_t samples);
inline bool gates_saved(const LayerShape& shape, at::TensorList saved) {
  return saved.size() == static_cast<std::size_t>(shape.D * shape.states);
}

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

inline at::Tensor dense(const at::Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

RecurrenceShape recurrence_shape(const LayerShape& shape, int element_bytes, int lanes, int panel_units,
                                 std::int64_t exchanged);
PlacedSequence sequence(const LayerShape& shape, int direction);

// The plan for a call now: the machine's, as asked for, or serial while another process takes our threads' time and one
// of them would wait for it at every step, or longer at the end than it takes to do all alone.
inline Plan current_plan(const RecurrenceShape& shape) {
  const Machine machine = this_machine(usable_threads());
  const Plan plan = choose_plan(shape, machine, forced_plan());
  if (plan.threads() == 1 || !forced_plan().empty() || !contended()) return plan;
  const double gain = estimate(shape, machine, {}) - estimate(shape, machine, plan);
  return plan.units > 1 || gain < static_cast<double>(time_slice_ns) ? Plan{} : plan;
}

// Runs a layer in one visit to the threads: pack(begin, end) for all of [0, packs), then work(direction, share,
// barrier) for every direction, as the plan says. One thread does it all where the team does not come together.
// `apart_ns`: for patience_ns.
template <class Pack, class Work>
void run_plan(const Plan& plan, const RecurrenceShape& shape, int panel_units, int panel_outputs, double apart_ns,
              std::int64_t packs, const Pack& pack, const Work& work) {
  const int threads = plan.threads();
  Barrier everybody;
  const std::int64_t patience = patience_ns(shape, plan, apart_ns);
  const double alone_ns = threads * apart_ns + estimate(shape, this_machine(1), {});
  constexpr double new_memory = 4;  // times as long: it may come from the system only when it is written to
  everybody.reset(threads, patience_ns(shape, plan, new_memory * apart_ns), alone_ns);
  std::deque<Barrier> barriers(plan.directions * plan.rows);
  for (Barrier& barrier : barriers) barrier.reset(plan.units, patience, alone_ns);

  const auto take_part = [&](const Plan& actual, const DealtRows& rows, int member, Barrier& barrier) {
    const Share share = share_of(actual, member, shape, rows, panel_units, panel_outputs);
    const int first = member / (actual.rows * actual.units);
    for (int direction = first; direction < shape.directions; direction += actual.directions)
      work(direction, share, barrier);
  };
  const auto all_alone = [&](std::int64_t packed) {
    Barrier nobody_else;
    pack(packed, packs);
    take_part(Plan{}, deal_rows(shape, 1), 0, nobody_else);
  };
  const DealtRows rows = deal_rows(shape, plan.rows);
  run_team(threads, alone_ns, [&](int member, int members) {
    if (members < threads) {
      if (member == 0) all_alone(0);
      return;
    }
    int alone = everybody.gather(member);
    if (alone == Barrier::nobody) {
      pack(packs * member / threads, packs * (member + 1) / threads);
      alone = everybody.wait(member);
      if (alone == member) all_alone(packs);
    } else if (alone == member) {
      all_alone(0);
    }
    if (alone != Barrier::nobody) return everybody.part(alone == member);
    Barrier& barrier = barriers[member / plan.units];
    take_part(plan, rows, member, barrier);
    if (barrier.left_alone() != Barrier::nobody) barrier.part(barrier.left_alone() == member % plan.units);
  });
}

}  // namespace lstm_fused
