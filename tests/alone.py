"""What `test_pipeline` starts: `hydra-jax` in a process group of itself, and with a limit on the size of files.

python tests/alone.py LIMIT ARGUMENTS      # in bytes; 0: none
"""

import os
import resource
import sys

from hydra_jax import cli

os.setsid()
if limit := int(sys.argv.pop(1)):
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.command())
