// reft inspect: what a model is and what it needs.
#include <cstdio>
#include <map>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "ops/kernel.h"

namespace reft {
namespace {

std::string bytes_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.2f} GB", bytes / 1e9)
                      : fmt::format("{:.1f} MB", bytes / 1e6);
}

struct InspectOptions {
  static constexpr const char* kName = "inspect";
  static constexpr const char* kSummary =
      "show a model's architecture, parameters and memory plan, and the ops per device";
  static constexpr const char* kDescription = "";

  ModelFlags model;
  bool ops = false;
  bool parameters = false;
  bool json = false;

  void declare(ArgParser& parser) {
    model.declare_model(parser, true);
    model.declare_engine(parser);
    model.declare_seed(parser);
    parser.group("Output");
    parser.add("ops", &ops, "Only the table of ops and the devices that have them.");
    parser.add("parameters", &parameters, "List every parameter with its shape.");
    parser.add("json", &json, "Print JSON.");
    parser.example("reft inspect --model Qwen/Qwen3-4B --max-model-len 32k", "What a model needs:");
  }

  static Json ops_json() {
    Json out = Json::object();
    for (const KernelSlot* slot : all_kernel_slots()) {
      out[slot->name()] = {{"cpu", slot->has(DeviceType::kCpu)},
                           {"cuda", slot->has(DeviceType::kCuda)}};
    }
    return out;
  }

  static void print_ops() {
    std::printf("%-28s %-5s %-5s\n", "op", "cpu", "cuda");
    for (const KernelSlot* slot : all_kernel_slots()) {
      std::printf("%-28s %-5s %-5s\n", slot->name(), slot->has(DeviceType::kCpu) ? "yes" : "-",
                  slot->has(DeviceType::kCuda) ? "yes" : "-");
    }
  }

  int execute(const ArgParser&) {
    if (ops) {
      if (json) {
        std::printf("%s\n", ops_json().dump(2).c_str());
      } else {
        print_ops();
      }
      return 0;
    }
    set_log_level(LogLevel::kWarning);
    ServingModel serving = model.load();
    const CausalLmModel& lm = *serving.loaded.model;
    const ModelInfo& info = lm.info();
    const DType kv_dtype = model.engine.kv_cache_dtype == "auto"
                               ? serving.loaded.compute_dtype
                               : parse_cache_dtype(model.engine.kv_cache_dtype);
    const double block = static_cast<double>(
        KvCache::block_bytes(lm.cache_specs(), model.engine.block_size, kv_dtype));
    const double per_token = block / static_cast<double>(model.engine.block_size);
    const int64_t length =
        model.engine.max_model_len > 0 ? model.engine.max_model_len : info.max_position;
    int64_t active = serving.loaded.num_parameters;
    serving.loaded.model->visit([&](const std::string& name, Parameter& parameter) {
      active -= parameter.shape.numel() - active_elements(info, name, parameter.shape);
    });
    Json out = {{"path", serving.path},
                {"architecture", info.architecture},
                {"parameters", serving.loaded.num_parameters},
                {"active_parameters", active},
                {"layers", info.num_layers},
                {"hidden_size", info.hidden_size},
                {"vocab_size", info.vocab_size},
                {"max_position", info.max_position},
                {"checkpoint_dtype", dtype_name(info.checkpoint_dtype)},
                {"compute_dtype", dtype_name(serving.loaded.compute_dtype)},
                {"weight_bytes", serving.loaded.weight_bytes},
                {"kv_bytes_per_token", static_cast<int64_t>(per_token)},
                {"kv_bytes_at_max_model_len",
                 static_cast<int64_t>(per_token * static_cast<double>(length))},
                {"tokenizer_vocab_size", serving.tokenizer ? serving.tokenizer->vocab_size() : 0},
                {"chat_template", serving.chat_template != nullptr}};
    if (json) {
      out["ops"] = ops_json();
      if (parameters) {
        serving.loaded.model->visit([&](const std::string& name, Parameter& parameter) {
          out["parameter_shapes"][name] = parameter.shape.str();
        });
      }
      std::printf("%s\n", out.dump(2).c_str());
    } else {
      for (const auto& [key, value] : out.items()) {
        std::string text = value.is_string() ? value.get<std::string>() : value.dump();
        if (key.find("bytes") != std::string::npos)
          text += "  (" + bytes_text(value.get<double>()) + ")";
        std::printf("%-26s %s\n", key.c_str(), text.c_str());
      }
      std::printf("\n");
      print_ops();
    }
    if (parameters && !json) {
      serving.loaded.model->visit([](const std::string& name, Parameter& parameter) {
        std::printf("%-60s %s%s\n", name.c_str(), parameter.shape.str().c_str(),
                    parameter.optional ? " optional" : "");
      });
    }
    return 0;
  }
};

}  // namespace

Command inspect_command() { return make_command<InspectOptions>(); }

}  // namespace reft
