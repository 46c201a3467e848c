#include "isa_prelude.h"
#if defined(__x86_64__)
#define LSTM_FUSED_TARGET avx512

namespace lstm_fused::LSTM_FUSED_TARGET {
constexpr const char* isa_name = "avx512";
bool is_available() {
#ifdef LSTM_FUSED_LOWER_AVX512
  return true;  // the sanitizer build: the compiler lowers the 64-byte vectors, so that any machine runs this code
#endif
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
struct Isa {
  static constexpr int bytes = 64;
  static constexpr int accumulators = 24;  // of 32 registers; eight for weights and broadcasts
  static constexpr int panel_bytes =
      64 * 1024;  // of L2, which delivers the 11 bytes a cycle that tiles of six rows ask for
};
}  // namespace lstm_fused::LSTM_FUSED_TARGET

#ifdef LSTM_FUSED_LOWER_AVX512
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prfchw"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prfchw")
#endif
#include "isa_exports.h"
#if defined(__clang__) && !defined(LSTM_FUSED_LOWER_AVX512)
#pragma clang attribute pop
#endif
#endif
