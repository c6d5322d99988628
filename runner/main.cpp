// tvmq-run: run an artifact of tvmq without Python.
#include <algorithm>
#include <chrono>
#include <new>

#include "arrays.h"
#include "model.h"

namespace {

const char* kUsage =
    "tvmq-run MODEL.tvmq [-i INPUT]... [-o OUTPUT.npy]... [--threads N] [--repeat N] [--verify]\n"
    "  -i        an .npy, or a file of raw elements; one for each input, in order. Without: the artifact's own input.\n"
    "  -o        write an output as .npy; one for each output, in order, or for the first ones\n"
    "  --threads the default is the number of CPUs that this process may use\n"
    "  --repeat  runs to time; the default is 1\n"
    "  --verify  compare every site and output with the artifact's checksums, bit for bit; exit 6 if one differs\n";

struct Options {
  std::string model;
  std::vector<std::string> inputs, outputs;
  int threads = 0, repeat = 1;
  bool verify = false;
};

int Positive(const std::string& name, const std::string& value) {
  char* end = nullptr;
  long number = std::strtol(value.c_str(), &end, 10);
  if (number < 1 || number > 1 << 30 || *end) throw tvmq::Error(name + ": '" + value + "' given, a whole number from 1 on is wanted");
  return number;
}

Options Parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    std::string word = words[i];
    auto value = [&]() -> std::string {
      if (i + 1 == count) throw tvmq::Error(word + ": a value is wanted after it");
      return words[++i];
    };
    if (word == "-i") {
      options.inputs.push_back(value());
    } else if (word == "-o") {
      options.outputs.push_back(value());
    } else if (word == "--threads") {
      options.threads = Positive(word, value());
    } else if (word == "--repeat") {
      options.repeat = Positive(word, value());
    } else if (word == "--verify") {
      options.verify = true;
    } else if (word[0] == '-' || !options.model.empty()) {
      throw tvmq::Error("unknown argument '" + word + "'; usage:\n" + kUsage);
    } else {
      options.model = word;
    }
  }
  if (options.model.empty()) throw tvmq::Error(std::string("no model given; usage:\n") + kUsage);
  return options;
}

std::vector<tvm::ffi::Tensor> Given(tvmq::Model& model, const std::vector<std::string>& paths) {
  if (paths.empty()) return model.Golden();
  if (paths.size() != model.inputs.size()) {
    throw tvmq::Error(std::to_string(paths.size()) + " inputs given, the model takes " + std::to_string(model.inputs.size()));
  }
  std::vector<tvm::ffi::Tensor> tensors;
  for (size_t i = 0; i < paths.size(); ++i) tensors.push_back(tvmq::ReadArray(paths[i], model.inputs[i]));
  return tensors;
}

void Show(const tvmq::Spec& spec, const tvm::ffi::Tensor& tensor) {
  std::vector<double> values = tvmq::Numbers(tensor);
  std::vector<size_t> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  size_t top = std::min<size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + top, order.end(),
                    [&](size_t a, size_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  std::printf("%s, largest of %zu:", spec.name.c_str(), values.size());
  for (size_t i = 0; i < top; ++i) std::printf("  [%zu] %g", order[i], values[order[i]]);
  std::printf("\n");
}

int Run(const Options& options) {
  using Clock = std::chrono::steady_clock;
  tvmq::Model model(options.model);
  if (options.outputs.size() > model.outputs.size()) {
    throw tvmq::Error("-o: " + std::to_string(options.outputs.size()) + " outputs named, the model has " +
                      std::to_string(model.outputs.size()));
  }
  model.Load(options.threads);
  if (options.verify) {
    int compared = 0;
    std::vector<std::string> wrong = model.Verify(&compared);
    for (const std::string& name : wrong) std::fprintf(stderr, "tvmq-run: %s differs\n", name.c_str());
    if (!wrong.empty()) return 6;
    std::printf("all equal: %d tensors, bit for bit\n", compared);
  }
  std::vector<tvm::ffi::Tensor> inputs = Given(model, options.inputs), outputs = model.Run(inputs);
  std::vector<double> ms;
  for (int i = 0; i < options.repeat; ++i) {
    auto began = Clock::now();
    outputs = model.Run(inputs);
    ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - began).count());
  }
  std::sort(ms.begin(), ms.end());
  for (size_t i = 0; i < outputs.size(); ++i) Show(model.outputs[i], outputs[i]);
  std::printf("%.3f ms median of %d, %.3f ms least\n", ms[ms.size() / 2], options.repeat, ms[0]);
  for (size_t i = 0; i < options.outputs.size(); ++i) tvmq::WriteArray(options.outputs[i], model.outputs[i], outputs[i]);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  int code = 70;
  try {
    code = Run(Parse(count, words));
  } catch (const tvmq::Error& error) {
    std::fprintf(stderr, "tvmq-run: %s\n", error.what());
    code = error.code;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "tvmq-run: out of memory\n");
    code = 5;
  } catch (const std::exception& error) {  // TVM's errors, too
    std::fprintf(stderr, "tvmq-run: internal error, %s\n", error.what());
  }
  std::fflush(nullptr);
  _exit(code);  // an ordinary end waits for TVM's pool, whose workers on a busy machine may miss their end
}
