// The process's counters. Bytes where the name has no suffix, else what the suffix says.
#pragma once

#include <atomic>
#include <cstdint>

namespace lowtide_sim {

// X-macro: one list for the fields, the reset and the Python dictionary.
#define LOWTIDE_SIM_COUNTERS(X)                                                    \
  X(h2d)            /* host to device */                                           \
  X(h2d_calls)                                                                     \
  X(h2d_pinned)     /* the part of h2d whose source is pinned */                   \
  X(d2h)            /* device to host */                                           \
  X(d2h_calls)                                                                     \
  X(d2d)            /* within one device or between two */                         \
  X(d2d_calls)                                                                     \
  X(p2p)            /* the part of d2d between two devices */                      \
  X(syncs)          /* explicit waits for a device, a stream or an event */        \
  X(implicit_syncs) /* blocking copies and reads of a value (.item()) */           \
  X(allocations)    /* device allocations that succeeded */                        \
  X(ooms)           /* device allocations that failed, injected faults included */ \
  X(retries)        /* allocations that first had to give cached segments back */  \
  X(ops)            /* operators run on the device */

struct Counters {
#define LOWTIDE_SIM_FIELD(name) std::atomic<int64_t> name{0};
  LOWTIDE_SIM_COUNTERS(LOWTIDE_SIM_FIELD)
#undef LOWTIDE_SIM_FIELD

  void reset() {
#define LOWTIDE_SIM_ZERO(name) name = 0;
    LOWTIDE_SIM_COUNTERS(LOWTIDE_SIM_ZERO)
#undef LOWTIDE_SIM_ZERO
  }
};

Counters& counters();

}  // namespace lowtide_sim
