"""What `test_processes` starts in each process: `hydra-jax`, whose process 1 is killed when it restores something."""

import os
import signal
import sys

from orbax.checkpoint import v1 as ocp

from hydra_jax import cli


def killed(*_):
  os.kill(os.getpid(), signal.SIGKILL)


if os.environ['JAX_PROCESS_ID'] == '1':
  ocp.load = killed
sys.exit(cli.main(sys.argv[1:]))
