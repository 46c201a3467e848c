// What PyTorch says of work on a device: the stream that it goes to, and how exact it is to be.
#pragma once

#include <ATen/Context.h>

#ifndef LSTM_FUSED_CUDA_EMULATED
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <mutex>
#include <unordered_map>
#endif

namespace lstm_fused::cuda {

inline void* current_stream([[maybe_unused]] const at::Tensor& on) {
#ifdef LSTM_FUSED_CUDA_EMULATED
  return nullptr;
#else
  return c10::cuda::getCurrentCUDAStream(on.device().index()).stream();
#endif
}

// Whether the current stream's work is being captured for a CUDA graph, which will read again what lies on the host.
inline bool capturing() {
#ifdef LSTM_FUSED_CUDA_EMULATED
  return false;
#else
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
#endif
}

#ifndef LSTM_FUSED_CUDA_EMULATED
// The stream for what goes on beside a stream: always the same, as cuBLAS keeps memory for each that it was called on,
// and no other stream's, which would wait for this one's work.
inline c10::Stream other_stream(const c10::Stream& current) {
  static std::mutex mutex;
  static std::unordered_map<c10::Stream, c10::Stream> streams;
  const std::lock_guard lock(mutex);
  auto found = streams.find(current);
  if (found == streams.end())
    found = streams.emplace(current, c10::cuda::getStreamFromPool(false, current.device_index())).first;
  return found->second;
}
#endif

// Does `first` on the current stream and `beside` on another, both after what the current stream was given before. What
// it is given next comes after both.
template <class First, class Beside>
void side_by_side([[maybe_unused]] const at::Tensor& on, const First& first, const Beside& beside) {
#ifdef LSTM_FUSED_CUDA_EMULATED
  first();  // the order in which it would miss what `beside` does, if it needed it
  beside();
#else
  const c10::Stream current = c10::cuda::getCurrentCUDAStream(on.device().index()), other = other_stream(current);
  c10::Event begun(c10::DeviceType::CUDA), done(c10::DeviceType::CUDA);
  begun.record(current);
  first();
  begun.block(other);
  std::exception_ptr failed;
  const auto attempt = [&failed](const auto& work) {
    try {
      work();
    } catch (...) {
      if (!failed) failed = std::current_exception();
    }
  };
  attempt([&] {
    const c10::StreamGuard guard(other);
    beside();
  });
  attempt([&] {
    done.record(other);
    done.block(current);
  });
  if (failed) std::rethrow_exception(failed);
#endif
}

// Whether products of float32 numbers may be of rounded ones: what torch allows its own recurrent layers.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

}  // namespace lstm_fused::cuda
