// Copies. What is counted is what crosses the bus; temporaries follow CUDA's copy kernel, because
// a cast or a transposition on the way needs memory on one side or the other.
#include "alias.h"
#include "context.h"
#include "counters.h"
#include "kernels.h"
#include "memory.h"

#include <ATen/TensorIterator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>

namespace lowtide_sim {

namespace {

using at::Tensor;

void raw_copy(const Tensor& source, const Tensor& target) {
  OpScope scope("aten::copy_");
  Aliases aliases(on_device(target) ? target.device().index() : 0);
  Tensor from = aliases.to_cpu(source), to = aliases.to_cpu(target);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  to.copy_(from);
}

// One block of bytes on both sides, in the same order: a single transfer.
bool is_plain(const Tensor& source, const Tensor& target) {
  if (source.dtype() != target.dtype() || source.is_conj() != target.is_conj() ||
      source.is_neg() != target.is_neg())
    return false;
  if (target.numel() == 1) return true;
  if (source.is_contiguous() && target.is_contiguous() && source.sizes() == target.sizes()) return true;
  Aliases aliases(0);
  const Tensor to = aliases.to_cpu(target), from = aliases.to_cpu(source);
  auto iterator =
      at::TensorIteratorConfig().add_output(to).add_const_input(from).resize_outputs(false).build();
  return iterator.is_contiguous();
}

void transfer(const Tensor& source, const Tensor& target, bool non_blocking) {
  const auto bytes = static_cast<int64_t>(target.nbytes());
  if (on_device(target)) {
    counters().h2d += bytes;
    counters().h2d_calls++;
    if (is_pinned(source.const_data_ptr())) counters().h2d_pinned += bytes;
  } else {
    counters().d2h += bytes;
    counters().d2h_calls++;
  }
  if (!non_blocking) counters().implicit_syncs++;
  raw_copy(source, target);
}

// A cast or a change of layout on the way. Blocking: on the CPU, to save device memory;
// non-blocking: on the device, which can do it later.
void transfer_through_temporary(const Tensor& source, const Tensor& target, bool non_blocking) {
  const auto where = non_blocking ? kDeviceType : c10::DeviceType::CPU;
  constexpr auto kContiguous = at::MemoryFormat::Contiguous;
  Tensor to, from;
  if (source.device().type() == where) {
    to = target.is_contiguous() ? target : at::empty_like(target, kContiguous);
    from = source.to(target.scalar_type()).expand_as(target).contiguous();
  } else {
    const bool same_dtype = source.dtype() == target.dtype();
    to = target.is_contiguous() && same_dtype
        ? target
        : at::empty_like(target, target.options().dtype(source.dtype()), kContiguous);
    from = source.expand_as(target).contiguous();
  }
  if (to.is_conj() != from.is_conj()) from = from.resolve_conj();
  if (to.is_neg() != from.is_neg()) from = from.resolve_neg();
  transfer(from, to, non_blocking);
  if (!to.is_same(target)) target.copy_(to, non_blocking);
}

}  // namespace

Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  if (target.numel() == 0) return target;
  if (on_device(source) && on_device(target)) {
    const auto bytes = static_cast<int64_t>(target.nbytes());
    counters().d2d += bytes;
    counters().d2d_calls++;
    // Peer access is taken for granted: no staging buffer between two devices.
    if (source.device() != target.device()) counters().p2p += bytes;
    raw_copy(source, target);
  } else if (is_plain(source, target)) {
    transfer(source, target, non_blocking);
  } else {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    transfer_through_temporary(source, target, non_blocking);
  }
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  if (target.sizes() != source.sizes()) target.resize_(source.sizes());
  return copy_from(source, target, false);
}

Tensor& copy_into(Tensor& target, const Tensor& source, bool non_blocking) {
  if (!target.is_same(source)) copy_from(source, target, non_blocking);
  return target;
}

}  // namespace lowtide_sim
