"""The rows for one accelerator: a stopped command continues, and a table comes out."""

import json

import pytest

from experiments import gpu


def test_kernels_by_kind():
  """Three members, two steps: one convolution by one kernel, one by three, and a fusion; none of a CPU."""
  names = {1: '/host:CPU', 2: '/device:GPU:0'}
  events = [dict(ph='M', name='process_name', pid=pid, args=dict(name=name)) for pid, name in names.items()]
  kernel = lambda pid, name, op, us: dict(ph='X', name=name, pid=pid, dur=us, args=dict(hlo_op=op))
  events += [kernel(2, 'gemm', 'cudnn-conv.1', 500.0)] * 2 + [kernel(2, 'gemm', 'cudnn-conv.2', 250.0)] * 6
  events += [kernel(2, 'slice', 'cudnn-conv.2', 50.0)] * 12 + [kernel(2, 'loop', 'fusion.3', 125.0)] * 2
  events += [kernel(1, 'gemm', 'cudnn-conv.1', 1e6), dict(ph='X', name='copy', pid=2, dur=1e6)]
  found = gpu.kinds(events, 2, 3)
  assert {kind: count for kind, (count, _) in found.items()} == {
    'convolutions, members side by side': 1,
    'convolutions, member by member': 1,
    'other': 1,
  }
  assert [ms for _, ms in found.values()] == pytest.approx([0.5, 0.75 + 0.3, 0.125])
  text = gpu.text_of_profile(found, gpu.Row('resnet', 'bfloat16', 3, 'vmap'), 1.5, 'a GPU')
  assert '| convolutions, member by member | 1 | 1.05 | 0.63 |' in text and '1.5 ms a step' in text


@pytest.mark.slow
def test_a_profile_without_a_gpu_says_so(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    gpu.main(['--quick', '--profile', f'--output={tmp_path}'])
  assert stop.value.code == 2 and 'no kernels of a GPU' in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rows_that_are_there_are_not_measured_again(monkeypatch, tmp_path, capsys):
  whole = gpu.rows(quick=True)
  assert {(row.network, row.members) for row in whole} == {('mlp', 1), ('mlp', 4), ('resnet', 1), ('resnet', 4)}
  monkeypatch.setattr(gpu, 'rows', lambda quick: whole[:2])
  gpu.main(['--quick', '--seconds=0.01', f'--output={tmp_path}'])
  first = (tmp_path / 'rows.jsonl').read_text()
  assert [json.loads(line)['members'] for line in first.splitlines()] == [1, 4]
  for line in first.splitlines():
    row = json.loads(line)
    assert row['needed_flops_per_s'] == pytest.approx(row['share'] * row['peak_flops_per_s'])
    flops = 2 * (3 * (784 * 100 + 100 * 100 + 100 * 10) - 784 * 100)  # of one image, forward and back
    assert row['needed_flops_per_s'] == pytest.approx(row['member_images_per_s'] * flops)
  other = first.replace('cpu, ', 'another, ')  # rows of another device are kept, and are no rows of this one
  (tmp_path / 'rows.jsonl').write_text(first + other)
  gpu.main(['--quick', '--seconds=0.01', f'--output={tmp_path}'])
  assert '0 of 2 rows are left' in capsys.readouterr().out and (tmp_path / 'rows.jsonl').read_text() == first + other
  assert other != first and (tmp_path / 'table.md').read_text().count('| mlp | float32 |') == 2
