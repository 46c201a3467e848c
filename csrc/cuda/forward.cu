// The forward kernels of every cell and storage type.
#include "even_forward.cuh"
#include "forward.cuh"
#include "launch.cuh"

namespace lstm_fused::cuda {

template <class Storage>
std::string launch_forward(std::string_view cell, const Plan& plan, const ForwardArgs<Storage>& args,
                           const std::int64_t* host_batch_sizes, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  std::string error = "no cell of this name";
  host::with_cell(cell, [&](auto found) {
    using Cell = decltype(found);
    if constexpr (sizeof(Storage) <= 4)
      if (plan.even) {
        const bool one = plan.rows_per_block <= rows_apart(plan.wide);
        auto kernel =
            one ? even_forward_kernel<Cell, Storage, 1, false> : even_forward_kernel<Cell, Storage, most_items, false>;
        if constexpr (sizeof(Storage) == 4)
          if (plan.wide)
            kernel = one ? even_forward_kernel<Cell, Storage, 1, true>
                         : even_forward_kernel<Cell, Storage, most_items, true>;
        error = start(kernel, args, plan, args.sequence.batch, 0, args.sequence.steps, cuda_stream);
        const std::int64_t initial = exchange_elements<Storage>(1, args.sequence.batch, args.H);
        if (error.empty())
          error = launch_untile<Storage>(
              {args.sequence, false, args.exchange + initial, args.output, args.output_ld, static_cast<int>(args.H)},
              stream);
        return;
      }
    auto kernel = plan.rows == 1 ? forward_kernel<Cell, Storage, 1> : forward_kernel<Cell, Storage, 8>;
    if constexpr (sizeof(Storage) <= 4)
      if (plan.tensor)
        kernel = plan.split ? forward_kernel<Cell, Storage, split_tensor> : forward_kernel<Cell, Storage, tensor>;
    if (plan.kind != Kind::step) {
      error = start(kernel, args, plan, args.sequence.batch, 0, args.sequence.steps, cuda_stream);
      return;
    }
    error.clear();
    for (std::int64_t step = 0; step < args.sequence.steps && error.empty(); ++step) {
      const std::int64_t t = args.sequence.time(step);
      const std::int64_t active = host_batch_sizes ? host_batch_sizes[t] : args.sequence.batch;
      if (active > 0) error = start(kernel, args, plan, active, step, step + 1, cuda_stream);
    }
  });
  return error;
}

template std::string launch_forward(std::string_view, const Plan&, const ForwardArgs<float>&, const std::int64_t*,
                                    void*);
template std::string launch_forward(std::string_view, const Plan&, const ForwardArgs<double>&, const std::int64_t*,
                                    void*);
template std::string launch_forward(std::string_view, const Plan&, const ForwardArgs<BFloat16>&, const std::int64_t*,
                                    void*);
template std::string launch_forward(std::string_view, const Plan&, const ForwardArgs<Float16>&, const std::int64_t*,
                                    void*);

Device current_device() {
  int device = 0, multiprocessors = 0, shared = 0, cooperative = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return {multiprocessors, shared, cooperative != 0, major >= 8};
}

}  // namespace lstm_fused::cuda
