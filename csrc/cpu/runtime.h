// Run-time choices: instruction set and plan, from the environment or set by hand.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "plan.h"

namespace lstm_fused {

const IsaKernels& active_isa();
void set_isa(const std::string& name);  // "": LSTM_FUSED_ISA, or else the best that the processor has
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();

void set_forced_plan(const std::string& name);  // "": LSTM_FUSED_PLAN, or else the cost model
std::string forced_plan();

// Threads that a call may use now; 1 in a forked child, where it also tells PyTorch so.
int usable_threads();

}  // namespace lstm_fused
