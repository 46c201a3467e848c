// What a cell may assume of its value type V: arithmetic, and the names below.
// float and double are values as they are; csrc/cpu/simd.h adds SIMD vectors, and twin.h two of them at once.
#pragma once

#include <cstdint>
#include <type_traits>

// Every translation unit compiles cells and kernels into a namespace of its own (avx2, avx512, ...), so
// that the linker never merges code for different instruction sets.
#ifndef LSTM_FUSED_TARGET
#define LSTM_FUSED_TARGET host
#endif

#ifdef __CUDACC__
#define LSTM_FUSED_INLINE __host__ __device__ __forceinline__
#else
#define LSTM_FUSED_INLINE [[gnu::always_inline]] inline
#endif

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class V>
struct ValueTraits;

template <>
struct ValueTraits<float> {
  using element = float;
  using integer = std::uint32_t;
};

template <>
struct ValueTraits<double> {
  using element = double;
  using integer = std::uint64_t;
};

template <class V>
using element_t = typename ValueTraits<V>::element;

// Unsigned integers of the same width as the elements of V, as many as V has.
template <class V>
using integer_t = typename ValueTraits<V>::integer;

template <class V>
LSTM_FUSED_INLINE V broadcast(element_t<V> x) {
  return x - V{};  // x - 0 is x, whatever its sign: a plain broadcast; 0 + x would be an addition
}

// The bits of v as those of another type.
template <class To, class V>
LSTM_FUSED_INLINE To same_bits(const V& v) {
  return __builtin_bit_cast(To, v);
}

// A product that is no part of a fused multiply-add. In a sum of two products either may be: this decides which, where
// a compiler would not choose the same in every kernel. To it, an empty instruction may have changed the value.
template <class V>
LSTM_FUSED_INLINE V rounded(const V& product) {
  V value = product;
#if defined(__x86_64__) && !defined(__CUDACC__) && !defined(LSTM_FUSED_LOWER_AVX512)
  if constexpr (!std::is_class_v<V>) asm("" : "+v"(value));
#elif defined(__aarch64__) && !defined(__CUDACC__)
  if constexpr (!std::is_class_v<V>) asm("" : "+w"(value));
#endif
  return value;
}

// a / b. On a GPU the one that IEEE has is a long sequence with a branch; for float this is a few instructions, within
// 2 ulp, but 0 for 2^126 < |b| < 2^128: for an `a` near 1 nothing is lost in absolute terms.
template <class V>
LSTM_FUSED_INLINE V quotient(const V& a, const V& b) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<V, float>) return __fdividef(a, b);
#endif
  return a / b;
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
