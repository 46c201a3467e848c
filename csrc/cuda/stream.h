// What PyTorch says of work on a device: the stream that it goes to, and how exact it is to be.
#pragma once

#include <ATen/Context.h>

#ifndef LSTM_FUSED_CUDA_EMULATED
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
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

// Whether products of float32 numbers may be of rounded ones: what torch allows its own recurrent layers.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

}  // namespace lstm_fused::cuda
