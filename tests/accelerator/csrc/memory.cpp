#include "memory.h"

#include "arena.h"
#include "context.h"

#include <cstring>

namespace lowtide_sim {

namespace {

class CurrentDeviceAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    return allocate_on(context().device, bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &arena_free;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    memcpy(target, source, bytes);
  }
  bool initialized() override {
    return true;
  }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {
    for (int index = 0; index < device_count(); index++) arena(index).release_cached();
  }
  void recordStream(const c10::DataPtr& memory, c10::Stream stream) override {
    arena(memory.device().index()).record(memory.get(), stream.id());
  }
  DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    return arena(checked_index(index)).stats();
  }
  void resetAccumulatedStats(c10::DeviceIndex index) override {
    arena(checked_index(index)).reset_accumulated();
  }
  void resetPeakStats(c10::DeviceIndex index) override {
    arena(checked_index(index)).reset_peaks();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    const Arena& found = arena(checked_index(index));
    return {found.free_bytes(), found.capacity()};
  }
};

class OneDeviceAllocator final : public c10::Allocator {
 public:
  explicit OneDeviceAllocator(bool cpu_label = false) : cpu_label_(cpu_label) {}
  c10::DataPtr allocate(size_t bytes) override {
    if (!cpu_label_) return allocate_on(index, bytes);
    void* memory = arena(index).allocate(bytes);
    return {memory, memory, &arena_free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &arena_free;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    memcpy(target, source, bytes);
  }
  c10::DeviceIndex index = 0;

 private:
  bool cpu_label_;
};

OneDeviceAllocator* per_device(bool cpu_label) {
  auto* all = new std::vector<OneDeviceAllocator>(kMaxDevices, OneDeviceAllocator(cpu_label));
  for (int i = 0; i < kMaxDevices; i++) (*all)[i].index = static_cast<c10::DeviceIndex>(i);
  return all->data();
}

}  // namespace

c10::DataPtr allocate_on(c10::DeviceIndex index, size_t bytes) {
  void* memory = arena(index).allocate(bytes);
  return {memory, memory, &arena_free, device_at(index)};
}

// These are never destroyed: storages outlive static destructors.
c10::DeviceAllocator& device_allocator() {
  static auto* instance = new CurrentDeviceAllocator();
  return *instance;
}

c10::Allocator& allocator_of(c10::DeviceIndex index) {
  static auto* all = per_device(false);
  return all[index];
}

c10::Allocator& alias_allocator(c10::DeviceIndex index) {
  static auto* all = per_device(true);
  return all[index];
}

}  // namespace lowtide_sim
