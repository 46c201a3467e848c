// mbarrier objects. The eight bytes in shared memory are only their place; what they hold is kept beside.
#include <utility>

#include "access.h"
#include "watch.h"

namespace ptx {

namespace {

constexpr s64 most = (1 << 20) - 1;  // arrivals, and bytes of copies, of a phase

u64 place(const Warp& w, int lane, const Site& site, Spot spot) {
  if (spot.space != Space::shared && spot.space != Space::cluster)
    fault(w, lane, site, Kind::address, "mbarrier outside of shared memory");
  return static_cast<u64>(spot.at - holder(w, spot).shared);
}

Mbarrier& mbarrier_at(const Warp& w, int lane, const Site& site, Spot spot) {
  const u64 at = place(w, lane, site, spot);
  auto& all = holder(w, spot).mbarriers;
  const auto found = all.find(at);
  if (found == all.end()) fault_at_address(w, lane, site, Kind::launch, "mbarrier that is not initialised", at);
  return found->second;
}

void complete_if_nothing_lacks(Mbarrier& m) {
  if (m.pending || m.bytes) return;
  m.pending = m.expected;
  ++m.phase;
  if (watching) watch_mbarrier_complete(m);
}

// What has been copied has arrived, when somebody asks and nothing else lacks.
void copy_if_last(Mbarrier& m) {
  if (m.pending) return;
  for (const BulkCopy& copy : std::exchange(m.copies, {})) {
    copy.perform();
    m.bytes -= copy.bytes;
    if (watching) watch_mbarrier_copied(*copy.by, copy.lane, m);
  }
  complete_if_nothing_lacks(m);
}

}  // namespace

void add_to_mbarrier(Warp& w, const Site& site, Spot mbarrier, BulkCopy copy) {
  Mbarrier& m = mbarrier_at(w, copy.lane, site, mbarrier);
  m.copies.push_back(std::move(copy));
}

void mbarrier_init(Warp& w, int lane, const Site& site, Spot spot, u32 count) {
  if (count < 1 || count > most)
    fault(w, lane, site, Kind::launch, "mbarrier for " + std::to_string(count) + " arrivals");
  if (watching) watch_mbarrier_set(w, lane, site, spot);
  const u64 at = place(w, lane, site, spot);
  if (!holder(w, spot).mbarriers.try_emplace(at, Mbarrier{count, count, 0, 0, nullptr}).second)
    fault_at_address(w, lane, site, Kind::launch, "mbarrier initialised again without mbarrier.inval", at);
}

void mbarrier_inval(Warp& w, int lane, const Site& site, Spot spot) {
  mbarrier_at(w, lane, site, spot);
  if (watching) watch_mbarrier_set(w, lane, site, spot);
  holder(w, spot).mbarriers.erase(place(w, lane, site, spot));
}

u64 mbarrier_arrive(Warp& w, int lane, const Site& site, Spot spot, Arrival arrival) {
  Mbarrier& m = mbarrier_at(w, lane, site, spot);
  if (arrival.count > m.pending)
    fault(w, lane, site, Kind::launch,
          std::to_string(arrival.count) + " arrivals at an mbarrier that lacks " + std::to_string(m.pending));
  if (watching) watch_mbarrier_arrive(w, lane, site, spot, m, arrival.releases);
  m.bytes += arrival.bytes;
  m.pending -= arrival.count;
  if (m.bytes < -most || m.bytes > most)
    fault(w, lane, site, Kind::launch, "mbarrier that lacks " + std::to_string(m.bytes) + " bytes");
  const u64 phase = m.phase;
  complete_if_nothing_lacks(m);
  if (phase != m.phase && !arrival.completes)
    fault(w, lane, site, Kind::launch, "arrival that was not to complete the phase, and did");
  return phase;
}

bool mbarrier_test(Warp& w, int lane, const Site& site, Spot spot, u64 phase, bool acquires) {
  Mbarrier& m = mbarrier_at(w, lane, site, spot);
  copy_if_last(m);
  if (phase > m.phase || phase + 1 < m.phase)
    fault(w, lane, site, Kind::launch, "test of an mbarrier's phase that is neither the present one nor the last");
  const bool completed = phase != m.phase;
  if (watching) watch_mbarrier_test(w, lane, site, spot, m, completed && acquires);
  return completed;
}

bool mbarrier_test_parity(Warp& w, int lane, const Site& site, Spot spot, u32 parity, bool acquires) {
  Mbarrier& m = mbarrier_at(w, lane, site, spot);
  copy_if_last(m);
  const bool completed = m.phase % 2 != (parity & 1);
  if (watching) watch_mbarrier_test(w, lane, site, spot, m, completed && acquires);
  return completed;
}

}  // namespace ptx
