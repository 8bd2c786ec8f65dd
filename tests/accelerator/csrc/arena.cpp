#include "arena.h"

#include "context.h"
#include "counters.h"
#include "pages.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

namespace lowtide_sim {

namespace {

constexpr size_t kMiB = size_t(1) << 20;
constexpr size_t kRound = 512;
constexpr size_t kSmallLimit = kMiB;         // largest request of the small pool
constexpr size_t kSmallSegment = 2 * kMiB;
constexpr size_t kLargeSegment = 20 * kMiB;  // segment of requests below kOwnSegment
constexpr size_t kOwnSegment = 10 * kMiB;
constexpr size_t kSegmentRound = 2 * kMiB;
constexpr int kPoison = 0xFF;                // NaN in every float type, fp8 e4m3 included

size_t round_up(size_t value, size_t step) {
  return (value + step - 1) / step * step;
}

size_t segment_size(size_t size) {
  if (size <= kSmallLimit) return kSmallSegment;
  if (size < kOwnSegment) return kLargeSegment;
  return round_up(size, kSegmentRound);
}

using StatArray = c10::CachingAllocator::StatArray;

// Slot 0 counts all blocks, 1 the small pool, 2 the large one.
void increase(StatArray& stat, size_t amount, bool small) {
  stat[0].increase(amount);
  stat[small ? 1 : 2].increase(amount);
}

void decrease(StatArray& stat, size_t amount, bool small) {
  stat[0].decrease(amount);
  stat[small ? 1 : 2].decrease(amount);
}

std::string size_text(size_t bytes) {
  char text[32];
  if (bytes < kMiB)
    snprintf(text, sizeof text, "%zu bytes", bytes);
  else if (bytes < 1024 * kMiB)
    snprintf(text, sizeof text, "%.2f MiB", double(bytes) / double(kMiB));
  else
    snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1024 * kMiB));
  return text;
}

}  // namespace

bool Arena::BySize::operator()(const Block* a, const Block* b) const {
  if (a->stream != b->stream) return a->stream < b->stream;
  if (a->size != b->size) return a->size < b->size;
  return a->address < b->address;
}

void* Arena::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  std::lock_guard<std::mutex> guard(mutex_);
  // A fault is one countdown for all devices: it may reach 0 in one thread only.
  auto& countdown = arena_settings().fail_countdown;
  const bool injected = countdown > 0 && --countdown == 0;
  auto& shrink = arena_settings().shrink_countdown;
  if (shrink > 0 && --shrink == 0) capacity_ = arena_settings().shrink_to;
  const size_t size = round_up(bytes, kRound);
  const Block key{nullptr, size, context().streams[index], size <= kSmallLimit};

  Block* block = nullptr;
  if (!injected) {
    block = take_cached(key);
    if (!block) block = new_segment(size, key.small);
    if (!block) {
      stats_.num_alloc_retries++;
      counters().retries++;
      release_cached_locked();
      block = new_segment(size, key.small);
    }
  }
  if (!block) out_of_memory(bytes, injected);

  split(block, size);
  block->in_use = true;
  block->requested = bytes;
  live_[block->address] = block;
  const int64_t peak = stats_.allocated_bytes[0].peak;
  increase(stats_.allocation, 1, block->small);
  increase(stats_.allocated_bytes, block->size, block->small);
  watched_allocated_ = std::max(watched_allocated_, size_t(stats_.allocated_bytes[0].current));
  increase(stats_.active, 1, block->small);
  increase(stats_.active_bytes, block->size, block->small);
  increase(stats_.requested_bytes, bytes, block->small);
  if (stats_.allocated_bytes[0].peak > peak) peak_op_ = context().op ? context().op : "(no operator)";
  counters().allocations++;
  return block->address;
}

Block* Arena::take_cached(const Block& key) {
  auto& pool = pools_[key.small];
  auto found = pool.lower_bound(const_cast<Block*>(&key));
  if (found == pool.end() || (*found)->stream != key.stream) return nullptr;
  Block* block = *found;
  pool.erase(found);
  if (block->previous || block->next) {
    decrease(stats_.inactive_split, 1, key.small);
    decrease(stats_.inactive_split_bytes, block->size, key.small);
  }
  return block;
}

Block* Arena::new_segment(size_t size, bool small) {
  const size_t bytes = segment_size(size);
  if (bytes > free_bytes_locked()) return nullptr;
  void* address = take_pages(bytes);
  TORCH_CHECK(address, "simulated accelerator: the host has no ", size_text(bytes), " left");
  if (arena_settings().poison) memset(address, kPoison, bytes);
  auto* block = new Block{static_cast<char*>(address), bytes, context().streams[index], small};
  segments_[block->address] = block;
  reserved_ += bytes;
  watched_reserved_ = std::max(watched_reserved_, reserved_);
  increase(stats_.reserved_bytes, bytes, small);
  increase(stats_.segment, 1, small);
  stats_.num_device_alloc++;
  return block;
}

void Arena::split(Block* block, size_t size) {
  const size_t rest = block->size - size;
  if (block->small ? rest < kRound : rest <= kSmallLimit) return;
  auto* tail = new Block{block->address + size, rest, block->stream, block->small};
  tail->previous = block;
  tail->next = block->next;
  if (block->next) block->next->previous = tail;
  block->next = tail;
  block->size = size;
  pools_[block->small].insert(tail);
  increase(stats_.inactive_split, 1, block->small);
  increase(stats_.inactive_split_bytes, rest, block->small);
}

bool Arena::free(void* address) {
  std::lock_guard<std::mutex> guard(mutex_);
  auto found = live_.find(address);
  if (found == live_.end()) return false;
  Block* block = found->second;
  live_.erase(found);
  decrease(stats_.allocation, 1, block->small);
  decrease(stats_.allocated_bytes, block->size, block->small);
  decrease(stats_.requested_bytes, block->requested, block->small);
  if (arena_settings().poison) memset(block->address, kPoison, block->size);
  if (arena_settings().hold_recorded && !block->recorded.empty())
    held_.push_back(block);  // still in_use and active, no longer allocated: as on CUDA
  else
    recycle(block);
  return true;
}

void Arena::recycle(Block* block) {
  block->in_use = false;
  block->recorded.clear();
  decrease(stats_.active, 1, block->small);
  decrease(stats_.active_bytes, block->size, block->small);
  merge_neighbour(block, block->previous);
  merge_neighbour(block, block->next);
  pools_[block->small].insert(block);
  if (block->previous || block->next) {
    increase(stats_.inactive_split, 1, block->small);
    increase(stats_.inactive_split_bytes, block->size, block->small);
  }
}

void Arena::merge_neighbour(Block* block, Block* neighbour) {
  if (!neighbour || neighbour->in_use) return;
  // Leave the set before any field it is sorted by changes.
  pools_[block->small].erase(neighbour);
  decrease(stats_.inactive_split, 1, block->small);
  decrease(stats_.inactive_split_bytes, neighbour->size, block->small);
  if (neighbour == block->previous) {
    block->address = neighbour->address;
    block->previous = neighbour->previous;
    if (block->previous)
      block->previous->next = block;
    else
      segments_[block->address] = block;
  } else {
    block->next = neighbour->next;
    if (block->next) block->next->previous = block;
  }
  block->size += neighbour->size;
  delete neighbour;
}

void Arena::record(void* address, int64_t stream) {
  std::lock_guard<std::mutex> guard(mutex_);
  auto found = live_.find(address);
  if (found != live_.end() && found->second->stream != stream) found->second->recorded.insert(stream);
}

void Arena::finish(int64_t stream) {
  std::lock_guard<std::mutex> guard(mutex_);
  finish_locked(stream);
}

void Arena::finish_locked(int64_t stream) {
  std::vector<Block*> still_held;
  for (Block* block : held_) {
    if (stream == kAllStreams)
      block->recorded.clear();
    else
      block->recorded.erase(stream);
    if (block->recorded.empty())
      recycle(block);
    else
      still_held.push_back(block);
  }
  held_ = std::move(still_held);
}

void Arena::release_cached() {
  std::lock_guard<std::mutex> guard(mutex_);
  release_cached_locked();
}

void Arena::release_cached_locked() {
  finish_locked(kAllStreams);
  for (auto& pool : pools_) {
    for (auto it = pool.begin(); it != pool.end();) {
      Block* block = *it;
      if (block->previous || block->next) {  // part of the segment is in use
        ++it;
        continue;
      }
      it = pool.erase(it);
      segments_.erase(block->address);
      give_back_pages(block->address, block->size);
      reserved_ -= block->size;
      decrease(stats_.reserved_bytes, block->size, block->small);
      decrease(stats_.segment, 1, block->small);
      stats_.num_device_free++;
      delete block;
    }
  }
}

void Arena::out_of_memory(size_t bytes, bool injected) {
  release_cached_locked();  // as a real failure leaves it: nothing cached
  stats_.num_ooms++;
  counters().ooms++;
  const size_t allocated = stats_.allocated_bytes[0].current;
  TORCH_CHECK_WITH(
      OutOfMemoryError, false,
      kVendorName, " out of memory. Tried to allocate ", size_text(bytes), ". GPU ", static_cast<int>(index),
      " has a total capacity of ", size_text(capacity_), " of which ", size_text(free_bytes_locked()),
      " is free. Of the allocated memory ", size_text(allocated), " is allocated by PyTorch, and ",
      size_text(reserved_ - allocated), " is reserved by PyTorch but unallocated. (simulated, in ",
      context().op ? context().op : "no operator", injected ? ", injected fault)" : ")");
}

size_t Arena::free_bytes_locked() const {
  const size_t taken = reserved_ + arena_settings().overhead;
  return capacity_ > taken ? capacity_ - taken : 0;
}

}  // namespace lowtide_sim
