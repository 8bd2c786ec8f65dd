// The arenas' readings, settings and registry; arena.cpp has the allocator itself.
#include "arena.h"

namespace lowtide_sim {

namespace {

using StatArray = c10::CachingAllocator::StatArray;

template <typename Function>
void each_stat(DeviceStats& s, Function function) {
  for (StatArray* array :
       {&s.allocation, &s.segment, &s.active, &s.inactive_split, &s.allocated_bytes, &s.reserved_bytes,
        &s.active_bytes, &s.inactive_split_bytes, &s.requested_bytes})
    for (auto& stat : *array) function(stat);
}

}  // namespace

size_t Arena::capacity() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return capacity_;
}

size_t Arena::free_bytes() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return free_bytes_locked();
}

void Arena::set_capacity(size_t bytes) {
  std::lock_guard<std::mutex> guard(mutex_);
  capacity_ = bytes;
}

DeviceStats Arena::stats() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return stats_;
}

void Arena::reset_peaks() {
  std::lock_guard<std::mutex> guard(mutex_);
  each_stat(stats_, [](auto& stat) { stat.reset_peak(); });
  peak_op_.clear();
}

void Arena::watch() {
  std::lock_guard<std::mutex> guard(mutex_);
  watched_allocated_ = stats_.allocated_bytes[0].current;
  watched_reserved_ = reserved_;
}

std::pair<size_t, size_t> Arena::watched() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return {watched_allocated_, watched_reserved_};
}

void Arena::reset_accumulated() {
  std::lock_guard<std::mutex> guard(mutex_);
  each_stat(stats_, [](auto& stat) { stat.reset_accumulated(); });
  stats_.num_alloc_retries = stats_.num_ooms = 0;
}

std::string Arena::peak_op() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return peak_op_;
}

std::vector<BlockInfo> Arena::snapshot() const {
  std::lock_guard<std::mutex> guard(mutex_);
  std::vector<BlockInfo> blocks;
  for (const auto& [start, first] : segments_) {
    for (const Block* block = first; block; block = block->next) {
      const bool live = block->in_use && live_.count(block->address);
      blocks.push_back({reinterpret_cast<uintptr_t>(start), reinterpret_cast<uintptr_t>(block->address),
                        block->size, block->stream, block->small,
                        live ? "allocated" : block->in_use ? "held" : "free"});
    }
  }
  return blocks;
}

bool Arena::contains(const void* address) const {
  std::lock_guard<std::mutex> guard(mutex_);
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (const auto& [start, first] : segments_) {
    const Block* last = first;
    while (last->next) last = last->next;
    if (at >= reinterpret_cast<uintptr_t>(start) && at < reinterpret_cast<uintptr_t>(last->address) + last->size)
      return true;
  }
  return false;
}

ArenaSettings& arena_settings() {
  static ArenaSettings settings;
  return settings;
}

Arena& arena(int index) {
  // Never destroyed: tensors that live until the interpreter's end are freed after statics are.
  static auto* arenas = [] {
    auto* all = new Arena[kMaxDevices];
    for (int i = 0; i < kMaxDevices; i++) all[i].index = static_cast<c10::DeviceIndex>(i);
    return all;
  }();
  return arenas[index];
}

void arena_free(void* address) {
  if (!address) return;
  for (int index = 0; index < kMaxDevices; index++)
    if (arena(index).free(address)) return;
}

c10::DeviceIndex arena_of(const void* address) {
  for (int index = 0; index < kMaxDevices; index++)
    if (arena(index).contains(address)) return static_cast<c10::DeviceIndex>(index);
  return -1;
}

}  // namespace lowtide_sim
