"""The rows for one accelerator: a stopped command continues, and a table comes out."""

import json

import pytest

from experiments import gpu

pytestmark = pytest.mark.slow


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
