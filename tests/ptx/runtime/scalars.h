// The scalar types of PTX, and changes between their bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using u128 = unsigned __int128;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using s128 = __int128;
using f16 = _Float16;
using f32 = float;
using f64 = double;
struct bf16 {
  u16 bits;
};

template <class To, class From>
inline To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, x);
}

template <class T>
inline T read_as(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline f32 to_f32(f32 x) { return x; }
inline f32 to_f32(f16 x) { return static_cast<f32>(x); }
inline f32 to_f32(bf16 x) { return bit_cast<f32>(static_cast<u32>(x.bits) << 16); }

// A NaN that is made 16 bits wide is 0x7fff.
inline f16 to_f16(f64 x) { return x != x ? bit_cast<f16>(static_cast<u16>(0x7fff)) : static_cast<f16>(x); }

inline bf16 to_bf16(f64 x) {
  f32 f = static_cast<f32>(x);
  u32 bits = bit_cast<u32>(f);
  if (f != f) return {0x7fff};
  // Rounding twice can go wrong at a tie; an odd last bit of the middle step keeps the tie from arising.
  if (static_cast<f64>(f) != x && !(bits & 1)) bits += __builtin_fabs(static_cast<f64>(f)) < __builtin_fabs(x) ? 1 : -1;
  return {static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline bf16 to_bf16_towards_zero(f32 x) { return {static_cast<u16>(bit_cast<u32>(x) >> 16)}; }

// tf32 has f32's exponent and 10 bits of fraction. cvt rounds to it; mma reads only its bits.
inline f32 to_tf32(f32 x) {
  const u32 bits = bit_cast<u32>(x);
  if ((bits & 0x7f800000) == 0x7f800000) return x;
  return bit_cast<f32>((bits + 0x1000) & ~0x1fffu);
}
inline f32 as_tf32(u32 bits) { return bit_cast<f32>(bits & ~0x1fffu); }

// The two halves of a packed register.
template <class H>
inline H half_of(u32 packed, int i) {
  return bit_cast<H>(static_cast<u16>(packed >> 16 * i));
}
template <class H>
inline u32 pack(H low, H high) {
  return static_cast<u32>(bit_cast<u16>(high)) << 16 | bit_cast<u16>(low);
}
template <class H>
inline H narrow(f64 x) {
  if constexpr (sizeof(H) == 4) return static_cast<H>(x);
  else if constexpr (__is_same(H, bf16)) return to_bf16(x);
  else return to_f16(x);
}

}  // namespace ptx
