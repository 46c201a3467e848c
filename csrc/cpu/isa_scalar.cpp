#include "isa_prelude.h"
#define LSTM_FUSED_TARGET scalar

namespace lstm_fused::LSTM_FUSED_TARGET {
constexpr const char* isa_name = "scalar";
bool is_available() { return true; }
struct Isa {
  static constexpr int bytes = 0;          // one value at a time
  static constexpr int accumulators = 12;  // of 16 registers
  static constexpr int panel_bytes = 16 * 1024;  // half of L1
};
}  // namespace lstm_fused::LSTM_FUSED_TARGET

#include "isa_exports.h"
