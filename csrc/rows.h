// Rows moved between a padded batch and the segments it is cut into. take_rows and put_rows are each other's transpose,
// hence each other's derivative, to any order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lstm_fused {

// The rows [*rows.shape, C] out of sources [*, C]. The rows of the sources, in the order of memory and one source after
// the other, are numbered from `first` on; a number that no row has stands for zeros.
at::Tensor take_rows_cpu(at::TensorList sources, const at::Tensor& rows, std::int64_t first);
// The result [*size, C] with the values [*rows.shape, C] in these rows, numbered from `first` on: the sum of several
// for one row, zeros where there is none. A value whose number no row has is left out.
at::Tensor put_rows_cpu(const at::Tensor& values, const at::Tensor& rows, at::IntArrayRef size, std::int64_t first);

// The same out of ATen operations, for every device and under torch.vmap.
at::Tensor take_rows_composite(at::TensorList sources, const at::Tensor& rows, c10::SymInt first);
at::Tensor put_rows_composite(const at::Tensor& values, const at::Tensor& rows, c10::SymIntArrayRef size,
                              c10::SymInt first);

at::Tensor take_rows_autograd(at::TensorList sources, const at::Tensor& rows, c10::SymInt first);
at::Tensor put_rows_autograd(const at::Tensor& values, const at::Tensor& rows, c10::SymIntArrayRef size,
                             c10::SymInt first);

}  // namespace lstm_fused
