// Chat templates by name, for models that ship none and for --chat_template. Each renders the
// prompt format that its family was trained on.
#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "text/chat_template.h"
#include "text/harmony_template.h"

namespace reft {
namespace {

constexpr const char* kChatMl = R"jinja(
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})jinja";

constexpr const char* kSmolLm2 = R"jinja(
{%- macro turn(role, content) %}{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}{% endmacro %}
{%- if messages and messages[0].role != 'system' %}
{{- turn('system', 'You are a helpful AI assistant named SmolLM, trained by Hugging Face') }}
{%- endif %}
{%- for message in messages %}{{ turn(message.role, message.content) }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})jinja";

constexpr const char* kQwen2 = R"jinja(
{%- macro turn(role, content) %}{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}{% endmacro %}
{%- if messages and messages[0].role != 'system' %}{{ turn('system', 'You are a helpful assistant.') }}{% endif %}
{%- for message in messages %}{{ turn(message.role, message.content) }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})jinja";

// The tool section that Qwen2.5 and Qwen3 share, ready to follow a system prompt.
constexpr const char* kQwenTools = R"jinja(
{%- macro tool_section() %}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}{{ '\n' ~ tool | tojson }}{% endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\n<tool_call>\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}
{%- endmacro %}
{%- macro tool_result(index, content) %}
{%- if index == 0 or messages[index - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' ~ content ~ '\n</tool_response>' }}
{%- if index + 1 == messages | length or messages[index + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
{%- endmacro %})jinja";

constexpr const char* kQwen25 = R"jinja(
{%- set first = messages[0] if messages else {} %}
{%- set system = first.content if first.role == 'system' else
    'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}
{{- '<|im_start|>system\n' ~ system ~ ('\n\n' ~ tool_section() if tools else '') ~ '<|im_end|>\n' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- tool_result(loop.index0, message.content) }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' ~ ('\n' ~ message.content if message.content else '') }}
{%- for call in message.tool_calls %}
{%- set call = call.function if call.function is defined else call %}
{{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments | tojson ~ '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role in ['user', 'assistant'] or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})jinja";

constexpr const char* kQwen3 = R"jinja(
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none %}
{%- if tools %}
{{- '<|im_start|>system\n' ~ (system ~ '\n\n' if system is not none else '') ~ tool_section() ~ '<|im_end|>\n' }}
{%- elif system is not none %}
{{- '<|im_start|>system\n' ~ system ~ '<|im_end|>\n' }}
{%- endif %}
{#- Reasoning is shown only after the last question that a person asked. -#}
{%- set last = namespace(query=messages | length - 1) %}
{%- for message in messages | reverse | list if message.role == 'user' and
    not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- if loop.first %}{% set last.message = message %}{% endif %}
{%- endfor %}
{%- for message in messages if message is sameas last.message %}{% set last.found = true %}{% endfor %}
{%- if last.found %}
{%- for message in messages %}{% if message is sameas last.message %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- tool_result(loop.index0, message.content) }}
{%- elif message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content if message.content is string else '' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}
{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > last.query and (loop.last or reasoning) %}
{{- '<think>\n' ~ reasoning.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') }}
{%- else %}
{{- content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if content or not loop.first %}{{ '\n' }}{% endif %}
{%- set call = call.function if call.function else call %}
{{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
{{- (call.arguments if call.arguments is string else call.arguments | tojson) ~ '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' ~ ('<think>\n\n</think>\n\n' if enable_thinking is false else '') }}
{%- endif %})jinja";

constexpr const char* kLlama2 = R"jinja(
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none %}
{%- for message in (messages if system is none else messages[1:]) %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- bos_token ~ '[INST] ' ~ ('<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' if loop.first and system is not none else '') }}
{{- message.content.strip() ~ ' [/INST]' }}
{%- else %}
{{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token }}
{%- endif %}
{%- endfor %})jinja";

constexpr const char* kLlama3 = R"jinja(
{%- for message in messages %}
{{- bos_token if loop.first }}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %})jinja";

// Llama 3.1 knows tools of its own (code interpreter, search), 3.2 does not and reads the clock.
constexpr const char* kLlama31Setup = R"jinja(
{%- set has_builtin_tools = builtin_tools is defined %}
{%- set date_string = date_string if date_string is defined else '26 Jul 2024' %})jinja";
constexpr const char* kLlama32Setup = R"jinja(
{%- set has_builtin_tools = false %}
{%- set date_string = date_string if date_string is defined else strftime_now('%d %b %Y') %})jinja";
constexpr const char* kLlama31 = R"jinja(
{%- set offered = custom_tools if custom_tools is defined else tools %}
{%- set in_user = tools_in_user_message if tools_in_user_message is defined else true %}
{%- set system = messages[0].content | trim if messages and messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages and messages[0].role == 'system' else messages %}
{%- macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}{% endmacro %}
{%- macro tool_list() %}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
{{- 'Do not use variables.\n\n' }}
{%- for tool in offered %}{{ tool | tojson(indent=4) ~ '\n\n' }}{% endfor %}
{%- endmacro %}
{{- bos_token ~ header('system') }}
{%- if has_builtin_tools or offered is not none %}{{ 'Environment: ipython\n' }}{% endif %}
{%- if has_builtin_tools %}
{{- 'Tools: ' ~ builtin_tools | reject('equalto', 'code_interpreter') | join(', ') ~ '\n\n' }}
{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' ~ date_string ~ '\n\n' }}
{%- if offered is not none and not in_user %}
{{- 'You have access to the following functions. To call a function, please respond with JSON for a function call.' }}
{{- tool_list() }}
{%- endif %}
{{- system ~ '<|eot_id|>' }}
{%- if in_user and offered is not none %}
{%- if not turns %}
{{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
{%- endif %}
{{- header('user') ~ 'Given the following functions, please respond with a JSON for a function call ' }}
{{- 'with its proper arguments that best answers the given prompt.\n\n' ~ tool_list() }}
{{- turns[0].content | trim ~ '<|eot_id|>' }}
{%- set turns = turns[1:] %}
{%- endif %}
{%- for message in turns %}
{%- if 'tool_calls' in message and message.role not in ['tool', 'ipython'] or 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}
{{- raise_exception('This model only supports single tool-calls at once!') }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- header('assistant') }}
{%- if has_builtin_tools and call.name in builtin_tools %}
{{- '<|python_tag|>' ~ call.name ~ '.call(' }}
{%- for name, value in call.arguments | items %}
{{- name ~ '="' ~ value ~ '"' ~ (', ' if not loop.last else '') }}
{%- endfor %}
{{- ')' }}
{%- else %}
{{- '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}' }}
{%- endif %}
{{- '<|eom_id|>' if has_builtin_tools else '<|eot_id|>' }}
{%- elif message.role in ['tool', 'ipython'] %}
{{- header('ipython') ~ (message.content | tojson if message.content is iterable else message.content) ~ '<|eot_id|>' }}
{%- else %}
{{- header(message.role) ~ message.content | trim ~ '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %})jinja";

constexpr const char* kGemma = R"jinja(
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %})jinja";

constexpr const char* kGemma3 = R"jinja(
{{- bos_token }}
{%- set has_system = messages and messages[0].role == 'system' %}
{%- set prefix = '' %}
{%- if has_system %}
{%- set system = messages[0].content %}
{%- set prefix = (system if system is string else system[0].text) ~ '\n\n' %}
{%- endif %}
{%- for message in (messages[1:] if has_system else messages) %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\n' }}
{{- prefix if loop.first }}
{%- if message.content is string %}
{{- message.content | trim }}
{%- elif message.content is iterable %}
{%- for part in message.content %}
{{- '<start_of_image>' if part.type == 'image' else part.text | trim if part.type == 'text' }}
{%- endfor %}
{%- else %}
{{- raise_exception('Invalid content type') }}
{%- endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %})jinja";

// Pieces of the DeepSeek formats.
constexpr const char* kDeepSeekSystem = R"jinja(
{{- bos_token ~ messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') }})jinja";
constexpr const char* kDeepSeekCall = R"jinja(
{%- macro tool_call(call) %}
{%- set arguments = call.function.arguments %}
{{- '<｜tool▁call▁begin｜>' ~ call.type ~ '<｜tool▁sep｜>' ~ call.function.name ~ '\n```json\n' }}
{{- (arguments if arguments is string else arguments | tojson) ~ '\n```<｜tool▁call▁end｜>' }}
{%- endmacro %})jinja";

constexpr const char* kDeepSeekV3 = R"jinja(
{%- set state = namespace(called=false, in_tool=false, had_output=false) %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- set state.in_tool = false %}
{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' and (message.content is none or message.tool_calls) %}
{%- set state.in_tool = false %}
{%- if message.content %}{{ '<｜Assistant｜>' ~ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- if not state.called %}
{{- ('' if message.content else '<｜Assistant｜>') ~ '<｜tool▁calls▁begin｜>' ~ tool_call(call) }}
{%- set state.called = true %}
{%- else %}
{{- '\n' ~ tool_call(call) ~ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- elif message.role == 'assistant' %}
{{- ('<｜tool▁outputs▁end｜>' if state.in_tool else '<｜Assistant｜>') + message.content + '<｜end▁of▁sentence｜>' }}
{%- set state.in_tool = false %}
{%- elif message.role == 'tool' %}
{{- ('\n' if state.had_output else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + message.content }}
{{- '<｜tool▁output▁end｜>' }}
{%- set state.in_tool = true %}
{%- set state.had_output = true %}
{%- endif %}
{%- endfor %}
{{- '<｜tool▁outputs▁end｜>' if state.in_tool else '<｜Assistant｜>' if add_generation_prompt }})jinja";

constexpr const char* kDeepSeekR1 = R"jinja(
{%- set state = namespace(called=false, in_tool=false, had_output=false, system='') %}
{%- for message in messages if message.role == 'system' %}{% set state.system = message.content %}{% endfor %}
{{- bos_token ~ state.system }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- set state.in_tool = false %}
{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' %}
{%- if message.tool_calls %}
{%- set state.in_tool = false %}
{%- for call in message.tool_calls %}
{{- ('\n' if state.called else '<｜Assistant｜><｜tool▁calls▁begin｜>') ~ tool_call(call) }}
{%- set state.called = true %}
{%- endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- endif %}
{%- if message.content is not none %}
{%- if state.in_tool %}
{{- '<｜tool▁outputs▁end｜>' + message.content + '<｜end▁of▁sentence｜>' }}
{%- set state.in_tool = false %}
{%- else %}
{{- '<｜Assistant｜>' + message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endif %}
{%- elif message.role == 'tool' %}
{{- ('\n' if state.had_output else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + message.content }}
{{- '<｜tool▁output▁end｜>' }}
{%- set state.in_tool = true %}
{%- set state.had_output = true %}
{%- endif %}
{%- endfor %}
{%- if state.in_tool %}
{{- '<｜tool▁outputs▁end｜>' }}
{%- elif add_generation_prompt %}
{{- '<｜Assistant｜><think>\n' }}
{%- endif %})jinja";

constexpr const char* kDeepSeekV31 = R"jinja(
{%- set think = thinking if thinking is defined else enable_thinking is defined and enable_thinking %}
{%- set state = namespace(after_user=false, in_tool=false) %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- set state.in_tool = false %}
{%- set state.after_user = true %}
{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<｜Assistant｜><think></think>' if state.after_user }}
{%- set state.after_user = false %}
{%- set state.in_tool = false %}
{%- for call in message.tool_calls %}
{%- set arguments = call.function.arguments %}
{{- (message.content or '') ~ '<｜tool▁calls▁begin｜>' if loop.first }}
{{- '<｜tool▁call▁begin｜>' ~ call.function.name ~ '<｜tool▁sep｜>' }}
{{- arguments | tojson ~ '<｜tool▁call▁end｜>' }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message.role == 'assistant' %}
{{- '<｜Assistant｜>' ~ ('<think>' if message.prefix and think else '<think></think>') if state.after_user }}
{%- set state.after_user = false %}
{{- message.content if state.in_tool else message.content.split('</think>', 1)[-1] }}
{{- '<｜end▁of▁sentence｜>' }}
{%- set state.in_tool = false %}
{%- elif message.role == 'tool' %}
{%- set state.after_user = false %}
{%- set state.in_tool = true %}
{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and state.after_user %}
{{- '<｜Assistant｜>' ~ ('<think>' if think else '<think></think>') }}
{%- endif %})jinja";

constexpr const char* kMistral = R"jinja(
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none %}
{%- set turns = messages if system is none else messages[1:] %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- macro check_id(id) %}
{%- if id is not defined or id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{%- endmacro %}
{%- set order = namespace(index=0) %}
{%- for message in turns if message.role not in ['tool', 'tool_results'] and not message.tool_calls %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/...') }}
{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- if tools is not none and message == users[-1] %}
{{- '[AVAILABLE_TOOLS][' }}
{%- for tool in tools %}
{{- '{"type": "function", "function": {' }}
{%- for key, value in tool.function.items() if key != 'return' %}
{{- '"' ~ key ~ '": ' ~ ('"' ~ value ~ '"' if value is string else value | tojson) ~ (', ' if not loop.last else '') }}
{%- endfor %}
{{- '}}' ~ (', ' if not loop.last else ']') }}
{%- endfor %}
{{- '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST]' + (system + '\n\n' if loop.last and system is not none else '') + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{{- check_id(call.id) ~ (call.function | tojson)[:-1] ~ ', "id": "' ~ call.id ~ '"}' ~ (', ' if not loop.last else ']') }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'assistant' %}
{{- message.content + eos_token }}
{%- elif message.role in ['tool', 'tool_results'] %}
{%- set content = message.content.content if message.content.content is defined else message.content %}
{{- '[TOOL_RESULTS]{"content": ' ~ content ~ ', "call_id": "' ~ message.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
{{- check_id(message.tool_call_id) }}
{%- else %}
{{- raise_exception('Only user and assistant roles are supported, after an optional system message!') }}
{%- endif %}
{%- endfor %})jinja";

constexpr const char* kPhi3Setup = "{%- set empty_system = true %}";
constexpr const char* kPhi35Setup = "{%- set empty_system = false %}";
constexpr const char* kPhi3 = R"jinja(
{%- for message in messages if message.role in ['user', 'assistant'] or
    (message.role == 'system' and (empty_system or message.content)) %}
{{- '<|' ~ message.role ~ '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }})jinja";

constexpr const char* kZephyr = R"jinja(
{%- for message in messages %}
{{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})jinja";

constexpr const char* kVicuna = R"jinja(
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content ~ '\n\n' }}
{%- elif message.role == 'user' %}{{ 'USER: ' ~ message.content ~ '\n' }}
{%- else %}{{ 'ASSISTANT: ' ~ message.content ~ eos_token ~ '\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %})jinja";

struct Builtin {
  const char* name;
  std::vector<const char*> parts;  // of the source
};

const std::vector<Builtin>& builtins() {
  static const std::vector<Builtin> table = {
      {"chatml", {kChatMl}},
      {"smollm2", {kSmolLm2}},
      {"qwen2", {kQwen2}},
      {"qwen2.5", {kQwenTools, kQwen25}},
      {"qwen3", {kQwenTools, kQwen3}},
      {"llama2", {kLlama2}},
      {"llama3", {kLlama3}},
      {"llama3.1", {kLlama31Setup, kLlama31}},
      {"llama3.2", {kLlama32Setup, kLlama31}},
      {"gemma", {kGemma}},
      {"gemma2", {kGemma}},
      {"gemma3", {kGemma3}},
      {"deepseek_v3", {kDeepSeekCall, kDeepSeekSystem, kDeepSeekV3}},
      {"deepseek_r1", {kDeepSeekCall, kDeepSeekR1}},
      {"deepseek_v3.1", {kDeepSeekSystem, kDeepSeekV31}},
      {"gpt_oss", {kHarmonyTypes, kHarmony}},
      {"mistral", {kMistral}},
      {"phi3", {kPhi3Setup, kPhi3}},
      {"phi3.5", {kPhi35Setup, kPhi3}},
      {"zephyr", {kZephyr}},
      {"vicuna", {kVicuna}}};
  return table;
}

// "Qwen-2_5" and "qwen2.5" are one name.
std::string fold_name(std::string_view name) {
  std::string out;
  for (char c : name) {
    if (c != '-' && c != '_' && c != '.' && c != ' ')
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return out;
}

// Empty when there is none of that name.
std::string find_builtin(std::string_view name) {
  static constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
      {"llama33", "llama31"},
      {"deepseek", "deepseekv3"},
      {"qwen", "qwen25"},
      {"deepseekv2", "deepseekv3"},
      {"phi35mini", "phi35"}};
  std::string wanted = fold_name(name);
  for (const auto& [alias, target] : kAliases) {
    if (wanted == alias) wanted = target;
  }
  for (const Builtin& b : builtins()) {
    if (fold_name(b.name) != wanted) continue;
    std::string source;
    for (const char* part : b.parts) source += part;
    return source;
  }
  return "";
}

}  // namespace

std::vector<std::string> builtin_chat_templates() {
  std::vector<std::string> names;
  for (const Builtin& b : builtins()) names.emplace_back(b.name);
  return names;
}

std::string resolve_chat_template(const std::string& name_path_or_text) {
  const std::string& s = name_path_or_text;
  if (std::string source = find_builtin(s); !source.empty()) return source;
  if (s.find("{{") != std::string::npos || s.find("{%") != std::string::npos) return s;
  std::error_code error;
  if (std::filesystem::exists(s, error)) return read_file(s);
  std::string names;
  for (const std::string& name : builtin_chat_templates())
    names += (names.empty() ? "" : ", ") + name;
  fail("chat template '{}' is neither a file nor a built-in name; the built-in ones are: {}", s,
       names);
}

std::string default_chat_template(std::string_view model_type) {
  static constexpr std::pair<std::string_view, const char*> kByType[] = {
      {"qwen2", "qwen2.5"},
      {"qwen2_moe", "qwen2.5"},
      {"qwen2_vl", "qwen2.5"},
      {"qwen2_5_vl", "qwen2.5"},
      {"qwen3", "qwen3"},
      {"qwen3_moe", "qwen3"},
      {"qwen3_next", "qwen3"},
      {"gemma", "gemma"},
      {"gemma2", "gemma2"},
      {"gemma3", "gemma3"},
      {"gemma3_text", "gemma3"},
      {"deepseek_v3", "deepseek_v3"},
      {"deepseek_v2", "deepseek_v3"},
      {"deepseek_v32", "deepseek_v3.1"},
      {"gpt_oss", "gpt_oss"},
      {"mistral", "mistral"},
      {"mixtral", "mistral"},
      {"phi3", "phi3"}};
  for (const auto& [type, name] : kByType) {
    if (type == model_type) return find_builtin(name);
  }
  return "";
}

}  // namespace reft
