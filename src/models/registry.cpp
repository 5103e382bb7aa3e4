#include "models/model.h"

namespace reft {

using Create = std::unique_ptr<CausalLmModel>(const Json& config, const LoadOptions& options);
Create create_gemma;
Create create_gemma2;
Create create_gemma3;
Create create_gpt_oss;
Create create_llama;
Create create_mistral;
Create create_qwen2;
Create create_qwen2_moe;
Create create_qwen3;
Create create_qwen3_moe;

const std::vector<ModelFamily>& model_families() {
  static const std::vector<ModelFamily> families = {
      {{"GemmaForCausalLM"}, create_gemma},
      {{"Gemma2ForCausalLM"}, create_gemma2},
      {{"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"}, create_gemma3},
      {{"GptOssForCausalLM"}, create_gpt_oss},
      {{"LlamaForCausalLM"}, create_llama},
      {{"MistralForCausalLM"}, create_mistral},
      {{"Qwen2ForCausalLM"}, create_qwen2},
      {{"Qwen2MoeForCausalLM"}, create_qwen2_moe},
      {{"Qwen3ForCausalLM"}, create_qwen3},
      {{"Qwen3MoeForCausalLM"}, create_qwen3_moe},
  };
  return families;
}

}  // namespace reft
