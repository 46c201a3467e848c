// The gradients of weights as sums over data rows, in ATen operations.
#pragma once

#include <ATen/ATen.h>

namespace lstm_fused {

// With samples, rows belong to them in turn, and each has a sum of its own.
struct RowSums {
  std::int64_t samples;

  at::Tensor apart(const at::Tensor& rows) const {
    return rows.reshape({rows.size(0) / samples, samples, rows.size(1)});
  }
  at::Tensor operator()(const at::Tensor& d) const { return samples ? apart(d).sum(0) : d.sum(0); }
  at::Tensor operator()(const at::Tensor& d, const at::Tensor& rows) const {
    if (!samples) return d.t().matmul(rows);
    return apart(d).permute({1, 2, 0}).matmul(apart(rows).permute({1, 0, 2}));
  }
};

}  // namespace lstm_fused
