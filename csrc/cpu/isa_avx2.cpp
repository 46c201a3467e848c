#include "isa_prelude.h"
#if defined(__x86_64__)
#define LSTM_FUSED_TARGET avx2

namespace lstm_fused::LSTM_FUSED_TARGET {
constexpr const char* isa_name = "avx2";
bool is_available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
struct Isa {
  static constexpr int bytes = 32;
  static constexpr int accumulators = 12;  // of 16 registers; four for weights and broadcasts
  static constexpr int panel_bytes = 16 * 1024;  // half of L1: tiles of three rows read too fast for L2
};
}  // namespace lstm_fused::LSTM_FUSED_TARGET

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "isa_exports.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
