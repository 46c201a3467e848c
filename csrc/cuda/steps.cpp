#include "steps.h"

#include <ATen/ATen.h>

namespace lstm_fused::cuda {

at::Tensor sequence_table(const LayerShape& shape, const at::Tensor& input) {
  if (!shape.batch_sizes) return {};
  const at::Tensor table = at::empty({2, shape.T}, at::TensorOptions(at::kLong).pinned_memory(input.is_cuda()));
  auto* const values = table.mutable_data_ptr<std::int64_t>();
  std::copy_n(shape.batch_sizes, shape.T, values);
  std::copy_n(shape.offsets.data(), shape.T, values + shape.T);
  return table.to(input.device(), /*non_blocking=*/true);
}

Sequence sequence_on_device(const LayerShape& shape, int direction, const at::Tensor& table) {
  Sequence sequence = {shape.T, shape.B, direction == 1 || shape.reverse, nullptr, nullptr};
  if (table.defined()) {
    sequence.batch_sizes = table.const_data_ptr<std::int64_t>();
    sequence.offsets = sequence.batch_sizes + shape.T;
  }
  return sequence;
}

at::Tensor first_rows(const LayerShape& shape, bool reverse, const at::Tensor& like) {
  const at::Tensor rows = at::empty({shape.B}, at::TensorOptions(at::kLong).pinned_memory(like.is_cuda()));
  auto* const values = rows.mutable_data_ptr<std::int64_t>();
  for (std::int64_t b = 0, t = reverse ? shape.T - 1 : 0; b < shape.B; ++b) {
    if (shape.batch_sizes) {
      if (reverse)
        while (shape.batch_sizes[t] <= b) --t;
      values[b] = shape.offsets[t] + b;
    } else {
      values[b] = t * shape.B + b;
    }
  }
  return rows.to(like.device(), /*non_blocking=*/true);
}

at::Tensor previous_rows(const LayerShape& shape, bool reverse, const at::Tensor& all, const at::Tensor& initial) {
  const std::int64_t N = shape.N, B = shape.B;
  if (N == 0) return all;
  if (!shape.batch_sizes)
    return reverse ? at::cat({all.narrow(0, B, N - B), initial}) : at::cat({initial, all.narrow(0, 0, N - B)});
  const at::Tensor rows = at::empty({N}, at::TensorOptions(at::kLong).pinned_memory(all.is_cuda()));
  auto* row = rows.mutable_data_ptr<std::int64_t>();
  for (std::int64_t t = 0; t < shape.T; ++t) {
    const std::int64_t before = reverse ? t + 1 : t - 1;
    const std::int64_t known = before < 0 || before == shape.T ? 0 : shape.batch_sizes[before];
    for (std::int64_t b = 0; b < shape.batch_sizes[t]; ++b) *row++ = b < known ? shape.offsets[before] + b : N + b;
  }
  return at::cat({all, initial}).index_select(0, rows.to(all.device(), /*non_blocking=*/true));
}

}  // namespace lstm_fused::cuda
