// Runs the blocks of a launch, a warp at a time, in an order that the seed decides.
#pragma once

#include <cuda_runtime_api.h>

#include "warp.h"

namespace ptx {

// Throws Fault. `resident` blocks are in flight at a time; all of a cooperative launch must be.
void run_grid(const Kernel& kernel, dim3 grid, dim3 block, void** arguments, u64 dynamic_shared, u64 resident, u32 sms);

}  // namespace ptx
