"""Writes chat.json: conversations and what transformers' chat templates make of them.

Run with transformers 5 and jinja2 installed: python tests/text/chat.py
The templates are written for this test; each uses what templates in the wild use.
"""

import json
import pathlib

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

TALK = [
    {"role": "system", "content": "  Be brief & <kind>.\n"},
    {"role": "user", "content": "Say \"hi\" – now.\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhi"},
    {"role": "user", "content": "Again?"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b & 'c'", "parameters": {
    "type": "object", "properties": {"x": {"type": "number", "default": 1e-05}}, "required": ["x"]}}}]

TEMPLATES = {
    "turns": """{% for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message.content | trim + eos_token + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
""",
    "block_whitespace": """{{ bos_token }}
{% if messages[0].role == 'system' %}
{% set system = messages[0]['content'] %}
    {% set rest = messages[1:] %}
{% else %}
{% set system = none %}{% set rest = messages %}
{% endif %}
    {# a comment
       of two lines #}
{% for m in rest %}
  [{{ loop.index0 }}/{{ loop.length }}{{ ' last' if loop.last }}] {{ m.content }}
{% endfor %}
{{ system is not none and system is string }}{{ unset }}

""",
    "exception": """{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: ' ~ message.role) }}{% endif %}{% endfor %}""",
    "namespace_and_reverse": """{%- set ns = namespace(found=false, at=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
{%- set index = (messages|length - 1) - loop.index0 -%}
{%- if not ns.found and message.role == "user" and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) -%}
{%- set ns.found = true -%}{%- set ns.at = index -%}
{%- endif -%}{%- endfor -%}
{{ ns.at }} {{ ns.found }} {{ messages[-1].content }} {{ messages[ns.at]['content'][:3] }}""",
    "python_strings": """{% for message in messages %}{% set content = message.content %}
{% if '</think>' in content %}{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{% set content = content.split('</think>')[-1].lstrip('\\n') %}({{ thought }}){% endif %}
{{ message.role.title() }}|{{ message.role.upper() }}|{{ content.strip() }}|{{ content.replace('i', '!') }}|{{ content.find('h') }}
{% endfor %}{{ "-".join(['a', 'b']) }} {{ {'a': 1}.items() | list }} {{ {'a': 1}.get('b', 'none') }} {{ 'x,y'.split(',') }}""",
    "tojson": """{{ tools | tojson }}
{{ tools | tojson(indent=4) }}
{{ tools[0].function.parameters | tojson(sort_keys=True, separators=(',', ':')) }}
{{ messages[1].content | tojson(ensure_ascii=True) }} {{ messages[0].content | tojson }}
{{ none | tojson }} {{ [] | tojson(indent=2) }} {{ 1.0 | tojson }} {{ true | tojson }}""",
    "values": """{{ true }} {{ none }} {{ 1.5 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ [1, 'a', none, true] }} {{ {'k': [false]} }} {{ 'a' ~ 1 ~ none }}
{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ enable_thinking is defined }} {{ enable_thinking is false }}
{{ messages is iterable }} {{ messages[0] is mapping }} {{ messages | map(attribute='role') | join('/') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ 'yes' if enable_thinking is defined and enable_thinking else 'no' }} {{ (messages | last).role }} {{ messages[0].content | length }}""",
    "loop_controls_and_macros": """{% macro turn(m, tail='') %}<{{ m.role }}>{{ m.content | trim }}{{ tail }}{% endmacro %}
{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ turn(m, tail='!') }}
{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}""",
    "generation": """{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}
{% set inner = 'x' %}
{{ message.content }}{{ eos_token }}
{%- endgeneration -%}
{% else %}
{{ "{% generation %}" }}{% raw %}{% generation %}{{ raw }}{% endraw %}{{ message.role }}
{% endif %}
{% endfor %}{{ inner is defined }}""",
    "year": "{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b %Y') | length }}{{ strftime_now('%%') }}",
}


def cases():
    for name, template in TEMPLATES.items():
        for prompt in (True, False):
            for talk, extra in ((TALK, TOKENS), (TALK[1:], {}), (TALK, {"tools": TOOLS, "enable_thinking": False})):
                case = {"name": name, "template": template, "messages": talk, "prompt": prompt, "extra": extra}
                named = {k: v for k, v in extra.items() if k != "tools"}
                try:
                    [text], _ = render_jinja_template([talk], tools=extra.get("tools"), chat_template=template,
                                                      add_generation_prompt=prompt, **named)
                    case["text"] = text
                except Exception as error:
                    # The words of raise_exception are the template's; those of other errors are the library's.
                    case["error"] = str(error) if type(error) is jinja2.TemplateError else ""
                yield case


target = pathlib.Path(__file__).with_suffix(".json")
target.write_text(json.dumps(list(cases()), indent=1, ensure_ascii=False) + "\n")
