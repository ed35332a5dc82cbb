#!/usr/bin/env python3
"""The API reference as a page of Markdown, from the signatures and docstrings of the installed ssm_cpp."""

import inspect
import re

import ssm_cpp


def signature(thing) -> str:
    try:
        return re.sub(r"<[^>]*>|<object[^>]*>", "...", str(inspect.signature(thing)))
    except (TypeError, ValueError):
        return "(...)"


def text_of(thing) -> str:
    """A docstring of its own, as a block: it has shapes and tables in columns."""
    own = not inspect.isclass(thing) or vars(thing).get("__doc__")
    doc = inspect.getdoc(thing) if own else None
    made = doc and doc.startswith(f"{getattr(thing, '__name__', '')}(")  # by dataclass: the signature once more
    return f"```text\n{doc}\n```\n" if doc and not made else ""


def members(kind) -> dict:
    """Public methods and properties, those of bases of this package included."""
    found: dict = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("ssm_cpp"):
            found.update({k: v for k, v in vars(base).items() if not k.startswith("_") and is_member(v)})
    return found


def is_member(value) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def describe(name: str, thing) -> None:
    print(f"### {name}\n")
    print(f"```python\n{name}{signature(thing)}\n```\n")
    print(text_of(thing))
    if not inspect.isclass(thing):
        return
    if getattr(thing, "_defaults", None):
        print("Fields:", ", ".join(f"`{k}={v!r}`" for k, v in sorted(thing._defaults.items())), end="\n\n")
    for member, value in sorted(members(thing).items()):
        if isinstance(value, property):
            print(f"- `{member}`" + (f": {inspect.getdoc(value)}" if inspect.getdoc(value) else ""))
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        doc = " ".join((inspect.getdoc(function) or "").split())
        if not inspect.isclass(function):
            print(f"- `{member}{signature(function)}`" + (f": {doc}" if doc else ""))
    print()


def main() -> None:
    print("# API\n\nWhat `ssm_cpp` has, by the modules that define it. Made from the package itself.\n")
    homes: dict = {}
    for name in ssm_cpp.__all__:
        thing = getattr(ssm_cpp, name)
        if inspect.ismodule(thing) or not callable(thing):
            continue
        homes.setdefault(ssm_cpp._HOME.get(name, "ssm_cpp"), []).append((name, thing))
    for home, things in homes.items():
        print(f"## {home}\n")
        for name, thing in things:
            describe(name, thing)
    print("## ops\n")
    for name in ssm_cpp.ops.__all__:
        describe(f"ops.{name}", getattr(ssm_cpp.ops, name))


if __name__ == "__main__":
    main()
