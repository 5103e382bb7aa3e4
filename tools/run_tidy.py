#!/usr/bin/env python3
"""Runs clang-tidy over src/ and prints its findings; ends with 1 when there are any.

    tools/run_tidy.py BUILD [LAYER...]     BUILD has a compile_commands.json

Every layer is checked as one source that includes all of its *.cpp, because most of the time per file goes to the
headers. Names that two files of a layer both define are errors in that source; they are no findings, and clang goes on
after them.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = ["text", "server", "models", "engine", "hub", "cli", "backends/cpu", "tensor", "base", "ops", "nn", "train"]
SKIPPED = {"unicode_tables.cpp"}  # data
FINDING = re.compile(r"^\S+:\d+:\d+: warning: .*\[(?!clang-diagnostic)[a-z][^\]]*\]$")


def main() -> int:
    build = pathlib.Path(sys.argv[1]).resolve()
    layers = sys.argv[2:] or LAYERS
    commands = {c["file"]: c for c in json.loads((build / "compile_commands.json").read_text())}
    folder = build / "tidy"
    folder.mkdir(exist_ok=True)
    units, entries = [], []
    for layer in layers:
        sources = [str(p) for p in sorted((ROOT / "src" / layer).glob("*.cpp"))
                   if not p.name.endswith("_test.cpp") and p.name not in SKIPPED]
        known = [s for s in sources if s in commands]
        if not known:
            print(f"{layer}: no source of it is in {build}/compile_commands.json")
            return 1
        unit = folder / (layer.replace("/", "_") + ".cpp")
        unit.write_text("".join(f'#include "{s}"\n' for s in known))
        command = commands[known[0]]
        entries.append({"directory": command["directory"], "file": str(unit),
                        "command": command["command"].split(" -o ")[0] + f" -ferror-limit=0 -o x.o -c {unit}"})
        units.append(unit)
    (folder / "compile_commands.json").write_text(json.dumps(entries))

    def check(unit: pathlib.Path) -> set[str]:
        done = subprocess.run([os.environ.get("CLANG_TIDY", "clang-tidy"), "-p", str(folder), f"--config-file={ROOT / '.clang-tidy'}", "--quiet",
                               str(unit)], capture_output=True, text=True, check=False)
        if done.returncode < 0 or "error generated" not in done.stderr and "warnings" not in done.stderr:
            return {f"{unit}: clang-tidy did not run: {done.stderr[-300:]}"}
        return {line for line in done.stdout.splitlines() if FINDING.match(line)}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        findings = sorted(set().union(*pool.map(check, units)))
    print("\n".join(findings + [f"run_tidy: {len(units)} layers, {len(findings)} findings"]))
    return 1 if findings else 0


sys.exit(main())
