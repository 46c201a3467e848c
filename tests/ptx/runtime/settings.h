// What the environment asks for; read anew at every launch and allocation.
//
//   PTX_CHECK     words of race, unwritten and weak, or all; nothing by default
//   PTX_SEED      other than 0: random order of blocks and warps, random time slices
//   PTX_DEVICE    a name of devices.cpp whose limits hold; H100 by default
//   PTX_SMS, PTX_SHARED  a smaller one: with so many multiprocessors, and so many bytes of shared memory a block
//   PTX_EAGER     1: cp.async copies where it is issued, instead of as late as its waits allow
//   PTX_FOREIGN   1: kernels may use any address of the process, not only allocations
//   PTX_LIMIT     thread instructions a launch may take before it counts as endless
//   PTX_VERBOSE   1: a line on stderr for every launch
#pragma once

#include "scalars.h"

namespace ptx {

struct Settings {
  bool race = false, unwritten = false, weak = false;
  bool eager_copies = false, foreign = false, verbose = false;
  u64 seed = 0, limit = 0;
};

const Settings& settings();
void read_settings();

}  // namespace ptx
