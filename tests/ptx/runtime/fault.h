// What a kernel did wrong, and who did it.
#pragma once

#include <string>

#include "warp.h"

namespace ptx {

enum class Kind { address, alignment, assertion, launch, timeout };  // which CUDA error a launch returns

struct Fault {
  Kind kind;
  std::string message;
};

// "thread (1,0,0) of warp 0, block (2,0,0), kernel k: st.global.f32 [%rd4], %f1 (k.cu:12)"
std::string whereabouts(const Grid& grid, u32 block, u32 thread, const Site& site);
std::string whereabouts(const Warp& w, int lane, const Site& site);

std::string readable(const char* kernel);  // its name as in the source

// "what, by whereabouts", and the details on a line of their own.
[[noreturn]] void fault(const Warp& w, int lane, const Site& site, Kind kind, const std::string& what,
                        const std::string& details = "");
[[noreturn]] void fault_at_address(const Warp& w, int lane, const Site& site, Kind kind, const char* what, u64 address);

inline void unsupported(const Warp& w, u32 mask, const Site& site) {
  if (mask) fault(w, first_lane(mask), site, Kind::launch, "unsupported instruction");
}
inline void trap(const Warp& w, int lane, const Site& site) { fault(w, lane, site, Kind::launch, "trap"); }

}  // namespace ptx
