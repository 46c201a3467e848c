#include "checks.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "cells/all_cells.h"

namespace lstm_fused {

namespace {

const char* const weight_names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};

std::string weight_name(int index, int per_direction) {
  const int within = index % per_direction;
  const bool is_projection = per_direction % 2 == 1 && within == per_direction - 1;
  return std::string("weights[") + std::to_string(index) + "] (" + (is_projection ? "w_hr" : weight_names[within]) +
         ")";
}

// `name` is called only for the message: these checks stand in the path of a single time step.
template <class Name>
void check_like_input(const Name& name, const at::Tensor& tensor, const at::Tensor& input) {
  TORCH_CHECK(tensor.defined(), name(), ": expected a tensor, got none");
  TORCH_CHECK(tensor.device() == input.device(), name(), ": expected device ", input.device(), " as input's, got ",
              tensor.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name(), ": expected dtype ", input.scalar_type(),
              " as input's, got ", tensor.scalar_type());
}

template <class Name>
void check_sizes(const Name& name, const at::Tensor& tensor, at::IntArrayRef expected, const char* meaning) {
  TORCH_CHECK(tensor.sizes() == expected, name(), ": expected shape ", expected, " ", meaning, ", got ",
              tensor.sizes());
}

// Batch sizes that stay on the device: N is how many data rows there are room for, and B the states' business.
void check_device_batch_sizes(const at::Tensor& batch_sizes, const at::Tensor& input, at::TensorList states,
                              LayerShape& shape) {
  TORCH_CHECK(batch_sizes.device() == input.device(), "batch_sizes: expected device ", input.device(),
              " as input's for dtype Int, got ", batch_sizes.device());
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.size(0) > 0, "batch_sizes: expected shape [T] with T > 0, got ",
              batch_sizes.sizes());
  TORCH_CHECK(input.dim() == 2, "input: expected packed data [N, I] beside batch_sizes, got ", input.sizes());
  TORCH_CHECK(!states.empty() && states[0].defined() && states[0].dim() == 3,
              "states: expected tensors beside batch_sizes of dtype Int, got none");
  shape.device_batch_sizes = batch_sizes;
  shape.T = batch_sizes.size(0);
  shape.B = states[0].size(1);
  shape.N = input.size(0);
}

void set_batch_sizes(std::vector<std::int64_t> sizes, LayerShape& shape) {
  const auto own = std::make_shared<const std::vector<std::int64_t>>(std::move(sizes));
  shape.batch_sizes = own->data();
  shape.own_batch_sizes = own;
}

void check_numbers(const char* name, const at::Tensor& numbers) {
  TORCH_CHECK(numbers.device().is_cpu(), name, ": expected a CPU tensor, got one on ", numbers.device());
  TORCH_CHECK(numbers.scalar_type() == at::kLong, name, ": expected dtype Long, got ", numbers.scalar_type());
}

// Under torch.func every argument of an operator comes wrapped for its transform.
std::vector<std::int64_t> values_of(const at::Tensor& numbers) {
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < numbers.size(0); ++i) values.push_back(numbers.select(0, i).item<std::int64_t>());
  return values;
}

void check_batch_sizes(const at::Tensor& batch_sizes, const at::Tensor& input, LayerShape& shape) {
  check_numbers("batch_sizes", batch_sizes);
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.size(0) > 0 && batch_sizes.is_contiguous(),
              "batch_sizes: expected a contiguous tensor [T] with T > 0, got ", batch_sizes.sizes());
  TORCH_CHECK(input.dim() == 2, "input: expected packed data [N, I] beside batch_sizes, got ", input.sizes());
  shape.T = batch_sizes.size(0);
  if (batch_sizes.has_storage()) shape.batch_sizes = batch_sizes.const_data_ptr<std::int64_t>();
  else set_batch_sizes(values_of(batch_sizes), shape);
  shape.B = shape.batch_sizes[0];
  shape.offsets.resize(shape.T);
  for (std::int64_t t = 0; t < shape.T; ++t) {
    const std::int64_t size = shape.batch_sizes[t], limit = t ? shape.batch_sizes[t - 1] : input.size(0);
    TORCH_CHECK(size >= 0 && size <= limit,
                "batch_sizes: expected values that are not negative, do not increase and sum to ", input.size(0),
                ", got ", size, " at step ", t, t ? " after " : " of ", limit);
    shape.offsets[t] = shape.N;
    shape.N += size;
  }
  TORCH_CHECK(shape.N == input.size(0), "batch_sizes: expected a sum of ", input.size(0), " as input has rows, got ",
              shape.N);
}

// The rows of a padded batch in the order that packed data have: by falling length, equal ones as they come.
void check_lengths(const at::Tensor& lengths, const LayerOptions& options, LayerShape& shape) {
  check_numbers("lengths", lengths);
  TORCH_CHECK(lengths.sizes() == at::IntArrayRef({shape.B}), "lengths: expected shape [", shape.B, "], got ",
              lengths.sizes());
  TORCH_CHECK(!options.recompute, "recompute: expected False beside lengths, got True");
  std::vector<std::int64_t> values;
  if (lengths.has_storage()) {
    const at::Tensor dense = lengths.contiguous();
    values.assign(dense.const_data_ptr<std::int64_t>(), dense.const_data_ptr<std::int64_t>() + shape.B);
  } else {
    values = values_of(lengths);
  }
  std::vector<std::int64_t> sizes(shape.T);
  for (std::int64_t b = 0; b < shape.B; ++b) {
    TORCH_CHECK(values[b] >= 0 && values[b] <= shape.T, "lengths: expected values from 0 to ", shape.T, ", got ",
                values[b], " at ", b);
    if (values[b]) ++sizes[values[b] - 1];  // how many end with a step, and below how many run in it
  }
  for (std::int64_t t = shape.T - 1; t > 0; --t) sizes[t - 1] += sizes[t];
  if (sizes[shape.T - 1] == shape.B) return;  // nothing is padding
  shape.columns.resize(shape.B);
  std::iota(shape.columns.begin(), shape.columns.end(), 0);
  std::stable_sort(shape.columns.begin(), shape.columns.end(),
                   [&](std::int64_t a, std::int64_t b) { return values[a] > values[b]; });
  shape.N = 0;
  for (const std::int64_t size : sizes) {
    shape.offsets.push_back(shape.N);
    shape.N += size;
  }
  set_batch_sizes(std::move(sizes), shape);
}

void check_resets(const at::Tensor& input, const Resets& resets, const LayerOptions& options, LayerShape& shape) {
  if (!resets.before.defined()) {
    TORCH_CHECK(resets.states.empty(), "resets: expected a tensor beside reset states, got none");
    return;
  }
  TORCH_CHECK(!shape.packed(), "resets: expected none beside batch_sizes, got some");
  TORCH_CHECK(!shape.padded(), "resets: expected none beside lengths, got some");
  TORCH_CHECK(!options.recompute, "recompute: expected False beside resets, got True");
  const at::Tensor& before = resets.before;
  TORCH_CHECK(before.device() == input.device(), "resets: expected device ", input.device(), " as input's, got ",
              before.device());
  TORCH_CHECK(before.scalar_type() == at::kBool, "resets: expected dtype Bool, got ", before.scalar_type());
  TORCH_CHECK(before.sizes() == at::IntArrayRef({shape.T, shape.B}), "resets: expected shape ",
              at::IntArrayRef({shape.T, shape.B}), ", got ", before.sizes());
  TORCH_CHECK(resets.states.empty() || static_cast<int>(resets.states.size()) == shape.states,
              "reset states: expected ", shape.states, " tensors or none, got ", resets.states.size());
  const char* const names[] = {"reset_h", "reset_c"};
  for (std::size_t i = 0; i < resets.states.size(); ++i) {
    const auto name = [&] { return names[i]; };
    check_like_input(name, resets.states[i], input);
    check_sizes(name, resets.states[i], {shape.D, i == 0 ? shape.P : shape.H}, i == 0 ? "(D, P)" : "(D, H)");
  }
  shape.resets = resets;
}

double check_clip(const char* name, const std::optional<double>& clip) {
  TORCH_CHECK(!clip || *clip > 0, name, ": expected a number above 0, or None, got ", clip.value_or(0));
  return clip.value_or(no_clip<double>);
}

void check_weights(const at::Tensor& input, at::TensorList weights, LayerShape& shape) {
  const int count = static_cast<int>(weights.size());
  const int per_direction = count / shape.D;
  const int most = shape.states == 2 ? 5 : 4;
  TORCH_CHECK(
      count % shape.D == 0 && per_direction >= 2 && per_direction <= most && (per_direction != 3 || shape.states == 2),
      "weights: expected per direction w_ih, w_hh", shape.states == 2 ? ", (b_ih, b_hh), (w_hr)" : ", (b_ih, b_hh)",
      ", got ", count, " tensors for ", shape.D, " direction(s)");
  shape.bias = per_direction >= 4;
  shape.projected = per_direction % 2 == 1;
  for (int i = 0; i < count; ++i) check_like_input([&] { return weight_name(i, per_direction); }, weights[i], input);
  const at::Tensor& w_hh = weights[1];
  TORCH_CHECK(w_hh.dim() == 2 && w_hh.size(0) % shape.G == 0 && w_hh.size(1) > 0 && w_hh.size(0) > 0,
              weight_name(1, per_direction), ": expected shape [", shape.G, "*H, P], got ", w_hh.sizes());
  shape.H = w_hh.size(0) / shape.G;
  shape.P = w_hh.size(1);
  TORCH_CHECK(shape.projected || shape.P == shape.H, weight_name(1, per_direction), ": expected shape [", shape.G,
              "*H, H] without a projection, got ", w_hh.sizes());
  shape.I = input.size(-1);
  TORCH_CHECK(shape.I > 0, "input: expected at least one value a step, got shape ", input.sizes());
  for (int i = 0; i < count; ++i) {
    const auto name = [&] { return weight_name(i, per_direction); };
    const int within = i % per_direction;
    if (within == 0) check_sizes(name, weights[i], {shape.G * shape.H, shape.I}, "(G*H, I)");
    else if (within == 1) check_sizes(name, weights[i], {shape.G * shape.H, shape.P}, "(G*H, P)");
    else if (shape.projected && within == per_direction - 1)
      check_sizes(name, weights[i], {shape.P, shape.H}, "(P, H)");
    else check_sizes(name, weights[i], {shape.G * shape.H}, "(G*H)");
  }
}

}  // namespace

CellInfo find_cell(const std::string& name) {
  CellInfo info{};
  const bool known = host::with_cell(name, [&](auto cell) { info = {cell.gates, cell.saved, cell.carries_cell}; });
  TORCH_CHECK(known, "cell: expected lstm or gru, got '", name, "'");
  return info;
}

std::vector<std::int64_t> LayerShape::output_sizes() const {
  if (packed()) return {N, D * P};
  return {T, B, D * P};
}

std::vector<std::int64_t> LayerShape::places() const {
  std::vector<std::int64_t> result;
  result.reserve(N);
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t b = 0; b < batch_sizes[t]; ++b) result.push_back(t * B + columns[b]);
  return result;
}

LayerShape check_layer(const std::string& cell, const at::Tensor& input, at::TensorList states, at::TensorList weights,
                       const std::optional<at::Tensor>& batch_sizes, const LayerOptions& options,
                       const Resets& resets) {
  LayerShape shape;
  shape.cell = cell;
  shape.D = options.bidirectional ? 2 : 1;
  const CellInfo info = find_cell(cell);
  shape.G = info.gates;
  shape.S = info.saved;
  shape.states = info.states();
  shape.cell_clip = check_clip("cell_clip", options.cell_clip);
  shape.grad_clip = check_clip("grad_clip", options.grad_clip);
  TORCH_CHECK(info.carries_cell || !options.cell_clip, "cell_clip: expected none for cell ", cell,
              ", which has no cell state, got ", options.cell_clip.value_or(0));
  TORCH_CHECK(input.defined(), "input: expected a tensor, got none");
  TORCH_CHECK(input.layout() == at::kStrided, "input: expected a dense tensor, got layout ", input.layout());
  const at::ScalarType dtype = input.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
              "input: expected dtype Float, Double, BFloat16 or Half, got ", dtype);
  const bool given = batch_sizes.has_value() && batch_sizes->defined();
  if (given && input.dim() != 3) {
    if (batch_sizes->scalar_type() == at::kInt) check_device_batch_sizes(*batch_sizes, input, states, shape);
    else check_batch_sizes(*batch_sizes, input, shape);
  } else {
    TORCH_CHECK(input.dim() == 3, "input: expected shape [T, B, I], got ", input.sizes());
    shape.T = input.size(0);
    shape.B = input.size(1);
    shape.N = shape.T * shape.B;
    TORCH_CHECK(shape.T > 0, "input: expected T > 0 time steps, got ", input.sizes());
    if (given) check_lengths(*batch_sizes, options, shape);
  }
  check_weights(input, weights, shape);
  TORCH_CHECK(states.empty() || static_cast<int>(states.size()) == shape.states, "states: expected ", shape.states,
              " tensors or none, got ", states.size());
  const char* const state_names[] = {"states[0] (h0)", "states[1] (c0)"};
  for (std::size_t i = 0; i < states.size(); ++i) {
    const auto name = [&] { return state_names[i]; };
    check_like_input(name, states[i], input);
    check_sizes(name, states[i], {shape.D, shape.B, i == 0 ? shape.P : shape.H}, i == 0 ? "(D, B, P)" : "(D, B, H)");
  }
  check_resets(input, resets, options, shape);
  return shape;
}

DirectionWeights direction_weights(const LayerShape& shape, at::TensorList weights, int direction) {
  const int first = direction * shape.weights_per_direction();
  DirectionWeights w{weights[first], weights[first + 1], {}, {}, {}};
  if (shape.bias) {
    w.b_ih = weights[first + 2];
    w.b_hh = weights[first + 3];
  }
  if (shape.projected) w.w_hr = weights[first + shape.weights_per_direction() - 1];
  return w;
}

}  // namespace lstm_fused
