#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "layer.h"

namespace lstm_fused {

namespace {

constexpr std::int64_t block_rows = 128;  // of the result, when bits must not depend on the number of threads

template <class Product>
void in_fixed_blocks(const at::Tensor& out, const at::Tensor& a, const Product& product) {
  const std::int64_t rows = out.size(0), blocks = (rows + block_rows - 1) / block_rows;
  // Inside a parallel region a vendor GEMM uses one thread. A team of one is no parallel region, so even a single
  // block goes through a full team, and one member does it.
  run_team(usable_threads(), [&](int member, int members) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (std::int64_t i = member; i < blocks; i += members) {
      const std::int64_t begin = i * block_rows, count = std::min(block_rows, rows - begin);
      product(out.narrow(0, begin, count), a.narrow(0, begin, count));
    }
  });
}

}  // namespace

void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  if (!at::globalContext().deterministicAlgorithms()) {
    at::mm_out(out, a, b);
    return;
  }
  in_fixed_blocks(out, a, [&](at::Tensor block, const at::Tensor& rows) { at::mm_out(block, rows, b); });
}

void multiply_add(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  if (!at::globalContext().deterministicAlgorithms()) {
    out.addmm_(a, b);
    return;
  }
  in_fixed_blocks(out, a, [&](at::Tensor block, const at::Tensor& rows) { block.addmm_(rows, b); });
}

at::Tensor multiplied(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  multiply(out, a, b);
  return out;
}

}  // namespace lstm_fused
