#include "access.h"

#include <algorithm>

#include "settings.h"

namespace ptx {

bool foreign_memory = false;

Allocations& allocations() {
  static Allocations all;
  return all;
}

std::recursive_mutex& device_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

Allocation* Allocations::add(const void* begin, u64 size, bool track_writes) {
  const DeviceLock lock(device_mutex());
  last_ = nullptr;
  const u64 address = reinterpret_cast<u64>(begin);
  return &(all_[address] = {address, size, std::vector<u8>(track_writes ? size : 0)});
}

bool Allocations::remove(const void* begin) {
  const DeviceLock lock(device_mutex());
  last_ = nullptr;
  return all_.erase(reinterpret_cast<u64>(begin)) == 1;
}

Allocation* Allocations::find(u64 address, u64 bytes) {
  const auto inside = [&](const Allocation& a) {
    return address - a.begin < a.size && bytes <= a.begin + a.size - address;
  };
  if (last_ && inside(*last_)) return last_;
  const auto after = all_.upper_bound(address);
  if (after == all_.begin()) return nullptr;
  Allocation& candidate = std::prev(after)->second;
  return inside(candidate) ? last_ = &candidate : nullptr;
}

void Allocations::note_written(const void* begin, u64 bytes) {
  const u64 address = reinterpret_cast<u64>(begin);
  Allocation* a = find(address, bytes);
  if (a && !a->written.empty()) std::fill_n(a->written.begin() + static_cast<s64>(address - a->begin), bytes, 1);
}

namespace {

void perform(Warp& w, int lane, const Copy& copy) {
  u8* const to = reinterpret_cast<u8*>(copy.to);
  if (watching) {
    for (u32 i = 0; i < copy.filled; ++i)
      to[i] = load<u8>(w, lane, *copy.site, {reinterpret_cast<u8*>(copy.from), Space::global}, i);
  } else {
    std::memcpy(to, reinterpret_cast<const u8*>(copy.from), copy.filled);
  }
  std::memset(to + copy.filled, 0, copy.bytes - copy.filled);
  if (watching) watch_copy_done(w, lane, *copy.site, {to, Space::shared}, copy.bytes);
}

void perform_first(Warp& w, int lane, std::size_t groups) {
  auto& all = w.copies[lane];
  for (std::size_t i = 0; i < groups; ++i)
    for (const Copy& copy : all[i]) perform(w, lane, copy);
  all.erase(all.begin(), all.begin() + static_cast<s64>(groups));
}

}  // namespace

void issue_copy(Warp& w, int lane, const Site& site, u64 to, u64 from, u32 bytes, u32 filled) {
  const Spot target = locate(w, lane, site, Space::shared, to, bytes);
  if (filled > bytes) fault(w, lane, site, Kind::launch, "cp.async copies more than its size");
  if (from & (bytes - 1)) fault_at_address(w, lane, site, Kind::alignment, "misaligned access", from);
  if (filled && !allocations().find(from, filled) && !foreign_memory)
    fault_at_address(w, lane, site, Kind::address, "global access out of bounds", from);
  const Copy copy{reinterpret_cast<u64>(target.at), from, bytes, filled, &site};
  if (watching) watch_copy_issued(w, lane, site, target, bytes);
  if (settings().eager_copies) return perform(w, lane, copy);
  auto& groups = w.copies[lane];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void commit_copies(Warp& w, int lane) {
  auto& groups = w.copies[lane];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void wait_for_copies(Warp& w, int lane, u32 groups_left) {
  const std::size_t closed = w.copies[lane].empty() ? 0 : w.copies[lane].size() - 1;
  if (closed > groups_left) perform_first(w, lane, closed - groups_left);
}

void wait_for_all_copies(Warp& w, int lane) { perform_first(w, lane, w.copies[lane].size()); }

}  // namespace ptx
