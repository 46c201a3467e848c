// Matrix instructions: ldmatrix, stmatrix, mma.sync and wmma. Registers are arrays [register][lane].
//
// Products are summed in double and rounded once: a device's last bits differ.
#pragma once

#include "access.h"
#include "arithmetic.h"

namespace ptx {

using Registers = u32 (*)[lanes];
using ConstRegisters = const u32 (*)[lanes];

struct tf32 {
  u32 bits;
};
inline f32 to_f32(tf32 x) { return as_tf32(x.bits); }

// Elements as they lie in a register: `sizeof(u32) / sizeof(E)` of them.
template <class E>
inline E element(u32 reg, int i) {
  if constexpr (sizeof(E) == 4) return bit_cast<E>(reg);
  else return half_of<E>(reg, i);
}

// Tile i of 8 x 8 16-bit elements: lane 8i + r has the address of its row r. Lane l holds two elements of row l / 4.
template <int tiles, bool transposed>
inline void load_matrix(Warp& w, const Site& site, const u64* address, Registers out) {
  u32 result[tiles][lanes];
  for (int i = 0; i < tiles; ++i) {
    Spot row[8];
    for (int r = 0; r < 8; ++r) row[r] = locate(w, 8 * i + r, site, Space::shared, address[8 * i + r], 16);
    for (int l = 0; l < lanes; ++l) {
      const int quad = l / 4, pair = 2 * (l % 4);
      u16 e[2];
      for (int k = 0; k < 2; ++k)
        e[k] = transposed ? load<u16>(w, l, site, row[pair + k], 2 * quad)
                          : load<u16>(w, l, site, row[quad], 2 * (pair + k));
      result[i][l] = pack(e[0], e[1]);
    }
  }
  std::memcpy(out, result, sizeof result);
}

template <int tiles, bool transposed>
inline void store_matrix(Warp& w, const Site& site, const u64* address, ConstRegisters in) {
  for (int i = 0; i < tiles; ++i) {
    Spot row[8];
    for (int r = 0; r < 8; ++r) row[r] = locate(w, 8 * i + r, site, Space::shared, address[8 * i + r], 16);
    for (int l = 0; l < lanes; ++l)
      for (int k = 0; k < 2; ++k) {
        const int quad = l / 4, column = 2 * (l % 4) + k;
        const u16 e = half_of<u16>(in[i][l], k);
        store<u16>(w, l, site, row[transposed ? column : quad], 2 * (transposed ? quad : column), e);
      }
  }
}

template <int M, int N, int K>
inline void multiply_add(const f32 (&a)[M][K], const f32 (&b)[K][N], f32 (&c)[M][N]) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      f64 sum = c[i][j];
      for (int k = 0; k < K; ++k) sum += static_cast<f64>(a[i][k]) * static_cast<f64>(b[k][j]);
      c[i][j] = static_cast<f32>(sum);
    }
}

// mma.m16n8kK: with quad = l / 4 and t = l % 4, register r of A holds rows quad + 8 (r % 2), of B columns quad.
template <class E, class Sum, int K>
inline void multiply_fragments(ConstRegisters a, ConstRegisters b, ConstRegisters c, Registers d) {
  constexpr int per = sizeof(u32) / sizeof(E), wide = 4 * per;  // elements in a register, columns it spans over a quad
  constexpr int sums = sizeof(u32) / sizeof(Sum);
  f32 A[16][K], B[K][8], C[16][8];
  for (int l = 0; l < lanes; ++l) {
    const int quad = l / 4, t = l % 4;
    for (int i = 0; i < per; ++i) {
      for (int r = 0; r < 2 * K / wide; ++r)
        A[quad + 8 * (r % 2)][t * per + i + wide * (r / 2)] = to_f32(element<E>(a[r][l], i));
      for (int r = 0; r < K / wide; ++r) B[t * per + i + wide * r][quad] = to_f32(element<E>(b[r][l], i));
    }
    for (int i = 0; i < 4; ++i) C[quad + 8 * (i / 2)][2 * t + i % 2] = to_f32(element<Sum>(c[i / sums][l], i % sums));
  }
  multiply_add(A, B, C);
  for (int l = 0; l < lanes; ++l)
    for (int r = 0; r < 4 / sums; ++r) {
      const f32* pair = &C[l / 4 + 8 * (r * sums / 2)][2 * (l % 4)];
      if constexpr (sums == 2) d[r][l] = pack(narrow<Sum>(pair[0]), narrow<Sum>(pair[1]));
      else d[r][l] = bit_cast<u32>(pair[r % 2]);
    }
}

// wmma fragments have a layout that programs may not know. Here lane l holds elements l * n to l * n + n - 1 of the
// tile in row-major order; fragments with more registers than that needs repeat.
template <int rows, int columns>
struct Tile {
  static constexpr int per_lane = rows * columns / lanes;
  template <class E>
  static constexpr int registers = per_lane * static_cast<int>(sizeof(E)) / 4;
  f32 at[rows][columns];

  template <class E>
  void from(ConstRegisters in) {
    constexpr int per = 4 / sizeof(E);
    f32* flat = &at[0][0];
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < per_lane; ++i) flat[l * per_lane + i] = to_f32(element<E>(in[i / per][l], i % per));
  }
  template <class E>
  void to(Registers out) const {
    const f32* flat = &at[0][0];
    for (int l = 0; l < lanes; ++l)
      for (int r = 0; r < registers<E>; ++r) {
        const f32* e = flat + l * per_lane + r * static_cast<int>(4 / sizeof(E));
        if constexpr (sizeof(E) == 2) out[r][l] = pack(narrow<E>(e[0]), narrow<E>(e[1]));
        else out[r][l] = bit_cast<u32>(e[0]);
      }
  }
};

template <class E, int rows, int columns, bool column_major>
inline u64 wmma_offset(int lane, int i, u32 stride) {
  const int e = lane * Tile<rows, columns>::per_lane + i, r = e / columns, c = e % columns;
  return (column_major ? u64{stride} * static_cast<u64>(c) + static_cast<u64>(r)
                       : u64{stride} * static_cast<u64>(r) + static_cast<u64>(c)) *
         sizeof(E);
}

inline void check_wmma(const Warp& w, int lane, const Site& site, u64 address, u64 stride_bytes) {
  if (address % 32) fault_at_address(w, lane, site, Kind::alignment, "wmma tile not aligned to 32 bytes", address);
  if (stride_bytes % 16) fault(w, lane, site, Kind::alignment, "wmma stride not a multiple of 16 bytes");
}

template <class E, int rows, int columns, bool column_major>
inline void load_tile(Warp& w, const Site& site, Space space, const u64* address, const u32* stride, Registers out,
                      int registers) {
  using Bits = std::conditional_t<sizeof(E) == 2, u16, u32>;
  constexpr int n = Tile<rows, columns>::per_lane, own = Tile<rows, columns>::template registers<E>;
  for (int l = 0; l < lanes; ++l) {
    check_wmma(w, l, site, address[l], u64{stride[l]} * sizeof(E));
    Bits e[n];
    for (int i = 0; i < n; ++i) {
      const u64 at = address[l] + wmma_offset<E, rows, columns, column_major>(l, i, stride[l]);
      e[i] = load<Bits>(w, l, site, locate(w, l, site, space, at, sizeof(E)), 0);
    }
    for (int r = 0; r < registers; ++r) out[r][l] = read_as<u32>(reinterpret_cast<u8*>(e) + 4 * (r % own));
  }
}

template <class E, int rows, int columns, bool column_major>
inline void store_tile(Warp& w, const Site& site, Space space, const u64* address, const u32* stride,
                       ConstRegisters in) {
  using Bits = std::conditional_t<sizeof(E) == 2, u16, u32>;
  for (int l = 0; l < lanes; ++l) {
    check_wmma(w, l, site, address[l], u64{stride[l]} * sizeof(E));
    for (int i = 0; i < Tile<rows, columns>::per_lane; ++i) {
      const u64 at = address[l] + wmma_offset<E, rows, columns, column_major>(l, i, stride[l]);
      constexpr int per = 4 / sizeof(E);
      store(w, l, site, locate(w, l, site, space, at, sizeof(E)), 0, element<Bits>(in[i / per][l], i % per));
    }
  }
}

template <class E, class In, class Out, int M, int N, int K>
inline void multiply_tiles(ConstRegisters a, ConstRegisters b, ConstRegisters c, Registers d) {
  Tile<M, K> A;
  Tile<K, N> B;
  Tile<M, N> C;
  A.template from<E>(a);
  B.template from<E>(b);
  C.template from<In>(c);
  multiply_add(A.at, B.at, C.at);
  C.template to<Out>(d);
}

}  // namespace ptx
