// The boxed fallback: any operator on device tensors, by the CPU's kernel on views of their memory.
//
// What a kernel allocates for itself is host scratch and is not counted: it depends on the CPU's
// implementation. Results are copied into the arena when the kernel is done, while the inputs are
// alive, so live bytes at that moment are what a GPU's kernel has.
#include "alias.h"
#include "context.h"
#include "counters.h"
#include "kernels.h"
#include "runtime.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace lowtide_sim {

namespace {

using at::IValue;
using at::Tensor;

// Matrix products whose half precision kernels are too slow on a CPU: done in float32, which is
// also what a GPU accumulates in.
bool computes_in_float(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::mv", "aten::addmv",
      "aten::dot", "aten::_addmm_activation", "aten::_scaled_dot_product_flash_attention_for_cpu"};
  return names.count(name) > 0;
}

// Operators whose GPU kernels take one floating type only, where the CPU's (or float32 scratch) would
// let a mix pass.
bool wants_one_type(const std::string& name) {
  static const std::unordered_set<std::string> names{"aten::native_group_norm", "aten::native_layer_norm"};
  return names.count(name) > 0 ||
      (computes_in_float(name) && name != "aten::_scaled_dot_product_flash_attention_for_cpu");
}

std::mutex g_counts_mutex;
std::unordered_map<c10::OperatorName, int64_t> g_counts;

void count_operator(const c10::OperatorName& name) {
  std::lock_guard<std::mutex> guard(g_counts_mutex);
  g_counts[name]++;
}

// One call: its arguments on the CPU, and the way back.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : schema_(op.schema()),
        stack_(stack),
        first_(stack->size() - schema_.arguments().size()),
        // The originals must outlive the call: views refer to their storages.
        originals_(stack->begin() + static_cast<std::ptrdiff_t>(first_), stack->end()),
        check_(schema_.name().c_str()),
        in_float_(computes_in_float(schema_.name())) {}

  void run(const c10::OperatorHandle& op) {
    find_device();
    Aliases aliases(target_);
    for (size_t i = 0; i < originals_.size(); i++) replace(i, aliases);
    {
      OpScope scope(schema_.name().c_str());
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
      write_back();
      aliases.adopt();
      return_results(aliases);
    }
  }

 private:
  void find_device() {
    std::optional<c10::DeviceIndex> named;
    for (size_t i = 0; i < originals_.size(); i++) {
      const IValue& value = originals_[i];
      if (value.isTensor()) {
        check_.see(value.toTensor());
      } else if (value.isTensorList()) {
        for (const Tensor& tensor : value.toTensorVector()) check_.see(tensor);
      } else if (value.isOptionalTensorList()) {
        for (const auto& tensor : value.toOptionalTensorVector())
          if (tensor) check_.see_index(*tensor);
      } else if (value.isDevice() && value.toDevice().type() == kDeviceType) {
        named = checked_index(value.toDevice().index());
      }
    }
    check_.raise_if_mixed();
    if (wants_one_type(schema_.name())) check_types();
    target_ = named ? *named : check_.index();
  }

  void check_types() const {
    std::optional<at::ScalarType> first;
    for (const IValue& value : originals_) {
      if (!value.isTensor() || !value.toTensor().defined()) continue;
      const auto type = value.toTensor().scalar_type();
      if (!at::isFloatingType(type)) continue;
      if (!first) first = type;
      check_same_type(schema_.name().c_str(), *first, type);
    }
  }

  void replace(size_t i, Aliases& aliases) {
    IValue& value = (*stack_)[first_ + i];
    const auto& argument = schema_.arguments()[i];
    if (value.isTensor()) {
      value = replaced_tensor(value.toTensor(), argument, aliases);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(aliases.to_cpu(tensor));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& tensor : value.toOptionalTensorVector())
        list.push_back(tensor && tensor->defined() ? OptionalTensor(aliases.to_cpu(*tensor)) : tensor);
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().type() == kDeviceType) {
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator()) {
      const auto generator = value.toGenerator();
      TORCH_CHECK(
          generator.device().type() == kDeviceType, "Expected a '", kDeviceName,
          "' device type for generator but found '", generator.device(), "'");
      value = cpu_generator(generator);
    } else if (value.isNone() && argument.name() == "generator") {
      value = cpu_generator(default_generator(target_));
    }
  }

  Tensor replaced_tensor(const Tensor& original, const c10::Argument& argument, Aliases& aliases) {
    Tensor view = aliases.to_cpu(original);
    if (!in_float_ || !is_half(view)) return view;
    half_ = view.scalar_type();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Tensor wide = view.to(at::kFloat);
    if (argument.alias_info() && argument.alias_info()->isWrite()) {
      written_.emplace_back(wide, view);
      aliases.stand_in(wide, original);
    }
    return wide;
  }

  void write_back() {
    for (auto& [wide, view] : written_) {
      if (view.sizes() != wide.sizes()) view.resize_(wide.sizes());
      view.copy_(wide);
    }
  }

  void return_results(Aliases& aliases) {
    const size_t count = schema_.returns().size();
    const size_t start = stack_->size() - count;
    for (size_t i = start; i < stack_->size(); i++) {
      IValue& value = (*stack_)[i];
      if (value.isTensor()) {
        Tensor result = value.toTensor();
        // The first result of a product done in float32; what follows (logsumexp) stays float32.
        const bool narrow = half_ && written_.empty() && i == start && result.defined();
        value = aliases.to_device(narrow ? result.to(*half_) : result);
      } else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& tensor : value.toTensorVector()) list.push_back(aliases.to_device(tensor));
        value = std::move(list);
      }
    }
  }

  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;
  std::vector<IValue> originals_;
  DeviceCheck check_;
  bool in_float_;
  c10::DeviceIndex target_ = 0;
  std::optional<at::ScalarType> half_;
  std::vector<std::pair<Tensor, Tensor>> written_;
};

}  // namespace

void boxed_fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  count_operator(op.operator_name());
  Call(op, stack).run(op);
}

std::map<std::string, int64_t> operator_counts() {
  std::lock_guard<std::mutex> guard(g_counts_mutex);
  std::map<std::string, int64_t> counts;
  for (const auto& [name, count] : g_counts) counts[c10::toString(name)] = count;
  return counts;
}

void reset_operator_counts() {
  std::lock_guard<std::mutex> guard(g_counts_mutex);
  g_counts.clear();
}

void check_same_type(const char* op, at::ScalarType a, at::ScalarType b) {
  TORCH_CHECK(a == b, "expected operands to have the same dtype, but got: ", a, " != ", b, " (in ", op, ")");
}

void DeviceCheck::see(const Tensor& tensor) {
  if (!tensor.defined()) return;
  if (on_device(tensor)) {
    if (device_ && *device_ != tensor.device()) raise(*device_, tensor.device());
    device_ = tensor.device();
  } else if (tensor.device().is_cpu() && tensor.dim() > 0) {
    cpu_ = true;  // a 0-dim CPU tensor is a number to CUDA's kernels
  }
}

void DeviceCheck::see_index(const Tensor& tensor) {
  if (!on_device(tensor)) return;
  TORCH_CHECK(
      !cpu_ && (!device_ || *device_ == tensor.device()),
      "indices should be either on cpu or on the same device as the indexed tensor (",
      device_text(device_.value_or(c10::Device(c10::kCPU))), ")");
  device_ = tensor.device();
}

void DeviceCheck::raise_if_mixed() const {
  if (device_ && cpu_) raise(*device_, c10::Device(c10::kCPU));
}

void DeviceCheck::raise(c10::Device a, c10::Device b) const {
  TORCH_CHECK(
      false, "Expected all tensors to be on the same device, but found at least two devices, ", device_text(a),
      " and ", device_text(b), "! (when checking arguments of ", op_, ")");
}

c10::DeviceIndex DeviceCheck::index() const {
  return device_ ? device_->index() : context().device;
}

}  // namespace lowtide_sim
