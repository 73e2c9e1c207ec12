"""What is in the files of experiment trackers, for tests; their libraries have no readers without a server."""

from collections.abc import Iterator
import json
from pathlib import Path
from types import SimpleNamespace


def events(folder: Path) -> Iterator[tuple[str, object]]:
  """Series and values of all event files: records of length, checksum, content, checksum."""
  from tensorboardX.proto.event_pb2 import Event

  for file in sorted(folder.glob('*/**/events.out.*')):
    data, at = file.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at : at + 8], 'little')
      event = Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      for value in event.summary.value:
        value.metadata.display_name = str(event.step)
        yield '/'.join(file.parent.relative_to(folder).parts[1:]), value


def in_tensorboard(folder: Path) -> dict[str, list[tuple[str, int, float]]]:
  """Scalars `(tag, step, value)` of each series, in the order in which they were written."""
  found: dict[str, list] = {}
  for series, value in events(folder):
    if value.HasField('simple_value'):
      found.setdefault(series, []).append((value.tag, int(value.metadata.display_name), value.simple_value))
  return found


def _records(file: Path) -> Iterator[object]:
  """Records of a `.wandb` file, a log of LevelDB: pieces with checksum, length and kind, in blocks of 32 KiB."""
  from wandb.proto.wandb_internal_pb2 import Record

  data, at, whole = file.read_bytes(), 7, b''
  while at + 7 <= len(data):
    if (left := 2**15 - at % 2**15) < 7:
      at += left
      continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], 'little'), data[at + 6]
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or its last piece
      yield Record.FromString(whole)
      whole = b''


def in_wandb(file: Path) -> SimpleNamespace:
  """The run of a `.wandb` file; `points` are values by series, name and step."""
  found = SimpleNamespace(points={}, summary={}, steps={}, config={}, id='', project='')
  value_of = lambda item: ('/'.join(item.nested_key) or item.key, json.loads(item.value_json))
  for record in _records(file):
    if record.HasField('run'):
      found.id, found.project = record.run.run_id, record.run.project
      found.config |= dict(map(value_of, record.run.config.update))
    elif record.HasField('metric'):
      found.steps[record.metric.glob_name.removesuffix('/*')] = record.metric.step_metric
    elif record.HasField('summary'):
      found.summary |= dict(map(value_of, record.summary.update))
    elif record.HasField('history'):
      row = {name: value for name, value in map(value_of, record.history.item) if not name.startswith('_')}
      (series,) = (name.removesuffix('/step') for name in row if name.endswith('/step'))
      step = row.pop(f'{series}/step')
      for name, value in row.items():
        key = (series, name.removeprefix(f'{series}/'), step)
        assert key not in found.points, key
        found.points[key] = value
  return found
