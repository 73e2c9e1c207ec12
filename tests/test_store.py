"""Folders are complete or absent."""

import errno
import os

import pytest

from hydra_jax import UserError, store


def test_a_folder_appears_whole(tmp_path):
  folder = tmp_path / 'parts' / 'a'
  with store.writing(folder) as new:
    (new / 'x').write_text('1')
    assert not folder.exists()
  store.verify(folder)
  assert [p.name for p in folder.parent.iterdir()] == ['a']


def test_nothing_stays_behind_after_an_error(tmp_path):
  with pytest.raises(ZeroDivisionError), store.writing(tmp_path / 'a') as new:
    (new / 'x').write_text('1')
    raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_the_first_of_two_writers_stays(tmp_path):
  with store.writing(tmp_path / 'a') as late:
    (late / 'x').write_text('late')
    with store.writing(tmp_path / 'a') as early:
      (early / 'x').write_text('early')
  assert (tmp_path / 'a' / 'x').read_text() == 'early'


@pytest.mark.parametrize('damage', ['truncate', 'change', 'remove', 'manifest'])
def test_damage_is_found(tmp_path, damage):
  folder = tmp_path / 'a'
  with store.writing(folder) as new:
    (new / 'deep').mkdir()
    (new / 'deep' / 'x').write_bytes(b'12345678')
  path = folder / 'deep' / 'x'
  match damage:
    case 'truncate':
      os.truncate(path, 4)
    case 'change':
      path.write_bytes(b'12345679')
    case 'remove':
      path.unlink()
    case 'manifest':
      os.truncate(folder / store.MANIFEST, 5)
  with pytest.raises(UserError, match='delete that folder'):
    store.verify(folder)


def test_replacing_keeps_the_old_file_on_error(tmp_path):
  path = tmp_path / 'table.md'
  store.replace_text(path, 'old')
  with pytest.raises(OSError), store.replacing(path) as new:
    new.write_text('half')
    raise OSError(errno.ENOSPC, 'full')
  assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['table.md']


def test_one_run_at_a_time_and_leftovers_go(tmp_path):
  (tmp_path / '.new-abc').mkdir()
  (tmp_path / '.new-table.md').write_text('half')
  with store.locked(tmp_path):
    assert [p.name for p in tmp_path.iterdir()] == ['.lock']
    with pytest.raises(UserError, match='another run'), store.locked(tmp_path):
      pass
  with store.locked(tmp_path):
    pass


def test_keys_depend_on_every_value():
  keys = {store.key_of(d) for d in ({'a': 1}, {'a': 2}, {'b': 1}, {'a': (1, 2)}, {'a': '1'})}
  assert len(keys) == 5
  assert store.key_of({'a': 1, 'b': 2}) == store.key_of({'b': 2, 'a': 1})
