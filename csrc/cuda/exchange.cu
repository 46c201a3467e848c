// Rows of what blocks have handed each other.
#include "exchange.cuh"
#include "launch.cuh"

namespace lstm_fused::cuda {

template <class Storage>
std::string launch_untile(const TilesArgs<Storage>& args, void* stream) {
  const std::int64_t elements =
      exchange_elements<Storage>(args.sequence.steps, args.sequence.batch, std::int64_t{args.gates} * args.H);
  const std::int64_t blocks = std::min<std::int64_t>(blocks_for(elements, warps * Exchange<Storage>::tile),
                                                     8 * current_device().multiprocessors);
  TilesArgs<Storage> own = args;
  void* arguments[] = {&own};
  return error_text("cudaLaunchKernel", cudaLaunchKernel(reinterpret_cast<const void*>(untile_kernel<Storage>),
                                                         dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments,
                                                         0, static_cast<cudaStream_t>(stream)));
}

template std::string launch_untile(const TilesArgs<float>&, void*);
template std::string launch_untile(const TilesArgs<BFloat16>&, void*);
template std::string launch_untile(const TilesArgs<Float16>&, void*);

}  // namespace lstm_fused::cuda
