// Dual numbers as values of a cell: every operation gives its result and the derivative of it along a tangent. The
// cell's mathematics on them is its forward derivative, and its backward's: no second derivative is written anywhere.
#pragma once

#include "activations.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class V>
struct Dual {
  V value, tangent;
};

// clang-format off
template <class V>
LSTM_FUSED_INLINE Dual<V> operator+(const Dual<V>& a, const Dual<V>& b) { return {a.value + b.value, a.tangent + b.tangent}; }
template <class V>
LSTM_FUSED_INLINE Dual<V> operator-(const Dual<V>& a, const Dual<V>& b) { return {a.value - b.value, a.tangent - b.tangent}; }
template <class V>
LSTM_FUSED_INLINE Dual<V> operator*(const Dual<V>& a, const Dual<V>& b) { return {a.value * b.value, a.tangent * b.value + a.value * b.tangent}; }
template <class V>
LSTM_FUSED_INLINE Dual<V> operator-(element_t<V> a, const Dual<V>& b) { return {a - b.value, -b.tangent}; }
// clang-format on

template <class D>
inline constexpr bool is_dual = false;
template <class V>
inline constexpr bool is_dual<Dual<V>> = true;

template <class D>
  requires is_dual<D>
LSTM_FUSED_INLINE D sigmoid(const D& x) {
  const auto y = sigmoid<decltype(x.value)>(x.value);
  return {y, x.tangent * d_sigmoid(y)};
}

template <class D>
  requires is_dual<D>
LSTM_FUSED_INLINE D tanh(const D& x) {
  const auto y = tanh<decltype(x.value)>(x.value);
  return {y, x.tangent * d_tanh(y)};
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
