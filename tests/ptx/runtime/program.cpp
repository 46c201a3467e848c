// Linked into programs, not into shared libraries.
#include "errors.h"

namespace ptx {

namespace { const bool set = exit_on_fault = true; }

}  // namespace ptx
