#include "steps.h"

#include <ATen/ATen.h>

#include "stream.h"

namespace lstm_fused::cuda {

namespace {

// Numbers on their way to the device.
at::Tensor numbers(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, at::TensorOptions(at::kLong).pinned_memory(like.is_cuda()));
}
at::Tensor sent(const at::Tensor& numbers, const at::Tensor& like) {
  return numbers.to(like.device(), /*non_blocking=*/true);
}

// For batch sizes that the host does not know: step and row of the batch of every data row, [N]. Data rows beyond the
// last step's have step T.
struct Places {
  at::Tensor step, row;
};
Places places(const LayerShape& shape, const at::Tensor& table) {
  const at::Tensor ends = table[0] + table[1], all = at::arange(shape.N, ends.options());
  const at::Tensor step = at::searchsorted(ends, all, /*out_int32=*/false, /*right=*/true);
  return {step, all - table[1].index_select(0, step.clamp_max(shape.T - 1))};
}

at::Tensor not_yet_written(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const auto words = options.dtype().itemsize() == 2 ? at::kShort : at::kInt;
  return at::full(sizes, -1, options.dtype(words)).view(c10::typeMetaToScalarType(options.dtype()));
}

}  // namespace

at::Tensor sequence_table(const LayerShape& shape, const at::Tensor& input) {
  if (!shape.packed()) return {};
  TORCH_CHECK(shape.device_batch_sizes.defined() || !input.is_cuda() || !capturing(),
              "batch_sizes: expected none in a CUDA graph, which would keep those of the host at its capture; pass a "
              "padded batch and lengths on the device");
  if (shape.device_batch_sizes.defined()) {
    const at::Tensor sizes = shape.device_batch_sizes.to(at::kLong);
    return at::stack({sizes, sizes.cumsum(0) - sizes});
  }
  const at::Tensor table = numbers({2, shape.T}, input);
  auto* const values = table.mutable_data_ptr<std::int64_t>();
  std::copy_n(shape.batch_sizes, shape.T, values);
  std::copy_n(shape.offsets.data(), shape.T, values + shape.T);
  return sent(table, input);
}

Sequence sequence_on_device(const LayerShape& shape, int direction, const at::Tensor& table) {
  Sequence sequence = {shape.T, shape.B, direction == 1 || shape.reverse, nullptr, nullptr};
  if (table.defined()) {
    sequence.batch_sizes = table.const_data_ptr<std::int64_t>();
    sequence.offsets = sequence.batch_sizes + shape.T;
  }
  return sequence;
}

at::Tensor of_data_rows(const LayerShape& shape, at::IntArrayRef sizes, const at::TensorOptions& options, bool hint) {
  if (shape.device_batch_sizes.defined()) return at::zeros(sizes, options);
  return hint ? not_yet_written(sizes, options) : at::empty(sizes, options);
}

at::Tensor counters(const LayerShape& shape, const Plan& plan, const at::TensorOptions& options) {
  return at::zeros({shape.D, (shape.B + plan.rows_per_block - 1) / plan.rows_per_block}, options.dtype(at::kInt));
}

at::Tensor exchange(const Plan& plan, std::int64_t steps, std::int64_t batch, std::int64_t K,
                    const at::TensorOptions& options) {
  if (!plan.even || batch == 0) return {};
  const std::int64_t columns = slab_bytes / static_cast<std::int64_t>(options.dtype().itemsize());
  const std::int64_t row_tiles = (batch + tile_rows - 1) / tile_rows, slabs = (K + columns - 1) / columns;
  const at::Tensor words = not_yet_written({steps, row_tiles, slabs, tile_rows, columns}, options);
  const std::int64_t rows = row_tiles * tile_rows - batch, beyond = slabs * columns - K;
  if (rows > 0) words.select(1, row_tiles - 1).narrow(2, tile_rows - rows, rows).zero_();
  if (beyond > 0) words.select(2, slabs - 1).narrow(3, columns - beyond, beyond).zero_();
  return words;
}

at::Tensor whole(const at::Tensor& tensor) {
  const at::Tensor found = tensor.contiguous();
  return reinterpret_cast<std::uintptr_t>(found.const_data_ptr()) % 16 ? found.clone() : found;
}

at::Tensor first_rows(const LayerShape& shape, bool reverse, const at::Tensor& table, const at::Tensor& like) {
  if (shape.device_batch_sizes.defined()) {
    // A row has as many steps as there are sizes above its number. Without a step it is given the last data row, which
    // is then nobody's.
    const at::Tensor row = at::arange(shape.B, table.options());
    const at::Tensor steps = (table[0].unsqueeze(0) > row.unsqueeze(1)).sum(1);
    const at::Tensor first = reverse ? table[1].index_select(0, (steps - 1).clamp_min(0)) + row : row;
    return at::where(steps > 0, first, at::full_like(first, shape.N - 1));
  }
  const at::Tensor rows = numbers({shape.B}, like);
  auto* const values = rows.mutable_data_ptr<std::int64_t>();
  for (std::int64_t b = 0, t = reverse ? shape.T - 1 : 0; b < shape.B; ++b) {
    while (reverse && shape.batch_sizes && shape.batch_sizes[t] <= b) --t;
    values[b] = (shape.batch_sizes ? shape.offsets[t] : t * shape.B) + b;
  }
  return sent(rows, like);
}

at::Tensor begins_anew(const LayerShape& shape, bool reverse) {
  const at::Tensor& before = shape.resets.before;
  if (!before.defined()) return {};
  const at::Tensor rows =
      reverse ? at::cat({before.narrow(0, 1, shape.T - 1), at::zeros({1, shape.B}, before.options())}) : before;
  return rows.reshape({shape.N, 1});
}

at::Tensor previous_rows(const LayerShape& shape, bool reverse, const at::Tensor& table, const at::Tensor& all,
                         const at::Tensor& initial) {
  const std::int64_t N = shape.N, B = shape.B;
  if (N == 0) return all;
  if (!shape.packed())
    return reverse ? at::cat({all.narrow(0, B, N - B), initial}) : at::cat({initial, all.narrow(0, 0, N - B)});
  const at::Tensor found = at::cat({all, initial});
  if (shape.device_batch_sizes.defined()) {
    const auto [step, row] = places(shape, table);
    const at::Tensor before = step + (reverse ? 1 : -1), known_step = before.clamp(0, shape.T - 1);
    const at::Tensor known =
        (before >= 0).logical_and(before < shape.T).logical_and(row < table[0].index_select(0, known_step));
    const at::Tensor index = at::where(known, table[1].index_select(0, known_step) + row, row.clamp_max(B - 1) + N);
    return found.index_select(0, index);
  }
  const at::Tensor rows = numbers({N}, all);
  auto* row = rows.mutable_data_ptr<std::int64_t>();
  for (std::int64_t t = 0; t < shape.T; ++t) {
    const std::int64_t before = reverse ? t + 1 : t - 1;
    const std::int64_t known = before < 0 || before == shape.T ? 0 : shape.batch_sizes[before];
    for (std::int64_t b = 0; b < shape.batch_sizes[t]; ++b) *row++ = b < known ? shape.offsets[before] + b : N + b;
  }
  return found.index_select(0, sent(rows, all));
}

}  // namespace lstm_fused::cuda
