#include "fault.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>

namespace ptx {

std::string readable(const char* kernel) {
  int failed = 0;
  char* demangled = abi::__cxa_demangle(kernel, nullptr, nullptr, &failed);
  const std::string name = demangled ? demangled : kernel;
  std::free(demangled);
  return name;
}

std::string whereabouts(const Grid& grid, u32 block, u32 thread, const Site& site) {
  const u32 *t = grid.ntid, *n = grid.nctaid;
  char who[256];
  std::snprintf(who, sizeof who, "thread (%u,%u,%u) of warp %u, block (%u,%u,%u), kernel ", thread % t[0],
                thread / t[0] % t[1], thread / t[0] / t[1], thread / lanes, block % n[0], block / n[0] % n[1],
                block / n[0] / n[1]);
  const std::string place = *site.place ? " (" + std::string(site.place) + ")" : "";
  return who + readable(grid.kernel->name) + ": " + site.text + place;
}

std::string whereabouts(const Warp& w, int lane, const Site& site) {
  return whereabouts(*w.block->grid, w.block->index, w.id * lanes + static_cast<u32>(lane), site);
}

void fault(const Warp& w, int lane, const Site& site, Kind kind, const std::string& what, const std::string& details) {
  throw Fault{kind, what + ", by " + whereabouts(w, lane, site) + (details.empty() ? "" : "\n  " + details)};
}

void not_named(const Warp& w, int lane, const Site& site) {
  fault(w, lane, site, Kind::launch, "warp-wide instruction whose mask does not name the thread itself");
}

void fault_at_address(const Warp& w, int lane, const Site& site, Kind kind, const char* what, u64 address) {
  char number[32];
  std::snprintf(number, sizeof number, " (address 0x%llx)", static_cast<unsigned long long>(address));
  fault(w, lane, site, kind, what + std::string(number));
}

}  // namespace ptx
