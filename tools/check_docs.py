#!/usr/bin/env python3
"""Checks the documentation: links and paths in *.md exist, flags they name exist, headers open with a comment."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def tracked(*patterns: str) -> list[pathlib.Path]:
    out = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, text=True, capture_output=True, check=True)
    return [ROOT / line for line in out.stdout.splitlines()]


def check_links(page: pathlib.Path) -> list[str]:
    problems = []
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not (page.parent / target).exists():
            problems.append(f"links to '{target}', which does not exist")
    for target in re.findall(r"`((?:src|tools|tests|bench|docs|cmake|web)/[\w./-]+)`", text):
        if not (ROOT / target).exists():
            problems.append(f"names '{target}', which does not exist")
    return problems


def check_flags(page: pathlib.Path, reft: str | None) -> list[str]:
    """Every --flag in a `reft COMMAND` line of a code block is one that the command has."""
    if reft is None:
        return []
    problems = []
    for block in re.findall(r"```(?:bash|sh|shell)\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|[\s/])reft (bench \w+|\w+)((?: .*)?)$", line.split(" #")[0])
            if not match or match[1] in {"train"}:
                continue
            run = subprocess.run([reft, *match[1].split(), "--help"], text=True, capture_output=True)
            if run.returncode != 0:
                problems.append(f"names the command 'reft {match[1]}', which does not exist")
                continue
            for flag in re.findall(r"\s(--[\w-]+)", match[2]):
                dashed = flag.replace("_", "-")
                if not re.search(rf"{dashed}\b", run.stdout):
                    problems.append(f"'reft {match[1]}' has no flag {flag}")
    return problems


def check_header(header: pathlib.Path) -> list[str]:
    return [] if header.read_text().startswith("//") else ["does not open with a comment on what it holds"]


def main() -> int:
    reft = sys.argv[1] if len(sys.argv) > 1 else None
    problems = []
    pages, headers = tracked("*.md"), tracked("src/*.h")
    for page in pages:
        problems += [f"{page.relative_to(ROOT)}: {p}" for p in check_links(page) + check_flags(page, reft)]
    for header in headers:
        problems += [f"{header.relative_to(ROOT)}: {p}" for p in check_header(header)]
    print("\n".join(problems + [f"check_docs: {len(pages)} pages, {len(headers)} headers, {len(problems)} problems"]))
    return 1 if problems or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
