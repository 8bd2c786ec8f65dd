// The allocators torch is given: device memory, and pinned host memory that is counted.
#pragma once

#include "flavour.h"

#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace lowtide_sim {

// The allocator of the device type; allocate() takes from the current device.
c10::DeviceAllocator& device_allocator();
// Device memory of one device, whatever the current one is.
c10::DataPtr allocate_on(c10::DeviceIndex index, size_t bytes);
// An allocator bound to one device, for storages created there.
c10::Allocator& allocator_of(c10::DeviceIndex index);
// Device memory under a CPU DataPtr: what an alias of a device storage grows into (alias.h).
c10::Allocator& alias_allocator(c10::DeviceIndex index);

// Registers the allocators with torch.
void register_allocators();

// Pinned host memory: allocated by the pinned allocator, or registered (cudaHostRegister).
c10::Allocator& pinned_allocator();
bool is_pinned(const void* address);
bool host_register(void* address, size_t bytes);  // false when it overlaps what is pinned
bool host_unregister(void* address);              // false when it was not registered
int64_t pinned_bytes();
int64_t pinned_peak();
void reset_pinned_peak();

}  // namespace lowtide_sim
