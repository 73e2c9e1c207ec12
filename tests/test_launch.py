"""The launch recipes. Scripts are really run, with stand-ins on PATH for what they start."""

import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import time
import warnings

from conftest import ROOT
import pytest
import yaml

from hydra_jax import cli

pytestmark = pytest.mark.slow  # no other on another Python

LAUNCH = ROOT / 'experiments' / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))
RECIPES = ('tpu_vm.sh', 'slurm.sh', 'gke_jobset.yaml', 'gke_jobset_gpu.yaml', 'skypilot.yaml')
JOBSETS = ('gke_jobset.yaml', 'gke_jobset_gpu.yaml')

# Each stand-in writes its arguments, and what JAX reads, as a line of $RECORD/<name>.
RECORDER = r"""#!/usr/bin/env bash
{ printf '%s\x1f' "$@"; printf '\x1e%s' "${JAX_COORDINATOR_ADDRESS:-}" "${JAX_NUM_PROCESSES:-}" "${JAX_PROCESS_ID:-}" \
  "${JAX_LOCAL_DEVICE_IDS:-}"; printf '\x1d'; } >> "$RECORD/${0##*/}"
"""
STAND_INS = {
  # Ends with the next code of $RECORD/codes. What follows the code is what has become of the queued resource.
  'hydra-jax': """
    read -r code state < "$RECORD/codes"
    sed -i 1d "$RECORD/codes"
    if [[ ${state:-} ]]; then echo "$state" > "$RECORD/request"; fi
    if [[ $code == hang ]]; then trap 'exit 75' TERM; echo $$ > "$RECORD/pid"; while :; do sleep 0.05; done; fi
    exit "$code" """,
  'gcloud': """
    case "$*" in
      *'queued-resources list'*) cat "$RECORD/request" ;;
      *'tpu-vm list'*) if [[ -s $RECORD/request ]]; then echo READY; fi ;;
      *'queued-resources create'*) echo ACTIVE > "$RECORD/request" ;;
      *'queued-resources delete'*) : > "$RECORD/request" ;;
      *'tpu-vm scp'*) cp "$5" "$HOME" ;;
      *'tpu-vm ssh'*)
        cd "$HOME"
        for a; do if [[ $a == --command=* ]]; then bash -c "${a#--command=}"; exit; fi; done
        ;;
    esac""",
  'python3': 'if [[ $3 == venv ]]; then mkdir -p hydra-env/bin; cp "$STAND_INS/hydra-jax" hydra-env/bin; fi',
  'pkill': 'if [[ -e $RECORD/pid ]]; then kill "$(cat "$RECORD/pid")"; fi',
  'mountpoint': 'exit 1',
  'srun': 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
  **dict.fromkeys(('sudo', 'flock', 'scontrol', 'sbatch'), ''),
}


class Machine:
  """A folder of stand-ins, and what they were called with."""

  def __init__(self, folder: Path):
    self.record, self.home, stand_ins = folder / 'record', folder / 'home', folder / 'bin'
    for f in (self.record, self.home, stand_ins):
      f.mkdir()
    for name, text in STAND_INS.items():
      (stand_ins / name).write_text(RECORDER + text + '\n')
      (stand_ins / name).chmod(0o755)
    (self.record / 'request').touch()
    self.processes = []
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'SLURM_', 'SKYPILOT_'))}
    paths = {'PATH': f'{stand_ins}:{os.environ["PATH"]}', 'HOME': self.home}
    self.env = {**kept, **paths, 'RECORD': self.record, 'STAND_INS': stand_ins, 'WORKDIR': self.home}

  def start(self, *command, codes=(0,), **env) -> subprocess.Popen:
    (self.record / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    env = {k: str(v) for k, v in {**self.env, **env}.items()}
    # What nohup or a shell's background has ignored stays so, and bash cannot trap it.
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, start_new_session=True, **pipes)
    for number, handler in before.items():
      signal.signal(number, handler)
    self.processes.append(process)
    return process

  def clear(self) -> None:
    """Ends what a failed test has left behind."""
    for process in self.processes:
      if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

  def run(self, *command, **kwargs) -> int:
    process = self.start(*command, **kwargs)
    self.output, self.errors = process.communicate(timeout=60)
    return process.returncode

  def calls(self, name: str, word: str = '') -> list[list[str]]:
    """The arguments of each call of a program that has `word` among them."""
    return [c for c, _ in self._lines(name) if word in ' '.join(c)]

  def variables(self, name: str) -> list[list[str]]:
    """JAX's variables in each call: address, processes, process, devices."""
    return [v for _, v in self._lines(name)]

  def _lines(self, name):
    file = self.record / name
    lines = file.read_text().split('\x1d')[:-1] if file.exists() else []
    for line in lines:
      arguments, *variables = line.split('\x1e')
      yield arguments.split('\x1f')[:-1], variables


@pytest.fixture
def machine(tmp_path):
  machine = Machine(tmp_path)
  yield machine
  machine.clear()


def accepted(arguments: list[str]) -> None:
  """The command line takes it, and all config values exist."""
  options, rest = cli.parser().parse_known_args(arguments)
  assert all(re.match(r'--config\.[\w.]+=', a) for a in rest), rest
  with warnings.catch_warnings(action='ignore'):  # ml_collections loads files in a way that Python warns of
    cli.read_config(str(ROOT / options.config), rest)


def documents(name: str) -> list[dict]:
  return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def written_commands(name: str) -> list[list[str]]:
  """The arguments of hydra-jax in comments, and in the README's blocks."""
  text = re.sub(r'\\\n#? *', '', (LAUNCH / name).read_text())
  commands = re.findall(r'^(?:#|  ).*?(?:hydra-jax|local\.sh \d+) ((?:run|check) --config=.*)$', text, re.M)
  return [shlex.split(c, comments=True) for c in commands if '$' not in c]


def jobset(name: str) -> tuple[dict, dict, dict]:
  """The JobSet's specification, its job's and its pod's."""
  (document,) = documents(name)
  assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (replicated,) = document['spec']['replicatedJobs']
  job = replicated['template']['spec']
  return document['spec'], job, job['template']['spec']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda s: s.name)
def test_bash_can_read_it(script):
  subprocess.run(['bash', '-n', script], check=True)
  assert os.access(script, os.X_OK)


@pytest.mark.parametrize('name', (*RECIPES, 'local.sh', 'README.md'))
def test_what_is_written_down_is_accepted(name):
  commands = written_commands(name)
  assert len(commands) >= 1
  for arguments in commands:
    accepted(arguments)


def devices_of(name: str) -> int:
  """How many devices a recipe asks for."""
  text = (LAUNCH / name).read_text()
  if name == 'tpu_vm.sh':
    return int(re.search(r'TYPE:-v6e-(\d+)', text)[1])
  if name == 'slurm.sh':
    return int(re.search(r'--nodes=(\d+)', text)[1]) * int(re.search(r'--gpus-per-node=(\d+)', text)[1])
  if name == 'skypilot.yaml':
    (task,) = documents(name)
    return task['num_nodes'] * int(task['resources']['accelerators'].split(':')[1])
  _, job, pod = jobset(name)
  (per_host,) = pod['containers'][0]['resources']['limits'].values()
  return job['completions'] * per_host


@pytest.mark.parametrize('name', RECIPES)
def test_check_comes_first_and_is_about_the_same_devices(name):
  (check,) = [c for c in written_commands(name) if c[0] == 'check']
  assert f'--devices={devices_of(name)}' in check
  head = re.search(r'mesh\.head=(\d+)', ' '.join(check))[1]
  text = (LAUNCH / name).read_text()
  assert any(s in text for s in (f'HEAD:-{head}', f"HEAD: '{head}'", f'- --config.parallel.mesh.head={head}\n'))


@pytest.mark.parametrize('name', JOBSETS)
def test_jobsets(name):
  spec, job, pod = jobset(name)
  (container,) = pod['containers']
  assert container['command'][:2] == ['hydra-jax', 'run']  # directly: SIGTERM reaches it
  assert '--distributed' in container['command']
  accepted(container['command'][1:])
  assert job['parallelism'] == job['completions'] and job['backoffLimit'] == 0
  assert pod['restartPolicy'] == 'Never'  # Kubernetes wants it where there is a podFailurePolicy
  assert pod['terminationGracePeriodSeconds'] >= 60
  (claim,) = [v['persistentVolumeClaim']['claimName'] for v in pod['volumes'] if v['name'] == 'workdir']
  volume, _ = documents('gke_workdir.yaml')
  assert volume['metadata']['name'] == claim and volume['spec']['accessModes'] == ['ReadWriteMany']
  (mount,) = [m['mountPath'] for m in container['volumeMounts'] if m['name'] == 'workdir']
  assert any(a.startswith(f'--workdir={mount}/') for a in container['command'])


def verdict(spec: dict, job: dict, code: int, conditions=()) -> str:
  """What becomes of a JobSet when a pod ends so, by the rules of Kubernetes and JobSet: the first that fits."""
  reason, message = 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'
  for rule in job['podFailurePolicy']['rules']:
    codes = rule.get('onExitCodes', {'values': []})['values']
    if code in codes or any(c['type'] in conditions for c in rule.get('onPodConditions', ())):
      assert rule['action'] == 'FailJob'
      reason, message = 'PodFailurePolicy', 'Pod a/b has condition DisruptionTarget matching FailJob rule at index 2'
      if codes:
        message = f'Container hydra for pod a/b failed with exit code {code} matching FailJob rule at index 0'
      break
  for rule in spec['failurePolicy']['rules']:
    patterns = rule.get('onJobFailureMessagePatterns', [''])
    if reason in rule['onJobFailureReasons'] and any(re.search(p, message) for p in patterns):
      return rule['action']
  return 'RestartJobSet'


@pytest.mark.parametrize('name', JOBSETS)
def test_jobsets_restart_what_was_preempted_and_fail_where_the_user_has_to_act(name):
  spec, job, _ = jobset(name)
  assert verdict(spec, job, 2) == 'FailJobSet'
  assert verdict(spec, job, 75) == 'RestartJobSetAndIgnoreMaxRestarts'
  assert verdict(spec, job, 137, ['DisruptionTarget']) == 'RestartJobSetAndIgnoreMaxRestarts'
  assert verdict(spec, job, 1) == 'RestartJobSet' and spec['failurePolicy']['maxRestarts'] > 0


def test_gpu_jobset_says_who_is_who():
  spec, job, pod = jobset('gke_jobset_gpu.yaml')
  env = {e['name']: e.get('value') or e['valueFrom']['fieldRef']['fieldPath'] for e in pod['containers'][0]['env']}
  names = list(env)
  assert env['COORDINATOR'] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
  assert re.fullmatch(r'\$\(COORDINATOR\):\d+', env['JAX_COORDINATOR_ADDRESS'])
  assert names.index('COORDINATOR') < names.index('JAX_COORDINATOR_ADDRESS')
  assert env['JAX_NUM_PROCESSES'] == str(job['completions'])
  assert env['JAX_PROCESS_ID'] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert job['completionMode'] == 'Indexed'
  assert spec['coordinator'] == dict(replicatedJob='workers', jobIndex=0, podIndex=0)


def skypilot(machine, code: int, **env) -> int:
  (task,) = documents('skypilot.yaml')
  nodes = dict(SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2', SKYPILOT_NUM_NODES=2, SKYPILOT_NODE_RANK=1)
  return machine.run('bash', '-c', task['run'], codes=[code], **{**task['envs'], **nodes, **env})


def test_skypilot(machine):
  (task,), (volume,) = documents('skypilot.yaml'), documents('skypilot_workdir.yaml')
  assert task['resources']['job_recovery'] == dict(max_restarts_on_errors=0, recover_on_exit_codes=[75])
  assert list(task['volumes'].values()) == [volume['name']]
  assert volume['config']['access_mode'] == 'ReadWriteMany'
  assert task['envs']['WORKDIR'].startswith(tuple(f'{mount}/' for mount in task['volumes']))
  assert all(isinstance(v, str) for v in task['envs'].values())
  subprocess.run(['bash', '-n', '-c', task['setup']], check=True)
  assert [skypilot(machine, code) for code in (0, 2, 75, 1)] == [0, 2, 75, 1]
  assert [skypilot(machine, code, RETRY_AFTER=0) for code in (0, 2, 1)] == [0, 2, 75]
  assert machine.variables('hydra-jax')[0][:3] == ['10.0.0.1:8476', '2', '1']
  for arguments in machine.calls('hydra-jax'):
    assert '--distributed' in arguments
    accepted(arguments)


def slurm(machine, code: int, **env) -> int:
  job = dict(SLURM_JOB_ID=7, SLURM_NTASKS_PER_NODE=8, SLURM_GPUS_ON_NODE=8, SLURM_CPUS_PER_TASK=8, DATA_DIR='/data')
  return machine.run('bash', LAUNCH / 'slurm.sh', '--config.seed=1', codes=[code], **{**job, **env})


@pytest.mark.parametrize(
  'code, retry_after, again', [(0, 0, False), (2, 0, False), (75, 600, True), (1, 600, False), (134, 0, True)]
)
def test_slurm(machine, code, retry_after, again):
  assert slurm(machine, code, RETRY_AFTER=retry_after) == code
  assert machine.calls('scontrol') == ([['requeue', '7']] if again else [])
  (arguments,) = machine.calls('hydra-jax')
  assert '--distributed' in arguments and '--config.seed=1' in arguments
  accepted(arguments)
  (step,) = machine.calls('srun')
  assert step[: step.index('hydra-jax')] == ['--kill-on-bad-exit=0', '--cpus-per-task=8']
  assert machine.variables('hydra-jax') == [['', '', '', '']]  # JAX asks Slurm


def test_slurm_with_one_process_for_each_node(machine):
  assert slurm(machine, 0, SLURM_NTASKS_PER_NODE=1, SLURM_GPUS_ON_NODE=4) == 0
  assert machine.variables('hydra-jax') == [['', '', '', '0,1,2,3']]


def test_slurm_is_told_to_signal_the_steps():
  lines = [line for line in (LAUNCH / 'slurm.sh').read_text().splitlines() if line]
  directives = [line.removeprefix('#SBATCH ') for line in lines if line.startswith('#SBATCH ')]
  first_command = next(i for i, line in enumerate(lines) if not line.startswith('#'))
  assert all(lines.index(f'#SBATCH {d}') < first_command for d in directives)
  assert {'--requeue', '--signal=TERM@120', '--open-mode=append'} <= set(directives)
  assert not any('gpus-per-task' in d or 'gpu-bind' in d for d in directives)


def tpu_vm(machine, *codes, **env) -> int:
  settings = dict(PROJECT='p', ZONE='z', FILESTORE='10.0.0.2:/share', POLL=0)
  return machine.run(LAUNCH / 'tpu_vm.sh', '--config.seed=1', codes=codes, **{**settings, **env})


def counts(machine) -> tuple[int, int, int]:
  """Runs; slices asked for; slices deleted."""
  requests = [len(machine.calls('gcloud', f'queued-resources {what}')) for what in ('create', 'delete')]
  return len(machine.calls('hydra-jax')), *requests


@pytest.mark.parametrize(
  'codes, code, expected',
  [
    ([0], 0, (1, 1, 1)),
    ([75, 0], 0, (2, 1, 1)),  # preempted, and the slice is still there
    (['75 SUSPENDED', 0], 0, (2, 2, 2)),  # preempted, and it is gone
    (['255 SUSPENDED', '1 FAILED', 0], 0, (3, 3, 3)),  # lost without a word
    ([75, 2, 0], 2, (2, 1, 1)),
    ([1, 0], 1, (1, 1, 1)),  # failed early
  ],
)
def test_tpu_vm(machine, codes, code, expected):
  assert tpu_vm(machine, *codes) == code, machine.errors
  assert counts(machine) == expected
  for arguments in machine.calls('hydra-jax'):
    assert '--distributed' in arguments and '--config.seed=1' in arguments
    accepted(arguments)


def test_tpu_vm_asks_for_a_spot_slice_and_installs_on_all_hosts(machine):
  assert tpu_vm(machine, 1, 0, RETRY_AFTER=0) == 0  # failed late: once more
  assert counts(machine) == (2, 1, 1)
  (create,) = machine.calls('gcloud', 'create')
  assert {'--spot', '--node-id=hydra', '--accelerator-type=v6e-16', '--project=p', '--zone=z'} <= set(create)
  assert all('--worker=all' in c for word in ('ssh', 'scp') for c in machine.calls('gcloud', f'tpu-vm {word}'))
  assert (machine.home / 'hydra' / 'configs' / 'cifar10.py').exists()
  assert ['mount', '-t', 'nfs', '10.0.0.2:/share', '/mnt/hydra'] in machine.calls('sudo')
  assert machine.calls('python3', 'jax[tpu]') and machine.calls('pkill')
  (delete, *_) = machine.calls('gcloud', 'delete')
  assert {'--force', '--quiet'} <= set(delete)


def test_tpu_vm_can_keep_the_slice(machine):
  assert tpu_vm(machine, 0, KEEP=1, TIER='') == 0
  assert counts(machine) == (1, 1, 0) and not machine.calls('gcloud', '--spot')
  assert tpu_vm(machine, 0, KEEP=1) == 0  # is found, and used again
  assert counts(machine) == (2, 1, 0)


def test_tpu_vm_says_what_is_missing(machine):
  assert tpu_vm(machine, 0, FILESTORE='') == 1
  assert 'FILESTORE: which NFS share' in machine.errors and not machine.calls('gcloud')


def wait_for(condition, seconds: float = 10) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_tpu_vm_saves_and_deletes_when_it_is_interrupted(machine):
  settings = dict(PROJECT='p', ZONE='z', FILESTORE='10.0.0.2:/share', POLL=0)
  process = machine.start(LAUNCH / 'tpu_vm.sh', codes=['hang'], **settings)
  wait_for((machine.record / 'pid').exists)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 130 and counts(machine) == (1, 1, 1)
  assert not alive(int((machine.record / 'pid').read_text()))


def alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return b'\nState:\tZ' not in Path(f'/proc/{pid}/status').read_bytes() if Path('/proc/self').exists() else True


# What local.sh starts in place of hydra-jax: process I does what $DO_I says. Those that end wait for those that hang.
WORKER = r"""
[[ $JAX_PLATFORMS == cpu && $XLA_FLAGS == *--xla_force_host_platform_device_count=3 ]] || exit 99
[[ $JAX_COORDINATOR_ADDRESS == 127.0.0.1:* ]] || exit 98
echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"
trap 'echo saved >> "$RECORD/signal-$JAX_PROCESS_ID"; exit 75' TERM
trap 'echo interrupted >> "$RECORD/signal-$JAX_PROCESS_ID"; exit 130' INT
what=DO_$JAX_PROCESS_ID
shopt -s nullglob
case ${!what:-0} in
  stuck) trap '' TERM INT ;;&
  hang | stuck) echo $$ > "$RECORD/pid-$JAX_PROCESS_ID"; while :; do sleep 0.05; done ;;
  *)
    hanging=()
    while ((${#hanging[@]} < HANGING)); do sleep 0.05; hanging=("$RECORD"/pid-*); done
    exit "${!what:-0}"
    ;;
esac
"""


class Local(Machine):
  """A machine where local.sh starts WORKER, three times."""

  def __init__(self, folder):
    super().__init__(folder)
    program = folder / 'bin' / 'hydra-jax'
    program.write_text(RECORDER + WORKER)
    (folder / 'bin' / 'python3').unlink()  # the real one
    self.logs = folder / 'temporary'
    self.logs.mkdir()
    self.env.update(DEVICES=3, GRACE=0, POLL=0.05, TMPDIR=self.logs)

  def begin(self, *actions, **env) -> subprocess.Popen:
    """Starts local.sh, and waits until those processes hang that shall."""
    self.hanging = [i for i, a in enumerate(actions) if a in ('hang', 'stuck')]
    actions = {f'DO_{i}': a for i, a in enumerate(actions)}
    process = self.start(*self.command, HANGING=len(self.hanging), **actions, **env)
    wait_for(lambda: all(self._pid_file(i).exists() and self._pid_file(i).read_text() for i in self.hanging))
    return process

  def end(self, process, *signals) -> int:
    """Sends signals, waits, and looks that nothing is left."""
    for i, s in enumerate(signals):
      time.sleep(0.2 * min(i, 1))  # two at once would be one
      process.send_signal(s)
    for _ in range(6):
      try:
        self.output, self.errors = process.communicate(timeout=10)
        break
      except subprocess.TimeoutExpired:  # on a busy machine two signals may have been one
        process.send_signal(signals[-1])
    assert not any(alive(self.pid(i)) for i in self.hanging)
    return process.returncode

  def clear(self) -> None:
    for i in range(3):
      if self._pid_file(i).exists() and alive(self.pid(i)):
        os.kill(self.pid(i), signal.SIGKILL)
    super().clear()

  def pid(self, i: int) -> int:
    return int(self._pid_file(i).read_text())

  def signals(self) -> list[str]:
    return [f.read_text().strip() for f in sorted(self.record.glob('signal-*'))]

  def _pid_file(self, i):
    return self.record / f'pid-{i}'

  command = (LAUNCH / 'local.sh', 3, 'run', '--config=configs/digits.py', '--distributed', 'two words')


@pytest.fixture
def local(tmp_path):
  local = Local(tmp_path)
  yield local
  local.clear()


def test_local_starts_all_and_lets_the_first_speak(local, tmp_path):
  assert local.end(local.begin(LOGS=tmp_path / 'logs')) == 0
  line = 'process {} of 3: run --config=configs/digits.py --distributed two words\n'
  assert local.output == line.format(0)
  assert [(tmp_path / 'logs' / f'process-{i}.log').read_text() for i in (1, 2)] == [line.format(1), line.format(2)]
  assert sorted(v[2] for v in local.variables('hydra-jax')) == ['0', '1', '2']
  assert len({v[0] for v in local.variables('hydra-jax')}) == 1  # one address
  assert all(c[-1] == 'two words' for c in local.calls('hydra-jax'))


@pytest.mark.parametrize('actions, code', [((0, 0, 0), 0), ((9, 75, 2), 2), ((0, 75, 7), 75), ((0, 0, 3), 3)])
def test_local_returns_the_worst_code(local, actions, code):
  assert local.end(local.begin(*actions, GRACE=5)) == code
  assert bool(list(local.logs.iterdir())) == (code in (2, 3))  # logs stay where something failed
  if code == 3:
    assert 'process 2 of 3' in local.errors  # and their ends are shown


@pytest.mark.parametrize(
  'sent, code, heard', [('TERM', 75, 'saved'), ('INT', 130, 'interrupted'), ('HUP', 75, 'saved')]
)
def test_local_passes_signals_on(local, sent, code, heard):
  process = local.begin('hang', 'hang', 'hang', GRACE=5)
  assert local.end(process, signal.Signals[f'SIG{sent}']) == code
  assert local.signals() == [heard] * 3


def test_local_kills_the_rest(local):
  assert local.end(local.begin('hang', 3, 'stuck')) == 3  # not the 75 of the one that saved when it was told to end
  assert '0 2 still run' in local.errors


def test_local_notices_that_a_process_is_killed(local):
  process = local.begin('hang', 'hang', 'hang')
  os.kill(local.pid(1), signal.SIGKILL)
  assert local.end(process) == 137


def test_local_kills_at_the_second_interrupt(local):
  assert local.end(local.begin('stuck', 'stuck', 'stuck'), signal.SIGINT, signal.SIGINT) == 137


def test_local_does_not_leave_processes_behind_when_it_is_killed(local):
  if subprocess.run(['bash', '-c', 'setpriv --pdeathsig TERM true'], capture_output=True).returncode:
    return  # a system that does not offer it
  process = local.begin('hang', 'hang', 'hang')
  process.kill()
  wait_for(lambda: not any(alive(local.pid(i)) for i in range(3)))
  local.end(process)


@pytest.mark.parametrize('arguments', [(), ('2',), ('0', 'run'), ('run', '2')])
def test_local_wants_a_number_and_a_command(machine, arguments):
  assert machine.run(LAUNCH / 'local.sh', *arguments) == 2
  assert 'local.sh 2 run --config' in machine.errors and not machine.calls('hydra-jax')


def test_local_says_that_the_program_is_missing(machine):
  assert machine.run(LAUNCH / 'local.sh', 2, 'run', HYDRA_JAX='no-such-program') == 2
  assert 'there is no no-such-program on PATH' in machine.errors
