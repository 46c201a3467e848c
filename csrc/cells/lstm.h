// Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).
//
// Forward, x = W x_t + b_ih and r = U h_{t-1} + b_hh:
//   i = sigmoid(x_i + r_i)      c1 = f * c0 + i * g
//   f = sigmoid(x_f + r_f)      h1 = o * tanh(c1)
//   g = tanh   (x_g + r_g)
//   o = sigmoid(x_o + r_o)
// Backward, dh1 = dL/dh1 and dc1 = dL/dc1 as it comes from step t+1:
//   do = dh1 * tanh(c1) * o (1 - o)
//   dc = dc1 + dh1 * o * (1 - tanh(c1)^2)
//   di = dc * g  * i (1 - i)
//   df = dc * c0 * f (1 - f)
//   dg = dc * i  * (1 - g^2)
//   dc0 = dc * f
#pragma once

#include "activations.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

struct Lstm {
  static constexpr int gates = 4;             // rows of W and U per hidden unit: i f g o
  static constexpr int saved = 4;             // values per unit kept for backward: i f g o, activated
  static constexpr bool carries_cell = true;  // c travels beside h
  static constexpr bool reads_h0 = false;     // the cell update uses h_{t-1} beside U h_{t-1}
  // Gradients per unit: the first G belong to the rows of W x, these to the rows of U h.
  static constexpr int recurrent_column[] = {0, 1, 2, 3};

  template <class V>
  LSTM_FUSED_INLINE static void update(const V x[], const V r[], const V& /*h0*/, const V& c0, V s[], V& c1) {
    s[0] = sigmoid<V>(x[0] + r[0]);
    s[1] = sigmoid<V>(x[1] + r[1]);
    s[2] = tanh<V>(x[2] + r[2]);
    s[3] = sigmoid<V>(x[3] + r[3]);
    c1 = s[1] * c0 + rounded<V>(s[0] * s[2]);
  }

  template <class V>
  LSTM_FUSED_INLINE static V output(const V s[], const V& /*h0*/, const V& c1) {
    return s[3] * tanh<V>(c1);
  }

  // Adds the output's part to dc and gives do.
  template <class V>
  LSTM_FUSED_INLINE static void d_output(const V s[], const V& /*h0*/, const V& c1, const V& dh1, V d[], V& dc,
                                         V& /*dh0*/) {
    const V tanh_c1 = tanh<V>(c1);
    d[3] = dh1 * tanh_c1 * d_sigmoid(s[3]);
    dc = dc + dh1 * s[3] * d_tanh(tanh_c1);
  }

  // Takes dL/dc1 in dc and leaves dL/dc0 there.
  template <class V>
  LSTM_FUSED_INLINE static void d_update(const V s[], const V& /*h0*/, const V& c0, V d[], V& dc, V& /*dh0*/) {
    // clang-format off
    d[0] = dc * s[2] * d_sigmoid(s[0]);
    d[1] = dc * c0   * d_sigmoid(s[1]);
    d[2] = dc * s[0] * d_tanh(s[2]);
    // clang-format on
    dc = dc * s[1];
  }
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
