#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

// A vendor GEMM with a small result adds a long sum up in one go, and its rounding errors with it; a large result is
// cut along the sum already. So sums over more than this many terms are cut here where the result is small.
constexpr std::int64_t sum_terms = 256, small_result = 64 * 1024;

void product_of(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool add) {
  const auto product = [&](at::Tensor rows_out, const at::Tensor& rows) {
    if (add) rows_out.addmm_(rows, b);
    else at::mm_out(rows_out, rows, b);
  };
  if (at::globalContext().deterministicAlgorithms()) in_fixed_blocks(out, a, product);
  else product(out, a);
}

void product_in_pieces(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool add) {
  const std::int64_t terms = a.size(1);
  if (terms <= 2 * sum_terms || out.numel() > small_result) return product_of(out, a, b, add);
  const at::Tensor piece = at::empty_like(out);  // a GEMM that adds to `out` itself may go on in the same running sum
  for (std::int64_t begin = 0; begin < terms; begin += sum_terms) {
    const std::int64_t count = std::min(sum_terms, terms - begin);
    const bool into_piece = add || begin > 0;
    product_of(into_piece ? piece : out, a.narrow(1, begin, count), b.narrow(0, begin, count), false);
    if (into_piece) out.add_(piece);
  }
}

}  // namespace

void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b) { product_in_pieces(out, a, b, false); }

void multiply_add(at::Tensor out, const at::Tensor& a, const at::Tensor& b) { product_in_pieces(out, a, b, true); }

at::Tensor multiplied(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  multiply(out, a, b);
  return out;
}

}  // namespace lstm_fused
