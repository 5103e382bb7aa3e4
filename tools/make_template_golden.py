#!/usr/bin/env python3
"""Writes tests/golden/templates/{features,builtins,harmony}.json with transformers as the oracle.

features.json: small templates that use every part of the language, with what transformers renders ("text") or
the fact that it raises ("error": true).
harmony.json: the same for GPT-OSS, whose prompts hold the date (here DATE), from gpt_oss.jinja.
builtins.json: conversations rendered by the families' official templates, which the built-in ones must equal.
--official names a folder with the official templates as NAME.jinja (they are not part of this repository).

  tools/make_template_golden.py [--official FOLDER]
"""
import argparse
import json
import pathlib
import re

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "templates"

CONTEXT = {
    "n": 7, "f": 2.5, "big": 18446744073709551615, "t": True, "z": None, "s": "Hello, World", "u": "naïve 日本語 👩‍👩‍👧",
    "l": [3, 1, 2], "words": ["b", "A", "c"], "d": {"b": 1, "a": "x", "items": [1]}, "e": {}, "empty": [],
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 25, "tags": []},
               {"name": "Cid", "age": 31, "tags": ["y", "z"], "extra": {"deep": [0, "D"]}}],
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}],
    "html": "<a href=\"x\">'&'</a>", "ws": "  pad\t\n", "multi": "one\ntwo\n\nthree\n",
    "obj": {"z": 1.0, "k": [True, False, None, "é<&>\u2028\"\\\n\t\x07"], "n": {"x": [], "y": {}}, "i": 1e22},
}

EXPRESSIONS = """
1 + 2 * 3 ** 2 - 7 // 2 % 3 | -7 // 2 | -7 % 3 | 7 % -3 | 7 / 2 | 2 ** -1 | 2 ** 100 | 2 ** 3 ** 2 | -2 ** 2 | 1.5 + 1 | 7.5 // 2 | -7.5 % 2
1e3 | 1.0 | 0.1 + 0.2 | 1e16 | 1e15 | 1.5e-5 | 0.0001 | 123456789.123 | 1_000 | 0x1F + 0o17 + 0b11 | 3.0 * 2 | 1/3 | 5 // 2.0 | big | -big | big + 1
'a' ~ 1 ~ none ~ true ~ 1.0 | 'a' 'b' "c" | 'tab\\tnl\\nq\\'x\\\\' | "\\x41\\u00e9\\U0001F600\\101\\q" | 'a' + 'b' | 'ab' * 3 | 3 * 'ab' | [1] * 2 | [1] + [2] | (1,) + (2,)
1 < 2 < 3 | 1 < 3 < 2 | 1 == 1.0 | true == 1 | 'a' < 'b' | [1, 2] < [1, 3] | 1 != 2 | not 1 == 2 | 3 > 2 > 1 | none == none | 'a' == 1 | {'a': 1} == {'a': 1.0}
'a' in 'abc' | 3 in l | 'b' in d | 'zz' not in s | 1 not in l | not 'a' in 'b' | nope in l | 'x' in nope
1 if t else 2 | 1 if false | (1 if false) is defined | 'x' if z is none else 'y' | 1 if false else 2 if false else 3
0 or 'x' | 0 and 'x' | z or nope or 'last' | t and l | not l | not empty | nope or 'default'
s[0] | s[-1] | s[99] | s[1:4] | s[::-1] | s[-3:] | s[:-3] | s[::2] | s[10:2:-2] | u[2] | u[6:9] | u[::-1] | l[0] | l[-1] | l[5] | l[1:] | l[::-1] | l[:-1] | l[-2:] | (1, 2, 3)[1] | l[true]
d.b | d['b'] | d['items'] | d.missing | d['missing'] | d.items() | d.keys() | d.values() | d.items() | list | d.get('a') | d.get('q') | d.get('q', 5)
people[0].name | people[2]['extra'].deep[1] | people.0.name | people[0].tags[0] | d[1] | z.foo is defined | nope is defined | nope.x is defined
[1, 'a', none, true, 1.5, [2], (3,), {'k': 'v'}, nope] | {'a': 1, 2: 'b', none: [], true: 1.0} | () | (1,) | 1, 2 | ('a', 'b') | ["it's", 'say "hi"', "both ' and \\""] | ['\\n\\t\\x00\\x7f\\u200b\\u00e9']
'%s is %d and %.2f|%5d|%-5d|%05d|%x|%r|%%' % ('a', 3, 1.23456, 42, 42, 42, 255, 'q') | '%s' % 5 | '%(a)s-%(b)03d' % {'a': 1, 'b': 2} | '%s' | format('x') | '%s-%s' | format(1, 2) | '%(x)s' | format(x=3) | '%+d % d %#x %e %g' % (3, 4, 255, 12345.678, 0.00001) | '%c%c' % (65, 'b') | '%.3s|%10s|%-6s|' % ('abcdef', 'r', 'l')
'{} {}'.format(1, 'b') | '{0}{1}{0}'.format('a', 'b') | '{x} {y.name} {z[0]}'.format(x=1, y=people[0], z=l) | '{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd') | '{:05d} {:,} {:.2f} {:x} {:b} {:e} {:%}'.format(42, 1234567, 2.345, 255, 5, 1234.5, 0.25) | '{{}} {!r}'.format('a') | '{:{w}}|'.format('a', w=4) | '{:+} {: } {:#x}'.format(1, 2, 255)
s.upper() | s.lower() | 'heLLo wORLD'.title() | "they're bill's".title() | 'heLLo'.capitalize() | 'aB'.swapcase() | 'straße'.upper() | 'ÉCOLE'.lower() | 'ǅ ß'.lower()
ws.strip() | ws.lstrip() | ws.rstrip() | 'xxaxx'.strip('x') | 'abcba'.lstrip('ab') | '\\u3000x\\u2003'.strip() | ws | trim | '--a--' | trim('-')
'a,b,,c'.split(',') | 'a b  c '.split() | 'a,b,c'.split(',', 1) | 'a,b,c'.rsplit(',', 1) | ' a b  c '.split(None, 1) | ' a b  c '.rsplit(None, 1) | ''.split() | ''.split(',') | 'a,b'.split(sep=',') | multi.splitlines() | multi.splitlines(true) | 'a-b-c'.partition('-') | 'a-b-c'.rpartition('-') | 'abc'.partition('-')
s.startswith('Hell') | s.startswith(('x', 'H')) | s.endswith('ld') | s.startswith('World', 7) | s.endswith('Hello', 0, 5) | s.find('o') | s.find('o', 5) | s.rfind('o') | s.find('zz') | u.find('語') | s.index('W') | s.count('l') | s.count('') | 'aaa'.count('aa')
s.replace('l', 'L') | s.replace('l', 'L', 1) | 'abc'.replace('', '-') | s | replace('o', '0') | s | replace('o', '0', 1) | 5 | replace(5, 'five')
', '.join(words) | 'x'.join('abc') | words | join(', ') | people | join('; ', attribute='name') | l | join | 'abc'.isalpha() | 'ab1'.isalnum() | '12'.isdigit() | 'AB'.isupper() | 'ab'.islower() | ' '.isspace() | 'Ab Cd'.istitle() | 'x1'.isidentifier() | ''.isalpha() | '½'.isnumeric()
'7'.zfill(3) | '-7'.zfill(4) | 'a'.ljust(3, '.') | 'a'.rjust(3) | 'ab'.center(5, '*') | 'a'.center(4) | 'prefix-x'.removeprefix('prefix-') | 'x.py'.removesuffix('.py') | 'a\\tb'.expandtabs(4) | l.index(1) | l.count(3) | (1, 2, 1).count(1)
l | length | s | length | u | length | d | count | nope | length | e | length
nope | default('dflt') | '' | default('dflt') | '' | default('dflt', true) | z | default('dflt') | z | d('x', boolean=true) | nope | default | people[0].zip | default('none')
l | first | l | last | empty | first | 'abc' | first | 'abc' | last | l | sort | l | sort(reverse=true) | words | sort | words | sort(case_sensitive=true) | people | sort(attribute='age') | map(attribute='name') | list | people | sort(attribute='age,name') | map(attribute='name') | join(',')
d | dictsort | {'b': 2, 'A': 3, 'c': 1} | dictsort | {'b': 2, 'A': 3, 'c': 1} | dictsort(true) | {'b': 2, 'A': 3, 'c': 1} | dictsort(by='value') | {'b': 2, 'A': 3} | dictsort(reverse=true)
people | map(attribute='name') | list | people | map(attribute='extra.deep.1', default='-') | list | words | map('upper') | join | words | map('replace', 'b', 'Z') | list | l | map('string') | list | people | map(attribute='tags') | map('length') | list
l | select('odd') | list | l | reject('gt', 1) | list | [0, 1, '', 'a'] | select | list | [0, 1] | reject | list | people | selectattr('age', 'equalto', 31) | map(attribute='name') | list | people | rejectattr('tags') | map(attribute='name') | list | people | selectattr('extra', 'defined') | list | length | people | selectattr('name', 'in', ['bob', 'Cid']) | map(attribute='age') | list | l | select('in', [1, 2]) | list | l | select('divisibleby', 3) | list
[1, 2, 1, 'a', 'A'] | unique | list | ['a', 'A'] | unique(true) | list | people | unique(attribute='age') | map(attribute='name') | list | l | sum | people | sum(attribute='age') | l | sum(start=10) | [[1], [2]] | sum(start=[]) | l | min | l | max | words | max | words | max(case_sensitive=true) | people | max(attribute='age') | empty | min
-3 | abs | -2.5 | abs | 2.567 | round(2) | 2.5 | round | 3.5 | round | 7 | round | 2.1 | round(method='ceil') | 2.19 | round(1, 'floor') | 1234 | round(-2) | 2.5 | round | int | '42' | int | ' 4_2 ' | int | 'x' | int | 'x' | int(5) | '3.9' | int | '0x1f' | int(base=16) | 'ff' | int(0, 16) | 3.9 | int | true | int | z | int | '2.5' | float | 'x' | float | 3 | float | '1e3' | float | 'inf' | float
[1, 2, 3, 4, 5] | batch(2) | list | [1, 2, 3] | batch(2, 0) | list | [1, 2, 3, 4, 5] | slice(2) | list | [1, 2, 3, 4] | slice(3, 0) | list | l | reverse | list | 'abc' | reverse | people | groupby('age') | length
5 | string | z | string | l | list | 'abc' | list | d | list | 'a b' | upper | 'A' | lower | 'foo bar-baz (qux)' | title | 'fOO bAR' | capitalize | 'one two' | wordcount | 'aé b_c 1' | wordcount | 'x' | center(5) | 'hello big world' | truncate(10) | 'hello big world' | truncate(9, true) | 'hello big world' | truncate(11, false, '…', 0) | 'short' | truncate(10)
multi | indent | multi | indent(2, true) | multi | indent(2, false, true) | multi | indent('> ', first=true, blank=true) | 'a b/é?' | urlencode | {'a': 1, 'b c': '&'} | urlencode | html | escape | html | e | html | forceescape | html | safe | (html | safe) + '<' | '<' ~ (html | safe) | html | striptags | {'class': 'a"b', 'x': none} | xmlattr | 1000000 | filesizeformat | 1 | filesizeformat | 2048 | filesizeformat(true) | 'aaa bbb ccc' | wordwrap(7)
obj | tojson | obj | tojson(indent=2) | obj | tojson(indent=4, ensure_ascii=true) | obj | tojson(sort_keys=true) | obj | tojson(separators=(',', ':')) | u | tojson | s | tojson | l | tojson | (1, 2) | tojson | 1.0 | tojson | z | tojson | empty | tojson(indent=2) | {1: 2, none: 3, true: 4} | tojson | obj | tojson(indent='--') | big | tojson | html | safe | tojson | obj | tojson(indent=0)
obj | items | list | e | items | list | nope | items | list | d | attr('b') | 'x' | attr('upper') is callable | words | map('tojson') | join(' ')
n is defined | nope is defined | nope is undefined | z is none | n is none | s is string | n is string | n is number | f is number | t is number | n is integer | t is integer | f is float | n is float | t is boolean | d is mapping | l is mapping | l is sequence | s is sequence | d is sequence | n is sequence | l is iterable | n is iterable | s is iterable | nope is iterable
n is odd | n is even | n is divisibleby 7 | n is divisibleby(2) | n is eq 7 | n is equalto(8) | n is ne 3 | n is lt 8 | n is ge 7 | n is greaterthan 3 | t is true | t is false | n is true | z is sameas none | 1 is sameas true | n is in [7] | 'abc' is lower | 'ABC' is upper | range is callable | n is callable | 'upper' is filter | 'nope' is filter | 'odd' is test | n is not none and n is not odd | not n is odd | html is escaped | (html | safe) is escaped
range(3) | range(3) | list | range(1, 10, 3) | list | range(5, 0, -2) | list | range(3)[1] | range(10)[2:5] | list | range(0) | list | 2 in range(3) | range(4) | length | dict(a=1, b=2) | dict([('x', 1)], y=2) | dict(d, b=5)
namespace(a=1).a | namespace({'x': 2}).x | namespace().q is defined | namespace(a=[1, 'b']) | cycler(1, 2).current | joiner('; ')() | undefined_function is defined
s | upper | lower | length | ('a' if n > 5 else 'b') | upper | -n | abs | (l | length) * 2 | l | length > 2 | l | map('string') | map('length') | sum | not l | length == 2 | s.split(', ')[1].lower()[:2] | people[0]['na' ~ 'me'] | [l[0], l[1]] | sum | d.items() | length | people | length - 1
""".strip().splitlines()

STATEMENTS = {
    "for": "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}:{{ x }} {% endfor %}",
    "for_else": "{% for x in empty %}{{ x }}{% else %}none{% endfor %}|{% for x in nope %}x{% else %}undef{% endfor %}",
    "for_if": "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}={{ x }};{% else %}no{% endfor %}",
    "for_unpack": "{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "for_dict": "{% for k in d %}{{ k }}{% endfor %}{% for c in u[:4] %}[{{ c }}]{% endfor %}{% for k in d | items %}{{ k }}{% endfor %}",
    "for_neighbours": "{% for x in l %}{{ loop.previtem if loop.previtem is defined else '-' }}<{{ x }}>{{ loop.nextitem | default('-') }} {% endfor %}",
    "for_cycle": "{% for x in [1, 1, 2, 2, 1] %}{{ loop.cycle('o', 'e') }}{{ loop.changed(x) }} {% endfor %}",
    "for_recursive": "{% for i in tree recursive %}{{ loop.depth }}{{ loop.depth0 }}:{{ i.v }}{% if i.c %}({{ loop(i.c) }}){% endif %}{% endfor %}",
    "for_scope": "{% set x = 0 %}{% for i in l %}{% set x = x + i %}{{ x }}{% endfor %}={{ x }}",
    "for_break": "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% else %}E{% endfor %}",
    "for_nested": "{% for a in [1, 2] %}{% set outer = loop %}{% for b in 'xy' %}{{ outer.index }}{{ loop.index }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}",
    "for_tuple_iter": "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}{% for x in (4, 5) + (6,) %}{{ x }}{% endfor %}",
    "for_macro_loop": "{% macro m(x) %}[{{ x }}]{% endmacro %}{% for x in l %}{{ m(x) }}{% endfor %}",
    "generator_once": "{% set g = l | map('string') %}{{ g | join }}/{{ g | join }}/{{ 'T' if empty | map('string') else 'F' }}",
    "if": "{% if n == 1 %}a{% elif n == 7 %}b{% else %}c{% endif %}{% if nope %}x{% elif z %}y{% endif %}{% if not nope %}ok{% endif %}",
    "set": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = (3, 4) %}{{ c }}{% set t3 = 1, 2 %}{{ t3 }}",
    "set_block": "{% set a %}hi {{ n }}{% endset %}[{{ a }}]{% set b | upper | replace('I', '1') %}hi{% endset %}{{ b }}",
    "set_in_if": "{% if true %}{% set q = 5 %}{% endif %}{{ q }}{% if false %}{% set r = 5 %}{% endif %}{{ r is defined }}",
    "namespace": "{% set ns = namespace(count=0, last=none) %}{% for x in l %}{% set ns.count = ns.count + x %}{% set ns.last = x %}{% endfor %}{{ ns.count }}{{ ns.last }}{% set ns.new = 'k' %}{{ ns.new }}{{ ns['new'] }}",
    "namespace_in_macro": "{% set ns = namespace(v=1) %}{% macro m() %}{% set ns.v = ns.v + 1 %}{% endmacro %}{{ m() }}{{ m() }}{{ ns.v }}",
    "namespace_underscore": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "set_on_dict": "{% set d.x = 1 %}",
    "macro": "{% macro m(a, b='B', c=none) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}{{ m(1, c=4) }}{{ m(a=5) }}{{ m() }}{{ m.name }}",
    "macro_varargs": "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(*[1, 2], **{'k': 'v'}) }}",
    "macro_caller": "{% macro m(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call m('b') %}in{{ n }}{% endcall %}",
    "macro_caller_args": "{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(v, i=0) each(words) %}{{ i }}={{ v }} {% endcall %}",
    "macro_no_caller": "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "macro_scope": "{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}{% set x = 9 %}{{ m() }}",
    "macro_recursive": "{% macro f(k) %}{{ k }}{% if k > 0 %},{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "macro_default_from_arg": "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}",
    "macro_too_many": "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "macro_unknown_kwarg": "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "filter_block": "{% filter upper | replace('A', '4') %}banana {{ n }}{% endfilter %}",
    "with": "{% with a = 1, b = n %}{{ a }}{{ b }}{% set a = 5 %}{{ a }}{% endwith %}{{ a is defined }}{% with %}x{% endwith %}",
    "block": "{% block body %}in {{ n }}{% endblock body %}{% block other %}o{% endblock %}",
    "generation": "a{% generation %}b{{ n }}{% set q = 1 %}{% endgeneration %}c{{ q is defined }}",
    "raw": "{% raw %}{{ x }} {% if %} {# c #}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  |",
    "comment": "a{# hidden {{ x }} #}b{#- -#} c {#- x #} d",
    "groupby": "{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join('+') }};{% endfor %}{% for a, g in people | groupby('name') %}{{ a }}{{ g | length }}{% endfor %}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set _ = c.reset() %}{{ c.current }}",
    "joiner": "{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "trim_blocks": "{% if true %}\nline\n{% endif %}\nafter\n",
    "lstrip_blocks": "a\n   {% if true %}\n  b {{ n }}\n   {% endif %}  \nc\n  {# c #}\nd",
    "no_lstrip": "a\n   {%+ if true %}b{% endif +%}\nc",
    "strip_minus": "a  \n {%- if true -%}  \n b \n {%- endif -%} \n c {{- n -}} d\n\n{{- ' e ' -}}\n f",
    "variable_keeps": "  {{ n }}  \n {{ n }}\n",
    "trailing_newlines": "x\n\n\n",
    "crlf": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\rd",
    "empty": "",
    "only_text": "just } text { % with { braces }} %}",
    "braces_in_expression": "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'x': '}}'}.x }}",
    "undefined_print": "[{{ nope }}][{{ d.nope }}][{{ l[9] }}]",
    "undefined_attribute": "{{ nope.x }}",
    "undefined_item": "{{ nope['x'] }}",
    "undefined_call": "{{ nope() }}",
    "undefined_add": "{{ nope + 1 }}",
    "undefined_less": "{{ nope < 1 }}",
    "undefined_equal": "{{ nope == nope2 }}{{ nope != 1 }}{{ nope == none }}",
    "none_iter": "{% for x in z %}{% endfor %}",
    "none_attribute": "{{ z.x is defined }}{{ z['x'] is defined }}",
    "int_plus_str": "{{ 1 + 'a' }}",
    "str_plus_none": "{{ 'a' + none }}",
    "div_zero": "{{ 1 / 0 }}",
    "compare_types": "{{ 1 < 'a' }}",
    "raise": "{{ raise_exception('own message') }}",
    "mutate_list": "{{ l.append(1) }}",
    "mutate_dict": "{{ d.update({'x': 1}) }}",
    "pop_is_defined": "{{ l.pop is defined }}{{ d.clear is defined }}",
    "dunder": "[{{ s.__class__ }}][{{ ''['__class__'] }}]",
    "dunder_use": "{{ s.__class__.__mro__ }}",
    "dunder_call": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "format_dunder": "{{ '{0.__class__}'.format(1) }}",
    "attr_dunder": "{{ ('' | attr('__class__')).x }}",
    "unknown_filter": "{{ s | nosuch }}",
    "unknown_test": "{{ s is nosuch }}",
    "bad_filter_arg": "{{ s | trim(1, 2, 3) }}",
    "unclosed_if": "{% if x %}a",
    "unclosed_tag": "{{ a ",
    "unknown_tag": "{% nosuch %}",
    "bad_expression": "{{ 1 + }}",
    "assign_reserved": "{% set none = 1 %}",
    "import": "{% import 'x' as y %}",
    "break_outside": "{% break %}",
    "tojson_undefined": "{{ nope | tojson }}",
    "tojson_namespace": "{{ namespace() | tojson }}",
    "range_too_big": "{{ range(1000000) | length }}",
    "unpack_mismatch": "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "length_of_int": "{{ 5 | length }}",
    "key_is_method_name": "{{ d['items'] }}{{ d.get('items') }}{% for k, v in d.items() %}{{ k }}{% endfor %}",
    "dict_attribute_of_method": "{{ {'keys': 1}.keys() | list }}{{ {'keys': 1}['keys'] }}",
    "strftime": "{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b %Y') | length >= 10 }}{{ strftime_now is defined }}",
    "call_method_value": "{% set f = s.upper %}{{ f() }}{% set g = d.get %}{{ g('b') }}",
    "inline_for_filter": "{{ (people | selectattr('age', 'gt', 30) | list)[-1].name }}",
    "documents": "{{ documents is none }}{{ tools is none }}{{ add_generation_prompt }}",
    "test_precedence": "{{ not n is none }}{{ n is not none }}{{ 2 * n is divisibleby 2 }}{{ n + 1 is even }}",
    "pow_filter": "{{ (2 ** 3) | string }}{{ -1 | abs }}",
    "concat_precedence": "{{ 1 + 1 ~ 2 * 3 }}{{ 'a' ~ 1 == 'a1' }}",
    "filter_on_literal": "{{ 'a,b'.split(',') | map('upper') | join('+') ~ '!' }}",
}

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Current weather of a <city> & \"more\"", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "都市"},
                                         "days": {"type": "integer", "default": 1, "maximum": 18446744073709551615},
                                         "scale": {"type": "number", "default": 0.5}},
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments, name="get_weather", id="abcdefghi"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Answer in <one> line."}
CONVERSATIONS = {
    "user": [user("Hello")],
    "system": [SYSTEM, user(" spaces \n")],
    "turns": [SYSTEM, user("a"), assistant("b"), user("c"), assistant(" d "), user("e")],
    "unicode": [user("héllo 世界 👩‍👩‍👧"), assistant("ответ"), user("次")],
    "empty": [user(""), assistant(""), user("x")],
    "think": [user("q"), assistant("<think>\nbecause\n</think>\n\nyes"), user("again"), assistant("<think>more</think>done")],
    "reasoning": [user("q"), assistant("yes", reasoning_content="because"), user("again"), assistant("done", reasoning_content="more\n")],
    "call": [SYSTEM, user("weather?"), assistant(None, tool_calls=[call({"city": "Köln", "days": 2})]),
             {"role": "tool", "content": "{\"t\": 20}", "tool_call_id": "abcdefghi", "name": "get_weather"}, assistant("20 degrees"), user("thanks")],
    "call_text": [user("weather?"), assistant("", tool_calls=[call({"city": "Paris"})]),
                  {"role": "tool", "content": "20", "tool_call_id": "abcdefghi", "name": "get_weather"}],
    "calls": [user("both?"), assistant(None, tool_calls=[call("{\"city\": \"Rome\"}"), call("{}", "now", "abcdefghj")]),
              {"role": "tool", "content": "20", "tool_call_id": "abcdefghi"}, {"role": "tool", "content": "12:00", "tool_call_id": "abcdefghj"},
              assistant("20 at 12:00")],
    "call_reasoning": [user("w"), assistant("", reasoning_content="need it", tool_calls=[call({"city": "X"})]),
                       {"role": "tool", "content": "ok", "tool_call_id": "abcdefghi"}, assistant("x")],
    "parts": [user([{"type": "text", "text": "one"}, {"type": "text", "text": " two"}])],
    "developer": [{"role": "developer", "content": "rules"}, user("hi")],
    "open": [user("q"), assistant("The answer is ")],
    "open_padded": [SYSTEM, user("q"), assistant("\n The answer \n\n")],
}
OPTIONS = [
    {"add_generation_prompt": True}, {"add_generation_prompt": False}, {"add_generation_prompt": True, "tools": TOOLS},
    {"add_generation_prompt": True, "kwargs": {"enable_thinking": False, "date_string": "1 Jan 2025"}},
    {"add_generation_prompt": True, "kwargs": {"enable_thinking": True, "tools_in_user_message": False}, "tools": TOOLS},
    {"add_generation_prompt": False, "continue_final_message": True},
]
# DeepSeek's official templates drop the calls of a message that also has text; the built-in ones keep them.
SKIPPED = {(name, chat) for name in ("deepseek_v3", "deepseek_r1") for chat in ("call_text", "call_reasoning")}
DATED = {"llama3.2"}  # templates that read the clock unless told the date


# Every kind of parameter that GPT-OSS's template has words for.
RICH_TOOLS = [{"type":"function","function":{"name":"search","description":"Find things","parameters":{"type":"object","properties":{
 "query":{"type":"string","description":"What to find"},
 "tags":{"type":"array","items":{"type":"string"},"nullable":True},
 "ids":{"type":"array","items":{"type":"integer"}},
 "flags":{"type":"array","items":{"type":"boolean"}},
 "nums":{"type":"array","items":{"type":"number"}},
 "any":{"type":"array"},
 "objs":{"type":"array","items":{"type":"object","properties":{"a":{"type":"string"}}}},
 "deep":{"type":"array","items":{"type":"object","properties":{"a_long_name_here":{"type":"string"},"b_long_name":{"type":"number"}},"required":["b_long_name"]}},
 "mode":{"type":"string","enum":["fast","slow"],"default":"fast"},
 "opt":{"type":"string","nullable":True,"default":None},
 "u":{"type":["string","null"]},"u1":{"type":["integer"],"default":3},
 "one":{"oneOf":[{"type":"string","description":"text"},{"type":"number","default":5}],"default":"x"},
 "one2":{"oneOf":[{"type":"object"},{"type":"number"}]},
 "one3":{"oneOf":[{"type":"object","properties":{"p":{"type":"boolean"}}}]},
 "n":{"type":"number","default":1.5},"i":{"type":"integer","default":0},"b":{"type":"boolean","default":False},
 "o":{"type":"object","properties":{"x":{"type":"string","description":"ignored"},"y":{"type":"object","properties":{"z":{"type":"array","items":{"type":"string"}}}}},"required":["x"]},
 "o2":{"type":"object"},"w":{"description":"no type"}},"required":["query","ids","o"]}}},
 {"type":"function","function":{"name":"now","description":"The time","parameters":{"type":"object","properties":{}}}},
 {"type":"function","function":{"name":"nothing","description":"No parameters"}}]
CHANNELS = {
    "thinking": [user("q"), assistant("a", thinking="because"), user("r"), assistant("b", thinking="more")],
    "chain": [SYSTEM, user("q"), assistant("", thinking="first", tool_calls=[call({"city": "A"})]),
              {"role": "tool", "content": "1"},
              {"role": "assistant", "thinking": "second", "tool_calls": [call({"city": "B é"}, "now")]},
              {"role": "tool", "content": "{\"x\": 2}"}],
    "done": [user("q"), assistant("", thinking="first", tool_calls=[call({"city": "A"})]), {"role": "tool", "content": "1"},
             assistant("fin"), user("next"), assistant("text before", tool_calls=[call({"city": "B"})]),
             {"role": "tool", "content": "ok"}],
    "both": [user("q"), assistant("c", thinking="t", tool_calls=[call({})])],
    "orphan": [user("q"), {"role": "tool", "content": "x"}],
    "bad": [user("q"), assistant("<|channel|>final<|message|>x"), user("z")],
    "bad_thinking": [user("q"), assistant("x", thinking="<|channel|>analysis<|message|>x"), user("z")],
    "flat_call": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": {"a": 1}, "content_type": "code"}]),
                  {"role": "tool", "content": "r"}],
    "empty_system": [{"role": "system", "content": ""}, user("x")],
}
HARMONY_OPTIONS = [
    {"add_generation_prompt": True}, {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": TOOLS, "kwargs": {"reasoning_effort": "high"}},
    {"add_generation_prompt": True, "tools": RICH_TOOLS,
     "kwargs": {"model_identity": "You are Reft.", "reasoning_effort": "low"}},
    {"add_generation_prompt": False, "tools": RICH_TOOLS},
]


def render(template, messages, options, tokens):
    try:
        texts, _ = render_jinja_template(
            [json.loads(json.dumps(messages))], tools=options.get("tools"), chat_template=template,
            add_generation_prompt=options["add_generation_prompt"],
            continue_final_message=options.get("continue_final_message", False), **{**tokens, **options.get("kwargs", {})})
        return {"text": texts[0]}
    except Exception:  # whatever jinja2 or Python raises: the interpreter must refuse it too
        return {"error": True}


def features():
    cases = []
    filters = set(jinja2.filters.FILTERS)
    for line in EXPRESSIONS:
        pending = []
        for part in line.split(" | "):
            match = re.match(r"(\w+)( |\(|$)", part)
            is_filter = match and match[1] in filters and (len(match[1]) > 1 or match[2] == "(")
            is_open = pending and pending[-1].count("(") > pending[-1].count(")")
            if pending and (is_filter or is_open):
                pending[-1] += " | " + part
            else:
                pending.append(part)
        cases += [(e, "{{ " + e + " }}") for e in pending]
    cases += list(STATEMENTS.items())
    out = []
    for name, template in cases:
        template = template if name in STATEMENTS else template.replace("\\\\", "\\")
        result = render(template, [{"role": "user", "content": "hi"}], {"add_generation_prompt": True, "kwargs": CONTEXT}, {})
        out.append({"name": name, "template": template, **result})
    return {"context": CONTEXT, "cases": out}


def builtins(folder):
    cases = []
    for path in sorted(p for p in folder.glob("*.jinja") if p.stem != "gpt_oss"):
        template = path.read_text(encoding="utf-8")
        for conversation, messages in CONVERSATIONS.items():
            for index, options in enumerate(OPTIONS):
                if (path.stem, conversation) in SKIPPED:
                    continue
                if path.stem in DATED and "date_string" not in options.get("kwargs", {}):
                    continue
                result = render(template, messages, options, {"bos_token": "<s>", "eos_token": "</s>"})
                if "text" in result:
                    cases.append({"template": path.stem, "conversation": conversation, "options": index, **result})
    return {"conversations": CONVERSATIONS, "options": OPTIONS, "cases": cases}


def harmony(template):
    conversations = CONVERSATIONS | CHANNELS
    cases = []
    for name, messages in conversations.items():
        for index, options in enumerate(HARMONY_OPTIONS):
            # A list of parts is an error there; servers join them before.
            if name == "parts":
                continue
            result = render(template, messages, options, {})
            if "text" in result:
                result["text"] = re.sub(r"Current date: [0-9-]{10}", "Current date: DATE", result["text"])
            cases.append({"conversation": name, "options": index, **result})
    return {"conversations": conversations, "options": HARMONY_OPTIONS, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=pathlib.Path)
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    write = lambda name, data: (OUT / name).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write("features.json", features())
    if args.official and (args.official / "gpt_oss.jinja").exists():
        write("harmony.json", harmony((args.official / "gpt_oss.jinja").read_text(encoding="utf-8")))
    if args.official and any(path.stem != "gpt_oss" for path in args.official.glob("*.jinja")):
        write("builtins.json", builtins(args.official))


if __name__ == "__main__":
    main()
