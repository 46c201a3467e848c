// SIMD vectors as values: the compilers' vector extensions, no intrinsics. `Isa` (declared by the file that
// includes the kernels) gives the register width and how many registers may hold accumulators.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "../cells/value.h"
#include "../recurrence.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

// Not a scalar, so a vector of V{}[0].
template <class V>
struct ValueTraits {
  using element = std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>>;
  using lane_integer = typename ValueTraits<element>::integer;
  typedef lane_integer integer __attribute__((vector_size(sizeof(V))));
};

template <class Element, int lanes>
struct VectorOf {
  typedef Element type __attribute__((vector_size(sizeof(Element) * lanes)));
};
template <class Element>
struct VectorOf<Element, 1> {
  using type = Element;
};

template <class Element>
inline constexpr int lanes_of = Isa::bytes < static_cast<int>(sizeof(Element)) ? 1 : Isa::bytes / sizeof(Element);
template <class Element>
using Vec = typename VectorOf<Element, lanes_of<Element>>::type;

template <class V>
inline constexpr int lanes = sizeof(V) / sizeof(element_t<V>);

// Elements as they lie in memory.
template <class V>
LSTM_FUSED_INLINE V load(const element_t<V>* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
LSTM_FUSED_INLINE void store(element_t<V>* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}

// v, used so many times, but loaded once: to the compiler an empty instruction may have changed it, which otherwise may
// load it again as an operand of each instruction that takes it.
template <int times, class V>
LSTM_FUSED_INLINE V in_register(V v) {
  if constexpr (times == 1) return v;
#if defined(__x86_64__) && !defined(LSTM_FUSED_LOWER_AVX512)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// 16-bit storage, widened to float on the way in and rounded to nearest even on the way out.
template <class V>
LSTM_FUSED_INLINE integer_t<V> load_bits16(const void* p) {
  if constexpr (lanes<V> == 1) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return bits;
  } else {
    typedef std::uint16_t Half __attribute__((vector_size(2 * lanes<V>)));
    Half half;
    std::memcpy(&half, p, sizeof(half));
    return __builtin_convertvector(half, integer_t<V>);
  }
}

template <class V>
LSTM_FUSED_INLINE void store_bits16(void* p, const integer_t<V>& bits) {
  if constexpr (lanes<V> == 1) {
    const auto half = static_cast<std::uint16_t>(bits);
    std::memcpy(p, &half, sizeof(half));
  } else {
    typedef std::uint16_t Half __attribute__((vector_size(2 * lanes<V>)));
    const Half half = __builtin_convertvector(bits, Half);
    std::memcpy(p, &half, sizeof(half));
  }
}

template <class V>
LSTM_FUSED_INLINE V load(const BFloat16* p) {
  return __builtin_bit_cast(V, load_bits16<V>(p) << 16);
}

template <class V>
LSTM_FUSED_INLINE void store(BFloat16* p, const V& v) {
  const auto bits = __builtin_bit_cast(integer_t<V>, v);
  const auto rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  const auto quiet_nan = ((bits >> 16) & 0xffff) | 0x40;
  store_bits16<V>(p, v == v ? rounded : quiet_nan);
}

// Binary16: 5 exponent bits biased by 15 against binary32's 8 biased by 127; mantissa 10 against 23.
template <class V>
LSTM_FUSED_INLINE V load(const Float16* p) {
  const auto half = load_bits16<V>(p);
  const auto sign = (half & 0x8000) << 16;
  const auto magnitude = (half & 0x7fff) << 13;
  const V smallest_normal = broadcast<V>(6.103515625e-05f);  // 2^-14: what a subnormal's implicit bit would add
  const auto subnormal =
      __builtin_bit_cast(integer_t<V>, __builtin_bit_cast(V, magnitude + (113 << 23)) - smallest_normal);
  const auto normal = magnitude + (112 << 23);
  const auto infinite_or_nan = magnitude + (224 << 23);
  const auto bits = magnitude < (1 << 23) ? subnormal : (magnitude < (31 << 23) ? normal : infinite_or_nan);
  return __builtin_bit_cast(V, bits | sign);
}

template <class V>
LSTM_FUSED_INLINE void store(Float16* p, const V& v) {
  const auto bits = __builtin_bit_cast(integer_t<V>, v);
  const auto magnitude = bits & 0x7fffffff;
  const auto normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the mantissa of a subnormal half in the low bits, rounded by the addition itself.
  const V shifted = __builtin_bit_cast(V, magnitude) + 0.5f;
  const auto subnormal = __builtin_bit_cast(integer_t<V>, shifted) - (126 << 23);
  const auto infinity = (bits & 0) + 0x7c00;
  const auto finite = magnitude < (113 << 23) ? subnormal : normal;
  const auto overflowed = magnitude < (143 << 23) - 0x1000 ? finite : infinity;  // 65520 and above round to infinity
  const auto half = v == v ? overflowed : infinity | 0x200;
  store_bits16<V>(p, half | ((bits >> 16) & 0x8000));
}

// How many of a block's units exist: all lanes, known while compiling, or fewer in the last block of a row.
template <int n>
using AllLanes = std::integral_constant<int, n>;

// Calls f(count) with the number of units of the block at `unit` of `all`: a constant for a whole block.
template <int n, class F>
LSTM_FUSED_INLINE void with_count(std::int64_t unit, std::int64_t all, F f) {
  if (unit + n <= all) f(AllLanes<n>{});
  else f(static_cast<int>(all - unit));
}

template <class V, class Storage>
LSTM_FUSED_INLINE V load(const Storage* p, AllLanes<lanes<V>>) {
  return load<V>(p);
}

template <class V, class Storage>
LSTM_FUSED_INLINE V load(const Storage* p, int count) {
  Storage block[lanes<V>] = {};
  std::memcpy(block, p, count * sizeof(Storage));
  return load<V>(block);
}

template <class V, class Storage>
LSTM_FUSED_INLINE void store(Storage* p, const V& v, AllLanes<lanes<V>>) {
  store<V>(p, v);
}

template <class V, class Storage>
LSTM_FUSED_INLINE void store(Storage* p, const V& v, int count) {
  Storage block[lanes<V>];
  store<V>(block, v);
  std::memcpy(p, block, count * sizeof(Storage));
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
