#include "context.h"

#include "arena.h"
#include "counters.h"

#include <c10/util/Exception.h>

namespace lowtide_sim {

namespace {
std::atomic<int> g_device_count{1};
}

Counters& counters() {
  static Counters instance;
  return instance;
}

ThreadContext& context() {
  thread_local ThreadContext instance;
  return instance;
}

int device_count() {
  return g_device_count;
}

void set_device_count(int count) {
  TORCH_CHECK(count >= 1 && count <= kMaxDevices, "device count ", count, " is not 1 to ", kMaxDevices);
  for (int index = count; index < g_device_count; index++) {
    Arena& gone = arena(index);
    gone.release_cached();
    TORCH_CHECK(
        gone.stats().reserved_bytes[0].current == 0,
        "cannot take ", device_text(device_at(index)), " away: it still holds memory");
  }
  g_device_count = count;
  if (context().device >= count) context().device = 0;
}

c10::DeviceIndex checked_index(c10::DeviceIndex index) {
  if (index < 0) index = context().device;
  TORCH_CHECK(
      index < g_device_count,
      kVendorName, " error: invalid device ordinal ", static_cast<int>(index), " (there are ",
      g_device_count.load(), ")");
  return index;
}

OpScope::OpScope(const char* op) : outermost_(context().op == nullptr) {
  if (outermost_) context().op = op;
  counters().ops++;
}

OpScope::~OpScope() {
  if (outermost_) context().op = nullptr;
}

}  // namespace lowtide_sim
