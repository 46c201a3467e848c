// Elements of device memory as numbers to compute with, and back. What another block may have written since this kernel
// began is read past L1, which is not kept coherent between multiprocessors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../recurrence.h"

namespace lstm_fused::cuda {

__device__ inline float to_compute(float x) { return x; }
__device__ inline double to_compute(double x) { return x; }
__device__ inline float to_compute(BFloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ inline float to_compute(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class Storage>
__device__ compute_t<Storage> load(const Storage* p) {
  return to_compute(*p);
}

__device__ inline float load_fresh(const float* p) { return __ldcg(p); }
__device__ inline double load_fresh(const double* p) { return __ldcg(p); }
__device__ inline float load_fresh(const BFloat16* p) {
  return to_compute(BFloat16{__ldcg(reinterpret_cast<const unsigned short*>(p))});
}
__device__ inline float load_fresh(const Float16* p) {
  return to_compute(Float16{__ldcg(reinterpret_cast<const unsigned short*>(p))});
}

// The same, as they are.
__device__ inline float load_fresh_bits(const float* p) { return __ldcg(p); }
__device__ inline BFloat16 load_fresh_bits(const BFloat16* p) {
  return {__ldcg(reinterpret_cast<const unsigned short*>(p))};
}
__device__ inline Float16 load_fresh_bits(const Float16* p) {
  return {__ldcg(reinterpret_cast<const unsigned short*>(p))};
}
__device__ inline unsigned bits_of(float x) { return __float_as_uint(x); }

// 16 bytes at a multiple of 16.
__device__ inline uint4 load_fresh_words(const void* p) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(p)
               : "memory");
  return words;
}

// A word of memory that nobody has written yet, where a kernel is told that the memory began as such: a NaN that no
// arithmetic makes, and no conversion. So data says itself that it is there, and whoever awaits it needs no fence.
constexpr unsigned not_yet = ~0u;
__device__ inline bool has_not_yet(const uint4& words) {
  return max(max(words.x, words.y), max(words.z, words.w)) == not_yet;
}
// A number that somebody made, as no part of such a word: NaN of all ones as another one.
template <class Storage>
__device__ Storage as_written(Storage value) {
  if constexpr (sizeof(Storage) == 2) return {static_cast<std::uint16_t>(value.bits == 0xffff ? 0x7fff : value.bits)};
  else return bits_of(value) == not_yet ? __uint_as_float(0x7fffffff) : value;
}
__device__ inline void store_word(void* p, unsigned word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(word) : "memory");
}

// A number as an element of memory.
template <class Storage>
__device__ Storage to_storage(compute_t<Storage> x) {
  if constexpr (std::is_same_v<Storage, BFloat16>) return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  else if constexpr (std::is_same_v<Storage, Float16>) return {__half_as_ushort(__float2half_rn(x))};
  else return x;
}
template <class Storage>
__device__ void store(Storage* p, compute_t<Storage> x) {
  *p = to_storage<Storage>(x);
}

}  // namespace lstm_fused::cuda
