// What the CUDA kernels are told, and how they are started: the bridge between host code, which knows torch but no
// kernel, and the kernels, which know no torch. Letters as in recurrence.h; every pointer is to device memory. Where
// H elements take a multiple of 16 bytes, every row that a product reads begins at one: of U, h and d_gates.
#pragma once

#include <string>
#include <string_view>

#include "../recurrence.h"
#include "plan.h"

namespace lstm_fused::cuda {

// One direction of one layer, forward.
template <class Storage>
struct ForwardArgs {
  using Compute = compute_t<Storage>;
  Sequence sequence;
  std::int64_t H = 0;
  const Storage* input_gates = nullptr;  // [N, input_ld]: W x + b_ih; may be the memory of `saved`
  std::int64_t input_ld = 0;
  const Storage* recurrent = nullptr;  // U [G*H, H]
  const Storage* bias_h = nullptr;     // [G*H] or null
  const Storage* h0 = nullptr;         // [B, H]; null: zero
  const bool* resets = nullptr;        // [T, B], see Sequence::begins_anew; null: nowhere
  const Storage* reset_h = nullptr;    // [H], the state of rows that begin anew; null: zero
  const Storage* reset_c = nullptr;    // [H]; null: zero
  Storage* saved = nullptr;            // [N, S*H], as input_ld is then; null: not kept
  Compute* cells = nullptr;            // [N, H]; null: not kept
  Storage* output = nullptr;           // [N, output_ld]: h_t, which the next step reads again
  std::int64_t output_ld = 0;
  Storage* h_n = nullptr;  // [B, H]
  Compute* c = nullptr;    // [B, H]: c_0, and c_n at the end
  unsigned* arrived = nullptr;  // [row groups of the plan], zero
  bool hint = false;            // `arrived` is but a hint, for output is not_yet (values.cuh) to begin with
  Storage* exchange = nullptr;  // of an even plan, see exchange_elements
  Compute cell_clip = no_clip<Compute>;
};

// One direction of one layer, backward.
template <class Storage>
struct BackwardArgs {
  using Compute = compute_t<Storage>;
  Sequence sequence;
  std::int64_t H = 0;
  const Storage* recurrent = nullptr;  // U transposed [H, G*H]
  const Storage* saved = nullptr;      // [N, S*H]
  const Compute* cells = nullptr;      // [N, H]
  const Storage* output = nullptr;     // [N, output_ld]: h_t
  std::int64_t output_ld = 0;
  const Storage* h0 = nullptr;        // [B, H]; null: zero
  const Storage* c0 = nullptr;        // [B, H]; null: zero
  const bool* resets = nullptr;       // forward's
  const Storage* reset_h = nullptr;   // [H]; null: zero
  const Storage* reset_c = nullptr;   // [H]; null: zero
  const Storage* d_output = nullptr;  // [N, d_output_ld]; null: zero
  std::int64_t d_output_ld = 0;
  const Compute* d_cells = nullptr;  // [N, H]; null: zero
  Compute* dh = nullptr;             // [B, H]: dL/dh_n on entry, dL/dh0 at the end
  Compute* dc = nullptr;             // [B, H]: dL/dc_n on entry, dL/dc0 at the end
  Compute* d_reset_h = nullptr;      // [B, H]: dL/dreset_h of each row is added to it; null: not needed
  Compute* d_reset_c = nullptr;      // [B, H]
  Storage* d_gates = nullptr;        // [N, S*H]: gradients before the activations
  unsigned* arrived = nullptr;       // [row groups of the plan], zero
  bool hint = false;                 // as in ForwardArgs, for d_gates
  Storage* exchange = nullptr;       // as in ForwardArgs
  Compute cell_clip = no_clip<Compute>, grad_clip = no_clip<Compute>;
};

// Elements of an exchange (exchange.cuh) of so many steps and K columns: forward T + 1 with the initial h, and H;
// backward T and S*H.
template <class Storage>
std::int64_t exchange_elements(std::int64_t steps, std::int64_t batch, std::int64_t K) {
  constexpr std::int64_t slab_columns = slab_bytes / static_cast<std::int64_t>(sizeof(Storage));
  const std::int64_t slabs = (K + slab_columns - 1) / slab_columns;
  return steps * ((batch + tile_rows - 1) / tile_rows) * slabs * tile_rows * slab_columns;
}

// Rows [N, ld] of what an exchange has: its columns are gates of H units, of which the g-th is the row's `order`[g]-th.
template <class Storage>
struct TilesArgs {
  Sequence sequence;
  bool last_first = false;  // the exchange's first step is the sequence's last, in the direction of time
  const Storage* words = nullptr;
  Storage* rows = nullptr;
  std::int64_t ld = 0;
  int H = 0, gates = 1;
  unsigned order = 0;  // four bits a gate
};

// What a device's runtime says of a launch; empty: nothing wrong. `stream` is a cudaStream_t. The batch sizes of a
// packed sequence are told twice: on the device in `args`, and here on the host, which starts steps one by one.
template <class Storage>
std::string launch_forward(std::string_view cell, const Plan& plan, const ForwardArgs<Storage>& args,
                           const std::int64_t* host_batch_sizes, void* stream);
template <class Storage>
std::string launch_backward(std::string_view cell, const Plan& plan, const BackwardArgs<Storage>& args,
                            const std::int64_t* host_batch_sizes, void* stream);

template <class Storage>
std::string launch_untile(const TilesArgs<Storage>& args, void* stream);

// The device that is current.
Device current_device();

}  // namespace lstm_fused::cuda
