// PTX arithmetic where C++ has no operator for it, or one that is undefined for some operands.
#pragma once

#include <cfenv>
#include <cmath>
#include <type_traits>

#include "scalars.h"

namespace ptx {

// min and max return the operand that is a number.
template <class T>
inline T least(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a != a ? b : b != b ? a : a < b ? a : b;
  else return a < b ? a : b;
}
template <class T>
inline T most(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a != a ? b : b != b ? a : a > b ? a : b;
  else return a > b ? a : b;
}

// Arithmetic in float32 makes one NaN alone, whatever NaNs it is given.
inline f32 one_nan(f32 x) { return x == x ? x : bit_cast<f32>(0x7fff'ffffu); }

inline f32 flush(f32 x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }

// a * (1/b), exactly, but that 1/b is 0 for 2^126 < |b|, as the manual has it: then infinity / b is NaN.
inline f32 approximate_quotient(f32 a, f32 b) { return std::fabs(b) > 0x1p126f ? a * std::copysign(0.f, b) : a / b; }

template <class T>
inline T saturate(T x) {
  return x > T(1) ? T(1) : x > T(0) ? x : T(0);  // NaN becomes 0
}

// Conversions to integers saturate, and take NaN to 0.
template <class I, class F>
inline I to_integer(F x) {
  if (x != x) return 0;
  constexpr I lowest = std::is_signed_v<I> ? static_cast<I>(I(1) << (sizeof(I) * 8 - 1)) : 0;
  constexpr I highest = static_cast<I>(~lowest);
  if (static_cast<f64>(x) <= static_cast<f64>(lowest)) return lowest;
  if (static_cast<f64>(x) >= static_cast<f64>(highest)) return highest;
  return static_cast<I>(x);
}

// Rounds as asked during `compute`; its operands must be volatile, or the compiler computes before.
template <class F>
inline auto rounded(int mode, F compute) {
  std::fesetround(mode);
  const volatile auto result = compute();
  std::fesetround(FE_TONEAREST);
  return result;
}

template <class T>
inline T shift_left(T a, u32 n) {
  return n >= sizeof(T) * 8 ? T(0) : static_cast<T>(a << n);
}
template <class T>
inline T shift_right(T a, u32 n) {
  if (n >= sizeof(T) * 8) return a < 0 ? static_cast<T>(-1) : T(0);
  return static_cast<T>(a >> n);
}

template <class T>
inline T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1))
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 s = selector >> 4 * i & 15;
    u8 byte = static_cast<u8>(bytes >> (s & 7) * 8);
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign of the byte, copied
    result |= static_cast<u32>(byte) << 8 * i;
  }
  return result;
}

inline u32 logic3(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (u32 row = 0; row < 8; ++row)
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}

template <class T>
inline T extract_bits(T a, u32 position, u32 length) {
  constexpr u32 width = sizeof(T) * 8;
  position &= 255, length &= 255;
  if (length == 0) return 0;
  const bool negative = std::is_signed_v<T> && a >> least(position + length - 1, width - 1) & 1;
  using U = std::make_unsigned_t<T>;
  const auto bit = [&](u32 i) { return i < length && position + i < width ? U(a) >> (position + i) & 1 : U(negative); };
  U result = 0;
  for (u32 i = 0; i < width; ++i) result |= static_cast<U>(bit(i) << i);
  return static_cast<T>(result);
}

template <class U>
inline U insert_bits(U a, U into, u32 position, u32 length) {
  constexpr u32 width = sizeof(U) * 8;
  position &= 255, length &= 255;
  if (position >= width || length == 0) return into;
  const U mask = static_cast<U>((length >= width ? ~U(0) : (U(1) << length) - 1) << position);
  return (into & ~mask) | (a << position & mask);
}

template <class U>
inline U reverse_bits(U x) {
  U result = 0;
  for (u32 i = 0; i < sizeof(U) * 8; ++i) result |= (x >> i & 1) << (sizeof(U) * 8 - 1 - i);
  return result;
}

template <class U>
inline u32 highest_bit(U x) {
  return x ? 63 - __builtin_clzll(x) : ~0u;
}

template <class A, class B>
inline u32 dot_of_bytes(u32 a, u32 b, u32 c) {
  for (int i = 0; i < 4; ++i) c += static_cast<u32>(static_cast<A>(a >> 8 * i) * static_cast<B>(b >> 8 * i));
  return c;
}

// Packed halves: computed in double, where + - * and fma of halves are exact enough to be rounded once.
template <class H, class F>
inline u32 map_halves(u32 a, u32 b, u32 c, F f) {
  const auto wide = [](u32 x, int i) { return static_cast<f64>(to_f32(half_of<H>(x, i))); };
  H out[2];
  for (int i = 0; i < 2; ++i) out[i] = narrow<H>(f(wide(a, i), wide(b, i), wide(c, i)));
  return pack(out[0], out[1]);
}

}  // namespace ptx
