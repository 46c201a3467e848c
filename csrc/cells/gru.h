// Gated recurrent unit (Cho et al. 2014) in PyTorch's form, where r acts after the recurrent product.
//
// Forward, x = W x_t + b_ih and u = U h_{t-1} + b_hh:
//   r = sigmoid(x_r + u_r)
//   z = sigmoid(x_z + u_z)
//   n = tanh   (x_n + r * u_n)
//   h1 = (1 - z) * n + z * h0
// Backward, dh1 = dL/dh1:
//   dn = dh1 * (1 - z) * (1 - n^2)       the gradient at x_n; at u_n it is dn * r
//   dz = dh1 * (h0 - n) * z (1 - z)
//   dr = dn * u_n * r (1 - r)
//   dh0 = dh1 * z                        beside the part that comes through U
#pragma once

#include "activations.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

struct Gru {
  static constexpr int gates = 3;              // rows of W and U per hidden unit: r z n
  static constexpr int saved = 4;              // values per unit kept for backward: r z n, activated, and u_n
  static constexpr bool carries_cell = false;
  static constexpr bool reads_h0 = true;
  // Gradients per unit: the first G belong to the rows of W x, these to the rows of U h.
  static constexpr int recurrent_column[] = {0, 1, 3};

  template <class V>
  LSTM_FUSED_INLINE static void update(const V x[], const V u[], const V& /*h0*/, const V& /*c0*/, V s[], V& /*c1*/) {
    s[0] = sigmoid<V>(x[0] + u[0]);
    s[1] = sigmoid<V>(x[1] + u[1]);
    s[2] = tanh<V>(x[2] + s[0] * u[2]);
    s[3] = u[2];
  }

  template <class V>
  LSTM_FUSED_INLINE static V output(const V s[], const V& h0, const V& /*c1*/) {
    return s[2] + s[1] * (h0 - s[2]);
  }

  template <class V>
  LSTM_FUSED_INLINE static void d_output(const V s[], const V& h0, const V& /*c1*/, const V& dh1, V d[], V& /*dc*/,
                                         V& dh0) {
    // clang-format off
    d[1] = dh1 * (h0 - s[2]) * d_sigmoid(s[1]);
    d[2] = dh1 * (1 - s[1])  * d_tanh(s[2]);
    // clang-format on
    dh0 = dh1 * s[1];
  }

  template <class V>
  LSTM_FUSED_INLINE static void d_update(const V s[], const V& /*h0*/, const V& /*c0*/, V d[], V& /*dc*/, V& /*dh0*/) {
    d[0] = d[2] * s[3] * d_sigmoid(s[0]);
    d[3] = d[2] * s[0];
  }
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
