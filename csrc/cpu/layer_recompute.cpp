// Backward where forward kept h and c alone. The gates of some steps at a time are computed again, from the end of the
// sequence to its beginning. All h_{t-1} are known by then, so that the gates of a chunk of steps are those of one step
// of as many rows; and a chunk's backward is that of a sequence which begins in the state where the one before ended.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <deque>

#include "layer.h"
#include "memory.h"

namespace lstm_fused {

namespace {

// A chunk has this many data rows at least, and so many that its units are these: enough to make what every chunk costs
// little beside its products, and a megabyte of gates or two.
constexpr std::int64_t least_rows = 256, least_units = 1 << 16;

using Tensors = std::vector<at::Tensor>;

// One direction, as a layer of its own.
class Recompute {
 public:
  Recompute(const LayerShape& layer, int direction, at::TensorList grads, const at::Tensor& input,
            at::TensorList states, at::TensorList weights, const at::Tensor& output, at::TensorList saved,
            std::int64_t samples)
      : shape(one_direction(layer, direction)), samples(samples), x(input.reshape({shape.N, shape.I})) {
    const auto columns = [&](const at::Tensor& rows) {
      return rows.reshape({shape.N, layer.D * shape.P}).narrow(1, direction * shape.P, shape.P);
    };
    const auto own = [&](const at::Tensor& state) { return state.narrow(0, direction, 1); };
    const auto initial = [&](std::size_t i, std::int64_t width) {
      return i < states.size() ? states[i][direction] : at::zeros({shape.B, width}, input.options());
    };
    const std::int64_t each = shape.weights_per_direction();
    own_weights = weights.slice(direction * each, each);
    h = columns(output);
    h0 = initial(0, shape.P);
    if (grads[0].defined()) d_output = columns(grads[0]);
    const auto carried = [&](std::size_t i, std::int64_t width) {
      if (grads[i].defined()) return own(to_compute(grads[i])).clone();
      return at::zeros({1, shape.B, width}, input.options().dtype(compute_type(input)));
    };
    d_states.push_back(carried(1, shape.P));
    if (shape.states == 2) {
      c = saved[direction];
      c0 = initial(1, shape.H);
      d_cells = grads[3 + direction];
      d_states.push_back(carried(2, shape.H));
    }
  }

  // Less than two chunks are not worth cutting.
  bool in_one_chunk() const { return shape.N <= 2 * chunk_rows(); }

  // Of all steps, [N, S*H].
  at::Tensor all_gates() const { return gates({0, shape.T}, x.contiguous()); }

  // Leaves the gradients of the input's rows in d_input, where that is defined, or adds them to what is there, and
  // leaves those of the states in `d_states`. Gives those of the weights, where they are needed.
  Tensors run(const at::Tensor& d_input, bool add, const std::vector<bool>& weights_needed) {
    std::vector<bool> needed(1 + shape.states, true);
    needed[0] = d_input.defined();
    shared.add_to_input = add;
    needed.insert(needed.end(), weights_needed.begin(), weights_needed.end());
    packed = pack_layer(shape, own_weights);
    for (const auto& [begin, end] : chunks()) {
      if (d_input.defined()) shared.d_input = d_input.narrow(0, offset(begin), offset(end) - offset(begin));
      const Tensors found = run_chunk(begin, end, needed);
      for (int i = 0; i < shape.states; ++i) d_states[i].narrow(1, 0, found[1 + i].size(1)).copy_(found[1 + i]);
    }
    return shared.sums;
  }

  Tensors d_states;  // [1, B, P], [1, B, H]: dL/dh_n and dL/dc_n, and at the end those of h0 and c0

 private:
  struct Chunk {
    std::int64_t begin, end;  // steps
  };

  static LayerShape one_direction(const LayerShape& layer, int direction) {
    LayerShape one = layer;
    one.D = 1;
    one.reverse = direction == 1;
    return one;
  }

  std::int64_t chunk_rows() const { return std::max(least_rows, least_units / shape.H); }
  std::int64_t active(std::int64_t t) const { return shape.batch_sizes ? shape.batch_sizes[t] : shape.B; }
  std::int64_t offset(std::int64_t t) const {
    if (t == shape.T) return shape.N;
    return shape.batch_sizes ? shape.offsets[t] : t * shape.B;
  }

  // In the order of backward: the step that ran last comes first.
  std::vector<Chunk> chunks() const {
    std::vector<Chunk> result;
    for (std::int64_t t = 0; t < shape.T; ++t) {
      if (active(t) == 0) break;  // nor has any later step a row
      if (result.empty() || offset(t) - offset(result.back().begin) >= chunk_rows()) result.push_back({t, t});
      result.back().end = t + 1;
    }
    if (!shape.reverse) std::reverse(result.begin(), result.end());
    return result;
  }

  // How many of the first `rows` rows of step t have a step before it.
  std::int64_t continued(std::int64_t t, std::int64_t rows) const {
    const std::int64_t before = shape.reverse ? t + 1 : t - 1;
    return before < 0 || before == shape.T ? 0 : std::min(rows, active(before));
  }

  // The state before step t, of the first `rows` rows.
  at::Tensor state_before(const at::Tensor& all, const at::Tensor& initial, std::int64_t t, std::int64_t rows) const {
    const std::int64_t known = continued(t, rows);
    const at::Tensor rest = initial.narrow(0, known, rows - known);
    if (known == 0) return rest;
    return at::cat({all.narrow(0, offset(shape.reverse ? t + 1 : t - 1), known), rest.to(all.scalar_type())});
  }

  // The same of every step of a chunk, one after the other.
  at::Tensor states_before(const at::Tensor& all, const at::Tensor& initial, const Chunk& chunk) const {
    Tensors parts;
    std::int64_t begin = 0, end = 0;  // rows of `all` that follow one another
    const auto add_rows = [&] {
      if (begin < end) parts.push_back(all.narrow(0, begin, end - begin));
    };
    for (std::int64_t t = chunk.begin; t < chunk.end; ++t) {
      const std::int64_t rows = active(t), known = continued(t, rows);
      const std::int64_t from = known ? offset(shape.reverse ? t + 1 : t - 1) : end;
      if (from != end) {
        add_rows();
        begin = from;
      }
      end = from + known;
      if (known == rows) continue;
      add_rows();
      begin = end;
      parts.push_back(initial.narrow(0, known, rows - known).to(all.scalar_type()));
    }
    add_rows();
    if (parts.size() == 1) return parts[0];
    at::Tensor joined = allocate({offset(chunk.end) - offset(chunk.begin), all.size(1)}, all.options());
    return at::cat_out(joined, parts);
  }

  at::Tensor gates(const Chunk& chunk, const at::Tensor& rows) const {
    LayerShape step = shape;
    step.T = 1;
    step.B = step.N = rows.size(0);
    step.batch_sizes = nullptr;
    step.offsets.clear();
    Tensors before = {states_before(h, h0, chunk).unsqueeze(0)};
    if (c.defined()) before.push_back(states_before(c, c0, chunk).to(x.scalar_type()).unsqueeze(0));
    return layer_forward(step, rows, before, own_weights, Save::gates_alone, packed)[0];
  }

  Tensors run_chunk(std::int64_t begin, std::int64_t end, const std::vector<bool>& needed) {
    const std::int64_t base = offset(begin);
    LayerShape part = shape;
    part.T = end - begin;
    part.B = active(begin);
    part.N = offset(end) - base;
    if (part.batch_sizes) {
      part.batch_sizes += begin;
      part.offsets.assign(shape.offsets.begin() + begin, shape.offsets.begin() + end);
      for (std::int64_t& row : part.offsets) row -= base;
    }
    const auto rows_of = [&](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, base, part.N).contiguous() : all;
    };
    const at::Tensor rows = rows_of(x);
    const std::int64_t first = shape.reverse ? end - 1 : begin;
    const auto state_grad = [&](std::size_t i) { return d_states[i].narrow(1, 0, part.B); };
    Tensors saved = {gates({begin, end}, rows)}, states = {state_before(h, h0, first, part.B).unsqueeze(0)},
            grads = {rows_of(d_output), state_grad(0)};
    if (c.defined()) {
      saved.push_back(rows_of(c));
      states.push_back(state_before(c, c0, first, part.B).unsqueeze(0));
      grads.insert(grads.end(), {state_grad(1), rows_of(d_cells)});
    }
    return layer_backward(part, grads, rows, states, own_weights, rows_of(h), saved, needed, samples, &shared);
  }

  const LayerShape shape;
  const std::int64_t samples;
  const at::Tensor x;  // [N, I]
  at::TensorList own_weights;
  Tensors packed;  // for forward, where it runs for several chunks
  SharedBackward shared;
  at::Tensor h, h0, c, c0;  // [N, P], [B, P], [N, H], [B, H]
  at::Tensor d_output, d_cells;  // [N, P], [N, H], or undefined
};

}  // namespace

Tensors layer_backward_recomputing(const LayerShape& shape, at::TensorList grads, const at::Tensor& input,
                                   at::TensorList states, at::TensorList weights, const at::Tensor& output,
                                   at::TensorList saved, const std::vector<bool>& needed, std::int64_t samples) {
  std::deque<Recompute> directions;
  for (int d = 0; d < shape.D; ++d)
    directions.emplace_back(shape, d, grads, input, states, weights, output, saved, samples);
  if (directions[0].in_one_chunk()) {  // so both directions can still run side by side
    Tensors complete;
    for (int d = 0; d < shape.D; ++d) {
      complete.push_back(directions[d].all_gates());
      if (shape.states == 2) complete.push_back(saved[d]);
    }
    return layer_backward(shape, grads, input, states, weights, output, complete, needed, samples);
  }

  const std::size_t each = shape.weights_per_direction();
  Tensors results(1 + states.size()), d_states[2];
  if (needed[0]) results[0] = allocate({shape.N, shape.I}, input.options().dtype(compute_type(input)));
  for (int d = 0; d < shape.D; ++d) {
    const auto first = needed.begin() + 1 + states.size() + d * each;
    const Tensors sums = directions[d].run(results[0], d > 0, {first, first + each});
    results.insert(results.end(), sums.begin(), sums.end());
    for (int i = 0; i < shape.states; ++i) d_states[i].push_back(directions[d].d_states[i]);
  }
  for (std::size_t i = 0; i < states.size(); ++i)
    if (needed[1 + i]) results[1 + i] = at::cat(d_states[i]);
  if (needed[0]) results[0] = results[0].view(input.sizes());
  return results;
}

}  // namespace lstm_fused
