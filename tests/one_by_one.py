"""Stage scripts one after the other in one Python: ``python one_by_one.py SCRIPT[@ENTRY] ...``."""

import runpy
import sys

for asked in sys.argv[1:]:
    script, *entry = asked.split("@")
    sys.argv = [script, *entry]
    print(f"{asked}:", file=sys.stderr, flush=True)
    runpy.run_path(script, run_name="__main__")
