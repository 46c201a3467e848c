// Warp-wide instructions on registers. Operands and results are arrays over lanes; `among` are the lanes that take
// part.
#pragma once

#include "arithmetic.h"
#include "warp.h"

namespace ptx {

enum class Shuffle { up, down, bfly, idx };

constexpr u32 no_such_lane = 0xdeadbeef;  // what a lane gets from one that does not take part: undefined on a device

inline void shuffle(Shuffle mode, u32 among, const u32* value, const u32* by, const u32* clamp, u32* result,
                    u32* valid) {
  u32 out[lanes], ok[lanes];
  for (int l = 0; l < lanes; ++l) {
    const int segment = clamp[l] >> 8 & 31, b = by[l] & 31, low = l & segment;
    const int limit = low | (static_cast<int>(clamp[l] & 31) & ~segment);
    int from = 0;
    switch (mode) {
      case Shuffle::up: from = l - b; break;
      case Shuffle::down: from = l + b; break;
      case Shuffle::bfly: from = l ^ b; break;
      case Shuffle::idx: from = low | (b & ~segment); break;
    }
    ok[l] = mode == Shuffle::up ? from >= limit : from <= limit;
    if (!ok[l]) from = l;
    out[l] = holds(among, from) ? value[from] : no_such_lane;
  }
  std::memcpy(result, out, sizeof out);
  std::memcpy(valid, ok, sizeof ok);
}

// For each lane the mask of lanes with its value.
template <class T>
inline void match_any(u32 among, const T* value, u32* result) {
  for (int l = 0; l < lanes; ++l) {
    result[l] = 0;
    for (int k = 0; k < lanes; ++k) result[l] |= static_cast<u32>(holds(among, k) && value[k] == value[l]) << k;
  }
}

// All of `among` if they have one value, otherwise none.
template <class T>
inline u32 match_all(u32 among, const T* value) {
  for (int l = 0; l < lanes; ++l)
    if (holds(among, l) && value[l] != value[first_lane(among)]) return 0;
  return among;
}

template <class T, class F>
inline T reduce(u32 among, const T* value, F combine) {
  T result = value[first_lane(among)];
  for (int l = first_lane(among) + 1; l < lanes; ++l)
    if (holds(among, l)) result = combine(result, value[l]);
  return result;
}

}  // namespace ptx
