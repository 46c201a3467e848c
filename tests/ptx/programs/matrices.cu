// One warp's stmatrix of 1, 2 and 4 tiles, as they are and transposed, and ldmatrix of what it stored.
#include "check.h"

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

#define STORE_AND_LOAD(tiles, trans, registers)                                                              \
  do {                                                                                                       \
    asm volatile("stmatrix.sync.aligned.m8n8.x" tiles trans ".shared.b16 [%4], " registers ";" ::"r"(in[0]), \
                 "r"(in[1]), "r"(in[2]), "r"(in[3]), "r"(row)                                                \
                 : "memory");                                                                                \
    __syncwarp();                                                                                            \
    asm volatile("ldmatrix.sync.aligned.m8n8.x" tiles trans ".shared.b16 " registers ", [%4];"               \
                 : "+r"(out[0]), "+r"(out[1]), "+r"(out[2]), "+r"(out[3])                                    \
                 : "r"(row)                                                                                  \
                 : "memory");                                                                                \
  } while (false)

template <int tiles, bool transposed>
__global__ void store(const uint4* x,     // [32]: of each lane a register of each tile
                      unsigned short* y,  // [tiles, 8, 8]
                      unsigned* again) {  // [tiles, 32]
  __shared__ __align__(16) unsigned short s[tiles * 8][16];  // rows padded
  const int l = threadIdx.x;
  const unsigned row = shared_address(s[l % (8 * tiles)]);
  const unsigned in[4] = {x[l].x, x[l].y, x[l].z, x[l].w};
  unsigned out[4] = {};
  if constexpr (tiles == 1 && !transposed) STORE_AND_LOAD("1", "", "{%0}");
  if constexpr (tiles == 1 && transposed) STORE_AND_LOAD("1", ".trans", "{%0}");
  if constexpr (tiles == 2 && !transposed) STORE_AND_LOAD("2", "", "{%0, %1}");
  if constexpr (tiles == 2 && transposed) STORE_AND_LOAD("2", ".trans", "{%0, %1}");
  if constexpr (tiles == 4 && !transposed) STORE_AND_LOAD("4", "", "{%0, %1, %2, %3}");
  if constexpr (tiles == 4 && transposed) STORE_AND_LOAD("4", ".trans", "{%0, %1, %2, %3}");
  for (int i = 0; i < tiles; ++i) again[32 * i + l] = out[i];
  for (int i = l; i < 64 * tiles; i += 32) y[i] = s[i / 8][i % 8];
}

template <int tiles, bool transposed>
void check_store() {
  std::vector<uint4> x(32);
  for (uint4& v : x)
    v = {unsigned(random_bits()()), unsigned(random_bits()()), unsigned(random_bits()()), unsigned(random_bits()())};
  Array<uint4> dx(x);
  Array<unsigned short> y(64 * tiles);
  Array<unsigned> again(32 * tiles);
  store<tiles, transposed><<<1, 32>>>(dx, y, again);
  const auto got = y.host();
  const auto back = again.host();
  Comparison compare{"stmatrix", 0};
  // Lane l holds elements 2 (l % 4) and the next of row l / 4.
  for (int i = 0; i < tiles; ++i)
    for (int l = 0; l < 32; ++l) {
      const unsigned held = (&x[l].x)[i];
      compare(back[32 * i + l], held);
      for (int k = 0; k < 2; ++k) {
        const int row = l / 4, column = 2 * (l % 4) + k;
        compare(got[64 * i + (transposed ? 8 * column + row : 8 * row + column)], held >> 16 * k & 0xffff);
      }
    }
}

int main() {
  check_store<1, false>();
  check_store<1, true>();
  check_store<2, false>();
  check_store<2, true>();
  check_store<4, false>();
  check_store<4, true>();
}
