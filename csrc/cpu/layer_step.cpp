#include <atomic>

#include "layer.h"
#include "memory.h"

namespace lstm_fused {

namespace {

// Below this many weight bytes a second thread costs more than it reads.
constexpr std::int64_t bytes_per_thread = 128 << 10;

// Whether this call reads the weights from their end: every other one does, so that it meets first what the one before
// has left in the cache, where that is not all of them.
bool every_other_call() {
  static std::atomic<bool> last{false};
  const bool now = !last.load(std::memory_order_relaxed);
  last.store(now, std::memory_order_relaxed);
  return now;
}

template <class Storage>
void run_step(const LayerShape& shape, const CellKernels<Storage>& kernels, const StepArgs<Storage>& args) {
  const std::int64_t bytes = shape.G * shape.H * (shape.I + shape.H) * static_cast<std::int64_t>(sizeof(Storage));
  const std::int64_t panels = (shape.H + kernels.unit_panel - 1) / kernels.unit_panel;
  const std::int64_t useful = std::max<std::int64_t>(1, std::min(panels, bytes / bytes_per_thread));
  const int threads = contended() ? 1 : static_cast<int>(std::min<std::int64_t>(usable_threads(), useful));
  run_team(threads, static_cast<double>(bytes) / 4, [&](int member, int members) {
    const auto bound = [&](int part) { return std::min(shape.H, panels * part / members * kernels.unit_panel); };
    kernels.step(args, bound(member), bound(member + 1));
  });
}

}  // namespace

bool single_step(const LayerShape& shape) {
  return shape.T == 1 && shape.B <= max_step_batch && shape.B > 0 && !shape.projected && !shape.batch_sizes &&
         !shape.resets.before.defined();
}

std::vector<at::Tensor> step_forward(const LayerShape& shape, const at::Tensor& input, at::TensorList states,
                                     at::TensorList weights, Save save) {
  return with_storage(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    using Compute = compute_t<Storage>;
    const CellKernels<Storage> kernels = active_isa().kernels<Storage>(shape.cell);
    const std::int64_t B = shape.B, H = shape.H;
    const bool last_unit_first = every_other_call();
    std::vector<at::Tensor> results;
    for (int i = 0; i < shape.states; ++i) results.push_back(allocate({shape.D, B, H}, input.options()));
    const at::Tensor x = input.contiguous();
    const at::Tensor h0 = states.empty() ? at::Tensor() : states[0].contiguous();
    const at::Tensor c0 = states.size() < 2 ? at::Tensor() : states[1].contiguous();
    for (int d = 0; d < shape.D; ++d) {
      const DirectionWeights w = direction_weights(shape, weights, d);
      const at::Tensor contiguous[] = {w.w_ih.contiguous(), w.w_hh.contiguous(),
                                       shape.bias ? w.b_ih.contiguous() : at::Tensor(),
                                       shape.bias ? w.b_hh.contiguous() : at::Tensor()};
      StepArgs<Storage> args;
      args.batch = B;
      args.I = shape.I;
      args.H = H;
      args.w_ih = data<Storage>(contiguous[0]);
      args.w_hh = data<Storage>(contiguous[1]);
      args.b_ih = data<Storage>(contiguous[2]);
      args.b_hh = data<Storage>(contiguous[3]);
      args.input = data<Storage>(x);
      args.h0 = h0.defined() ? data<Storage>(h0) + d * B * H : nullptr;
      args.c0 = c0.defined() ? data<Storage>(c0) + d * B * H : nullptr;
      args.h1 = mutable_data<Storage>(results[0]) + d * B * H;
      args.c1 = shape.states == 2 ? mutable_data<Storage>(results[1]) + d * B * H : nullptr;
      args.last_unit_first = last_unit_first;
      args.cell_clip = static_cast<Compute>(shape.cell_clip);
      if (save == Save::gates) {
        results.push_back(allocate({B, shape.S * H}, input.options()));
        args.saved = mutable_data<Storage>(results.back());
      }
      if (save != Save::nothing && shape.states == 2) {
        results.push_back(allocate({B, H}, input.options().dtype(compute_type(input))));
        args.cells = mutable_data<Compute>(results.back());
      }
      run_step(shape, kernels, args);
    }
    return results;
  });
}

}  // namespace lstm_fused
