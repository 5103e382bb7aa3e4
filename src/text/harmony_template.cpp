// The built-in template of GPT-OSS: OpenAI's harmony format as its published template renders it,
// without the sections of the browser and python tools.
#include "text/harmony_template.h"

namespace reft {

// A type of JSON Schema in TypeScript's words. A property of an object starts on a line of its own.
const char* const kHarmonyTypes = R"jinja(
{%- macro nullable(spec) %}{{ ' | null' if spec.nullable }}{% endmacro %}
{%- macro array_type(spec) %}
{%- set kind = spec['items'].type if spec['items'] %}
{%- if not spec['items'] %}{{ 'any[]' }}
{%- elif kind in ['string', 'boolean'] %}{{ kind ~ '[]' }}
{%- elif kind in ['number', 'integer'] %}{{ 'number[]' }}
{%- else %}
{%- set inner = type_of(spec['items']) %}
{{- 'any[]' if inner == 'object | object' or inner | length > 50 else inner ~ '[]' }}
{%- endif %}
{{- nullable(spec) }}
{%- endmacro %}
{%- macro one_of(variants) %}
{%- for v in variants %}
{{- type_of(v) }}
{{- '// ' ~ v.description if v.description }}
{{- '                    // default: ' ~ v.default | tojson if v.default is defined }}
{{- ' | \n' if not loop.last }}
{%- endfor %}
{%- endmacro %}
{%- macro object_type(spec) %}
{{- '{\n' }}
{%- for name, property in spec.properties.items() %}
{{- name ~ ('' if name in (spec.required or []) else '?') ~ ': \n                ' ~ type_of(property) }}
{{- ', ' if not loop.last }}
{%- endfor %}
{{- '}' }}
{%- endmacro %}
{%- macro type_of(spec) %}
{%- set kind = spec.type %}
{%- if kind == 'array' %}{{ array_type(spec) }}
{%- elif kind is defined and kind is iterable and kind is not string and kind is not mapping and kind[0] is defined %}
{{- kind | join(' | ') }}
{%- elif spec.oneOf %}{{ one_of(spec.oneOf) }}
{%- elif kind == 'string' and spec.enum %}{{ '"' ~ spec.enum | join('" | "') ~ '"' }}
{%- elif kind == 'string' %}{{ 'string' ~ nullable(spec) }}
{%- elif kind in ['number', 'integer'] %}{{ 'number' }}
{%- elif kind == 'boolean' %}{{ 'boolean' }}
{%- elif kind == 'object' %}{{ object_type(spec) if spec.properties else 'object' }}
{%- else %}{{ 'any' }}{% endif %}
{%- endmacro %}
{%- macro default_of(spec) %}
{%- if spec.default is not defined %}
{%- elif spec.enum %}{{ ', // default: ' ~ spec.default }}
{%- elif spec.oneOf %}{{ '// default: ' ~ spec.default }}
{%- else %}{{ ', // default: ' ~ spec.default | tojson }}{% endif %}
{%- endmacro %}
{%- macro functions() %}
{{- '# Tools\n\n## functions\n\nnamespace functions {\n\n' }}
{%- for tool in tools %}
{%- set f = tool.function %}
{{- '// ' ~ f.description ~ '\ntype ' ~ f.name ~ ' = ' }}
{%- if f.parameters and f.parameters.properties %}
{{- '(_: {\n' }}
{%- for name, spec in f.parameters.properties.items() %}
{{- '// ' ~ spec.description ~ '\n' if spec.description }}
{{- name ~ ('' if name in (f.parameters.required or []) else '?') ~ ': ' ~ type_of(spec) ~ default_of(spec) ~ ',\n' }}
{%- endfor %}
{{- '}) => any;\n\n' }}
{%- else %}{{ '() => any;\n\n' }}{% endif %}
{%- endfor %}
{{- '} // namespace functions' }}
{%- endmacro %})jinja";

const char* const kHarmony = R"jinja(
{%- macro put(header, text, end='<|end|>') %}{{ '<|start|>' ~ header ~ '<|message|>' ~ text ~ end }}{% endmacro %}
{%- macro check_channels(text, field) %}
{%- if '<|channel|>analysis<|message|>' in text or '<|channel|>final<|message|>' in text %}
{{- raise_exception("An assistant message has channels in '" ~ field ~ "': its reasoning belongs in 'thinking', its answer in 'content'.") }}
{%- endif %}
{%- endmacro %}
{%- macro facts() %}
{{- (model_identity if model_identity is defined else 'You are ChatGPT, a large language model trained by OpenAI.') ~ '\n' }}
{{- 'Knowledge cutoff: 2024-06\nCurrent date: ' ~ strftime_now('%Y-%m-%d') ~ '\n\n' }}
{{- 'Reasoning: ' ~ (reasoning_effort if reasoning_effort is defined else 'medium') ~ '\n\n' }}
{{- '# Valid channels: analysis, commentary, final. Channel must be included for every message.' }}
{{- "\nCalls to these tools must go to the commentary channel: 'functions'." if tools }}
{%- endmacro %}
{{- put('system', facts()) }}
{%- set ruled = messages and messages[0].role in ['system', 'developer'] %}
{%- set rules = messages[0].content if ruled else '' %}
{%- set turns = messages[1:] if ruled else messages %}
{%- if rules or tools %}
{{- put('developer', ('# Instructions\n\n' ~ rules ~ '\n\n' if rules else '') ~ (functions() if tools else '')) }}
{%- endif %}
{%- set called = namespace(name=none) %}
{%- for m in turns %}
{%- if m.role == 'user' %}{{ put('user', m.content) }}
{%- elif m.role == 'tool' %}
{{- raise_exception('A tool message has no call before it.') if called.name is none }}
{{- put('functions.' ~ called.name ~ ' to=assistant<|channel|>commentary', m.content | tojson) }}
{%- elif m.role == 'assistant' %}
{{- check_channels(m.content, 'content') if 'content' in m }}
{{- check_channels(m.thinking, 'thinking') if 'thinking' in m }}
{%- if 'tool_calls' in m %}
{%- set call = m.tool_calls[0].function if m.tool_calls[0].function else m.tool_calls[0] %}
{{- raise_exception("An assistant message with calls has reasoning in 'thinking' or in 'content', not in both.") if m.content and m.thinking }}
{%- set answered = turns[loop.index:] | selectattr('role', 'equalto', 'assistant') | rejectattr('tool_calls', 'defined') | list %}
{%- set thought = m.content or m.thinking %}
{{- put('assistant<|channel|>analysis', thought) if thought and not answered }}
{{- put('assistant to=functions.' ~ call.name ~ '<|channel|>commentary ' ~ (call.content_type if call.content_type is defined else 'json'), call.arguments | tojson, '<|call|>') }}
{%- set called.name = call.name %}
{%- elif loop.last and not add_generation_prompt %}
{{- put('assistant<|channel|>analysis', m.thinking) if 'thinking' in m }}
{{- put('assistant<|channel|>final', m.content, '<|return|>') }}
{%- else %}
{{- put('assistant<|channel|>final', m.content) }}
{%- set called.name = none %}
{%- endif %}
{%- endif %}
{%- endfor %}
{{- '<|start|>assistant' if add_generation_prompt }})jinja";

}  // namespace reft
