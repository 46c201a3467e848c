// Grid, block and warp, and how the lanes of a warp move through a kernel.
//
// A kernel is a switch over basic blocks. A warp executes the basic block of its lanes with the lowest number, under a
// mask, so that diverged lanes meet again; now and then the highest, so that lanes that wait for others in a loop do
// not keep these from running.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "scalars.h"

namespace ptx {

constexpr int lanes = 32;
constexpr u32 full_warp = 0xffffffffu;

struct Block;
struct Cluster;
struct Warp;
struct OrderOfBlock;  // what is known about the order of accesses: order.h
struct OrderOfPhase;
struct StoreBuffer;   // stores that other blocks do not see yet: weak.h
struct Shadow;        // who accessed a block's shared memory: shadow.h

// An instruction, as reports name it.
struct Site {
  const char* text;
  const char* place;  // file:line, or ""
};

enum class Outcome { done, blocked, yielded };

// A copy that cp.async has issued: it happens as late as the waits allow.
struct Copy {
  u64 to, from;
  u32 bytes, filled;  // the first `filled` bytes are copied, the others become 0
  const Site* site;
};

// A copy that cp.async.bulk has issued, and by which thread. It happens as late as the waits allow, too.
struct BulkCopy {
  Warp* by;
  int lane;
  u32 bytes;
  std::function<void()> perform;
};

struct Warp {
  Block* block;
  u32 id;
  u32 live;     // lanes that have not exited
  u32 waiting;  // lanes at a block barrier, or at the cluster's
  u32 arrived;  // lanes that have arrived at the cluster's barrier, while others have not,
  u32 open;     // and those that may pass it: all have arrived
  u32 parked;   // lanes at a warp-wide instruction whose mates have not come,
  const Site* parked_site;  // and which that was last: its instruction,
  int parked_pc;            // its basic block
  u32 epoch;    // how often __syncwarp has ordered the lanes
  u32 picks;
  int pc[lanes];
  u8 barrier[lanes];              // where a waiting lane waits,
  const Site* barrier_site[lanes];  // and by which instruction
  u32 tid[3][lanes];
  u8* registers;
  u8* local;
  std::vector<std::vector<Copy>> copies[lanes];     // per commit group
  std::vector<std::vector<BulkCopy>> bulk[lanes];  // per bulk group
};

struct Kernel {
  const char* name;
  Outcome (*run)(Warp&, int budget);
  u32 register_bytes, shared_bytes, local_bytes, parameter_bytes;
  const u32 *parameter_offsets, *parameter_sizes;
  u32 parameters;
  u32 registers;    // a thread's, of the machine code; 0: not known
  u32 max_threads;  // of __launch_bounds__; 0: not given
  u32 target;       // compute capability that the PTX is for: 80
  const Site* sites;
  // Of __cluster_dims__ and __launch_bounds__, 0 where not given; and whether launches must be of clusters.
  u32 cluster[3], max_cluster, explicit_cluster;
};

struct Grid {
  const Kernel* kernel;
  u32 ntid[3], nctaid[3];
  u8* parameters;
  u64 workspace;  // of cooperative groups, found through envreg1 and envreg2
  u64 id;
  u32 sms;
  u32 cluster[3], explicit_cluster;  // blocks of a cluster; 1, 1, 1 also in a launch without clusters
};

struct Barrier {
  u32 arrived, expected;  // threads; 0 expected: all that live
  u32 counted;            // threads whose predicate was true
  u32 result, members;    // of the last time: `counted` and `arrived`
  const Site* site;       // of the first to arrive,
  u32 first;              // and who that was
};

// An mbarrier object in shared memory.
struct Mbarrier {
  u32 expected, pending;  // arrivals: of a phase, and those that the present one still lacks
  s64 bytes;              // of copies that the present phase still lacks (tx-count)
  u64 phase;              // how many have completed
  std::shared_ptr<OrderOfPhase> order;
  std::vector<BulkCopy> copies;
};

struct Block {
  Grid* grid;
  Cluster* cluster;
  u32 ctaid[3], index, rank;  // rank: in the cluster
  u8* shared;
  u32 shared_bytes;
  u32 threads, live;
  bool ended;
  u32 epoch;    // 1 + how many barriers of the block and of the cluster have completed, and arrivals at mbarriers
  u32 ordered;  // what was done in earlier epochs than this happened before: such a barrier came between
  Barrier barriers[16];
  std::vector<Warp> warps;
  std::unordered_map<u64, Mbarrier> mbarriers;  // by their offset in shared memory
  std::vector<u8> shared_written;
  std::shared_ptr<Shadow> shadow;
  std::shared_ptr<OrderOfBlock> order;
  std::shared_ptr<StoreBuffer> buffer;
};

// Blocks that run at the same time, and that see each other's shared memory. Without clusters each block is one.
struct Cluster {
  std::vector<Block*> blocks;  // by rank
  u32 running;                 // blocks that have not ended
  bool arriving;               // some thread has arrived at the barrier, others have not
  std::shared_ptr<OrderOfPhase> order;
};

extern u64 executed;  // thread instructions, by all

inline int count(u32 mask) { return __builtin_popcount(mask); }
inline int first_lane(u32 mask) { return __builtin_ctz(mask); }
inline bool holds(u32 mask, int lane) { return mask >> lane & 1; }

u32 mask_of(const u32* predicate, u32 among);
void set_pc(Warp& w, u32 mask, int pc);

constexpr u8 cluster_barrier = 16;  // after the numbers of a block's barriers

inline u32 lanes_at(const Warp& w, u32 barrier) {
  u32 mask = 0;
  for (int l = 0; l < lanes; ++l) mask |= static_cast<u32>(holds(w.waiting, l) && w.barrier[l] == barrier) << l;
  return mask;
}

// The epoch of a lane's accesses. Those between its arrival at the cluster's barrier and the wait belong to what comes
// after the barrier: the arrival does not release them.
inline u32 epoch_of(const Warp& w, int lane) { return w.block->epoch + holds(w.arrived, lane); }

void arrive(Warp& w, u32 mask, u32 barrier, u32 expected, bool waits, const Site& site);
void leave(Warp& w, u32 mask);
void arrive_at_cluster(Warp& w, u32 mask, bool releases, const Site& site);
void wait_for_cluster(Warp& w, u32 mask, const Site& site);
void open_if_all_arrived(Cluster& cluster);
[[noreturn]] void not_named(const Warp& w, int lane, const Site& site);

// What a basic block does to lanes' registers and to memory: of its sites and of the places of its registers, what it
// names by numbers; `m` has the lanes of `M`, and `T` those that a warp-wide instruction is for.
using Step = void(Warp& w, Block& b, const Site* sites, const u32* offsets, const u32* m, u32 M, u32 T, u64 count);

// A basic block, and where its lanes go then: to the next one; those that the guard names to another; out of the
// kernel; or to the next one, when other warps have had a turn.
enum class End { next, branch, leave, yield };
struct BasicBlock {
  Step* step;  // null: it does nothing but end
  const u32* offsets;
  u32 instructions;
  End end;
  int guard;  // where the predicate is among the registers; -1: there is none
  bool negated;
  int target;
};

// The lanes that execute now, and where.
struct Cursor {
  Warp& w;
  int budget;
  u32 mask = 0;
  int pc = 0;
  u64 done = 0;
  bool chosen = false;
  Outcome outcome = Outcome::yielded;
  alignas(64) u32 m[lanes];  // `mask`, as all ones or all zeros per lane: what vector code tests

  Cursor(Warp& warp, int basic_blocks) : w(warp), budget(basic_blocks) { w.parked = 0; }
  ~Cursor() { executed += done; }

  bool ready();  // whether a basic block is to be executed: `pc`, by the lanes of `mask`
  void execute(const BasicBlock& block, const Site* sites);
  // A basic block that is one instruction for the lanes T, which waits for all that it names in `members`.
  void execute_together(const BasicBlock& block, const Site* sites, u32 T, u32 members, const Site& site);
  // The same without its end.
  void begin(const BasicBlock& block, const Site* sites);
  void wait(u32 arriving, u32 barrier, u32 expected, bool waits, const Site& site);  // and go on at the next one

 private:
  bool choose();
  void use(u32 lanes_now);
  void progress(u32 instructions);
  void go(int next);
  void branch(u32 taken, int target);
  bool together(u32& taking_part, u32 members, const Site& site);
};

}  // namespace ptx
