// The checks that can be switched on, for every access.
#include "watch.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "order.h"
#include "settings.h"
#include "shadow.h"
#include "weak.h"

namespace ptx {

bool watching = false;

namespace {

// Of the launch that runs; a launch comes after all that earlier ones did.
struct Launch {
  Shadow global;
  std::unordered_map<u64, Release> releases;
  std::vector<std::shared_ptr<StoreBuffer>> buffers;  // also of blocks that have ended
  std::minstd_rand random{static_cast<u32>(settings().seed)};
};
std::optional<Launch> current;

u32 thread_of(const Warp& w, int lane) { return w.id * lanes + static_cast<u32>(lane); }

// The flags of the bytes at `at`, or null where all counts as written.
u8* written_flags(Block& b, Spot spot, u32 bytes) {
  if (spot.space != Space::global)
    return b.shared_written.empty() ? nullptr : &b.shared_written[static_cast<u64>(spot.at - b.shared)];
  Allocation* a = allocations().find(reinterpret_cast<u64>(spot.at), bytes);
  return a && !a->written.empty() ? &a->written[reinterpret_cast<u64>(spot.at) - a->begin] : nullptr;
}

void check_written(Warp& w, int lane, const Site& site, Spot spot, u32 bytes) {
  if (!settings().unwritten) return;
  Block& b = holder(w, spot);
  const u8* flags = written_flags(b, spot, bytes);
  if (!flags || std::all_of(flags, flags + bytes, [](u8 f) { return f; })) return;
  const bool shared = spot.space != Space::global;
  fault_at_address(w, lane, site, Kind::launch,
                   shared ? "read of unwritten shared memory" : "read of unwritten global memory",
                   shared ? static_cast<u64>(spot.at - b.shared) : reinterpret_cast<u64>(spot.at));
}

void note_written(Warp& w, Spot spot, u32 bytes) {
  if (!settings().unwritten) return;
  if (u8* flags = written_flags(holder(w, spot), spot, bytes)) std::fill_n(flags, bytes, 1);
}

// What a thread knows of a block includes that it has started.
void check_started(Warp& w, int lane, const Site& site, Spot spot) {
  if (!w.block->order->knows_all_of(thread_of(w, lane), holder(w, spot).index, 0))
    fault(w, lane, site, Kind::launch, "access to the shared memory of a block that may not have started");
}

void check(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Does does, Order order) {
  if (!settings().race) return;
  if (spot.space == Space::cluster) check_started(w, lane, site, spot);
  Shadow& shadow = spot.space == Space::global ? current->global : *holder(w, spot).shadow;
  check_race(shadow, w, lane, site, reinterpret_cast<u64>(spot.at), bytes, does, order);
}

std::unordered_map<u64, Release>& releases_of(Warp& w, Spot spot) {
  return spot.space == Space::global ? current->releases : holder(w, spot).order->shared_releases;
}

void observe(Warp& w, int lane, Spot spot, Order order) {
  if (!settings().race || !is_strong(order)) return;
  OrderOfBlock& known = *w.block->order;
  known.observe(*w.block, thread_of(w, lane), reinterpret_cast<u64>(spot.at), releases_of(w, spot));
  if (acquires(order)) known.acquire(thread_of(w, lane), Scope::device);
}

void publish(Warp& w, int lane, Spot spot, Order order) {
  if (!settings().race || !is_strong(order)) return;
  OrderOfBlock& known = *w.block->order;
  if (releases(order)) known.release(*w.block, thread_of(w, lane), Scope::device);
  known.publish(*w.block, thread_of(w, lane), reinterpret_cast<u64>(spot.at), releases_of(w, spot));
}

// Half of the strong stores pass others, where the order is random.
bool seen_at_once() { return settings().seed && current->random() & 1; }

StoreBuffer* buffer_for(Warp& w, Spot spot) {
  return settings().weak && spot.space != Space::shared ? w.block->buffer.get() : nullptr;
}

}  // namespace

WatchLaunch::WatchLaunch(const Grid&) {
  if (watching) current.emplace();
}

WatchLaunch::~WatchLaunch() {
  if (current)
    for (const auto& buffer : current->buffers) buffer->flush_all();
  current.reset();
}

void watch_round_end() {
  for (const auto& buffer : current->buffers) buffer->end_round();
}

void watch_block_start(Block& b) {
  b.shared_written.assign(settings().unwritten ? b.shared_bytes : 0, 0);
  b.shadow = std::make_shared<Shadow>();
  b.order = std::make_shared<OrderOfBlock>();
  b.buffer = current->buffers.emplace_back(std::make_shared<StoreBuffer>());
  if (b.rank == 0) b.cluster->order = std::make_shared<OrderOfPhase>();
}

void watch_block_end(Block& b) {
  if (b.cluster->blocks.size() == 1) return;
  b.buffer->flush_all();  // also to shared memory, which the next cluster will have
  if (!settings().race) return;
  b.order->barrier();
  check_end(*b.shadow, b);
}

void watch_barrier(Block& b) { b.order->barrier(); }

void watch_cluster_arrive(Warp& w, u32 mask, bool releases) {
  if (settings().race)
    w.block->order->arrive(*w.block, w.id * lanes, mask, releases, w.block->cluster->order->arriving);
  for (int l = 0; settings().weak && releases && l < lanes; ++l)
    if (holds(mask, l)) w.block->buffer->fence(thread_of(w, l), w.block->epoch);
}

void watch_cluster_open(Cluster& cluster) {
  if (!settings().race) return;
  OrderOfPhase& order = *cluster.order;
  order.completed = std::exchange(order.arriving, {});
  for (const Block* b : cluster.blocks) order.completed.below.try_emplace(b->index, 1);  // it has started
}

void watch_cluster_wait(Warp& w, u32 mask) {
  if (settings().race) w.block->order->join(w.id * lanes, mask, w.block->cluster->order->completed);
}

void watch_mbarrier_set(Warp& w, int lane, const Site& site, Spot spot) {
  check(w, lane, site, spot, sizeof(u64), Does::write, Order::weak);
  note_written(w, spot, sizeof(u64));
}

namespace {

void release_to(Mbarrier& m, Warp& w, int lane, bool releases) {
  if (!m.order) m.order = std::make_shared<OrderOfPhase>();
  w.block->order->arrive(*w.block, w.id * lanes, 1u << lane, releases, m.order->arriving);
  if (releases) w.block->epoch = epoch_of(w, lane) + 1;  // so that what comes now is not released
}

}  // namespace

void watch_mbarrier_arrive(Warp& w, int lane, const Site& site, Spot spot, Mbarrier& m, bool releases) {
  if (settings().weak && releases) w.block->buffer->fence(thread_of(w, lane), w.block->epoch);
  if (!settings().race) return;
  check(w, lane, site, spot, sizeof(u64), Does::write, Order::relaxed);
  release_to(m, w, lane, releases);
}

void watch_mbarrier_copied(Warp& w, int lane, Mbarrier& m) {
  if (settings().race) release_to(m, w, lane, true);
}

void watch_mbarrier_complete(Mbarrier& m) {
  if (m.order) m.order->completed.join(std::exchange(m.order->arriving, {}));
}

void watch_mbarrier_test(Warp& w, int lane, const Site& site, Spot spot, const Mbarrier& m, bool acquires) {
  if (!settings().race) return;
  check(w, lane, site, spot, sizeof(u64), Does::read, Order::relaxed);
  if (m.order && acquires) w.block->order->join(w.id * lanes, 1u << lane, m.order->completed);
}

void watch_load(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, void* value) {
  check_written(w, lane, site, spot, bytes);
  check(w, lane, site, spot, bytes, order == Order::constant ? Does::read_constant : Does::read, order);
  std::memcpy(value, spot.at, bytes);
  if (const StoreBuffer* buffer = buffer_for(w, spot)) buffer->overlay(reinterpret_cast<u64>(spot.at), value, bytes);
  observe(w, lane, spot, order);
}

void watch_store(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, const void* value) {
  const u64 address = reinterpret_cast<u64>(spot.at);
  check(w, lane, site, spot, bytes, Does::write, order);
  note_written(w, spot, bytes);
  publish(w, lane, spot, order);
  StoreBuffer* buffer = buffer_for(w, spot);
  const bool for_all = order >= Order::relaxed;
  if (buffer && releases(order)) buffer->fence(thread_of(w, lane), w.block->epoch);
  if (buffer && !(for_all && seen_at_once()))
    return buffer->store(address, value, bytes, thread_of(w, lane), w.block->epoch, for_all);
  if (buffer) buffer->drop(address, bytes);
  std::memcpy(spot.at, value, bytes);
}

void watch_atomic(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, bool reads) {
  if (reads) check_written(w, lane, site, spot, bytes);
  note_written(w, spot, bytes);
  check(w, lane, site, spot, bytes, Does::write, order);
  observe(w, lane, spot, order);
  publish(w, lane, spot, order);
  StoreBuffer* buffer = buffer_for(w, spot);
  if (buffer && releases(order)) buffer->fence(thread_of(w, lane), w.block->epoch);
  if (buffer) buffer->flush(reinterpret_cast<u64>(spot.at), bytes);
}

void watch_fence(Warp& w, int lane, Scope scope) {
  if (settings().race) w.block->order->fence(*w.block, thread_of(w, lane), scope);
  if (settings().weak && scope == Scope::device) w.block->buffer->fence(thread_of(w, lane), w.block->epoch);
}

void watch_sync_warp(Warp& w, u32 mask) {
  if (settings().race) w.block->order->sync_warp(w.id * lanes, mask);
}

void watch_copy_issued(Warp& w, int lane, const Site& site, Spot to, u32 bytes) {
  check(w, lane, site, to, bytes, Does::begin_copy, Order::weak);
}

void watch_copy_done(Warp& w, int lane, const Site& site, Spot to, u32 bytes) {
  check(w, lane, site, to, bytes, Does::end_copy, Order::weak);
  note_written(w, to, bytes);
}

}  // namespace ptx
