# >>> kohya_ext 3 >>> added by the kohya-ext installer; `kohya-ext uninstall` removes it
def _kohya_ext(asked=None):
    try:
        import kohya_ext.runtime

        return kohya_ext.runtime.CALL
    except (Exception, SystemExit) as error:  # whatever is wrong with it, Kohya runs as if it were not installed
        problem = f"{type(error).__name__}: {error}"[:300]
    try:
        import json, multiprocessing, os, pathlib, re, shlex, subprocess, sys

        if multiprocessing.parent_process() is not None or hasattr(sys, "kohya_ext_problem"):
            return  # a worker of a DataLoader, or it has been said
        sys.kohya_ext_problem, file = problem, pathlib.Path(__file__).absolute()
        read = lambda path: path.read_text("utf-8", "replace") if path.is_file() else ""
        given = re.sub(r"(?m)^--(\w+)(?:=|\n(?!--))", r"\1 = ", "\n".join(sys.argv))  # as a TOML has it
        for path in re.findall(r"(?m)^config_file = (.+)", given)[-1:]:
            given = read(pathlib.Path(path.removesuffix(".toml") + ".toml")) + "\n" + given
        given = re.sub(r"[\"' \t]", "", "\n" + given).lower()
        optimizer = re.findall(r"\noptimizer_type=([\w.]+)", given)[-1:]
        asked = optimizer in (["adacoor"], ["kohya_ext.optim.adacoor"]) or "\nenable_ema=true" in given
        fix = f"remove these lines: sed -i '/^# >>> kohya_ext/,/^# <<< kohya_ext/d' {shlex.quote(str(file))}"
        start, option, quoted = ["bash"], "--python", shlex.join
        if os.name == "nt":
            fix = f"delete these lines, from '# >>> kohya_ext' to '# <<< kohya_ext', from {file}"
            start, option = ["powershell", "-ExecutionPolicy", "Bypass", "-File"], "-Python"
            quoted = subprocess.list2cmdline
        for root in list(file.parents)[1:3]:
            for found in re.findall(r'"installer": (".+")', read(root / ".kohya_ext" / "manifest.json")):
                if os.path.isfile(installer := json.loads(found)):
                    fix = f"{quoted([*start, installer, str(root), option, sys.executable])} , or {fix}"
        what = "no AdaCoor and no EMA, everything else works as without it"
        if asked:
            what = "this run asks for it and is stopped"
        text = f"kohya_ext does not work in {sys.executable} ({problem!a}): {what}. Fix: {fix}"
        if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) in ("", "0", "-1"):
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except Exception:
        pass  # nobody can be told
    if asked:
        raise SystemExit(2)


_kohya_ext()
del _kohya_ext
# <<< kohya_ext <<<
