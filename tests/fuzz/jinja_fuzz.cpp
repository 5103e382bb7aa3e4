// Templates of any bytes: parsing and rendering end in text or an Error.
#include <cstddef>
#include <cstdint>

#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const reft::ChatTemplateInput input = [] {
    reft::ChatTemplateInput i;
    i.messages = reft::Json::parse(
        R"([{"role": "system", "content": "s"}, {"role": "user", "content": "a b\nc é"},
      {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, true]}}}]}])");
    i.tools =
        reft::Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {}}}])");
    i.bos_token = "<s>";
    return i;
  }();
  try {
    reft::ChatTemplate t(std::string(reinterpret_cast<const char*>(data), size));
    t.render(input);
  } catch (const reft::Error&) {
  }
  return 0;
}
