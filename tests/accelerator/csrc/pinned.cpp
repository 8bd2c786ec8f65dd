// Pinned host memory. Nothing is locked: what counts is how much a program would lock.
#include "counters.h"
#include "memory.h"

#include <ATen/core/CachingHostAllocator.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace lowtide_sim {

namespace {

struct Ranges {
  std::mutex mutex;
  std::map<uintptr_t, size_t> ranges;
  int64_t bytes = 0, peak = 0;

  bool add(void* address, size_t size) {
    std::lock_guard<std::mutex> guard(mutex);
    const auto start = reinterpret_cast<uintptr_t>(address);
    auto after = ranges.lower_bound(start);
    if (after != ranges.end() && after->first < start + size) return false;
    if (after != ranges.begin()) {
      auto before = std::prev(after);
      if (before->first + before->second > start) return false;
    }
    ranges[start] = size;
    bytes += static_cast<int64_t>(size);
    peak = std::max(peak, bytes);
    return true;
  }
  bool remove(void* address) {
    std::lock_guard<std::mutex> guard(mutex);
    auto found = ranges.find(reinterpret_cast<uintptr_t>(address));
    if (found == ranges.end()) return false;
    bytes -= static_cast<int64_t>(found->second);
    ranges.erase(found);
    return true;
  }
  bool contains(const void* address) {
    std::lock_guard<std::mutex> guard(mutex);
    const auto at = reinterpret_cast<uintptr_t>(address);
    auto after = ranges.upper_bound(at);
    if (after == ranges.begin()) return false;
    auto before = std::prev(after);
    return at < before->first + before->second;
  }
};

Ranges& pinned() {
  static auto* instance = new Ranges();  // outlives tensors freed at exit
  return *instance;
}

void pinned_free(void* address) {
  if (!address) return;
  pinned().remove(address);
  ::free(address);
}

class PinnedAllocator final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes) {
      TORCH_CHECK(posix_memalign(&memory, 4096, bytes) == 0, "cannot pin ", bytes, " bytes of host memory");
      pinned().add(memory, bytes);
    }
    return {memory, memory, &pinned_free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &pinned_free;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    memcpy(target, source, bytes);
  }
  // Copies are synchronous: nothing is in flight, and nothing is cached.
  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    at::HostStats stats;
    stats.active_bytes.increase(pinned_bytes());
    return stats;
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {
    reset_pinned_peak();
  }
};

PinnedAllocator& allocator() {
  static auto* instance = new PinnedAllocator();
  return *instance;
}

}  // namespace

c10::Allocator& pinned_allocator() {
  return allocator();
}

bool is_pinned(const void* address) {
  return pinned().contains(address);
}

bool host_register(void* address, size_t bytes) {
  return pinned().add(address, bytes);
}

bool host_unregister(void* address) {
  return pinned().remove(address);
}

int64_t pinned_bytes() {
  std::lock_guard<std::mutex> guard(pinned().mutex);
  return pinned().bytes;
}

int64_t pinned_peak() {
  std::lock_guard<std::mutex> guard(pinned().mutex);
  return pinned().peak;
}

void reset_pinned_peak() {
  std::lock_guard<std::mutex> guard(pinned().mutex);
  pinned().peak = pinned().bytes;
}

void register_allocators() {
  constexpr uint8_t kOverAnyOther = 255;
  c10::SetAllocator(kDeviceType, &device_allocator(), kOverAnyOther);
  at::setHostAllocator(kDeviceType, &allocator(), kOverAnyOther);
}

}  // namespace lowtide_sim
