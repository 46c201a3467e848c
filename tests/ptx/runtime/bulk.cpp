// cp.async.bulk: copies of many bytes by one thread.
#include "access.h"

namespace ptx {

namespace {

constexpr u32 unit = 16;  // bytes: what sizes are multiples of, and addresses

Spot locate_range(const Warp& w, int lane, const Site& site, Space space, u64 address, u32 bytes) {
  const auto one = [&](u64 at) {
    return space == Space::cluster ? locate_in_cluster(w, lane, site, at, unit)
                                   : locate(w, lane, site, space, at, unit);
  };
  for (u32 i = unit; i < bytes; i += unit) one(address + i);
  return one(address);
}

void perform(Warp& w, int lane, const Site& site, Spot to, Spot from, u32 bytes) {
  for (u32 i = 0; i < bytes; ++i) {
    const u8 value = load<u8>(w, lane, site, from, i);
    if (to.space == Space::global) store<u8>(w, lane, site, to, i, value);
    else to.at[i] = value;
  }
  if (watching && to.space != Space::global) watch_copy_done(w, lane, site, to, bytes);
}

}  // namespace

void issue_bulk_copy(Warp& w, int lane, const Site& site, Space to_space, u64 to, Space from_space, u64 from, u32 bytes,
                     const Spot* mbarrier) {
  if (bytes % unit || !bytes)
    fault(w, lane, site, Kind::launch, "bulk copy of " + std::to_string(bytes) + " bytes, not a multiple of 16");
  const Spot target = locate_range(w, lane, site, to_space, to, bytes);
  const Spot source = locate_range(w, lane, site, from_space, from, bytes);
  if (watching && to_space != Space::global) watch_copy_issued(w, lane, site, target, bytes);
  BulkCopy copy{&w, lane, bytes, [=, &w, &site] { perform(w, lane, site, target, source, bytes); }};
  if (mbarrier) return add_to_mbarrier(w, site, *mbarrier, std::move(copy));
  auto& groups = w.bulk[lane];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(copy));
}

void commit_bulk_copies(Warp& w, int lane) {
  auto& groups = w.bulk[lane];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void wait_for_bulk_copies(Warp& w, int lane, u32 groups_left) {
  auto& groups = w.bulk[lane];
  for (u64 closed = groups.empty() ? 0 : groups.size() - 1; closed > groups_left; --closed) {
    for (const BulkCopy& copy : groups.front()) copy.perform();
    groups.erase(groups.begin());
  }
}

}  // namespace ptx
