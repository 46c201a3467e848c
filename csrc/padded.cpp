#include "padded.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

namespace lstm_fused {

namespace {

LayerShape packed(const LayerShape& padded) {
  LayerShape shape = padded;
  shape.columns.clear();
  shape.B = padded.batch_sizes[0];
  return shape;
}

at::Tensor on_device(const std::vector<std::int64_t>& numbers, std::int64_t count, c10::Device device) {
  // No at::empty: within a transform of torch.func it is wrapped, and has no memory of its own to write to.
  const at::Tensor host(at::detail::empty_cpu({count}, at::kLong, /*pin_memory=*/device.is_cuda()));
  std::copy_n(numbers.begin(), count, host.mutable_data_ptr<std::int64_t>());
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace

Unpadded::Unpadded(const LayerShape& padded, c10::Device device)
    : shape(packed(padded)),
      T(padded.T),
      B(padded.B),
      places(on_device(padded.places(), padded.N, device)),
      columns(on_device(padded.columns, shape.B, device)) {}

at::Tensor Unpadded::rows(const at::Tensor& batch) const {
  return batch.defined() ? batch.reshape({T * B, batch.size(-1)}).index_select(0, places) : batch;
}

at::Tensor Unpadded::states(const at::Tensor& state) const {
  return state.defined() ? state.index_select(1, columns) : state;
}

std::vector<at::Tensor> Unpadded::states(at::TensorList all) const {
  Tensors result;
  for (const at::Tensor& state : all) result.push_back(states(state));
  return result;
}

at::Tensor Unpadded::batch(const at::Tensor& rows) const {
  const std::int64_t C = rows.size(-1);
  return rows.new_zeros({T * B, C}).index_copy(0, places, rows).view({T, B, C});
}

at::Tensor Unpadded::states_of_batch(const at::Tensor& state, const at::Tensor& without) const {
  const at::Tensor others =
      without.defined() ? without.to(state.scalar_type()) : state.new_zeros({state.size(0), B, state.size(2)});
  return others.index_copy(1, columns, state);
}

}  // namespace lstm_fused
