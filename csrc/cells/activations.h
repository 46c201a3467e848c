// Activations and their derivatives, generic in the value type V: float, double, or a SIMD vector of
// either. Derivatives are taken from the outputs, which backward has at hand.
//
// Both activations come from one range reduction, x = n ln2 + r with |r| <= ln2/2:
//   e^x     = 2^n (1 + q),  q = e^r - 1
//   e^x - 1 = 2^n q + (2^n - 1)
// so tanh keeps its relative accuracy near zero. Arguments are clamped to where the result is not yet constant, but
// that e^-x may become infinite: sigmoid(-inf) is 0, as it is in torch. NaN passes through every step.
#pragma once

#include "value.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Element>
struct ExpConstants;

// q = r + r^2 P(r); P interpolates (e^r - 1 - r) / r^2 at Chebyshev nodes (largest relative error
// 2.6e-8 in float, 6.2e-19 in double). `shifter` = 1.5 * 2^mantissa rounds to an integer by addition.
template <>
struct ExpConstants<float> {
  static constexpr int mantissa = 23, exponent_bias = 127;
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float shifter = 12582912.0f;
  static constexpr float exp_low = -87.0f, exp_high = 89.0f, tanh_limit = 10.0f;  // e^89: 2^128 is infinite
  static constexpr float P[] = {0.5f, 0.166665733819f, 0.0416665501103f, 0.00836377387441f, 0.00139269266140f};
};

template <>
struct ExpConstants<double> {
  static constexpr int mantissa = 52, exponent_bias = 1023;
  static constexpr double log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double shifter = 6755399441055744.0;
  static constexpr double exp_low = -708.0, exp_high = 710.0, tanh_limit = 20.0;
  static constexpr double P[] = {0.5,
                                 0.16666666666666671438,
                                 0.041666666666666670074,
                                 0.0083333333333255446996,
                                 0.0013888888888883326674,
                                 0.00019841269876864354929,
                                 0.000024801587327007186731,
                                 2.7557252833516909748e-6,
                                 2.7557271810219799569e-7,
                                 2.5106274673573294687e-8,
                                 2.0915442297780115216e-9};
};

template <class V>
struct ScaledExp {
  V scale, q;  // e^x = scale * (1 + q)
};

// The greater of x and low, the lesser of x and high; NaN where x is.
template <class V>
LSTM_FUSED_INLINE V at_least(const V& x, const V& low) {
  return x < low ? low : x;
}
template <class V>
LSTM_FUSED_INLINE V at_most(const V& x, const V& high) {
  return x > high ? high : x;
}

template <class V>
LSTM_FUSED_INLINE V clamp(const V& x, element_t<V> least, element_t<V> most) {
  return at_most<V>(at_least<V>(x, broadcast<V>(least)), broadcast<V>(most));
}

template <class V>
LSTM_FUSED_INLINE V clamp(const V& x, element_t<V> limit) {
  return clamp<V>(x, -limit, limit);
}

// P[k] + r (P[k+1] + r (...)), each coefficient a constant of its own: a GPU cannot read the array.
template <class V, int k = 0>
LSTM_FUSED_INLINE V polynomial(const V& r) {
  using C = ExpConstants<element_t<V>>;
  constexpr element_t<V> coefficient = C::P[k];
  if constexpr (k + 1 == sizeof(C::P) / sizeof(C::P[0])) return broadcast<V>(coefficient);
  else return polynomial<V, k + 1>(r) * r + coefficient;
}

template <class V>
LSTM_FUSED_INLINE ScaledExp<V> scaled_exp(const V& x) {
  using C = ExpConstants<element_t<V>>;
  using Bits = integer_t<V>;
  const V shifted = x * C::log2e + C::shifter;
  const V n = shifted - C::shifter;
  const V r = (x - n * C::ln2_high) - n * C::ln2_low;
  const Bits bits = same_bits<Bits>(shifted) - __builtin_bit_cast(integer_t<element_t<V>>, C::shifter);
  return {same_bits<V>((bits + C::exponent_bias) << C::mantissa), r + r * r * polynomial<V>(r)};
}

// sigmoid(x) = 1 / (1 + e^-x)
template <class V>
LSTM_FUSED_INLINE V sigmoid(const V& x) {
  using C = ExpConstants<element_t<V>>;
  const ScaledExp<V> e = scaled_exp<V>(clamp<V>(-x, C::exp_low, C::exp_high));
  return quotient<V>(broadcast<V>(1), 1 + e.scale * (1 + e.q));
}

// tanh(x) = (e^2x - 1) / (e^2x + 1)
template <class V>
LSTM_FUSED_INLINE V tanh(const V& x) {
  const ScaledExp<V> e = scaled_exp<V>(2 * clamp<V>(x, ExpConstants<element_t<V>>::tanh_limit));
  const V expm1 = e.scale * e.q + (e.scale - 1);
  return quotient<V>(expm1, expm1 + 2);
}

// d sigmoid / dx and d tanh / dx, from y = sigmoid(x) and y = tanh(x).
template <class V>
LSTM_FUSED_INLINE V d_sigmoid(const V& y) {
  return y * (1 - y);
}

template <class V>
LSTM_FUSED_INLINE V d_tanh(const V& y) {
  return 1 - y * y;
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
