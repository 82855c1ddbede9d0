// The few functions of ExecuTorch's C++ interface that executorch_program.py needs, as C functions that ctypes can call.
// Compiled on the machine that runs them, against the executorch package for Python, which does not need torch for this.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/runtime.h>

// The package has the pool of threads, but not its header. These are the two members of it that are used here.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::aten::ScalarType;
using executorch::extension::Module;

namespace {

struct Loaded {
  std::unique_ptr<Module> module;
  std::vector<executorch::aten::SizesType> shape;  // of the input
  size_t outputs;                                  // numbers in the output
};

void tell(char* error, size_t size, const std::string& text) { std::snprintf(error, size, "%s", text.c_str()); }

std::string status(const char* what, executorch::runtime::Error code) {
  return std::string(what) + ": error " + std::to_string(static_cast<int>(code)) + ", " +
         executorch::runtime::to_string(code);
}

}  // namespace

extern "C" {

// Threads of the pool that all programs of this process run on.
size_t dap_threads() { return executorch::extension::threadpool::get_threadpool()->get_thread_count(); }

// Replaces the pool; no program may be loaded. 0 if that worked.
int dap_set_threads(uint32_t threads) {
  return executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads) ? 0 : 1;
}

// The program's method "forward", which must map one float32 tensor to one; null and a text in `error` otherwise.
// inputs, outputs: how many numbers these tensors have.
void* dap_load(const char* path, size_t* inputs, size_t* outputs, char* error, size_t error_size) try {
  executorch::runtime::runtime_init();
  auto loaded = std::make_unique<Loaded>();
  loaded->module = std::make_unique<Module>(path, Module::LoadMode::File);
  if (auto code = loaded->module->load_method("forward"); code != executorch::runtime::Error::Ok) {
    tell(error, error_size, status("it does not load", code));
    return nullptr;
  }
  auto meta = loaded->module->method_meta("forward");
  if (!meta.ok() || meta->num_inputs() != 1 || meta->num_outputs() != 1) {
    tell(error, error_size, "it does not map one tensor to one");
    return nullptr;
  }
  auto input = meta->input_tensor_meta(0);
  auto output = meta->output_tensor_meta(0);
  if (!input.ok() || !output.ok() || input->scalar_type() != ScalarType::Float ||
      output->scalar_type() != ScalarType::Float) {
    tell(error, error_size, "its input and output are not float32");
    return nullptr;
  }
  loaded->shape.assign(input->sizes().begin(), input->sizes().end());
  loaded->outputs = output->nbytes() / sizeof(float);
  *inputs = input->nbytes() / sizeof(float);
  *outputs = loaded->outputs;
  return loaded.release();
} catch (const std::exception& problem) {
  tell(error, error_size, problem.what());
  return nullptr;
}

// One inference: `input` and `output` are as large as dap_load said. 0 if it worked, else a text in `error`.
int dap_run(void* handle, float* input, float* output, char* error, size_t error_size) try {
  auto* loaded = static_cast<Loaded*>(handle);
  auto result = loaded->module->forward(executorch::extension::from_blob(input, loaded->shape));
  if (!result.ok()) {
    tell(error, error_size, status("it does not run", result.error()));
    return 1;
  }
  if (result->size() != 1 || !result->at(0).isTensor() ||
      static_cast<size_t>(result->at(0).toTensor().numel()) != loaded->outputs) {
    tell(error, error_size, "its output is not what it announced");
    return 1;
  }
  std::copy_n(result->at(0).toTensor().const_data_ptr<float>(), loaded->outputs, output);
  return 0;
} catch (const std::exception& problem) {
  tell(error, error_size, problem.what());
  return 1;
}

void dap_free(void* handle) { delete static_cast<Loaded*>(handle); }
}
