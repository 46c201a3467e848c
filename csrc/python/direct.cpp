// The operators of a forward pass, called by Python without the way through torch.ops. That makes values of TorchScript
// of all arguments, matches them with a schema and makes lists of the results: half of the time of a small layer's
// step, and what it touches in the caches has to come back behind the weights. Here arguments go into the dispatcher as
// those of any C++ call, so that autograd, transforms, dispatch modes and devices see no difference.
//
// A module of its own, for the operators' library does without Python.
#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/index_select.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace lstm_fused {

namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

struct Layer {
  static constexpr const char* name = "lstm_fused::layer";
  using Signature = Tensors(const std::string&, const at::Tensor&, at::TensorList, at::TensorList,
                            const OptionalTensor&, bool, std::optional<double>, std::optional<double>, bool,
                            const OptionalTensor&, const OptionalTensor&, const OptionalTensor&);
};
struct PackedLayer {
  static constexpr const char* name = "lstm_fused::packed_layer";
  using Signature = Tensors(const std::string&, const at::Tensor&, at::TensorList, at::TensorList, at::TensorList,
                            const std::string&, const OptionalTensor&, bool, std::optional<double>);
};
struct Step {
  static constexpr const char* name = "lstm_fused::step";
  using Signature = Tensors(const std::string&, const at::Tensor&, at::TensorList, at::TensorList);
};

// A tensor itself: no subclass, whose __torch_function__ would have a say.
bool is_plain(PyObject* object) {
  return THPVariable_CheckExact(object) || reinterpret_cast<PyObject*>(Py_TYPE(object)) == ParameterClass;
}

// Whether `from` is of the kind that `to` holds, which then has it.
bool read(PyObject* from, std::string& to) {
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_Check(from) ? PyUnicode_AsUTF8AndSize(from, &size) : nullptr;
  if (text) to.assign(text, size);
  else PyErr_Clear();
  return text;
}
bool read(PyObject* from, bool& to) {
  to = from == Py_True;
  return PyBool_Check(from);
}
bool read(PyObject* from, std::optional<double>& to) {
  if (PyFloat_Check(from)) to = PyFloat_AS_DOUBLE(from);
  return PyFloat_Check(from) || from == Py_None;
}
bool read(PyObject* from, at::Tensor& to) {
  if (!is_plain(from)) return false;
  to = THPVariable_Unpack(from);
  return true;
}
bool read(PyObject* from, OptionalTensor& to) { return from == Py_None || read(from, to.emplace()); }
bool read(PyObject* from, Tensors& to) {
  if (!PyList_CheckExact(from) && !PyTuple_CheckExact(from)) return false;
  to.resize(PySequence_Fast_GET_SIZE(from));
  for (std::size_t i = 0; i < to.size(); ++i)
    if (!read(PySequence_Fast_GET_ITEM(from, i), to[i])) return false;
  return true;
}

// What an argument is read into.
template <class Argument>
struct Held {
  using type = std::decay_t<Argument>;
};
template <>
struct Held<at::TensorList> {
  using type = Tensors;
};

PyObject* list_of(Tensors tensors) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors.size()));
  for (std::size_t i = 0; list && i < tensors.size(); ++i) {
    PyObject* const tensor = THPVariable_Wrap(std::move(tensors[i]));
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), tensor);
    if (!tensor) Py_CLEAR(list);
  }
  return list;
}

// Arguments that are missing at the end are None.
template <class Operator, class... Arguments>
PyObject* call_typed(std::type_identity<Tensors(Arguments...)>, PyObject* const* given, Py_ssize_t count) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(Operator::name, "").template typed<Tensors(Arguments...)>();
  std::tuple<typename Held<Arguments>::type...> arguments;
  Py_ssize_t i = 0;
  const auto read_next = [&](auto& to) { return read(i < count ? given[i] : Py_None, to) && ++i; };
  const bool all_read = std::apply([&](auto&... to) { return (read_next(to) && ...); }, arguments);
  if (!all_read || count > i) Py_RETURN_NONE;
  Tensors results;
  {
    const pybind11::gil_scoped_release others_may_run;
    results = std::apply([&](const auto&... all) { return op.call(all...); }, arguments);
  }
  return list_of(std::move(results));
}

// Whether a call is to be seen by who looks at functions of Python, not at operators.
bool is_others_affair() { return at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing(); }

template <class Operator>
PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (is_others_affair()) Py_RETURN_NONE;
  return call_typed<Operator>(std::type_identity<typename Operator::Signature>{}, given, count);
  END_HANDLE_TH_ERRORS
}

// A state [D, B, *] with its rows in another order [B]. A few rows are copied sooner than index_select is called; but
// where somebody looks at what the dispatcher calls, or derives it, that has to be seen.
at::Tensor reordered(const at::Tensor& state, const at::Tensor& order) {
  const auto in_memory = [](const at::Tensor& t) { return t.is_cpu() && t.has_storage() && t.is_contiguous(); };
  const auto general = [&] { return at::index_select(state, 1, order); };
  if (c10::impl::TorchDispatchModeTLS::any_modes_set() || state.requires_grad() || state._fw_grad(0).defined())
    return general();
  if (!in_memory(state) || !in_memory(order) || order.scalar_type() != at::kLong || state.dim() != 3 ||
      order.sizes() != at::IntArrayRef({state.size(1)}))
    return general();
  const at::Tensor result(at::detail::empty_cpu(state.sizes(), state.scalar_type()));
  const std::int64_t B = state.size(1), bytes = state.size(2) * static_cast<std::int64_t>(state.element_size());
  const auto* const from = static_cast<const char*>(state.const_data_ptr());
  auto* to = static_cast<char*>(result.mutable_data_ptr());
  const auto* const rows = order.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < state.size(0) * B; ++i, to += bytes) {
    if (rows[i % B] < 0 || rows[i % B] >= B) return general();
    std::memcpy(to, from + (i / B * B + rows[i % B]) * bytes, bytes);
  }
  return result;
}

// That of several states at once.
PyObject* reorder(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Tensors states;
  at::Tensor order;
  if (is_others_affair() || count != 2 || !read(given[0], states) || !read(given[1], order)) Py_RETURN_NONE;
  for (at::Tensor& state : states) state = reordered(state, order);
  return list_of(std::move(states));
  END_HANDLE_TH_ERRORS
}

using Function = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);
PyMethodDef method(const char* name, Function* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {method("layer", call<Layer>),
                         method("packed_layer", call<PackedLayer>),
                         method("step", call<Step>),
                         method("reorder", reorder),
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_direct", nullptr, -1, methods};

}  // namespace

}  // namespace lstm_fused

PyMODINIT_FUNC PyInit__direct() { return PyModule_Create(&lstm_fused::module_definition); }
