#include "segments.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

namespace lstm_fused {

namespace {

struct Segment {
  std::int64_t row, begin, length;
  bool from_start, to_end;  // of its row
};

void check(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK(tensor.device().is_cpu(), name, ": expected a CPU tensor, got one on ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.sizes() == sizes, name, ": expected shape ", sizes, ", got ", tensor.sizes());
}

}  // namespace

BatchOfSegments cut_segments(const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                             std::int64_t T, std::int64_t B, bool batch_first, std::int64_t layers,
                             bool bidirectional) {
  const std::int64_t step = batch_first ? 1 : B, row = batch_first ? T : 1;  // strides
  at::Tensor length_values, reset_values;
  if (lengths) {
    check("lengths", *lengths, at::kLong, {B});
    length_values = lengths->contiguous();
  }
  if (resets) {
    if (batch_first) check("resets", *resets, at::kBool, {B, T});
    else check("resets", *resets, at::kBool, {T, B});
    reset_values = resets->contiguous();
  }
  const auto* const length_of = lengths ? length_values.const_data_ptr<std::int64_t>() : nullptr;
  const auto* const reset_at = resets ? reset_values.const_data_ptr<bool>() : nullptr;
  const auto is_reset = [&](std::int64_t t, std::int64_t b) { return reset_at && reset_at[t * step + b * row]; };

  std::vector<Segment> segments;
  std::int64_t N = 0;
  for (std::int64_t b = 0; b < B; ++b) {
    const std::int64_t length = length_of ? length_of[b] : T;
    TORCH_CHECK(length >= 0 && length <= T, "lengths: expected values from 0 to ", T, ", got ", length, " at ", b);
    N += length;
    for (std::int64_t begin = 0, t = 1; t <= length; ++t) {
      if (t < length && !is_reset(t, b)) continue;
      segments.push_back({b, begin, t - begin, begin == 0, t == length});
      begin = t;
    }
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.length > b.length; });

  const std::int64_t S = static_cast<std::int64_t>(segments.size()), K = bidirectional ? 2 * layers : layers;
  const auto options = at::TensorOptions(at::kLong);
  const at::Tensor batch_sizes = at::empty({T}, options), data_rows = at::empty({N}, options),
                   sources = at::empty({K, S}, options), endings = at::empty({K, B}, options);
  auto* data_row = data_rows.mutable_data_ptr<std::int64_t>();
  auto* const size = batch_sizes.mutable_data_ptr<std::int64_t>();
  for (std::int64_t t = 0, active = S; t < T; ++t) {
    while (active > 0 && segments[active - 1].length <= t) --active;
    size[t] = active;
    for (std::int64_t s = 0; s < active; ++s) *data_row++ = (segments[s].begin + t) * step + segments[s].row * row;
  }
  auto* const source = sources.mutable_data_ptr<std::int64_t>();
  auto* const ending = endings.mutable_data_ptr<std::int64_t>();
  for (std::int64_t k = 0; k < K; ++k) {
    const bool reverse = bidirectional && k % 2 == 1;
    for (std::int64_t b = 0; b < B; ++b) ending[k * B + b] = K * S + k * B + b;
    for (std::int64_t s = 0; s < S; ++s) {
      const auto& [row_of, begin, length, from_start, to_end] = segments[s];
      const bool starts_row = reverse ? to_end : from_start && !is_reset(0, row_of),
                 ends_row = reverse ? from_start : to_end;
      source[k * S + s] = starts_row ? k * B + row_of : K * B + k;
      if (ends_row) ending[k * B + row_of] = k * S + s;
    }
  }
  return {batch_sizes, data_rows, sources, endings};
}

}  // namespace lstm_fused
