"""`make bench`: installs the peers that are missing, then measures everything."""

import sys

from benchmarks import serve
from benchmarks.models import default_cache
from benchmarks.versus.setup import make_environment, missing_environments

if __name__ == "__main__":
    if len(sys.argv) == 1:
        for name in missing_environments(default_cache()):
            print(f"installing {name}", flush=True)
            make_environment(default_cache(), name)
    sys.exit(serve.main())
