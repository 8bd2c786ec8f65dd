// Kernels written for the device. Everything else runs through the boxed fallback.
#pragma once

#include "flavour.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <map>
#include <optional>
#include <string>

namespace lowtide_sim {

using OptionalTensor = std::optional<at::Tensor>;

// Runs the CPU's kernel of any operator on device tensors.
void boxed_fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);
std::map<std::string, int64_t> operator_counts();
void reset_operator_counts();

// Raises as CUDA does when one operator is given tensors of several devices.
class DeviceCheck {
 public:
  explicit DeviceCheck(const char* op) : op_(op) {}
  void see(const at::Tensor& tensor);
  void see(const OptionalTensor& tensor) {
    if (tensor) see(*tensor);
  }
  // Indices may be on the CPU.
  void see_index(const at::Tensor& tensor);
  void raise_if_mixed() const;
  c10::DeviceIndex index() const;  // of the tensors seen, else of the current device

 private:
  [[noreturn]] void raise(c10::Device a, c10::Device b) const;

  const char* op_;
  std::optional<c10::Device> device_;
  bool cpu_ = false;
};

// Raises, as a GPU's kernels do, where the two are different.
void check_same_type(const char* op, at::ScalarType a, at::ScalarType b);

at::Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<at::Device> device, std::optional<bool> pin_memory, std::optional<at::MemoryFormat> format);
at::Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pin_memory);
at::Scalar local_scalar(const at::Tensor& tensor);
void record_stream(at::Tensor& tensor, c10::Stream stream);
at::Tensor as_strided(
    const at::Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset);
at::Tensor view(const at::Tensor& tensor, c10::IntArrayRef size);
at::Tensor reshape_alias(const at::Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride);
at::Tensor& set_storage_offset(
    at::Tensor& tensor, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride);
at::Tensor& set_storage(at::Tensor& tensor, c10::Storage storage);
at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source);
at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups);

// copy.cpp: between host and devices, counted, with the temporaries of CUDA's copy.
at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool non_blocking);
at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target);
at::Tensor& copy_into(at::Tensor& target, const at::Tensor& source, bool non_blocking);

}  // namespace lowtide_sim
