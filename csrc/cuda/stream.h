// What PyTorch says of work on a device: the stream that it goes to, and how exact it is to be.
#pragma once

#include <ATen/Context.h>

#ifndef LSTM_FUSED_CUDA_EMULATED
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <map>
#include <mutex>
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
// A device's stream for what goes on beside the current one: one for all layers, as cuBLAS keeps memory for each stream
// that it was called on.
inline c10::Stream other_stream(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard lock(mutex);
  auto found = streams.find(device);
  if (found == streams.end()) found = streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first;
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
  const c10::DeviceIndex device = on.device().index();
  const c10::Stream current = c10::cuda::getCurrentCUDAStream(device), other = other_stream(device);
  c10::Event begun(c10::DeviceType::CUDA), done(c10::DeviceType::CUDA);
  begun.record(current);
  first();
  begun.block(other);
  std::exception_ptr failed;
  try {
    const c10::StreamGuard guard(other);
    beside();
  } catch (...) {
    failed = std::current_exception();
  }
  done.record(other);
  done.block(current);
  if (failed) std::rethrow_exception(failed);
#endif
}

// Whether products of float32 numbers may be of rounded ones: what torch allows its own recurrent layers.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

}  // namespace lstm_fused::cuda
