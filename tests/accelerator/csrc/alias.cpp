#include "alias.h"

#include "arena.h"
#include "memory.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>

namespace lowtide_sim {

namespace {

using StoragePtr = c10::intrusive_ptr<c10::StorageImpl>;

void drop_reference(void* storage) {
  delete static_cast<StoragePtr*>(storage);
}

StoragePtr make_storage(size_t bytes, c10::DataPtr memory, c10::Allocator& allocator) {
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), bytes, std::move(memory), &allocator, /*resizable=*/true);
}

at::Tensor make_tensor(const StoragePtr& storage, c10::DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  // Type promotion and conjugation depend on these bits.
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (like.is_conj()) impl->_set_conj(true);
  if (like.is_neg()) impl->_set_neg(true);
  return tensor;
}

}  // namespace

Aliases::StoragePtr Aliases::cpu_storage(const StoragePtr& device) {
  for (const auto& pair : storages_)
    if (pair.device == device) return pair.cpu;
  // The view keeps the device storage alive. Its allocator is the device's, so a kernel that
  // resizes it takes counted memory.
  c10::DataPtr view(device->mutable_data(), new StoragePtr(device), &drop_reference, c10::Device(c10::kCPU));
  auto cpu = make_storage(device->nbytes(), std::move(view), alias_allocator(device->device().index()));
  storages_.push_back({cpu, device});
  return cpu;
}

at::Tensor Aliases::to_cpu(const at::Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  auto cpu = cpu_storage(StoragePtr::reclaim_copy(tensor.storage().unsafeGetStorageImpl()));
  auto view = make_tensor(cpu, c10::DispatchKey::CPU, tensor);
  tensors_.push_back({view, tensor, cpu.get()});
  return view;
}

at::Tensor Aliases::to_cpu_float(const at::Tensor& tensor) {
  auto view = to_cpu(tensor);
  if (!is_half(view)) return view;
  at::AutoDispatchBelowADInplaceOrView guard;
  return view.to(at::kFloat);
}

void Aliases::stand_in(const at::Tensor& replacement, const at::Tensor& original) {
  tensors_.push_back({replacement, original, nullptr});
}

void Aliases::adopt() {
  // A kernel may have pointed a view at another storage (set_).
  for (auto& pair : tensors_) {
    auto* now = pair.cpu.storage().unsafeGetStorageImpl();
    if (!pair.storage || now == pair.storage) continue;
    auto storage = device_storage(StoragePtr::reclaim_copy(now));
    pair.device.unsafeGetTensorImpl()->set_storage_keep_dtype(c10::Storage(storage));
  }
  for (auto& pair : storages_) {
    if (pair.cpu->data() == pair.device->data()) {
      if (pair.cpu->nbytes() != pair.device->nbytes()) pair.device->set_nbytes(pair.cpu->nbytes());
      continue;
    }
    // Resized by an out= kernel or resize_: the new memory comes from the same arena.
    c10::DataPtr grown = pair.cpu->set_data_ptr(c10::DataPtr(nullptr, c10::Device(c10::kCPU)));
    const size_t bytes = pair.cpu->nbytes();
    void* memory = grown.get();
    TORCH_INTERNAL_ASSERT(!memory || grown.get_deleter() == &arena_free, "a view grew outside the arena");
    grown.release_context();
    pair.device->set_data_ptr_noswap({memory, memory, &arena_free, pair.device->device()});
    pair.device->set_nbytes(bytes);
  }
  for (auto& pair : tensors_) {
    if (!pair.storage) continue;
    if (pair.cpu.sizes() != pair.device.sizes() || pair.cpu.strides() != pair.device.strides() ||
        pair.cpu.storage_offset() != pair.device.storage_offset())
      pair.device.unsafeGetTensorImpl()->set_sizes_and_strides(
          pair.cpu.sizes(), pair.cpu.strides(), pair.cpu.storage_offset());
  }
}

Aliases::StoragePtr Aliases::device_storage(const StoragePtr& cpu) {
  for (const auto& pair : storages_)
    if (pair.cpu == cpu) return pair.device;
  // A new result: its bytes move into the arena. Only here do results count, and can fail.
  const size_t bytes = cpu->data() ? cpu->nbytes() : 0;
  auto memory = allocate_on(target_, bytes);
  if (bytes) memcpy(memory.get(), cpu->data(), bytes);
  auto device = make_storage(bytes, std::move(memory), allocator_of(target_));
  storages_.push_back({cpu, device});
  return device;
}

at::Tensor Aliases::to_device(const at::Tensor& result) {
  if (!result.defined() || !result.device().is_cpu()) return result;
  for (const auto& pair : tensors_)
    if (pair.cpu.is_same(result)) return pair.device;
  auto storage = device_storage(StoragePtr::reclaim_copy(result.storage().unsafeGetStorageImpl()));
  return make_tensor(storage, kDispatchKey, result);
}

}  // namespace lowtide_sim
