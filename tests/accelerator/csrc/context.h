// What the calling thread is doing: current device, current streams, the operator being run.
#pragma once

#include "flavour.h"

#include <cstdint>

namespace lowtide_sim {

struct ThreadContext {
  c10::DeviceIndex device = 0;
  int64_t streams[kMaxDevices] = {};  // current stream of each device; 0 is the default stream
  const char* op = nullptr;           // outermost operator; names the peak and the OOM message
};

ThreadContext& context();

int device_count();
void set_device_count(int count);

// Index of a device of ours: -1 becomes the current one. Raises as CUDA does when there is no such.
c10::DeviceIndex checked_index(c10::DeviceIndex index);

// Names the operator for the length of a scope; an inner scope keeps the outer name.
class OpScope {
 public:
  explicit OpScope(const char* op);
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

 private:
  bool outermost_;
};

}  // namespace lowtide_sim
