// A layer's arguments, checked and named. Every error says which argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "recurrence.h"

namespace lstm_fused {

// The weights of one direction; undefined tensors where the layer has none.
struct DirectionWeights {
  at::Tensor w_ih;        // [G*H, I]
  at::Tensor w_hh;        // [G*H, P]
  at::Tensor b_ih, b_hh;  // [G*H]
  at::Tensor w_hr;        // [P, H]
};

// What host code knows of a cell.
struct CellInfo {
  int gates, saved;  // rows of W and U, and values kept for backward, per unit
  bool carries_cell;
  int states() const { return carries_cell ? 2 : 1; }
};
CellInfo find_cell(const std::string& name);

// What a call says beside its tensors.
struct LayerOptions {
  bool bidirectional = false;
  std::optional<double> cell_clip, grad_clip;  // limits of c_t, and of gradients before the activations
  bool recompute = false;                      // no gates are kept for backward
};

// Where rows of a batch begin anew, and in which state.
struct Resets {
  at::Tensor before;               // bool [T, B]: before which steps; undefined: nowhere
  std::vector<at::Tensor> states;  // [D, P] and, beside a cell state, [D, H]; none: zero
};

// What forward keeps for backward; or that it gives the gates and no more.
enum class Save { nothing, states, gates, gates_alone };

struct LayerShape {
  std::string cell;
  std::int64_t T = 0, B = 0, I = 0, H = 0, P = 0;
  std::int64_t N = 0;             // data rows: T*B, or the sum of batch_sizes or lengths
  int D = 1, G = 0, S = 0;        // directions, gates, values saved per unit
  int states = 0;                 // 2 where a cell state travels beside h
  bool bias = false, projected = false;
  bool reverse = false;           // with one direction: whether it is the second of a layer
  double cell_clip = no_clip<double>, grad_clip = no_clip<double>;
  const std::int64_t* batch_sizes = nullptr;  // [T], owned by the caller's tensor, or by:
  std::shared_ptr<const std::vector<std::int64_t>> own_batch_sizes;
  std::vector<std::int64_t> offsets;          // [T] beside batch_sizes, else empty
  std::vector<std::int64_t> columns;  // [B] for a padded batch with lengths, as in PlacedSequence; else empty
  at::Tensor device_batch_sizes;  // int32 [T] in their place, whose values the host does not know
  Resets resets;

  bool padded() const { return !columns.empty(); }  // beside batch_sizes
  bool packed() const { return (batch_sizes && !padded()) || device_batch_sizes.defined(); }
  int weights_per_direction() const { return 2 + (bias ? 2 : 0) + (projected ? 1 : 0); }
  std::vector<std::int64_t> output_sizes() const;  // [T, B, D*P], or [N, D*P] for packed data
  std::vector<std::int64_t> places() const;  // [N], of a padded batch: where in [T, B] data rows stand
};

// Products inside are in the tensors' own type, also where backward runs inside an autocast region.
class NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

LayerShape check_layer(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                       const std::optional<at::Tensor>& batch_sizes, const LayerOptions& options,
                       const Resets& resets = {});

DirectionWeights direction_weights(const LayerShape& shape, at::TensorList weights, int direction);

}  // namespace lstm_fused
