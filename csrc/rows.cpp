#include "rows.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <cstring>

#include "cpu/memory.h"
#include "cpu/runtime.h"
#include "cpu/team.h"
#include "node.h"

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;

void check_numbers(const at::Tensor& rows) {
  TORCH_CHECK(rows.scalar_type() == at::kLong, "rows: expected dtype Long, got ", rows.scalar_type());
}

void check_take(at::TensorList sources, const at::Tensor& rows) {
  check_numbers(rows);
  TORCH_CHECK(!sources.empty(), "sources: expected at least one tensor, got none");
  const at::Tensor& like = sources[0];
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const at::Tensor& source = sources[i];
    TORCH_CHECK(source.dim() > 0 && source.sym_size(-1) == like.sym_size(-1) && source.dtype() == like.dtype() &&
                    source.device() == like.device(),
                "sources[", i, "]: expected rows of ", like.dim() ? like.sym_size(-1) : c10::SymInt(0), " x ",
                like.scalar_type(), " on ", like.device(), ", got ", source.sym_sizes(), " of ", source.scalar_type(),
                " on ", source.device());
  }
}

void check_put(const at::Tensor& values, const at::Tensor& rows, c10::SymIntArrayRef size) {
  check_numbers(rows);
  const auto expected = rows.sym_sizes(), got = values.sym_sizes();
  TORCH_CHECK(got.size() == expected.size() + 1 && got.slice(0, expected.size()) == expected,
              "values: expected a row for each of ", expected, ", got shape ", got);
  for (const c10::SymInt& s : size) TORCH_SYM_CHECK(s.sym_ge(0), "size: expected none below 0, got ", size);
}

// `outer` dimensions of rows of so many columns.
template <class Size>
std::vector<Size> with_columns(c10::ArrayRef<Size> outer, Size columns) {
  std::vector<Size> sizes = outer.vec();
  sizes.push_back(std::move(columns));
  return sizes;
}

// Calls move(begin, end) for parts of `count` rows, on as many threads as moving them is worth.
template <class Move>
void move_rows(std::int64_t count, std::size_t row_bytes, Move move) {
  constexpr std::int64_t least_bytes = 128 << 10;  // some microseconds' work, more than waking a thread takes
  const std::int64_t most = std::max<std::int64_t>(1, count * static_cast<std::int64_t>(row_bytes) / least_bytes);
  const int threads = contended() ? 1 : static_cast<int>(std::min<std::int64_t>(most, usable_threads()));
  run_team(threads, static_cast<double>(count) * static_cast<double>(row_bytes),
           [&](std::int64_t member, std::int64_t members) {
             move(count * member / members, count * (member + 1) / members);
           });
}

using Add = void (*)(void* sum, const void* value, std::int64_t columns);
Add add_for(const at::Tensor& tensor) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tensor.scalar_type(), "put_rows", [] {
    return static_cast<Add>([](void* sum, const void* value, std::int64_t columns) {
      for (std::int64_t c = 0; c < columns; ++c)
        static_cast<scalar_t*>(sum)[c] += static_cast<const scalar_t*>(value)[c];
    });
  });
}

}  // namespace

at::Tensor take_rows_cpu(at::TensorList sources, const at::Tensor& rows, std::int64_t first) {
  check_take(sources, rows);
  struct Source {
    const char* data;
    std::int64_t rows;
  };
  const std::int64_t C = sources[0].size(-1);
  const std::size_t row_bytes = C * sources[0].element_size();
  Tensors dense;  // own what `from` points into
  std::vector<Source> from;
  for (const at::Tensor& source : sources) {
    dense.push_back(source.contiguous());
    from.push_back({static_cast<const char*>(dense.back().const_data_ptr()), C ? source.numel() / C : 0});
  }
  const at::Tensor dense_rows = rows.contiguous();
  const auto* const row = dense_rows.const_data_ptr<std::int64_t>();
  const at::Tensor result = allocate(with_columns(rows.sizes(), C), sources[0].options());
  auto* const to = static_cast<char*>(result.mutable_data_ptr());
  move_rows(rows.numel(), row_bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      std::int64_t number = row[n] - first;
      auto source = from.begin();
      while (source != from.end() && number >= source->rows) number -= source++->rows;
      if (number < 0 || source == from.end()) std::memset(to + n * row_bytes, 0, row_bytes);
      else std::memcpy(to + n * row_bytes, source->data + number * row_bytes, row_bytes);
    }
  });
  return result;
}

at::Tensor put_rows_cpu(const at::Tensor& values, const at::Tensor& rows, at::IntArrayRef size, std::int64_t first) {
  check_put(values, rows, c10::fromIntArrayRefSlow(size));
  const std::int64_t C = values.size(-1), N = rows.numel(), R = c10::multiply_integers(size);
  const std::size_t row_bytes = C * values.element_size();
  const at::Tensor dense = values.contiguous(), dense_rows = rows.contiguous();
  const auto* const row = dense_rows.const_data_ptr<std::int64_t>();
  const Add add = add_for(values);
  // Of every row of the result the first of its values, and of every value the next for the same row; N: none.
  std::vector<std::int64_t> first_value(R, N), next_value(N, N);
  for (std::int64_t n = N - 1; n >= 0; --n) {
    const std::int64_t number = row[n] - first;
    if (number < 0 || number >= R) continue;
    next_value[n] = first_value[number];
    first_value[number] = n;
  }
  const at::Tensor result = allocate(with_columns(size, C), values.options());
  const auto* const from = static_cast<const char*>(dense.const_data_ptr());
  auto* const to = static_cast<char*>(result.mutable_data_ptr());
  move_rows(R, row_bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::int64_t n = first_value[r];
      if (n == N) {
        std::memset(to + r * row_bytes, 0, row_bytes);
        continue;
      }
      std::memcpy(to + r * row_bytes, from + n * row_bytes, row_bytes);
      while ((n = next_value[n]) != N) add(to + r * row_bytes, from + n * row_bytes, C);
    }
  });
  return result;
}

namespace {

// Row numbers as an index into R rows and one more, for all that have no row there.
at::Tensor index_of(const at::Tensor& rows, const c10::SymInt& R, const c10::SymInt& first, c10::Device device) {
  const at::Tensor number = rows.to(device).reshape_symint({rows.sym_numel()}).sub(first);
  return number.masked_fill(number.lt(0).logical_or(number.ge(R)), R);
}

}  // namespace

at::Tensor take_rows_composite(at::TensorList sources, const at::Tensor& rows, c10::SymInt first) {
  check_take(sources, rows);
  const c10::SymInt C = sources[0].sym_size(-1);
  Tensors all;
  c10::SymInt R = 0;
  for (const at::Tensor& source : sources) {
    const c10::SymInt R_source = c10::multiply_integers(source.sym_sizes().slice(0, source.dim() - 1));
    all.push_back(source.reshape_symint({R_source, C}));
    R += R_source;
  }
  all.push_back(sources[0].new_zeros_symint({1, C}));
  const at::Tensor index = index_of(rows, R, first, sources[0].device());
  return at::cat(all).index_select(0, index).view_symint(with_columns(rows.sym_sizes(), C));
}

at::Tensor put_rows_composite(const at::Tensor& values, const at::Tensor& rows, c10::SymIntArrayRef size,
                              c10::SymInt first) {
  check_put(values, rows, size);
  const c10::SymInt C = values.sym_size(-1), R = c10::multiply_integers(size);
  const at::Tensor index = index_of(rows, R, first, values.device());
  const at::Tensor sums =
      values.new_zeros_symint({R + 1, C}).index_add(0, index, values.reshape_symint({rows.sym_numel(), C}));
  return sums.narrow_symint(0, 0, R).view_symint(with_columns(size, C));
}

namespace {

using TakeRows = decltype(take_rows_autograd);
using PutRows = decltype(put_rows_autograd);
const auto& take_rows_op() {
  static const auto op = find_op<TakeRows>("lstm_fused::take_rows");
  return op;
}
const auto& put_rows_op() {
  static const auto op = find_op<PutRows>("lstm_fused::put_rows");
  return op;
}

// The derivatives of both. kept: rows
class RowsNode : public KeepingNode {
 public:
  c10::SymInt first;

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(kept, true);
    args.collect(first);
  }
  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(kept);
    saved.before(first);
    Tensors results = apply(Tensors(grads));
    saved.after(kept);
    saved.after(first);
    return results;
  }
};

class PutRowsBackward : public RowsNode {
 public:
  std::string name() const override { return "PutRowsBackward"; }
  Tensors apply(Tensors&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    return {take_rows_op().call(grads, unpack()[0], first)};
  }
};

class TakeRowsBackward : public RowsNode {
 public:
  std::vector<std::vector<c10::SymInt>> sizes;  // of every source, without its columns

  std::string name() const override { return "TakeRowsBackward"; }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    RowsNode::compiled_args(args);
    args.collect(sizes);
  }
  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(sizes);
    Tensors results = RowsNode::apply_with_saved(grads, saved);
    saved.after(sizes);
    return results;
  }
  Tensors apply(Tensors&& grads) override {
    Tensors results(sizes.size());
    if (!grads[0].defined()) return results;
    const at::Tensor rows = unpack()[0];
    c10::SymInt begin = first;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (task_should_compute_output(i)) results[i] = put_rows_op().call(grads[0], rows, sizes[i], begin);
      begin += c10::multiply_integers(sizes[i]);
    }
    return results;
  }
};

}  // namespace

at::Tensor take_rows_autograd(at::TensorList sources, const at::Tensor& rows, c10::SymInt first) {
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = take_rows_op().call(sources, rows, first);
  }
  if (at::GradMode::is_enabled() && std::any_of(sources.begin(), sources.end(), requires_grad)) {
    const auto node = make_node<TakeRowsBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(sources));
    node->keep(rows);
    node->first = first;
    for (const at::Tensor& source : sources) node->sizes.push_back(source.sym_sizes().slice(0, source.dim() - 1).vec());
    torch::autograd::set_history(result, node);
  }
  if (std::any_of(sources.begin(), sources.end(), has_tangent)) {
    Tensors tangents;
    for (const at::Tensor& source : sources)
      tangents.push_back(has_tangent(source) ? source._fw_grad(0) : at::zeros_like(source));
    result._set_fw_grad(take_rows_op().call(tangents, rows, first), 0, false);
  }
  return result;
}

at::Tensor put_rows_autograd(const at::Tensor& values, const at::Tensor& rows, c10::SymIntArrayRef size,
                             c10::SymInt first) {
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = put_rows_op().call(values, rows, size, first);
  }
  if (at::GradMode::is_enabled() && requires_grad(values)) {
    const auto node = make_node<PutRowsBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(values));
    node->keep(rows);
    node->first = first;
    torch::autograd::set_history(result, node);
  }
  if (has_tangent(values)) result._set_fw_grad(put_rows_op().call(values._fw_grad(0), rows, size, first), 0, false);
  return result;
}

}  // namespace lstm_fused
