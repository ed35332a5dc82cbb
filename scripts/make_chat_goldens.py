#!/usr/bin/env python3
"""Writes tests/goldens/chat: what Transformers' jinja2 makes of chat templates, for ssm/text/chat_template_test.

    /path/to/venv/bin/python scripts/make_chat_goldens.py

Needs transformers and jinja2. The templates in tests/goldens/chat/*.jinja are written by hand, in the style of
those that models of these kinds have; this script renders them.
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/goldens/chat"

USER = {"role": "user", "content": "Who wrote “Emma”?"}
SPACED = {"role": "user", "content": "  spaces around \n"}
ANSWER = {"role": "assistant", "content": "Jane Austen."}
SYSTEM = {"role": "system", "content": "You answer in one line."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather of a "town" <now>.',
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["town"],
            },
        },
    }
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Bäth", "days": 2}}}],
}
RESULT = {"role": "tool", "name": "weather", "content": "rain"}

CONVERSATIONS = {
    "one": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "turns": ([USER, ANSWER, SPACED, {"role": "assistant", "content": " Yes. "}, USER], None),
    "whole": ([SYSTEM, USER, ANSWER, USER, {"role": "assistant", "content": "The same."}], None),
    "two users": ([USER, USER], None),
    "strange role": ([{"role": "critic", "content": "no"}], None),
    "tools": ([SYSTEM, USER, CALL, RESULT], TOOLS),
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(source: str, messages: list, tools: list | None, prompt: bool, marked: bool) -> dict:
    try:
        texts, spans = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marked,
            **TOKENS,
        )
    except (jinja2.exceptions.TemplateError, TypeError) as error:
        return {"error": str(error).split("\n")[0]}
    result = {"text": texts[0]}
    if marked:
        result["generated"] = [texts[0][begin:end] for begin, end in spans[0]]
    return result


def conversations() -> dict:
    goldens = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_text()
        marked = "generation %}" in source or "generation -%}" in source
        cases = []
        for name, (messages, tools) in CONVERSATIONS.items():
            for prompt in (False, True):
                case = {"name": name, "prompt": prompt, "messages": messages, "tools": tools}
                case.update(rendered(source, messages, tools, prompt, marked))
                cases.append(case)
        goldens[path.stem] = cases
    return goldens


def snippets() -> list:
    """Small templates, one a line of snippets.txt ("⏎" is a newline), over fixed variables."""
    variables = json.loads((FOLDER / "variables.json").read_text())
    results = []
    for line in (FOLDER / "snippets.txt").read_text().splitlines():
        if not line or line.startswith("# "):
            continue
        source = line.replace("⏎", "\n")
        try:
            texts, _ = render_jinja_template([[]], chat_template=source, **variables)
            results.append({"template": source, "text": texts[0]})
        except Exception as error:  # jinja2 lets Python's own through
            results.append({"template": source, "error": str(error).split("\n")[0]})
    return results


def main() -> None:
    made_by = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    golden = {"made_by": made_by, "tokens": TOKENS, "conversations": conversations(), "snippets": snippets()}
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    errors = [s for s in golden["snippets"] if "error" in s]
    print(f"{len(golden['snippets'])} snippets, {len(errors)} of them errors:")
    for s in errors:
        print("  ", s)


if __name__ == "__main__":
    main()
