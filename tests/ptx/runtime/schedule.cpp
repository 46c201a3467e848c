#include "schedule.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "access.h"
#include "fault.h"
#include "settings.h"
#include "watch.h"

namespace ptx {

u64 executed = 0;

namespace {

constexpr u8 never_written = 0xff;  // NaN in every float type
constexpr int long_slice = 100, longest_random_slice = 64;  // basic blocks

struct Free {
  void operator()(u8* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<u8, Free>;

Memory aligned(u64 bytes) { return Memory(static_cast<u8*>(std::aligned_alloc(1024, (bytes + 1024) / 1024 * 1024))); }

// The grid's number of a block, by its cluster's number and its rank there.
u32 index_of(const Grid& g, u64 cluster, u32 rank) {
  u64 index = 0, before = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const u32 n = g.cluster[axis], clusters = g.nctaid[axis] / n;
    index += before * (cluster % clusters * n + rank % n);
    before *= g.nctaid[axis];
    cluster /= clusters;
    rank /= n;
  }
  return static_cast<u32>(index);
}

// A block in flight, with its memory; when all of its cluster have ended, blocks of the next one take their places.
struct Resident {
  Block block{};
  Memory shared;
  std::vector<Memory> of_warps;

  Resident(Grid& grid, u32 threads, u32 shared_bytes) : shared(aligned(shared_bytes)) {
    block.grid = &grid;
    block.threads = threads;
    block.shared = shared.get();
    block.shared_bytes = shared_bytes;
    block.warps.resize((threads + lanes - 1) / lanes);
    for (Warp& w : block.warps) {
      w.block = &block;
      w.registers = of_warps.emplace_back(aligned(grid.kernel->register_bytes)).get();
      w.local = of_warps.emplace_back(aligned(u64{lanes} * grid.kernel->local_bytes)).get();
    }
  }
};

void start(Block& block, u32 index) {
  const Grid& grid = *block.grid;
  const u32 *n = grid.nctaid, *t = grid.ntid;
  block.index = index;
  block.ctaid[0] = index % n[0];
  block.ctaid[1] = index / n[0] % n[1];
  block.ctaid[2] = index / n[0] / n[1];
  block.live = block.threads;
  block.ended = false;
  block.epoch = block.ordered = 1;
  block.mbarriers.clear();
  std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier{});
  std::memset(block.shared, never_written, block.shared_bytes);
  for (u32 k = 0; k < block.warps.size(); ++k) {
    Warp& w = block.warps[k];
    w.id = k;
    w.live = w.waiting = w.arrived = w.open = w.parked = w.picks = w.epoch = 0;
    w.parked_site = nullptr;
    std::memset(w.registers, 0, grid.kernel->register_bytes);
    std::memset(w.local, never_written, u64{lanes} * grid.kernel->local_bytes);
    for (int l = 0; l < lanes; ++l) {
      const u32 thread = k * lanes + static_cast<u32>(l);
      w.pc[l] = 0;
      w.copies[l].clear();
      w.bulk[l].clear();
      w.tid[0][l] = thread % t[0];
      w.tid[1][l] = thread / t[0] % t[1];
      w.tid[2][l] = thread / t[0] / t[1];
      w.live |= static_cast<u32>(thread < block.threads) << l;
    }
  }
  if (watching) watch_block_start(block);
}

std::mt19937_64& random_numbers() {
  static std::mt19937_64 generator;
  return generator;
}

class Run {
 public:
  Run(Grid& grid, u64 blocks, u64 resident, u32 threads, u32 shared_bytes) : first_(executed) {
    const u32 size = grid.cluster[0] * grid.cluster[1] * grid.cluster[2];
    number_ = blocks / size;
    for (u64 i = 0; i < std::min(resident / size, number_); ++i) {
      Cluster& cluster = *clusters_.emplace_back(std::make_unique<Cluster>());
      for (u32 rank = 0; rank < size; ++rank) {
        Block& block = residents_.emplace_back(std::make_unique<Resident>(grid, threads, shared_bytes))->block;
        block.cluster = &cluster;
        block.rank = rank;
        cluster.blocks.push_back(&block);
      }
      start_next(cluster);
    }
    warp_order_.resize(residents_[0]->block.warps.size());
    std::iota(warp_order_.begin(), warp_order_.end(), 0);
    if (settings().seed) std::shuffle(residents_.begin(), residents_.end(), random_numbers());
  }

  void all() {
    while (!residents_.empty()) {
      bool progress = false;
      for (const auto& resident : residents_) {
        Block& block = resident->block;
        progress |= some(block);
        if (block.live || block.ended) continue;
        if (watching) watch_block_end(block);
        block.ended = true;
        if (!--block.cluster->running && next_ < number_) start_next(*block.cluster);
      }
      if (watching) watch_round_end();
      std::erase_if(residents_, [](const auto& resident) { return !resident->block.cluster->running; });
      if (!progress && !residents_.empty()) deadlock();
    }
  }

 private:
  void start_next(Cluster& cluster) {
    cluster.running = static_cast<u32>(cluster.blocks.size());
    cluster.arriving = false;
    for (Block* block : cluster.blocks) start(*block, index_of(*block->grid, next_, block->rank));
    ++next_;
  }

  // Runs the warps of a block until all wait for each other, or for other blocks.
  bool some(Block& block) {
    bool any = false, again = true;
    while (again && block.live) {
      again = false;
      if (settings().seed) std::shuffle(warp_order_.begin(), warp_order_.end(), random_numbers());
      for (const u32 k : warp_order_) {
        Warp& w = block.warps[k];
        if (!(w.live & ~w.waiting)) continue;
        const u64 before = executed;
        const Outcome outcome = block.grid->kernel->run(w, slice());
        if (executed == before) continue;
        any = true;
        again |= outcome != Outcome::yielded;
        if (executed - first_ > settings().limit) endless(w);
      }
    }
    return any;
  }

  int slice() const {
    return settings().seed ? 1 + static_cast<int>(random_numbers()() % longest_random_slice) : long_slice;
  }

  [[noreturn]] void endless(const Warp& w) const {
    const std::string text = "no end after " + std::to_string(executed - first_) + " thread instructions, in warp ";
    throw Fault{Kind::timeout, text + std::to_string(w.id) + " of kernel " + waits(*w.block->cluster)};
  }

  [[noreturn]] void deadlock() const {
    throw Fault{Kind::launch, "deadlock in kernel " + waits(*residents_[0]->block.cluster)};
  }

  // The kernel's name, and what the warps of a cluster's blocks wait for.
  static std::string waits(const Cluster& cluster) {
    std::string text = readable(cluster.blocks[0]->grid->kernel->name);
    const auto add = [&](const Warp& w, u32 mask, const char* what, const Site* site) {
      if (!mask || !site) return;
      char who[64];
      std::snprintf(who, sizeof who, "\n  lanes %08x of warp %u wait ", mask, w.id);
      text += who + std::string(what) + whereabouts(w, first_lane(mask), *site);
    };
    const auto add_warp = [&](const Warp& w) {
      const u32 at_cluster = lanes_at(w, cluster_barrier), at_barrier = w.live & w.waiting & ~at_cluster;
      add(w, at_cluster, "for the cluster: ", at_cluster ? w.barrier_site[first_lane(at_cluster)] : nullptr);
      add(w, at_barrier, "for the block: ", at_barrier ? w.barrier_site[first_lane(at_barrier)] : nullptr);
      u32 parked = 0;
      for (int l = 0; l < lanes; ++l) parked |= static_cast<u32>(w.pc[l] == w.parked_pc) << l;
      add(w, w.live & ~w.waiting & parked, "for lanes of the warp: ", w.parked_site);
    };
    for (const Block* b : cluster.blocks)
      for (const Warp& w : b->warps) add_warp(w);
    return text;
  }

  u64 number_, next_ = 0, first_;  // of clusters: how many, and which starts next; instructions before the launch
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<Resident>> residents_;
  std::vector<u32> warp_order_;
};

void report(const Grid& grid, u64 instructions, double seconds) {
  const u32 *g = grid.nctaid, *t = grid.ntid;
  std::fprintf(stderr, "ptx: %s grid %ux%ux%u block %ux%ux%u: %llu thread instructions, %.3f s, %.1f M/s\n",
               readable(grid.kernel->name).c_str(), g[0], g[1], g[2], t[0], t[1], t[2],
               static_cast<unsigned long long>(instructions), seconds,
               static_cast<double>(instructions) / seconds / 1e6);
}

// The grid's workspace, which cooperative groups keep their barrier in.
struct Workspace {
  alignas(16) u32 words[8] = {sizeof words};
  Workspace() { allocations().add(words, sizeof words, false); }
  ~Workspace() { allocations().remove(words); }
};

}  // namespace

void run_grid(const Kernel& kernel, const Shape& shape, void** arguments, u64 resident, u32 sms) {
  static u64 launches = 0, seed = 0;
  if (seed != settings().seed) random_numbers().seed(seed = settings().seed);
  std::vector<u8> parameters(kernel.parameter_bytes + 16);
  for (u32 i = 0; i < kernel.parameters; ++i)
    std::memcpy(&parameters[kernel.parameter_offsets[i]], arguments[i], kernel.parameter_sizes[i]);
  const Workspace workspace;
  Grid g{&kernel,
         {shape.block.x, shape.block.y, shape.block.z},
         {shape.grid.x, shape.grid.y, shape.grid.z},
         parameters.data(),
         reinterpret_cast<u64>(workspace.words),
         ++launches,
         sms,
         {shape.cluster.x, shape.cluster.y, shape.cluster.z},
         shape.clustered};
  const u64 first = executed;
  const auto start = std::chrono::steady_clock::now();
  const u32 shared = static_cast<u32>((kernel.shared_bytes + shape.dynamic_shared + 15) / 16 * 16);
  const WatchLaunch watch(g);
  Run(g, count_of(shape.grid), resident, static_cast<u32>(count_of(shape.block)), shared).all();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (settings().verbose) report(g, executed - first, took.count());
}

}  // namespace ptx
