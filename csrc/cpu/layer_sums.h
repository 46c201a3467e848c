// Backward's products over all data rows, as tensors: allocation, packing, and the split over threads, which never
// changes a result.
#pragma once

#include <ATen/ops/empty.h>

#include "layer.h"

namespace lstm_fused {

template <class Storage>
class LayerSums {
  using Compute = compute_t<Storage>;

 public:
  LayerSums(const CellKernels<Storage>& kernels, const at::TensorOptions& compute_options)
      : kernels(kernels), options(compute_options) {}

  // out [N, outputs] = rows [N, K] weights [K, outputs], or += with `add`.
  void multiply_rows(const at::Tensor& out, const at::Tensor& rows, const at::Tensor& weights, bool add) const {
    const std::int64_t N = rows.size(0), K = rows.size(1), outputs = weights.size(1), width = kernels.output_panel;
    const std::int64_t panels = (outputs + width - 1) / width;
    const int threads = useful_threads(N * K * outputs);
    const at::Tensor matrix = weights.contiguous(), packed = at::empty({panels * K * width}, options);
    pack_panels(threads, 1, panels, [&](std::int64_t, std::int64_t i) {
      kernels.pack_rows(data<Storage>(matrix), outputs, K, i, mutable_data<Compute>(packed));
    });
    RowsArgs<Compute> args;
    args.K = K;
    args.outputs = outputs;
    args.rows = data<Compute>(rows);
    args.rows_ld = rows.stride(0);
    args.packed = data<Compute>(packed);
    args.out = mutable_data<Compute>(out);
    args.add = add;
    const bool split_rows = N >= 32 * threads;  // else the panels: a few rows are one tile
    run_team(threads, [&](int member, int members) {
      const auto bound = [&](std::int64_t all, bool split, int part) { return split ? all * part / members : all; };
      kernels.multiply_rows(args, split_rows ? bound(N, true, member) : 0, bound(N, split_rows, member + 1),
                            split_rows ? 0 : bound(panels, true, member), bound(panels, !split_rows, member + 1));
    });
  }

  // out [rows, outputs] = left^T right, or += with `add`; left [N, rows] and right [N, outputs].
  void outer_sum(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right, bool add) const {
    const std::int64_t N = left.size(0), rows = left.size(1), outputs = right.size(1);
    if (N == 0) {
      if (!add) at::Tensor(out).zero_();
      return;
    }
    OuterSumArgs<Compute> args;
    args.N = N;
    args.outputs = outputs;
    args.left = data<Compute>(left);
    args.left_ld = left.stride(0);
    args.right = data<Compute>(right);
    args.right_ld = right.stride(0);
    args.out = mutable_data<Compute>(out);
    args.add = add;
    const int threads = useful_threads(N * rows * outputs);
    const at::Tensor scratch = at::empty({threads, kernels.outer_sum_scratch}, options);
    run_team(threads, [&](int member, int members) {
      kernels.outer_sum(args, mutable_data<Compute>(scratch) + member * kernels.outer_sum_scratch,
                        rows * member / members, rows * (member + 1) / members);
    });
  }

  // [columns] of a matrix [rows, columns]
  at::Tensor sum_columns(const at::Tensor& matrix) const {
    constexpr std::int64_t together = 64;  // columns: some cache lines of every row
    const std::int64_t rows = matrix.size(0), columns = matrix.size(1), blocks = (columns + together - 1) / together;
    const at::Tensor sums = at::empty({columns}, options);
    run_team(useful_threads(16 * rows * columns), [&](int member, int members) {
      const auto bound = [&](int part) { return std::min(columns, blocks * part / members * together); };
      kernels.sum_columns(data<Compute>(matrix), rows, matrix.stride(0), bound(member), bound(member + 1),
                          mutable_data<Compute>(sums));
    });
    return sums;
  }

 private:
  // Threads worth waking for so many multiply-adds: each should have some microseconds of work.
  static int useful_threads(std::int64_t multiply_adds) {
    constexpr std::int64_t worthwhile = 200'000;
    return static_cast<int>(std::clamp<std::int64_t>(multiply_adds / worthwhile, 1, usable_threads()));
  }

  const CellKernels<Storage>& kernels;
  const at::TensorOptions options;
};

}  // namespace lstm_fused
