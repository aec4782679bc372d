#!/usr/bin/env python3
"""Writes `chat_templates.json`: conversations as the `apply_chat_template` of transformers renders them.

    python -m venv .venv && .venv/bin/pip install transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
    .venv/bin/python generate_chat_templates.py

The templates are written for this purpose: each uses some part of the dialect in the way that published ones do. Where
`apply_chat_template` refuses, the file holds its complaint.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

USER = [{"role": "user", "content": "How heavy is the stone?"}]
TURNS = [
    {"role": "system", "content": "You are a miller."},
    {"role": "user", "content": "How heavy is it?"},
    {"role": "assistant", "content": "A ton, about."},
    {"role": "user", "content": "  And the \"other\"?\n"},
]
THINKING = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."},
    {"role": "user", "content": "And <b>3</b> & 'ü'?"},
    {"role": "assistant", "content": "<think>again</think>Five."},
]
TWICE = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weigh",
            "description": "Weighs a stone — „schwer“ <kg>",
            "parameters": {
                "type": "object",
                "properties": {"stone": {"type": "string", "enum": ["upper", "lower"]}, "exact": {"type": "boolean"}},
                "required": ["stone"],
            },
        },
    }
]

# name -> (template, [(messages, add_generation_prompt, further variables)])
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        [(USER, True, {}), (TURNS, False, {}), (TURNS, True, {})],
    ),
    "blocks on lines of their own": (
        "{%- for message in messages %}\n"
        "    {%- if loop.first and message.role != 'system' %}\n"
        "        {{- '<system>none</system>' }}\n"
        "    {%- endif %}\n"
        "    {{- '<' ~ message.role ~ '>' }}\n"
        "    {{ message.content }}\n"
        "    {%- if not loop.last %}\n"
        "\n"
        "---\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{% if add_generation_prompt %}\n"
        "<assistant>\n"
        "{% endif %}\n",
        [(USER, True, {}), (TURNS, True, {}), (TURNS, False, {})],
    ),
    "trim and strip of blocks": (
        "a\n"
        "  {% if true %}\n"
        "  b\n"
        "  {% endif %}\n"
        "c  {% if true %}  d  {% endif %}  e\n"
        "\t{# a comment #}\n"
        "f {#- another -#}   g\n"
        "  {%+ if true %}h{% endif +%}\n"
        "  {{ 'i' }}\n"
        "j  {{- 'k' -}}   \n"
        "  l\n"
        "{% raw %}  {{ not.this }} {% nor this %}\n{% endraw %}\n"
        "m\n\n",
        [(USER, False, {})],
    ),
    "inst with system in front": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        [(USER, False, {}), (TURNS, True, {}), (TWICE, False, {}), (THINKING, False, {})],
    ),
    "headers with a date": (
        "{{- bos_token }}\n"
        "{%- if not date_string is defined %}\n"
        "    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now('%d %b %Y')|length ~ ' characters' %}\n"
        "    {%- else %}\n"
        "        {%- set date_string = '26 Jul 2024' %}\n"
        "    {%- endif %}\n"
        "{%- endif %}\n"
        "{%- if not tools is defined %}\n"
        "    {%- set tools = none %}\n"
        "{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system_message = '' %}\n"
        "{%- endif %}\n"
        "{{- '<|start|>system<|stop|>\\n\\n' }}\n"
        "{%- if tools is not none %}{{ 'Environment: ipython\\n' }}{% endif %}\n"
        "{{- 'Today: ' + date_string + '\\n\\n' + system_message }}\n"
        "{%- for message in messages %}\n"
        "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
        "        {{- '<|start|>' + message['role'] + '<|stop|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\\n\\n' }}{%- endif %}\n",
        [(USER, True, {}), (TURNS, True, {"date_string": "22 Nov 2026"}), (USER, True, {"tools": TOOLS})],
    ),
    "tools as json": (
        "{%- if tools %}\n"
        "    {{- '<|im_start|>system\\n' }}\n"
        "    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}\n"
        "    {{- '# Tools\\n<tools>' }}\n"
        "    {%- for tool in tools %}\n"
        "        {{- '\\n' }}\n"
        "        {{- tool | tojson }}\n"
        "    {%- endfor %}\n"
        "    {{- '\\n</tools>\\n{\"name\": <name>}<|im_end|>\\n' }}\n"
        "{%- else %}{{- 'no tools\\n' }}{%- endif %}\n"
        "{%- for message in messages %}{%- if message.role != 'system' %}{{- message.role + ': ' + message.content + '\\n' }}{%- endif %}{%- endfor %}",
        [(USER, True, {"tools": TOOLS}), (TURNS, True, {"tools": TOOLS}), (USER, True, {})],
    ),
    "tojson": (
        "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}\n{{ messages[0] | tojson(indent=4) }}\n"
        "{{ {'b': 1, 'a': [1.5, true, none, 'é<>&\\'\"\\\\'], 'c': {}, 'd': []} | tojson }}\n"
        "{{ {'b': {'x': []}, 'a': {}} | tojson(indent=1) }}\n{{ 'text' | tojson }} {{ 3 | tojson }} {{ [] | tojson(indent=2) }}",
        [(USER, False, {}), (THINKING, False, {})],
    ),
    "tojson arguments": (
        "{{ tools[0] | tojson(ensure_ascii=False) }}\n{{ tools[0] | tojson(separators=(',', ':')) }}\n"
        "{{ tools[0] | tojson(sort_keys=true, indent=2) }}\n{{ tools[0].function.description | tojson(ensure_ascii=true) }}",
        [(USER, False, {"tools": TOOLS})],
    ),
    "thinking is dropped from earlier turns": (
        "{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.multi_step and message.role == 'user' and message.content is string and not "
        "(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}\n"
        "        {%- set ns.multi_step = false %}\n"
        "        {%- set ns.last_query = index %}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content if message.content is string else '' %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {%- set reasoning = '' %}\n"
        "        {%- if '</think>' in content %}\n"
        "            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
        "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "        {%- endif %}\n"
        "        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and reasoning)) %}\n"
        "            {{- 'A<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n"
        "        {%- else %}{{- 'A' + content }}{%- endif %}\n"
        "    {%- else %}{{- 'U' + content }}{%- endif %}\n"
        "    {{- '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- 'A' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
        "    {%- endif %}\n"
        "{%- endif %}",
        [(THINKING, False, {}), (THINKING[:3], True, {}), (THINKING[:3], True, {"enable_thinking": False}),
         (THINKING[:3], True, {"enable_thinking": True})],
    ),
    "namespace flags": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(is_first=true, system='', count=0) %}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}{%- endif %}{%- endfor %}"
        "{{ bos_token }}{{ ns.system }}"
        "{%- for message in messages %}"
        "{% set content = message['content'] %}"
        "{%- if message['role'] == 'user' %}{%- set ns.is_first = false -%}{{ '<User>' + content }}{%- endif %}"
        "{%- if message['role'] == 'assistant' and content is not none %}{% set ns.count = ns.count + 1 %}"
        "{{ '<Assistant ' ~ ns.count ~ '>' + content.split('</think>')[-1] + eos_token }}{%- endif %}"
        "{%- endfor -%}"
        "{% if add_generation_prompt and not ns.is_first %}{{ '<Assistant>' }}{% endif %}",
        [(TURNS, True, {}), (THINKING, False, {})],
    ),
    "loop variables": (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} rev {{ loop.revindex }},{{ loop.revindex0 }} "
        "{{ loop.cycle('odd', 'even') }} depth {{ loop.depth }} "
        "{% if loop.previtem is defined %}after {{ loop.previtem.role }} {% endif %}"
        "{% if loop.nextitem is defined %}before {{ loop.nextitem.role }} {% else %}end{% endif %}"
        "{% if loop.changed(m.role) %}!{% endif %}\n"
        "{% else %}empty{% endfor %}",
        [(TURNS, False, {}), (TWICE, False, {})],
    ),
    "break and continue": (
        "{%- for message in messages %}\n"
        "    {%- if message.role == 'system' %}{%- continue %}{%- endif %}\n"
        "    {%- if message.role == 'assistant' %}{%- break %}{%- endif %}\n"
        "    {{- message.role + ';' }}\n"
        "{%- endfor %}",
        [(TURNS, False, {}), (TWICE, False, {})],
    ),
    "loop filter and recursion into slices": (
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}:{{ m.content|trim }}|{% endfor %}"
        "{{ messages[-1].role }} {{ messages[:-1]|length }} {{ messages[1:3]|map(attribute='role')|join(',') }} "
        "{{ messages[::2]|length }} {{ (messages|last).role }} {{ (messages|first)['role'] }} "
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }} "
        "{{ messages|rejectattr('role', 'equalto', 'user')|map(attribute='content')|list|join('/') }}",
        [(TURNS, False, {}), (THINKING, False, {})],
    ),
    "string methods": (
        "{% set s = messages[-1].content %}[{{ s.strip() }}][{{ s.lstrip() }}][{{ s.rstrip() }}][{{ s.upper() }}][{{ s.lower() }}]"
        "[{{ messages[-1].role.title() }}][{{ s.capitalize() }}][{{ s.replace('e', '3') }}][{{ s.split() | join('_') }}][{{ s.split('e', 1)[0] }}]"
        "[{{ s.startswith('  A') }}][{{ s.endswith('\\n') }}][{{ s.find('e') }}][{{ s.count('e') }}][{{ s.strip(' A?\\n') }}]"
        "[{{ 'a\\nb\\n'.splitlines() | join('+') }}][{{ ', '.join(['x', 'y']) }}][{{ 'abc'[1:] }}][{{ 'abc'[::-1] }}][{{ s|length }}]"
        "[{{ '12'.isdigit() }}][{{ 'ab'.isalpha() }}][{{ ' '.isspace() }}]",
        [(TURNS, False, {}), (USER, False, {})],
    ),
    "dictionaries": (
        "{% set d = {'b': 1, 'a': 'x'} %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.keys()|list|join(',') }} "
        "{{ d.values()|list|join(',') }} {{ d.get('c', 'none') }} {{ d.get('a') }} {{ 'a' in d }} {{ d['b'] + 1 }} {{ d|length }} "
        "{% for k, v in d|dictsort %}{{ k }}{{ v }}{% endfor %} {{ d is mapping }} {{ messages is mapping }} {{ messages is iterable }} "
        "{% for key, value in messages[0]|items %}{{ key }}:{{ value }};{% endfor %}",
        [(USER, False, {})],
    ),
    "undefined and none": (
        "[{{ nothing }}][{{ none }}][{{ nothing is defined }}][{{ nothing is none }}][{{ none is none }}][{{ nothing|default('d') }}]"
        "[{{ ''|default('e', true) }}][{{ nothing or 'f' }}][{{ messages[0].tool_calls is defined }}][{{ messages[0]['tool_calls'] is defined }}]"
        "[{{ 'yes' if messages[0].name else 'no' }}][{{ 'x' if false }}][{% if documents %}docs{% endif %}][{{ true }}{{ false }}]"
        "[{{ bos_token }}][{{ pad_token is defined }}][{{ documents is defined }}]",
        [(USER, False, {}), (USER, False, {"documents": [{"title": "t", "text": "x"}]})],
    ),
    "an undefined value has no fields": ("{{ nothing.field }}", [(USER, False, {})]),
    "arithmetic and tests": (
        "{{ 7 // 2 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 5 }} {{ 1.0 }} {{ 1e3 }} {{ '-' * 5 }} {{ [1] + [2] }} "
        "{{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 3 is number }} {{ 'a' is string }} {{ 1 < 2 < 3 }} {{ 'b' > 'a' }} "
        "{{ [1, 'two', none, 3.5] }} {{ {'k': 'v', 'n': none} }} {{ ('a', 'b') }} {{ not true }} {{ 1 if 2 in [1, 2] else 0 }} {{ range(3)|list }} "
        "{{ '5'|int + 1 }} {{ 5|string + '1' }} {{ [3, 1, 2]|sort|join }} {{ [1, 2]|sum }} {{ ['a', 'b']|last }} {{ 'a,b'.split(',') }}",
        [(USER, False, {})],
    ),
    "macros": (
        "{% macro turn(role, content, end=true) %}<{{ role }}>{{ content|trim }}{% if end %}</{{ role }}>{% endif %}{% endmacro %}"
        "{%- macro params(schema) -%}{%- for name, value in schema.items() -%}{{ name }}: {{ value.type }}"
        "{%- if value.enum %} ({{ value.enum|join('|') }}){% endif %}{%- if not loop.last %}, {% endif %}{%- endfor -%}{%- endmacro -%}"
        "{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}"
        "{% for tool in tools or [] %}{% set f = tool.function %}{{ f.name }}({{ params(f.parameters.properties) }}){% endfor %}"
        "{{ turn('assistant', '', end=false) if add_generation_prompt }}",
        [(TURNS, True, {}), (USER, False, {"tools": TOOLS})],
    ),
    "set blocks, filters and with": (
        "{% set block %}\n  {{ messages[0].content }}\n{% endset %}[{{ block|trim }}]{% filter upper %}abc{% endfilter %}"
        "{% with x = 'in' %}{{ x }}{% endwith %}{{ 'line\\nline'|indent(2) }}|{{ 'line\\nline'|indent(2, true) }}|{{ 'a b'|replace(' ', '_') }}"
        "|{{ 'Text'|lower }}|{{ 'text'|capitalize }}|{{ '<a>'|e }}|{{ '<b>'|safe }}|{{ ['x', 'y']|reverse|list }}|{{ 'abc'|first }}"
        "|{{ [1, 1, 2]|unique|list }}|{{ 3.7|round }}|{{ 3.2|int }}|{{ -2|abs }}|{{ [1, 5, 3]|max }}",
        [(USER, False, {})],
    ),
    "generation blocks": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<a>{% generation %}{{ message['content'] }}{{ eos_token }}"
        "{% endgeneration %}\n{% else %}<u>{{ message['content'] }}\n{% endif %}{% endfor %}"
        "{%- if add_generation_prompt -%}<a>{%- endif -%}",
        [(THINKING, False, {}), (THINKING[:3], True, {})],
    ),
    "generation blocks on lines": (
        "{% for message in messages %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {%- generation %}\n"
        "        {{- message.content }}\n"
        "        {%- endgeneration %}\n"
        "    {%- else %}\n"
        "        {{- message.content + '\\n' }}\n"
        "    {%- endif %}\n"
        "{% endfor %}",
        [(THINKING, False, {})],
    ),
    "content that may be a list": (
        "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}",
        [(TURNS, False, {})],
    ),
    "exceptions": (
        "{%- if messages|length > 9 %}{{ raise_exception('too many messages') }}{% endif %}"
        "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported: ' + messages[0].content) }}{% endif %}"
        "{{- messages[0].content }}",
        [(TURNS, False, {}), (USER, False, {})],
    ),
    "scopes": (
        "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}"
        "{% if true %}{% set x = 9 %}{% endif %}{{ x }}{% set a, b = 'p', 'q' %}{{ a }}{{ b }}",
        [(TURNS, False, {})],
    ),
    "variables of the caller": (
        "{{ persona|default('none') }} {{ limit + 1 if limit is defined else 'no limit' }} {{ flags.quiet if flags is defined }} {{ add_generation_prompt }}",
        [(USER, True, {"persona": "müller", "limit": 4, "flags": {"quiet": True}}), (USER, False, {})],
    ),
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_templates():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
    out = []
    for name, (template, runs) in TEMPLATES.items():
        made = {"name": name, "template": template, "special_tokens": TOKENS, "runs": []}
        for messages, prompt, extra in runs:
            run = {"messages": messages, "add_generation_prompt": prompt, "extra": extra}
            try:
                run["expected"] = tokenizer.apply_chat_template(
                    messages, chat_template=template, add_generation_prompt=prompt, tokenize=False, **extra
                )
            except Exception as reason:
                run["error"] = str(reason)
            made["runs"].append(run)
        out.append(made)
        print(f"{name}: {len(runs)} conversations")
    (HERE / "chat_templates.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    write_templates()
