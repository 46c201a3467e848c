// The backward kernels of every cell and storage type.
#include "backward.cuh"
#include "even_backward.cuh"
#include "launch.cuh"

namespace lstm_fused::cuda {

template <class Storage>
std::string launch_backward(std::string_view cell, const Plan& plan, const BackwardArgs<Storage>& args,
                            const std::int64_t* host_batch_sizes, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  std::string error = "no cell of this name";
  host::with_cell(cell, [&](auto found) {
    using Cell = decltype(found);
    if constexpr (sizeof(Storage) <= 4)
      if (plan.even) {
        const bool one = plan.rows_per_block <= rows_apart(plan.wide);
        auto kernel = one ? even_backward_kernel<Cell, Storage, 1, false>
                          : even_backward_kernel<Cell, Storage, most_items, false>;
        if constexpr (sizeof(Storage) == 4)
          if (plan.wide)
            kernel = one ? even_backward_kernel<Cell, Storage, 1, true>
                         : even_backward_kernel<Cell, Storage, most_items, true>;
        error = start(kernel, args, plan, args.sequence.batch, -1, args.sequence.steps, cuda_stream);
        TilesArgs<Storage> tiles = {
            args.sequence, true, args.exchange, args.d_gates, Cell::saved * args.H, static_cast<int>(args.H),
            Cell::saved};
        for (int k = 0; k < Cell::saved; ++k) tiles.order |= gate_of_column<Cell>(k) << 4 * k;
        if (error.empty()) error = launch_untile<Storage>(tiles, stream);
        return;
      }
    auto kernel = plan.rows == 1 ? backward_kernel<Cell, Storage, 1> : backward_kernel<Cell, Storage, 8>;
    if constexpr (sizeof(Storage) <= 4)
      if (plan.tensor)
        kernel = plan.split ? backward_kernel<Cell, Storage, split_tensor> : backward_kernel<Cell, Storage, tensor>;
    const std::int64_t steps = args.sequence.steps;
    if (plan.kind != Kind::step) {
      error = start(kernel, args, plan, args.sequence.batch, -1, steps, cuda_stream);
      return;
    }
    const auto active = [&](std::int64_t step) {
      if (step < 0 || step == steps) return std::int64_t{0};
      return host_batch_sizes ? host_batch_sizes[args.sequence.time(step)] : args.sequence.batch;
    };
    error.clear();
    for (std::int64_t step = steps - 1; step >= -1 && error.empty(); --step) {
      const std::int64_t rows = std::max(active(step), active(step + 1));
      if (rows > 0) error = start(kernel, args, plan, rows, step, step + 1, cuda_stream);
    }
  });
  return error;
}

template std::string launch_backward(std::string_view, const Plan&, const BackwardArgs<float>&, const std::int64_t*,
                                     void*);
template std::string launch_backward(std::string_view, const Plan&, const BackwardArgs<double>&, const std::int64_t*,
                                     void*);
template std::string launch_backward(std::string_view, const Plan&, const BackwardArgs<BFloat16>&, const std::int64_t*,
                                     void*);
template std::string launch_backward(std::string_view, const Plan&, const BackwardArgs<Float16>&, const std::int64_t*,
                                     void*);

}  // namespace lstm_fused::cuda
