// Two vectors as one value of a cell: their operations alternate, so that neither waits for its own results. An
// activation is a chain of twenty operations that each take four cycles, more than a processor sees past.
#pragma once

#include "../cells/activations.h"
#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class V>
struct Twin {
  V first, second;
};

template <class V>
struct ValueTraits<Twin<V>> {
  using element = element_t<V>;
  using integer = Twin<integer_t<V>>;
};

// An element beside a Twin, in the type of its elements: they may be the integers of integer_t.
template <class V, class Element>
LSTM_FUSED_INLINE auto element_of(Element x) {
  if constexpr (std::is_arithmetic_v<V>) return static_cast<V>(x);
  else return static_cast<std::remove_cvref_t<decltype(V{}[0])>>(x);
}
template <class Element>
concept IsElement = std::is_arithmetic_v<Element>;

// clang-format off
#define LSTM_FUSED_TWIN_OPERATOR(op)                                                                                \
  template <class V>                                                                                                \
  LSTM_FUSED_INLINE Twin<V> operator op(const Twin<V>& a, const Twin<V>& b) {                                       \
    return {a.first op b.first, a.second op b.second};                                                              \
  }                                                                                                                 \
  template <class V, IsElement Element>                                                                             \
  LSTM_FUSED_INLINE Twin<V> operator op(const Twin<V>& a, Element b) {                                              \
    return {a.first op element_of<V>(b), a.second op element_of<V>(b)};                                             \
  }                                                                                                                 \
  template <class V, IsElement Element>                                                                             \
  LSTM_FUSED_INLINE Twin<V> operator op(Element a, const Twin<V>& b) {                                              \
    return {element_of<V>(a) op b.first, element_of<V>(a) op b.second};                                             \
  }
LSTM_FUSED_TWIN_OPERATOR(+)
LSTM_FUSED_TWIN_OPERATOR(-)
LSTM_FUSED_TWIN_OPERATOR(*)
LSTM_FUSED_TWIN_OPERATOR(/)
#undef LSTM_FUSED_TWIN_OPERATOR
// clang-format on

template <class V>
LSTM_FUSED_INLINE Twin<V> operator-(const Twin<V>& a) {
  return {-a.first, -a.second};
}
template <class V>
LSTM_FUSED_INLINE Twin<V> operator<<(const Twin<V>& a, int bits) {
  return {a.first << bits, a.second << bits};
}

// One by one: bits of both at once would be written to memory first.
template <class To, class V>
LSTM_FUSED_INLINE To same_bits(const Twin<V>& v) {
  using Half = decltype(To::first);
  return {same_bits<Half>(v.first), same_bits<Half>(v.second)};
}

template <class W>
inline constexpr bool is_twin = false;
template <class V>
inline constexpr bool is_twin<Twin<V>> = true;

template <class W>
  requires is_twin<W>
LSTM_FUSED_INLINE W at_least(const W& x, const W& low) {
  return {at_least(x.first, low.first), at_least(x.second, low.second)};
}
template <class W>
  requires is_twin<W>
LSTM_FUSED_INLINE W at_most(const W& x, const W& high) {
  return {at_most(x.first, high.first), at_most(x.second, high.second)};
}

template <class W>
  requires is_twin<W>
LSTM_FUSED_INLINE W rounded(const W& product) {
  return {rounded(product.first), rounded(product.second)};
}

// How many vectors W is; W of f(0), (f(1)); and f(i, vector i) for each.
template <class W>
inline constexpr int vectors = is_twin<W> ? 2 : 1;

template <class W, class F>
LSTM_FUSED_INLINE W gather(F f) {
  if constexpr (is_twin<W>) return {f(0), f(1)};
  else return f(0);
}
template <class W, class F>
LSTM_FUSED_INLINE void scatter(const W& w, F f) {
  if constexpr (is_twin<W>) f(0, w.first), f(1, w.second);
  else f(0, w);
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
