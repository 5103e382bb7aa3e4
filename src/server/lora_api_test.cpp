// Adapters over HTTP: their names, what they answer, and how they come and go.
#include <gmock/gmock.h>

#include <algorithm>

#include "base/log.h"
#include "server/server_fake.h"

namespace reft {
namespace {

using fake::Client;
using fake::Reply;
using testing::HasSubstr;

const std::string kRoot = REFT_SOURCE_DIR;
const std::string kPlain = kRoot + "/tests/train/adapters/plain";

// The tiny Llama of the goldens, without a tokenizer: prompts are ids.
class LoraApi : public testing::Test {
 protected:
  void serve(bool updating) {
    set_log_level(LogLevel::kOff);
    EngineOptions engine_options;
    engine_options.kv_cache_memory_bytes = 8 << 20;
    engine_options.max_loras = 2;
    engine_ = std::make_unique<Engine>(
        load_model(kRoot + "/tests/golden/llama", {.dtype = "float32", .quiet = true}), nullptr,
        engine_options);
    engine_->load_adapter("first", kPlain);
    ServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    options.handle_signals = false;
    options.served_model_names = {"llama"};
    options.allow_runtime_lora_updating = updating;
    server_ = std::make_unique<Server>(*engine_, nullptr, std::move(options));
    thread_ = std::thread([this] { server_->run(); });
  }
  ~LoraApi() override {
    if (thread_.joinable()) {
      server_->stop();
      server_->stop();
      thread_.join();
    }
    set_log_level(LogLevel::kInfo);
  }

  Reply post(const std::string& path, const Json& body) const {
    return Client(server_->port()).post(path, body);
  }
  Reply get(const std::string& path) const { return Client(server_->port()).request("GET", path); }
  Reply complete(const std::string& model) const {
    return post("/v1/completions", {{"model", model},
                                    {"prompt", {5, 60, 77, 9, 121}},
                                    {"temperature", 0},
                                    {"max_tokens", 8},
                                    {"ignore_eos", true},
                                    {"return_token_ids", true}});
  }
  Json ids(const std::string& model) const {
    const Json json = complete(model).json();
    EXPECT_EQ(json.at("model"), model);
    return json.at("choices").at(0).at("token_ids");
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

TEST_F(LoraApi, RequestsNameTheirAdapter) {
  serve(false);
  const Json list = get("/v1/models").json().at("data");
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].at("id"), "llama");
  EXPECT_TRUE(list[0].at("parent").is_null());
  EXPECT_EQ(list[1].at("id"), "first");
  EXPECT_EQ(list[1].at("parent"), "llama");
  EXPECT_EQ(list[1].at("root"), kPlain);
  EXPECT_EQ(get("/v1/models/first").json().at("parent"), "llama");
  EXPECT_NE(ids("first"), ids("llama"));
  const Reply unknown = complete("second");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.error("param"), "model");
  EXPECT_THAT(get("/metrics").body, HasSubstr("vllm:lora_requests_info{"));
  EXPECT_EQ(post("/v1/load_lora_adapter", {{"lora_name", "x"}, {"lora_path", kPlain}}).status, 403);
  EXPECT_EQ(post("/v1/unload_lora_adapter", {{"lora_name", "first"}}).status, 403);
}

TEST_F(LoraApi, AdaptersComeAndGo) {
  serve(true);
  const auto load = [&](const char* name, const std::string& path) {
    return post("/v1/load_lora_adapter", {{"lora_name", name}, {"lora_path", path}});
  };
  EXPECT_EQ(load("second", kPlain).status, 200);
  EXPECT_EQ(ids("second"), ids("first"));
  EXPECT_EQ(load("second", kPlain).status, 400);
  EXPECT_THAT(load("llama", kPlain).body, HasSubstr("base model"));
  EXPECT_THAT(load("third", kPlain).body, HasSubstr("max_loras"));
  EXPECT_EQ(post("/v1/load_lora_adapter", {{"lora_name", "x"}}).error("param"), "lora_path");
  EXPECT_EQ(post("/v1/unload_lora_adapter", {{"lora_name", "first"}}).status, 200);
  EXPECT_EQ(post("/v1/unload_lora_adapter", {{"lora_name", "first"}}).status, 404);
  EXPECT_EQ(complete("first").status, 404);
  EXPECT_EQ(complete("second").status, 200);
  EXPECT_EQ(load("third", "/nowhere").status, 400);
}

}  // namespace
}  // namespace reft
