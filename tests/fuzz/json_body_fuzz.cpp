// Bytes as the body of each POST route: parsing must end in a value or a RequestError.
// layers: base tensor ops backend_cpu nn models text media engine speech server web
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/log.h"
#include "engine/request.h"
#include "server/chat_prompt.h"
#include "server/openai_requests.h"

namespace reft {
namespace {

// One id per byte.
class Bytes : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    return std::string(ids.begin(), ids.end());
  }
  int64_t vocab_size() const override { return 256; }
  std::optional<int32_t> token_to_id(std::string_view) const override { return std::nullopt; }
  std::string id_to_token(int32_t id) const override {
    return std::string(1, static_cast<char>(id));
  }
  std::string token_bytes(int32_t id) const override { return id_to_token(id); }
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> bos_id() const override { return 1; }
  std::optional<int32_t> eos_id() const override { return 2; }
  std::optional<int32_t> pad_id() const override { return std::nullopt; }
  const std::string& chat_template() const override { return template_; }

 private:
  std::string template_;
};

const RequestContext& context() {
  static const RequestContext value = [] {
    set_log_level(LogLevel::kOff);
    RequestContext out;
    out.vocab_size = 256;
    out.max_model_len = 4096;
    out.model_names = {"m"};
    out.tokenizer = std::make_shared<Bytes>();
    out.chat_template = std::make_shared<const ChatTemplate>(
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | "
        "tojson }}{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{{ extra }}");
    return out;
  }();
  return value;
}

template <class F>
void refused_or_fine(F&& f) {
  try {
    f();
  } catch (const RequestError& e) {
    check(e.status() >= 400 && e.status() < 500, "status {}", e.status());
  }
}

}  // namespace
}  // namespace reft

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace reft;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  refused_or_fine([&] { parse_chat_request(parse_request_body(text), context()); });
  refused_or_fine([&] { parse_completion_request(parse_request_body(text), context()); });
  return 0;
}
