"""How fast ensembles train on one accelerator, beside the matrix product that it reaches.

    python -m experiments.gpu --output /tmp/gpu              # all rows that are not in the folder already
    python -m experiments.gpu --output /tmp/gpu --quick      # small, on any machine: to see that it works
    python -m experiments.gpu --output /tmp/gpu --profile    # instead: where the time of 50 ResNet-20 goes, on a GPU

It says which device it has found and how many rows are left before it starts. Each row is written when it is measured,
so a command that was stopped continues. FOLDER/rows.jsonl has the rows, FOLDER/table.md the table.

A row trains an ensemble on random data that lie on the device: a ResNet-20 on images of 32x32 pixels, batch 128, SGD
with momentum; or an MLP 784-100-100-10, batch 128, Adam. `needed` operations are those of the matrix products and
convolutions of a step (`bench.step_flops`); their share is of the fastest square matrix product in the same type.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
import gzip
import itertools
import json
import os
from pathlib import Path
import tempfile
import time

import jax
import optax

from experiments import bench
from hydra_jax.nets import cut, zoo
from hydra_jax.nets.stages import mlp

MEMBERS = (1, 4, 16, 50)
HEADINGS = ('network', 'type', 'members', 'mapping', 'compiling, s', 'member-images/s', 'needed TFLOP/s', 'share')


@dataclass(frozen=True)
class Row:
  """What is measured: a network, the type it computes in, the number of members, and how they are mapped."""

  network: str
  dtype: str
  members: int
  mapping: str


def rows(quick: bool) -> list[Row]:
  """All rows, the cheap ones first. Members in a loop show what mapping them side by side is worth."""
  members = MEMBERS[:2] if quick else MEMBERS
  found = [Row('mlp', 'float32', count, 'vmap') for count in members]
  types = ('float32',) if quick else ('bfloat16', 'float32')
  for count, dtype in itertools.product(members, types):
    found += [Row('resnet', dtype, count, mapping) for mapping in (('vmap',) if count == 1 else ('vmap', 'loop'))]
  return found


def training_of(row: Row, quick: bool) -> tuple[bench.Training, int, int]:
  """The program of a row, the steps of a call, and the operations that a step needs for one member."""
  batch_size, steps = (16, 2) if quick else (128, 20)
  shape, depth = ((784,), 0) if row.network == 'mlp' else ((32, 32, 3), 8 if quick else 20)
  stages = zoo.resnet(10, depth, dtype=row.dtype) if depth else mlp(10)
  layers = bench.resnet_layers(depth) if depth else bench.mlp_layers(784, 100, 100, 10)
  examples = 10 * batch_size
  network = cut.multi_head(stages, 0, row.members, mapping=row.mapping)
  optimizer = bench.SGD if depth else optax.adam(1e-3)
  index = bench.order(examples, steps, batch_size)
  made = bench.training(network, 'labels', optimizer, bench.classes(examples, shape), index)
  return made, steps, bench.step_flops(layers, batch_size)


def repeated(run: Callable[[], None], seconds: float) -> float:
  """Median seconds of a call, of as many calls as take this long; the first call is not counted."""
  run()
  found: list[float] = []
  while sum(found) < seconds:
    begun = time.perf_counter()
    run()
    found.append(time.perf_counter() - begun)
  return sorted(found)[len(found) // 2]


def peak_of(dtype: str, quick: bool, seconds: float) -> float:
  """Operations a second of a product of two square matrices, at the default precision: the best of three sizes."""

  def rate(size: int) -> float:
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    f = jax.jit(lambda a: a @ a)
    return 2 * size**3 / repeated(lambda: f(matrix).block_until_ready(), seconds / 3)

  return max(map(rate, (128, 256) if quick else (4096, 8192, 16384)))


def measured(row: Row, peak: float, quick: bool, seconds: float, about: str) -> dict:
  """A row with its numbers, and the device."""
  begun = time.perf_counter()
  made, steps, needed = training_of(row, quick)
  contender = bench.trains('', made, 1, '')
  contender.run()
  compiling = time.perf_counter() - begun
  each = repeated(contender.run, seconds) / steps
  batch_size = made.inputs.index.shape[-1]
  rate = needed * row.members / each
  numbers = dict(compiling_s=compiling, member_images_per_s=row.members * batch_size / each)
  return asdict(row) | numbers | dict(device=about, needed_flops_per_s=rate, share=rate / peak, peak_flops_per_s=peak)


def text_of(found: list[dict], about: str) -> str:
  """The table, in Markdown."""
  lines = ['| ' + ' | '.join(HEADINGS) + ' |', '|---|---|' + '---:|' * (len(HEADINGS) - 2)]
  for row in found:
    cells = [row['network'], row['dtype'], row['members'], row['mapping'], f'{row["compiling_s"]:.0f}']
    cells += [f'{row["member_images_per_s"]:,.0f}', f'{row["needed_flops_per_s"] / 1e12:.3g}', f'{row["share"]:.3f}']
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  peaks = {row['dtype']: row['peak_flops_per_s'] for row in found}
  of_peaks = ', '.join(f'{dtype} {peak / 1e12:.3g} TFLOP/s' for dtype, peak in peaks.items())
  return '\n'.join([*lines, '', f'{about}. Fastest matrix product: {of_peaks}.', ''])


def measured_before(file: Path, about: str) -> list[dict]:
  """Rows in the file that are of this device."""
  there = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
  return [row for row in there if row['device'] == about]


def left(there: Sequence[Mapping], quick: bool) -> list[Row]:
  """Rows that are not there."""
  return [row for row in rows(quick) if not any(asdict(row).items() <= each.items() for each in there)]


def traced(row: Row, quick: bool) -> tuple[list[dict], int, float]:
  """Events of a profiler's trace of a call, the steps of the call, and its milliseconds a step without the profiler."""
  made, steps, _ = training_of(row, quick)
  contender = bench.trains('', made, 1, '')
  each = repeated(contender.run, 0.5) / steps
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, create_perfetto_trace=True):
      contender.run()
    (file,) = Path(folder).rglob('perfetto_trace.json.gz')
    with gzip.open(file) as trace:
      return json.load(trace)['traceEvents'], steps, 1e3 * each


def kinds(events: Iterable[Mapping], steps: int, members: int) -> dict[str, tuple[int, float]]:
  """Kernels of a GPU by kind: the number of operations of the program, and milliseconds a step on all streams.

  cuDNN has no kernel for some grouped convolutions. It runs them member by member, one kernel for each.
  """
  lanes, kernels, calls = {}, defaultdict(float), defaultdict(Counter)
  for event in events:
    if event.get('ph') == 'M' and event['name'] == 'process_name':
      lanes[event['pid']] = event['args']['name']
  for event in events:
    if event.get('ph') == 'X' and 'GPU' in lanes.get(event['pid'], '') and 'hlo_op' in event.get('args', {}):
      operation = event['args']['hlo_op']
      kernels[operation] += event['dur'] / 1e3 / steps
      calls[operation][event['name']] += 1
  found: dict[str, tuple[int, float]] = {}
  for operation, milliseconds in kernels.items():
    alone = max(calls[operation].values()) >= members * steps > steps
    kind = (
      f'convolutions, {"member by member" if alone else "members side by side"}' if 'conv' in operation else 'other'
    )
    count, total = found.get(kind, (0, 0.0))
    found[kind] = count + 1, total + milliseconds
  return found


def text_of_profile(found: Mapping[str, tuple[int, float]], row: Row, each: float, about: str) -> str:
  """The table of kinds, in Markdown."""
  lines = ['| kernels | operations | ms a step | share |', '|---|---:|---:|---:|']
  whole = sum(milliseconds for _, milliseconds in found.values())
  for kind, (count, milliseconds) in sorted(found.items(), key=lambda item: -item[1][1]):
    lines.append(f'| {kind} | {count} | {milliseconds:.3g} | {milliseconds / whole:.2f} |')
  what = f'{row.network}, {row.dtype}, {row.members} members: {each:.3g} ms a step without the profiler'
  return '\n'.join([*lines, '', f'{about}. {what}. Kernels of several streams run at the same time.', ''])


def main(arguments: list[str] | None = None) -> None:
  """Measures what is left, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', type=Path, required=True, help='folder of the rows')
  parser.add_argument('--seconds', type=float, default=1.5, help='of measuring each row')
  parser.add_argument('--quick', action='store_true', help='small networks and few members')
  parser.add_argument('--profile', action='store_true', help='where the time of a step goes, instead of rows')
  options = parser.parse_args(arguments)
  options.output.mkdir(parents=True, exist_ok=True)
  file, device = options.output / 'rows.jsonl', jax.devices()[0]
  about = f'{device.device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}{", quick" * options.quick}'
  if options.profile:
    row = Row('resnet', 'bfloat16', MEMBERS[1 if options.quick else -1], 'vmap')
    events, steps, each = traced(row, options.quick)
    found = kinds(events, steps, row.members)
    if not found:
      parser.error('the trace has no kernels of a GPU: run --profile on a machine that has one')
    (options.output / 'profile.md').write_text(text_of_profile(found, row, each, about))
    return
  todo = left(measured_before(file, about), options.quick)
  print(f'{about}: {len(todo)} of {len(rows(options.quick))} rows are left; about 20 s each', flush=True)
  peaks = {t: peak_of(t, options.quick, options.seconds) for t in sorted({row.dtype for row in todo})}
  for row in todo:
    found = measured(row, peaks[row.dtype], options.quick, options.seconds, about)
    with open(file, 'a') as rows_file:
      rows_file.write(json.dumps(found) + '\n')
    print(f'{row}: {found["member_images_per_s"]:,.0f} member-images/s', flush=True)
  (options.output / 'table.md').write_text(text_of(measured_before(file, about), about))


if __name__ == '__main__':
  main()
