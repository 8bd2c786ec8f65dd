// CPU views of device tensors, for running the CPU's kernel on device memory.
//
// A device storage is host memory, so a CPU storage can point at the same bytes. One Aliases object
// serves one operator call: it makes the views, and afterwards carries what the kernel did to them
// (resized outputs, new results) back to the device tensors.
#pragma once

#include "flavour.h"

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

namespace lowtide_sim {

inline bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kDeviceType;
}

// float16 and bfloat16: the CPU's matrix kernels for them can be 200 times slower than float32's.
inline bool is_half(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16);
}

class Aliases {
 public:
  // New results are placed on `target`.
  explicit Aliases(c10::DeviceIndex target) : target_(target) {}

  // The CPU view of a device tensor; any other tensor as it is.
  at::Tensor to_cpu(const at::Tensor& tensor);
  // The same, with half precision cast to float32 in host scratch, which is not counted.
  at::Tensor to_cpu_float(const at::Tensor& tensor);
  // Results that are `replacement` are the device tensor `original`.
  void stand_in(const at::Tensor& replacement, const at::Tensor& original);
  // Call after the kernel: device tensors take over storages and shapes their views were given.
  void adopt();
  // The device tensor of a CPU result: the original of a view, else memory of `target`.
  at::Tensor to_device(const at::Tensor& result);

 private:
  using StoragePtr = c10::intrusive_ptr<c10::StorageImpl>;
  struct StoragePair {
    StoragePtr cpu, device;
  };
  struct TensorPair {
    at::Tensor cpu, device;
    c10::StorageImpl* storage;  // of the view when it was made; null for a stand-in
  };

  StoragePtr cpu_storage(const StoragePtr& device);
  StoragePtr device_storage(const StoragePtr& cpu);

  c10::DeviceIndex target_;
  std::vector<StoragePair> storages_;
  std::vector<TensorPair> tensors_;
};

}  // namespace lowtide_sim
