"""Folders are complete or absent."""

import errno
import os
import shutil

import numpy as np
import pytest

from hydra_jax import UserError, store


def test_a_folder_appears_whole(tmp_path):
  folder = tmp_path / 'artifacts' / 'a'
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
  (tmp_path / 'artifacts' / 'a.progress').mkdir(parents=True)
  for place in ('.', 'artifacts', 'artifacts/a.progress'):
    (tmp_path / place / f'{store.NEW}abc').mkdir()
    (tmp_path / place / f'{store.NEW}table.md').write_text('half')
  with store.locked(tmp_path):
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['.lock', 'a.progress', 'artifacts']
    with pytest.raises(UserError, match='another run'), store.locked(tmp_path):
      pass
  with store.locked(tmp_path):
    pass


def test_only_our_own_leftovers_go(tmp_path):
  """Not the user's own of a name like ours, not those in folders that we do not write to, not what a link leads to."""
  work, other = tmp_path / 'work', tmp_path / 'other'
  (other / 'precious').mkdir(parents=True)
  kept = [work / '.new-notes', work / 'artifacts' / '.new-thesis', work / 'notes' / f'{store.NEW}draft']
  for folder in kept:
    folder.mkdir(parents=True)
  (work / f'{store.NEW}link').symlink_to(other)
  (work / 'figures').symlink_to(other)
  with store.locked(work):
    assert all(folder.exists() for folder in kept) and (other / 'precious').exists()
    assert not (work / f'{store.NEW}link').is_symlink()


@pytest.mark.parametrize('kind', ['link', 'folder', 'pipe'])
def test_a_lock_that_is_no_plain_file_is_refused_and_empties_nothing(tmp_path, kind):
  work, thesis = tmp_path / 'work', tmp_path / 'thesis.tex'
  work.mkdir()
  thesis.write_text('years of work')
  lock = work / store.LOCK
  {'link': lambda: lock.symlink_to(thesis), 'folder': lock.mkdir, 'pipe': lambda: os.mkfifo(lock)}[kind]()
  with pytest.raises(UserError, match='no plain file'), store.locked(work):
    pass
  assert thesis.read_text() == 'years of work'


def test_a_lock_keeps_what_is_in_it(tmp_path):
  (tmp_path / store.LOCK).write_text('mine')
  with store.locked(tmp_path):
    pass
  assert (tmp_path / store.LOCK).read_text() == 'mine'


@pytest.mark.parametrize('then', ['removed', 'renamed', 'replaced'])
def test_a_work_directory_that_is_no_longer_there_is_noticed(tmp_path, then):
  work = tmp_path / 'work'
  (work / 'artifacts').mkdir(parents=True)
  with pytest.raises(UserError, match='was removed, renamed or replaced'), store.locked(work):
    store.replace_text(work / 'a', 'there')
    work.rename(tmp_path / 'moved') if then == 'renamed' else shutil.rmtree(work)
    if then == 'replaced':
      (work / 'artifacts').mkdir(parents=True)
      (work / store.LOCK).touch()
    for write in (
      lambda: store.replace_text(work / 'b', ''),
      lambda: store.writing(work / 'artifacts' / 'c').__enter__(),
    ):
      with pytest.raises(UserError, match='was removed, renamed or replaced'):
        write()
    # And at the end of the block, even if nothing more is written.
  assert not list(tmp_path.rglob('b')) and not list(tmp_path.rglob('c'))


def test_parts_that_are_no_longer_there_are_noticed_too(tmp_path):
  (tmp_path / 'artifacts').mkdir()
  with store.locked(tmp_path):
    (tmp_path / 'artifacts').rmdir()
    with (
      pytest.raises(UserError, match='artifacts was removed during the run'),
      store.writing(tmp_path / 'artifacts' / 'a'),
    ):
      pass


def test_what_counts_is_on_the_disk_before(tmp_path, monkeypatch):
  """Files and the folders they are in before the new name, and the folder above after it."""
  done = []
  name = lambda descriptor: os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))
  real = {f: getattr(os, f) for f in ('fsync', 'rename', 'replace')}
  monkeypatch.setattr(os, 'fsync', lambda d: done.append(('sync', name(d))) or real['fsync'](d))
  for f in ('rename', 'replace'):
    monkeypatch.setattr(os, f, lambda old, new, f=f: done.append(('name', os.path.basename(new))) or real[f](old, new))
  if not os.path.exists('/proc/self/fd'):
    pytest.skip('no /proc here')
  with store.writing(tmp_path / 'a') as new:
    (new / 'deep').mkdir()
    (new / 'deep' / 'x').write_text('1')
  assert done[-2:] == [('name', 'a'), ('sync', tmp_path.name)]
  synced = [what for kind, what in done[:-2] if kind == 'sync']
  assert sorted(synced) == sorted(['x', 'deep', store.MANIFEST, new.name]) and synced.index('x') < synced.index('deep')
  done.clear()
  store.replace_text(tmp_path / 'table.md', 'text')
  assert done == [('sync', f'{store.NEW}table.md'), ('name', 'table.md'), ('sync', tmp_path.name)]


BAD_JSON = {
  'cut': b'{"a": 1',
  'empty': b'',
  'bytes': b'\xff\xfe{"a": 1}',
  'deep': b'[' * 100_000 + b']' * 100_000,
  'twice': b'{"a": 1, "a": 2}',
  'nan': b'{"a": NaN}',
  'infinite': b'{"a": 1e999}',
  'digits': b'{"a": ' + b'9' * 10_000 + b'}',
  'half a pair': b'{"a": "\\ud800"}',
}


@pytest.mark.parametrize('content', BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_is_not_plain_is_damage(tmp_path, content):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(store.Damaged) as e:
    store.read_json(tmp_path / 'a.json')
  assert 'a.json is damaged' in str(e.value) and len(str(e.value).splitlines()) == 1


MANIFESTS = {
  **BAD_JSON,
  'list': b'[]',
  'nothing': b'null',
  'no files': b'{}',
  'numbers': b'{"x": 1}',
  'objects': b'{"x": {"x": "1"}}',
  'outside': b'{"../secret": "0", "/etc/passwd": "0"}',
  'line breaks': b'{"x\\ny\\u001b[2J": "0"}',
}


@pytest.mark.parametrize('content', MANIFESTS.values(), ids=MANIFESTS)
def test_edited_manifests_are_damage(tmp_path, content):
  with store.writing(tmp_path / 'a') as new:
    (new / 'x').write_text('1')
  (tmp_path / 'a' / store.MANIFEST).write_bytes(content)
  with pytest.raises(store.Damaged, match='delete that folder') as e:
    store.verify(tmp_path / 'a')
  assert str(e.value).isprintable()


def test_what_is_added_to_a_folder_is_damage_but_for_what_systems_add(tmp_path):
  folder, secret = tmp_path / 'a', tmp_path / 'secret'
  secret.write_text('1')
  with store.writing(folder) as new:
    (new / 'x').write_text('1')
  (folder / '.DS_Store').write_text('')
  store.verify(folder)
  (folder / 'y').write_text('1')
  with pytest.raises(store.Damaged, match='first bad file: y'):
    store.verify(folder)
  (folder / 'y').unlink()
  (folder / 'x').unlink()
  (folder / 'x').symlink_to(secret)  # of the same content
  with pytest.raises(store.Damaged, match='x, which is a link'):
    store.verify(folder)


class Shell:
  """What runs a command when it is unpickled."""

  def __reduce__(self):
    return os.system, ('touch unpickled',)


def test_arrays_are_read_without_unpickling(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  good = {'a': np.arange(3), 'b|c': np.float32([[1.5]])}
  np.savez('good.npz', **good)
  assert {k: v.tolist() for k, v in store.read_arrays(tmp_path / 'good.npz').items()} == {
    'a': [0, 1, 2],
    'b|c': [[1.5]],
  }
  np.savez('pickled.npz', a=np.array([Shell()], object))
  np.save('pickled.npy', np.array([Shell()], object), allow_pickle=True)
  (tmp_path / 'cut.npz').write_bytes((tmp_path / 'good.npz').read_bytes()[:200])
  (tmp_path / 'text.npz').write_text('not arrays')
  (tmp_path / 'empty.npz').write_bytes(b'')
  for name in ('pickled.npz', 'pickled.npy', 'cut.npz', 'text.npz', 'empty.npz'):
    with pytest.raises(store.Damaged, match=f'{name} is damaged'):
      store.read_arrays(tmp_path / name)
  with pytest.raises(store.Damaged, match='pickled.npy is damaged'):
    store.read_mapped(tmp_path / 'pickled.npy')
  assert not (tmp_path / 'unpickled').exists()


def test_keys_depend_on_every_value():
  keys = {store.key_of(d) for d in ({'a': 1}, {'a': 2}, {'b': 1}, {'a': (1, 2)}, {'a': '1'})}
  assert len(keys) == 5
  assert store.key_of({'a': 1, 'b': 2}) == store.key_of({'b': 2, 'a': 1})


def a_part(folder):
  with store.writing(folder) as new:
    (new / 'deep').mkdir()
    (new / 'deep' / 'x').write_bytes(b'12345678')
  return folder


@pytest.mark.parametrize('one_disk', [True, False])
def test_a_part_has_two_places(tmp_path, monkeypatch, one_disk):
  """With links its files take no more space; on another disk they are copied."""
  source, folder = a_part(tmp_path / 'store' / 'a'), tmp_path / 'run' / 'a'
  folder.parent.mkdir()

  def refused(*_):
    raise OSError(errno.EXDEV, 'another disk')

  if not one_disk:
    monkeypatch.setattr(os, 'link', refused)
  store.link(source, folder)
  store.verify(folder)
  assert os.path.samefile(source / 'deep' / 'x', folder / 'deep' / 'x') == one_disk
  shutil.rmtree(source)
  store.verify(folder)
  assert [place.name for place in folder.parent.iterdir()] == ['a']


def test_a_part_that_cannot_be_linked_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'full')

  monkeypatch.setattr(os, 'link', full)
  with pytest.raises(OSError, match='full'):
    store.link(a_part(tmp_path / 'store' / 'a'), tmp_path / 'a')
  assert [place.name for place in tmp_path.iterdir()] == ['store']


def test_a_part_is_held_by_one_and_what_the_killed_have_left_is_removed(tmp_path):
  part, waited = tmp_path / 'a', []
  for left in (f'{store.NEW}a-1', f'{store.NEW}b-1', f'a.progress/{store.NEW}12'):
    (tmp_path / left).mkdir(parents=True)

  class Waits(Exception):
    pass

  def wait():
    waited.append(1)
    if len(waited) == 3:
      raise Waits

  with store.part_locked(part, wait):
    assert not waited and not list(tmp_path.glob(f'**/{store.NEW}[a1]*')) and (tmp_path / f'{store.NEW}b-1').exists()
    with pytest.raises(Waits), store.part_locked(part, wait):
      raise AssertionError('two hold it')
    with store.part_locked(tmp_path / 'b', wait):
      pass
  assert len(waited) == 3
  with store.part_locked(part, wait):
    assert len(waited) == 3
