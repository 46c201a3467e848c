// How the data rows of a layer's steps follow each other in time, for the kernels and for products over all steps.
#pragma once

#include "../checks.h"
#include "plan.h"

namespace lstm_fused::cuda {

// A packed sequence's steps on the device: [2, T], batch sizes and offsets; what the others here are given as `table`.
// Undefined for a padded one.
at::Tensor sequence_table(const LayerShape& shape, const at::Tensor& input);

Sequence sequence_on_device(const LayerShape& shape, int direction, const at::Tensor& table);

// Room for data rows. Where the host does not know how many there are, those beyond them count as zeros in products.
// `hint`: not_yet (values.cuh) all over, for blocks that await each other's results.
at::Tensor of_data_rows(const LayerShape& shape, at::IntArrayRef sizes, const at::TensorOptions& options,
                        bool hint = false);

// Where blocks that have the same rows count themselves in, for each direction.
at::Tensor counters(const LayerShape& shape, const Plan& plan, const at::TensorOptions& options);

// What blocks of an even plan hand each other in so many steps, of K columns (exchange.cuh); else undefined. Rows and
// columns of tiles that there are not, which nobody writes and everybody reads, are zero.
at::Tensor exchange(const Plan& plan, std::int64_t steps, std::int64_t batch, std::int64_t K,
                    const at::TensorOptions& options);

// Contiguous, and at a multiple of 16 bytes, which kernels read at once.
at::Tensor whole(const at::Tensor& tensor);

// The data row in which each row of the batch has its first step, in the direction of time: [B].
at::Tensor first_rows(const LayerShape& shape, bool reverse, const at::Tensor& table, const at::Tensor& like);

// Of every data row whether its row of the batch begins anew with it: bool [N, 1]. Undefined: none does.
at::Tensor begins_anew(const LayerShape& shape, bool reverse);

// Of every data row what `all` [N, *] has of the row's step before, in the direction of time, or `initial` [B, *] for
// its first step: [N, *].
at::Tensor previous_rows(const LayerShape& shape, bool reverse, const at::Tensor& table, const at::Tensor& all,
                         const at::Tensor& initial);

}  // namespace lstm_fused::cuda
