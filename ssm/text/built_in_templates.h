// The chat templates for models whose folders hold none.
#pragma once

namespace ssm::text {

inline constexpr const char* kChatMl = R"({%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%})";

// The tokenizer itself puts the space behind [INST] and [/INST].
inline constexpr const char* kMistral = R"({%- set system = '' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] + '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('after a system message, user and assistant take turns') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST]' + (system if loop.first else '') + message['content'] + '[/INST]' -}}
    {%- else -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%})";

// What ends an answer is learned with it: the next speaker's name, or the end token.
inline constexpr const char* kPlain = R"({%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}
    {%- endif -%}
    {%- if loop.first -%}
        {{- message['role'] | capitalize + ':' -}}
    {%- elif loop.previtem['role'] != 'assistant' -%}
        {{- '\n' + message['role'] | capitalize + ':' -}}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- ' ' + message['content'] -}}
            {%- if not loop.last -%}
                {{- '\n' + loop.nextitem['role'] | capitalize + ':' -}}
            {%- elif eos_token is defined -%}
                {{- eos_token -}}
            {%- endif -%}
        {%- endgeneration -%}
    {%- else -%}
        {{- ' ' + message['content'] -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\nAssistant:' -}}
{%- endif -%})";

}  // namespace ssm::text
