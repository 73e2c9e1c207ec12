"""What cannot be restored: damaged files are named, and whole ones are never to be deleted."""

import os

import jax
import jax.numpy as jnp
import pytest

from hydra_jax import UserError, store
from hydra_jax.training import checkpoints

TREE = {'a': jnp.arange(6.0), 'b': (jnp.ones((2, 3)),)}


@pytest.fixture
def folder(tmp_path):
  with store.writing(tmp_path / 'part') as new:
    checkpoints.save(new / 'model', TREE)
  return tmp_path / 'part'


def damage(folder):
  largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


def test_what_is_saved_is_restored(folder):
  found = checkpoints.restore(folder / 'model', jax.eval_shape(lambda: TREE))
  assert jax.tree.all(jax.tree.map(lambda one, other: bool(jnp.all(one == other)), found, TREE))


@pytest.mark.parametrize('error', [TimeoutError('a barrier'), ValueError('RPC failed'), RuntimeError('Gloo: closed')])
def test_a_lost_process_is_not_taken_for_damage(folder, monkeypatch, error):
  """Whatever it shows as: where the files are whole, it is passed on, for exit code 76."""

  def lost(*_):
    raise error

  monkeypatch.setattr(checkpoints.ocp, 'load', lost)
  with pytest.raises(UserError, match='though its files are whole'):  # alone, there is nobody to lose
    checkpoints._restore(folder / 'model', TREE)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(type(error)) as e:
    checkpoints._restore(folder / 'model', TREE)
  assert e.value is error
  damage(folder)
  with pytest.raises(store.Damaged, match='delete that folder'):
    checkpoints._restore(folder / 'model', TREE)


@pytest.mark.parametrize(
  'other', [{**TREE, 'a': jnp.arange(7.0)}, {'a': TREE['a']}, {**TREE, 'c': TREE['a']}, TREE['b']]
)
def test_another_tree_is_one_line_and_no_advice_to_delete(folder, other):
  with pytest.raises(UserError, match='another network than it is said to hold') as e:
    checkpoints.restore(folder / 'model', jax.eval_shape(lambda: other))
  assert 'delete' not in str(e.value)
