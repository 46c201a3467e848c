// Runs the blocks of a launch, a warp at a time, in an order that the seed decides.
#pragma once

#include "devices.h"

namespace ptx {

// Throws Fault. `resident` blocks are in flight at a time; all of a cooperative launch must be.
void run_grid(const Kernel& kernel, const Shape& shape, void** arguments, u64 resident, u32 sms);

}  // namespace ptx
