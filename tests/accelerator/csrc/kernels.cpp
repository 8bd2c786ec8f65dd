#include "kernels.h"

#include "alias.h"
#include "arena.h"
#include "context.h"
#include "counters.h"
#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/view_native.h>

namespace lowtide_sim {

using at::Tensor;

namespace {

c10::DeviceIndex index_of(const std::optional<at::Device>& device) {
  return checked_index(device ? device->index() : c10::DeviceIndex(-1));
}

}  // namespace

Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  OpScope scope("aten::empty");
  return at::detail::empty_generic(
      size, &allocator_of(index_of(device)), c10::DispatchKeySet(kDispatchKey), c10::dtype_or_default(dtype),
      format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  OpScope scope("aten::empty_strided");
  return at::detail::empty_strided_generic(
      size, stride, &allocator_of(index_of(device)), c10::DispatchKeySet(kDispatchKey),
      c10::dtype_or_default(dtype));
}

at::Scalar local_scalar(const Tensor& tensor) {
  OpScope scope("aten::_local_scalar_dense");
  counters().implicit_syncs++;
  counters().d2h += static_cast<int64_t>(tensor.element_size());
  counters().d2h_calls++;
  Aliases aliases(tensor.device().index());
  return at::_local_scalar_dense(aliases.to_cpu(tensor));
}

void record_stream(Tensor& tensor, c10::Stream stream) {
  arena(tensor.device().index()).record(tensor.storage().mutable_data(), stream.id());
}

Tensor as_strided(
    const Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, stride, offset);
}

Tensor view(const Tensor& tensor, c10::IntArrayRef size) {
  return at::native::view(tensor, size);
}

Tensor reshape_alias(const Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(tensor, size, stride);
}

Tensor& set_storage_offset(
    Tensor& tensor, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  if (stride.data()) {
    impl->set_sizes_and_strides(size, stride, offset);
  } else {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  }
  return tensor;
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  return set_storage_offset(tensor, std::move(storage), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& source) {
  return set_storage_offset(
      tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  OpScope scope("aten::convolution");
  DeviceCheck check("aten::convolution");
  check.see(input);
  check.see(weight);
  check.see(bias);
  check.raise_if_mixed();
  check_same_type("aten::convolution", input.scalar_type(), weight.scalar_type());
  if (bias && bias->defined()) check_same_type("aten::convolution", input.scalar_type(), bias->scalar_type());
  Aliases aliases(check.index());
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  OptionalTensor cpu_bias;
  if (bias && bias->defined()) cpu_bias = aliases.to_cpu_float(*bias);
  Tensor result = at::convolution_symint(
      aliases.to_cpu_float(input), aliases.to_cpu_float(weight), cpu_bias, stride, padding, dilation, transposed,
      output_padding, groups);
  if (is_half(input)) result = result.to(input.scalar_type());
  return aliases.to_device(result);
}

}  // namespace lowtide_sim
