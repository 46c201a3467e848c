// Everything that must be compiled for the baseline processor: included by every ISA file before it changes
// the target, so that no inline function of the standard library is compiled for a newer one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels.h"
