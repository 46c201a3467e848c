// A float whose activations are made of the device's own approximations of 2^x and 1/x: a few units in the last place
// of 1, not of the result. That is far below what products of 16-bit or tf32 numbers leave, for a third of the
// instructions.
#pragma once

#include <cmath>

#include "activations.h"

namespace lstm_fused {

namespace cuda {

struct Approximate {
  float value = 0;

  Approximate() = default;
  LSTM_FUSED_INLINE Approximate(float value) : value(value) {}

  friend LSTM_FUSED_INLINE Approximate operator+(Approximate a, Approximate b) { return a.value + b.value; }
  friend LSTM_FUSED_INLINE Approximate operator-(Approximate a, Approximate b) { return a.value - b.value; }
  friend LSTM_FUSED_INLINE Approximate operator*(Approximate a, Approximate b) { return a.value * b.value; }
};

LSTM_FUSED_INLINE float number(float x) { return x; }
LSTM_FUSED_INLINE double number(double x) { return x; }
LSTM_FUSED_INLINE float number(Approximate x) { return x.value; }

LSTM_FUSED_INLINE float exp2_approximate(float x) {
#ifdef __CUDA_ARCH__
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return std::exp2(x);
#endif
}

}  // namespace cuda

namespace LSTM_FUSED_TARGET {

// sigmoid(x) = 1 / (1 + e^-x)
template <>
LSTM_FUSED_INLINE cuda::Approximate sigmoid(const cuda::Approximate& x) {
  return quotient<float>(1, 1 + cuda::exp2_approximate(-1.44269504f * x.value));
}
// tanh(x) = 2 / (1 + e^-2x) - 1
template <>
LSTM_FUSED_INLINE cuda::Approximate tanh(const cuda::Approximate& x) {
  return quotient<float>(2, 1 + cuda::exp2_approximate(-2 * 1.44269504f * x.value)) - 1;
}

}  // namespace LSTM_FUSED_TARGET
}  // namespace lstm_fused
